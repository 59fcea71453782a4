"""The figures of an evaluation show the values that they are given."""

import numpy as np
import pytest
from matplotlib.colors import to_hex

from mask_rcnn.visualization.analysis_figures import (
    plot_class_ap,
    plot_class_curves,
    plot_error_costs,
    plot_precision_recall,
    plot_size_ap,
    plot_size_recall,
)
from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.confusion_figure import plot_confusion
from mask_rcnn.visualization.error_pictures import MARKS
from mask_rcnn.visualization.figures import encode_figure

RECALLS = np.linspace(0, 1, 101)
CURVES = np.stack([np.clip(1.2 - RECALLS**k, 0, 1) for k in (4, 2, 1)])
NOTHING = np.full((3, 101), np.nan)


def texts(axes):
    return [text.get_text() for text in axes.texts]


def visible_texts(figure):
    """Return the texts of a figure with their boxes in pixels."""
    figure.draw_without_rendering()
    found = []
    for axes in figure.axes:
        found += [text for text in [*axes.texts, *axes.get_yticklabels(), axes.xaxis.label] if text.get_text().strip()]
    return [(text.get_text(), text.get_window_extent()) for text in found]


def overlapping(figure):
    """Return the pairs of texts that overlap."""
    items = visible_texts(figure)
    return [(a, b) for i, (a, box) in enumerate(items) for b, other in items[:i] if box.overlaps(other)]


def test_precision_recall_curves_have_their_ap():
    figure = plot_precision_recall(RECALLS, {'boxes': CURVES, 'keypoints': NOTHING})
    boxes, keypoints = figure.axes
    for line, values in zip(boxes.lines, CURVES, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([RECALLS, values], axis=1))
    labels = [text.get_text() for text in boxes.get_legend().get_texts()]
    names = ('IoU 0.5', 'IoU 0.75', 'IoU 0.5:0.95')
    assert labels == [f'{name}: AP {100 * c.mean():.1f}' for name, c in zip(names, CURVES, strict=True)]
    assert keypoints.get_legend().get_texts()[0].get_text() == 'OKS 0.5: AP -'
    assert len({(to_hex(line.get_color()), line.get_linestyle()) for line in boxes.lines}) == 3
    encode_figure(figure)


@pytest.mark.parametrize('n_classes', [2, 7])
def test_curves_of_classes(n_classes):
    figure = plot_class_curves(RECALLS, [(f'class {i}', CURVES) for i in range(n_classes)])
    used = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in used] == [f'class {i}  {100 * CURVES[2].mean():.1f}' for i in range(n_classes)]
    encode_figure(figure)


def test_ap_by_size():
    aps = {'boxes': {'small': 0.25, 'large': 0.5}, 'masks': {'large': 0.75}}
    figure = plot_size_ap(aps, {'small': 3, 'medium': 0, 'large': 5})
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.patches] == [25, 50, 75] and texts(axes) == ['25.0', '50.0', '75.0']
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ['small\n3 objects', 'medium\n0 objects', 'large\n5 objects']
    assert overlapping(figure) == []
    encode_figure(plot_size_ap({'boxes': {}}, {'small': 0, 'medium': 0, 'large': 0}))


def test_recall_by_size():
    recall = np.array([[1, np.nan, 0.5], [0.5, np.nan, 0.25], [0.6, np.nan, 0.2]])
    figure = plot_size_recall((16, 24, 32, float('inf')), np.array([4, 0, 8]), recall)
    upper, lower = figure.axes
    for line, values in zip(upper.lines, recall, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), [[0, values[0]], [2, values[2]]])
    assert [bar.get_height() for bar in lower.patches] == [4, 0, 8] and texts(lower) == ['4', '0', '8']
    assert [label.get_text() for label in lower.get_xticklabels()] == ['16 to 24', '24 to 32', 'above 32']


@pytest.mark.parametrize(('n_classes', 'n_worst'), [(1, None), (5, None), (30, 15)])
def test_ap_by_class(n_classes, n_worst):
    classes = [(f'class {i} with a name of many letters', 10 * i, 0.01 * i, 0.02 * i) for i in range(n_classes)]
    figure = plot_class_ap(classes, n_worst)
    (axes,) = figure.axes
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], np.arange(n_classes))
    np.testing.assert_allclose(axes.lines[0].get_xdata(), 2 * np.arange(n_classes))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [f'{plot_name(name)} ({n})' for name, n, _, _ in classes]
    positions = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    gaps = np.diff(positions)
    assert np.flatnonzero(gaps > 1.5).tolist() == ([] if n_worst is None else [n_worst - 1])
    assert overlapping(figure) == []


def test_costs_of_errors():
    kinds = ('classification', 'localisation', 'both', 'duplicate', 'background', 'missed')
    costs = [(name, 0.01 * i) for i, name in enumerate(kinds)]
    totals = [('false positives', 0.2), ('false negatives', 0.1)]
    figure = plot_error_costs({'boxes': costs, 'masks': costs}, {'boxes': totals, 'masks': totals})
    for axes in figure.axes:
        np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0, 1, 2, 3, 4, 5, 20, 10])
        assert [to_hex(bar.get_facecolor()) for bar in axes.patches[:6]] == [MARKS[name].color for name in kinds]
        assert texts(axes) == ['0.0', '1.0', '2.0', '3.0', '4.0', '5.0', '20.0', '10.0']
    assert overlapping(figure) == []
    encode_figure(plot_error_costs({'boxes': [(name, 0.0) for name in kinds]}, {'boxes': []}))


@pytest.mark.parametrize('n_classes', [1, 3, 9])
def test_confusion_matrices(n_classes):
    counts = np.arange((n_classes + 1) ** 2).reshape(n_classes + 1, -1)
    names = [f'class {i} with a long name' for i in range(n_classes)]
    figure = plot_confusion(counts, [*names, 'background'], [*names, 'not detected'])
    axes = figure.axes[0]
    fractions = axes.images[0].get_array()
    np.testing.assert_allclose(fractions, counts / counts.sum(axis=1, keepdims=True))
    assert texts(axes) == [str(count) for count in counts.ravel().tolist() if count]
    assert overlapping(figure) == []


def test_large_counts_fit_their_cells():
    counts = np.zeros((26, 26), int)
    counts[0, :4] = 999, 1000, 98765, 123456
    figure = plot_confusion(counts, ['a'] * 26, ['a'] * 26)
    assert texts(figure.axes[0]) == ['999', '1.0k', '99k', '123k'] and overlapping(figure) == []


def test_class_names_are_no_formulas():
    assert plot_name('a $x$ \n b') == r'a \$x\$ b'
    assert plot_name('x' * 50) == 'x' * 23 + '…'
    encode_figure(plot_class_ap([('$\\broken{', 3, 0.5, 0.5)]))
