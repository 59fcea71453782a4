"""Figures of weights: what is drawn, for usual values and for those that are not finite or not there."""

import math

import numpy as np
import pytest

from mask_rcnn.visualization import weight_figures
from mask_rcnn.visualization.figures import encode_figure
from mask_rcnn.visualization.weight_figures import (
    HistogramPanel,
    RangeRow,
    draw_changes,
    draw_filters,
    draw_histograms,
    draw_ranges,
)

NOTHING = HistogramPanel('empty', np.zeros(4, int), np.linspace(0, 1, 5))


def test_histograms_have_their_bars_titles_and_notes():
    panel = HistogramPanel('res2/$x$', np.array([0, 5, 2]), np.array([-1.0, 0, 1, 3]), 'std 0.5')
    figure = draw_histograms([panel, NOTHING], log_counts=False)
    assert len(encode_figure(figure)) > 1000
    axes = figure.axes[0]
    assert axes.get_title() == r'res2/\$x\$' and [text.get_text() for text in axes.texts] == ['std 0.5']
    (bars,) = axes.patches
    np.testing.assert_array_equal(bars.get_data().values, [0, 5, 2])
    assert axes.get_xlim() == (-1, 3)
    assert [place.axison for place in figure.axes] == [True, True, False, False, False]


def test_two_histograms_share_their_axis():
    panel = HistogramPanel(
        'a' * 40, np.array([1, 9]), np.array([0.0, 1, 2]), other=(np.array([3, 30]), np.array([-4.0, 0, 1]))
    )
    figure = draw_histograms([panel], labels=('before', 'after'))
    assert figure.axes[0].get_xlim() == (-4, 2) and len(figure.axes[0].patches) == 2
    assert figure.axes[0].get_title().startswith('...') and len(figure.axes[0].get_title()) == 28
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ['before', 'after']


def test_an_empty_histogram_does_not_extend_the_axis():
    panel = HistogramPanel('a', np.array([1, 9]), np.array([5.0, 6, 7]), other=(NOTHING.counts, NOTHING.edges))
    assert draw_histograms([panel]).axes[0].get_xlim() == (5, 7)


def test_ranges_of_usual_and_unusual_values():
    rows = [
        RangeRow('conv1', 'backbone', -2, (-1, -0.5, 0, 0.5, 1), 3),
        RangeRow('nan', 'backbone', math.nan, (math.nan,) * 5, math.nan),
        RangeRow('zero', 'RPN', 0, (0,) * 5, 0),
        RangeRow('huge', 'RPN', -1e308, (-1e308, 0, 0, 0, 1e308), 1e308),
    ]
    figure = draw_ranges(rows)
    assert len(encode_figure(figure)) > 1000
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ['conv1', 'nan', 'zero', 'huge']
    assert [text.get_text() for text in axes.texts] == ['backbone', 'RPN']
    (boxes,) = axes.containers
    assert [(bar.get_y() + bar.get_height() / 2, bar.get_x(), bar.get_width()) for bar in boxes] == [
        (0, -0.5, 1),
        (2, 0, 0),
        (3, 0, 0),
    ]
    assert len(encode_figure(draw_ranges(rows[1:2]))) > 1000


def tile_colors(weight, order):
    return weight_figures._filter_tiles(weight, order)


def test_filters_are_rgb_pictures_in_the_order_of_the_dialect():
    weight = np.zeros((4, 3, 1, 2))
    weight[0, 0] = 1, -0.5  # the first channel
    weight[2, 1, 0, 0] = np.nan
    weight[3, 2] = 1e-9
    for order, channel in (('RGB', 0), ('BGR', 2)):
        tiles = tile_colors(weight, order)
        left, right = [128] * 3, [128] * 3
        left[channel], right[channel] = 255, 64  # 128 + 127, and 128 - 63.5 to even
        np.testing.assert_array_equal(tiles[0, 5, 3], left)
        np.testing.assert_array_equal(tiles[0, 5, -3], right)
        assert (tiles[1] == 128).all() and (tiles[3] == 128).all()  # no weights, and none that matter
        assert (tiles[2, 0, 0] != 255).any() and (tiles[2, 20, 4] == 255).all()
    assert len(encode_figure(draw_filters(weight))) > 1000


@pytest.mark.filterwarnings('error')
def test_filters_near_the_largest_float64():
    weight = np.full((1, 3, 2, 2), 1e308)
    weight[0, 0] *= -1
    tile = np.asarray(draw_filters(weight).axes[0].images[0].get_array())[8, 8]
    assert tile[0] <= 1 and tile[1] == tile[2] == 255


@pytest.mark.parametrize('n_filters', [1, 17])
def test_numbers_of_filters(n_filters):
    figure = draw_filters(np.ones((n_filters, 3, 3, 3), np.float16))
    assert [text.get_text() for text in figure.axes[0].texts] == ['0', '16'][: -(-n_filters // 16)]


def test_bars_of_changes():
    figure = draw_changes(['zero', 'new', 'small', 'large'], [0, math.inf, 0.001, 2.0])
    assert len(encode_figure(figure)) > 1000
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ['equal', 'from zero', '0.001', '2']
    low, high = axes.get_xlim()
    assert low < 0.001 and high > 2
    assert [bar.get_width() for bar in axes.containers[0]][2:] == [0.001, 2.0]
    assert [bar.get_width() for bar in axes.containers[1]] == [high]
    assert len(encode_figure(draw_changes(['a'], [0]))) > 1000
