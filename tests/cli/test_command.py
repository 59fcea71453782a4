"""The parts that all commands share."""

import importlib
import os
import subprocess
import sys

import numpy as np
import pytest

from mask_rcnn import cli
from mask_rcnn.cli import command
from mask_rcnn.config import Config
from mask_rcnn.weights import ModelMeta, write_weights


def test_an_interrupt_during_the_imports_is_one_line(monkeypatch, capsys):
    def interrupt(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib, 'import_module', interrupt)
    assert cli.main(['info', 'model.npz']) == 130
    assert capsys.readouterr() == ('', 'error: interrupted\n')


def test_a_command_announces_the_compilation_of_kernels_once(monkeypatch, capsys):
    callbacks = []
    monkeypatch.setattr('mask_rcnn.ops.runtime.compilation.on_first_compilation', callbacks.append)
    command.announce_compilation.cache_clear()
    for _ in range(2):
        assert command.run_and_report_errors(lambda: 0, ()) == 0
    assert capsys.readouterr() == ('', '')
    (announce,) = callbacks
    announce()
    out, err = capsys.readouterr()
    assert out == '' and err.startswith('compiling CPU kernels') and err.count('\n') == 1


@pytest.mark.parametrize(
    ('argv', 'place'),
    [
        (['info', ''], 'an argument'),
        (['info', 'a.npz', ''], 'an argument'),
        (['demo', '--image', ''], 'argument --image: the value'),
        (['demo', '--image', 'a.jpg', '--output='], 'argument --output: the value'),
        (['demo', '--image', 'a.jpg', '-g', '-1', ''], 'an argument'),
        (['evaluate', '--modelfile', 'a.npz', '--out', ''], 'argument --out: the value'),
        (['train', '--train_images='], 'argument --train-images: the value'),
        (['convert', '--output', ''], 'argument --output: the value'),
    ],
)
def test_an_empty_argument_is_not_the_current_folder(capsys, argv, place):
    """The shell passes "$FILE" as an empty argument if the variable is not set."""
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert capsys.readouterr().err.endswith(f'error: {place} is empty; a variable of the shell may be unset\n')


def test_commands_do_not_read_the_backend_of_matplotlib(tmp_path):
    """Matplotlib cannot be imported with a wrong one."""
    write_weights(
        tmp_path / 'a.npz',
        {'rpn/conv/W': np.ones((1, 1, 1, 1), np.float32)},
        ModelMeta('model', Config(n_fg_class=1), ('cat',), (1,)),
    )
    code = """import os, sys, mask_rcnn.cli
status = mask_rcnn.cli.main(['inspect', 'weights', 'a.npz', '--out', 'a.html'])
assert 'matplotlib' in sys.modules and os.environ['MPLBACKEND'] == 'nonsense'
sys.exit(status)"""
    environment = {**os.environ, 'MPLBACKEND': 'nonsense', 'PYTHONPATH': os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, check=False
    )
    assert (result.returncode, result.stderr) == (0, b'wrote a.html\n')
