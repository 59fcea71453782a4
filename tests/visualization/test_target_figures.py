"""Figures of training targets contain the boxes, targets and losses, for 0, 1 and 100 objects."""

import io

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_hex
from matplotlib.quiver import Quiver
from PIL import Image

from mask_rcnn.visualization.figures import BLUE, GREEN, INK, ORANGE, VERMILION, encode_figure
from mask_rcnn.visualization.loss_figures import crop_box, draw_keypoint_targets, draw_mask_targets, plot_costs
from mask_rcnn.visualization.target_figures import (
    Objects,
    Overlaps,
    Panel,
    plot_anchors,
    plot_overlaps,
    plot_rois,
)

BOX = np.array([[10, 20, 40, 60]], np.float32)


def boxes_of(n, size=(60, 100)):
    """Return boxes of random sizes in a picture."""
    low = np.random.RandomState(0).uniform(0, 0.8, (n, 2)) * size
    return np.concatenate([low, low + np.array(size) / 5], axis=1).astype(np.float32)


def picture(height=60, width=100):
    return np.random.RandomState(1).randint(0, 256, (height, width, 3), np.uint8)


def lines(axes):
    """Return the lines of a panel: (colour, style, corners ``(N, 5, 2)``)."""
    found = []
    for collection in axes.collections:
        if isinstance(collection, PolyCollection):
            dashes = collection.get_linestyle()[0][1]
            found.append(
                (
                    to_hex(collection.get_edgecolor()[0]),
                    dashes is None,
                    np.array([p.vertices for p in collection.get_paths()]),
                )
            )
    return found


def of_color(axes, color):
    return [(is_solid, corners) for found, is_solid, corners in lines(axes) if found == color]


def test_anchors_are_drawn_by_role():
    panel = Panel('P2', {'positive': BOX, 'ignored': BOX + 2, 'negative': np.concatenate([BOX - 5, BOX + 7])})
    figure = plot_anchors(picture(), Objects(BOX + 1), [panel])
    axes = figure.axes[0]
    assert axes.get_title() == 'P2'
    ((is_solid, corners),) = of_color(axes, GREEN)
    assert is_solid
    np.testing.assert_array_equal(corners, [[(20, 10), (60, 10), (60, 40), (20, 40), (20, 10)]])
    ((is_solid, corners),) = of_color(axes, ORANGE)
    assert not is_solid and corners[0, 0].tolist() == [22, 12]
    ((_, corners),) = of_color(axes, BLUE)
    assert len(corners) == 2
    ((_, corners),) = of_color(axes, INK)
    assert corners[0, 0].tolist() == [21, 11]
    texts = {text.get_text() for text in figure.legends[0].get_texts()}
    assert texts == {'positive, sampled', 'ignored: IoU between the thresholds', 'negative, sampled', 'object'}


@pytest.mark.parametrize(('n', 'size'), [(0, (60, 100)), (1, (60, 100)), (100, (60, 100)), (100, (1000, 700))])
def test_figures_of_any_number_of_objects(n, size):
    """Objects without a positive anchor have another colour; of many objects, only these have numbers."""
    boxes = boxes_of(n, size)
    marked = tuple(range(min(n, 3)))
    panels = [Panel(f'P{level}', {'negative': boxes}) for level in (2, 3)]
    figure = plot_anchors(picture(*size), Objects(boxes, marked), panels)
    axes = figure.axes[0]
    assert sum(len(corners) for _, corners in of_color(axes, VERMILION)) == len(marked)
    assert sum(len(corners) for _, corners in of_color(axes, INK)) == n - len(marked)
    assert len(axes.texts) == (len(marked) if n > 40 else n)
    for panel_axes in figure.axes:
        assert panel_axes.get_xlim() == (0, size[1]) and panel_axes.get_ylim() == (size[0], 0)
    with Image.open(io.BytesIO(encode_figure(figure))) as pixels:
        assert 300 < pixels.height < 2200


def test_arrows_lead_from_rois_to_their_targets():
    figure = plot_rois(picture(), Objects(BOX), BOX + 3, BOX, np.zeros(1, int), np.concatenate([BOX, BOX]))
    axes = figure.axes[0]
    arrows = [child for child in axes.get_children() if isinstance(child, Quiver)]
    starts = np.concatenate([arrow.XY for arrow in arrows])
    vectors = np.concatenate([np.stack([arrow.U, arrow.V], axis=1) for arrow in arrows])
    np.testing.assert_array_equal(starts, [(23, 13), (63, 43)])
    np.testing.assert_array_equal(vectors, [(-3, -3), (-3, -3)])
    ((_, corners),) = of_color(figure.axes[1], BLUE)
    assert len(corners) == 2


@pytest.mark.parametrize('n', [0, 1, 100])
def test_rois_of_any_number_of_objects(n):
    boxes = boxes_of(n)
    owners = np.arange(n)
    figure = plot_rois(picture(), Objects(boxes), boxes, boxes + 1, owners, boxes)
    assert sum(len(corners) for _, corners in of_color(figure.axes[1], BLUE)) == n
    if n != 1:
        assert len(encode_figure(figure)) > 1000


@pytest.mark.parametrize('n', [0, 1, 100])
def test_overlaps_of_every_object_are_plotted(n):
    rng = np.random.RandomState(0)
    sizes, iou = rng.uniform(5, 500, n), rng.uniform(0, 1, n)
    labels = np.arange(n) % 9  # more classes than colours
    names = [f'class {i}' for i in range(9)]
    parts = [Overlaps('anchors', iou, {'positive': 0.7}), Overlaps('proposals', iou / 2, {})]
    figure = plot_overlaps(sizes, labels, names, parts, (32, 64))
    for axes, factor in zip(figure.axes, (1, 0.5), strict=True):
        points = np.concatenate([collection.get_offsets() for collection in axes.collections] or [np.zeros((0, 2))])
        expected = np.stack([sizes, iou * factor], axis=1)
        np.testing.assert_allclose(points[np.argsort(points[:, 0])], expected[np.argsort(sizes)])
        low, high = axes.get_xlim()
        assert all(low < size < high for size in (*sizes, 32, 64))
    if n != 1:
        assert len(encode_figure(figure)) > 1000


def test_a_crop_of_whole_pixels_is_a_part_of_the_picture():
    image = picture()
    np.testing.assert_array_equal(crop_box(image, np.array([10, 20, 40, 60]), (30, 40)), image[10:40, 20:60])


def test_large_boxes_are_averaged_and_borders_repeat():
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200  # stripes of one pixel: the mean is 100
    np.testing.assert_allclose(crop_box(image, np.array([0, 0, 64, 64]), (8, 8)), 100, atol=1)
    outside = crop_box(picture(), np.array([-10, -10, 0, 0]), (5, 5))
    assert (outside == picture()[0, 0]).all()


def test_mask_targets_stand_beside_their_crop():
    """A target of the left half is white in the left half of the second picture; ignored targets are grey."""
    targets = np.zeros((2, 28, 28), np.int32)
    targets[0, :, :14], targets[1] = 1, -1
    probabilities = np.stack([np.zeros((28, 28)), np.ones((28, 28))])
    sheet = draw_mask_targets(picture(), np.repeat(BOX, 2, axis=0), targets, probabilities, [('a', 'b')] * 2)
    middle = sheet[12 + 48]  # the row in the middle of the crops
    first = middle[12 + 102 : 12 + 198]
    assert (first[1:48] == 255).all() and (first[48:-1] == 0).all() and (first[0] == 190).all()
    left, second = 12 + 300 + 12, 12 + 300 + 12 + 102
    assert (middle[second + 1 : second + 95] == 150).all()
    blue, yellow = middle[12 + 204 + 48], middle[left + 204 + 48]
    assert blue[2] > blue[1] and yellow[0] > 200 > yellow[2]


@pytest.mark.parametrize('n', [1, 30])
def test_mask_targets_of_any_number(n):
    masks = np.random.RandomState(0).rand(n, 14, 14)
    sheet = draw_mask_targets(picture(), boxes_of(n), (masks > 0.5).astype(int), masks, [('title', 'details')] * n)
    assert sheet.shape[1] == 12 + min(n, 4) * 312 and sheet.shape[0] > 96 * -(-n // 4)


def test_keypoint_targets_are_discs_at_their_places():
    targets = np.full((1, 3, 2), np.nan)
    targets[0, 0] = 0.25, 0.5
    black = np.zeros((60, 100, 3), np.uint8)
    sheet = draw_keypoint_targets(black, BOX, targets, np.full((1, 3, 2), 0.75), [('title', 'details')])
    height, width = 172, 230  # of the crop: 30 x 40 pixels, enlarged
    y, x = 12 + round(0.25 * height), 12 + round(0.5 * width)
    np.testing.assert_array_equal(sheet[y, x], [0x00, 0x9E, 0x73])
    assert (sheet[12 : 12 + 30, 12 : 12 + 60] == 0).all()  # no target, no line


@pytest.mark.parametrize('n', [0, 1, 12])
def test_bars_are_stacked_contributions(n):
    first, second = np.arange(n) + 1.0, np.arange(n) + 0.5
    figure = plot_costs(picture(), boxes_of(n), ['text'] * n, {'class': first, 'box': second}, 'title')
    bars = figure.axes[1].patches
    np.testing.assert_allclose([bar.get_width() for bar in bars], [*first, *second])
    np.testing.assert_allclose([bar.get_x() for bar in bars], [*np.zeros(n), *first])
    assert len(figure.axes[0].images) == n
    if n == 0:
        assert len(encode_figure(figure)) > 1000
