"""Figures do not depend on the settings of the user for Matplotlib."""

import ast
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.visualization.analysis_figures import plot_class_ap
from mask_rcnn.visualization.figures import default_style, encode_figure, new_figure

SETTINGS = {'font.size': 40, 'text.usetex': True, 'axes.facecolor': 'red', 'savefig.dpi': 30, 'xtick.major.size': 50}


def test_settings_of_the_user_do_not_change_figures_and_are_kept():
    expected = encode_figure(plot_class_ap([('cat', 3, 0.5, 0.7)]))
    with matplotlib.rc_context(SETTINGS):
        before = dict(matplotlib.rcParams)
        assert encode_figure(plot_class_ap([('cat', 3, 0.5, 0.7)])) == expected
        assert dict(matplotlib.rcParams) == before


def test_the_backend_is_kept():
    with matplotlib.rc_context(), default_style():
        backend = dict.__getitem__(matplotlib.rcParams, 'backend')
    assert dict.__getitem__(matplotlib.rcParams, 'backend') == backend


@pytest.mark.parametrize('path', sorted(Path(mask_rcnn.__file__).parent.glob('visualization/*_figure*.py')))
def test_every_function_that_draws_a_figure_has_the_default_style(path):
    functions = [node for node in ast.parse(path.read_text(encoding='utf-8')).body if isinstance(node, ast.FunctionDef)]
    drawing = [f for f in functions if f.returns and ast.unparse(f.returns) == 'Figure' and f.name[0] != '_']
    assert drawing
    for function in drawing:
        assert 'default_style()' in map(ast.unparse, function.decorator_list), function.name


def test_letters_that_the_font_lacks():
    figure, ((axes,),) = new_figure(1, 1)
    axes.set_title('\u65e5')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert np.frombuffer(encode_figure(figure), np.uint8).size > 100
