"""Pictures of many or small objects: labels, legends, lines and the colour splash."""

import itertools

import cv2
import numpy as np
import pytest

from mask_rcnn.visualization import draw_detections, drawing
from mask_rcnn.visualization.colors import PALETTE, class_colors
from mask_rcnn.visualization.legend import make_legend
from tests.visualization.test_drawing import picture, rectangles

SIZE = 300, 400


def grid(count, side, size=SIZE, pitch=25):
    """Return the boxes of squares in rows, from the upper left corner."""
    per_row = (size[1] - side) // pitch
    rows, columns = np.divmod(np.arange(count), per_row)
    corners = 10 + pitch * np.stack([rows, columns], axis=1)
    return np.concatenate([corners, corners + side], axis=1)


@pytest.fixture
def drawn(monkeypatch):
    """The labels, as pairs of the label's box and its object's box, and the legends of the pictures."""
    found = {'labels': [], 'legends': []}

    def draw_labels(canvas, labels, boxes, colors, font):
        found['labels'] += [(label.box, box) for label, box in zip(labels, boxes, strict=True) if label is not None]

    def draw_legend(canvas, legend, corner, font):
        found['legends'].append([row.text.content for row in legend.rows])

    monkeypatch.setattr(drawing, '_draw_labels', draw_labels)
    monkeypatch.setattr(drawing, 'draw_legend', draw_legend)
    return found


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def test_a_label_is_no_larger_than_its_object(rng, drawn):
    low = rng.uniform(0, (250, 340), (30, 2))
    boxes = np.concatenate([low, low + rng.uniform(4, 60, (30, 2))], axis=1)
    found = rectangles(boxes, SIZE, labels=np.arange(30) % 3, class_names=('cat', 'dog', 'bicycle'))
    draw_detections(picture(rng, SIZE), found, labels='all')
    assert sum(area(label) > area(box) for label, box in drawn['labels']) > 5
    drawn['labels'].clear()
    draw_detections(picture(rng, SIZE), found)
    assert len(drawn['labels']) > 5
    assert [label for label, box in drawn['labels'] if area(label) > area(box)] == []


def test_the_legend_counts_the_classes_of_objects_without_labels(drawn):
    boxes = [
        [10, 10, 100, 100],
        [150, 10, 155, 15],
        [150, 200, 250, 300],
        [20, 200, 24, 204],
        [40, 200, 44, 204],
        [180, 10, 280, 100],
    ]
    found = rectangles(boxes, SIZE, labels=[0, 0, 1, 2, 2, 1], class_names=('cat', 'dog', 'bird'))
    draw_detections(np.zeros((*SIZE, 3), np.uint8), found)
    assert len(drawn['labels']) == 3
    assert drawn['legends'] == [['bird  2', 'cat  2']]


@pytest.mark.parametrize(
    ('n_small', 'n_large', 'n_labels', 'legend'),
    [
        (15, 1, 0, ['thing  16']),
        (2, 1, 0, ['thing  3']),
        (2, 2, 2, ['thing  4']),  # half of them
        (0, 1, 1, None),
        (1, 0, 0, ['thing  1']),
    ],
)
def test_a_legend_replaces_the_labels_of_few_objects_that_are_mostly_too_small(
    drawn, n_small, n_large, n_labels, legend
):
    small, large = grid(n_small, 10), grid(n_large, 100, pitch=120) + (100, 0, 100, 0)
    found = rectangles(np.concatenate([small, large]), SIZE, class_names=('thing',))
    image = np.zeros((*SIZE, 3), np.uint8)
    draw_detections(image, found)
    assert len(drawn['labels']) == n_labels
    assert drawn['legends'] == ([legend] if legend else [])
    drawn['labels'].clear()
    draw_detections(image, found, labels='all')
    assert len(drawn['labels']) == n_small + n_large


def test_few_objects_with_a_legend_have_boxes_in_shades_of_their_class():
    boxes = np.concatenate([[[150, 50, 250, 150]], grid(6, 10)])  # as they are drawn, the largest one first
    labels = np.array([0, 1, 0, 1, 0, 1, 0])
    found = rectangles(boxes, SIZE, masks=np.zeros((7, *SIZE), bool), labels=labels, class_names=('cat', 'dog'))
    pictured = draw_detections(np.zeros((*SIZE, 3), np.uint8), found)
    corners = pictured[boxes[:, 0], boxes[:, 1]]
    np.testing.assert_allclose(corners, 0.9 * class_colors(boxes, labels, SIZE), atol=1)


@pytest.mark.parametrize(
    ('count', 'side', 'n_classes', 'legend'),
    [
        (20, 50, 1, ['thing  20']),  # one class, although labels would fit
        (19, 50, 1, None),
        (20, 50, 2, None),
        (60, 10, 3, ['other  20', 'thing  20', 'third  20']),
    ],
)
def test_in_a_crowd_a_legend_replaces_all_labels(drawn, count, side, n_classes, legend):
    size = 400, 600
    boxes = grid(count, side, size, pitch=max(side, 25) + 30 if side > 20 else 25)
    found = rectangles(boxes, size, labels=np.arange(count) % n_classes, class_names=('thing', 'other', 'third'))
    draw_detections(np.zeros((*size, 3), np.uint8), found)
    assert (drawn['legends'] == [legend]) if legend else not drawn['legends']
    assert bool(drawn['labels']) == (legend is None)
    drawn['legends'].clear()
    draw_detections(np.zeros((*size, 3), np.uint8), found, labels='all')
    assert drawn['labels'] and not drawn['legends']


@pytest.mark.parametrize('free', [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_the_legend_is_in_the_corner_that_hides_the_fewest_pixels(free):
    corners = {(i, j): [(0, 260)[i], (0, 260)[j], (40, 300)[i], (140, 400)[j]] for i in range(2) for j in range(2)}
    boxes = [box for corner, box in corners.items() if corner != free]
    boxes += grid(20, 8).tolist() if free != (0, 0) else (grid(20, 8) + 100).tolist()
    found = rectangles(boxes, SIZE)
    image = np.full((*SIZE, 3), 128, np.uint8)
    with_legend, without = (draw_detections(image, found, boxes=False, labels=kind) for kind in ('auto', 'none'))
    rows, columns = np.nonzero((with_legend != without).any(axis=2))
    assert rows.size > 300
    top, left, bottom, right = corners[free]
    assert top <= rows.min() and rows.max() < bottom and left <= columns.min() and columns.max() < right


def test_the_swatches_have_the_colours_of_the_objects():
    names, colors = ['cat', 'dog', 'cat'], np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)
    legend = make_legend(names, colors, {'cat', 'dog'}, SIZE, None)
    assert [row.text.content for row in legend.rows] == ['cat  2', 'dog  1']
    assert [row.colors.tolist() for row in legend.rows] == [[[1, 2, 3], [7, 8, 9]], [[4, 5, 6]]]
    canvas = np.zeros((*SIZE, 3), np.uint8)
    drawing.draw_legend(canvas, legend, (100, 50), None)
    for color in colors:
        assert (canvas == color).all(axis=2).any()
    changed = canvas.any(axis=2)
    changed[100 : 100 + legend.height, 50 : 50 + legend.width] = False
    assert not changed.any()


def test_a_long_legend_is_shortened():
    names = [f'class {i}' for i in range(40)]
    legend = make_legend(names, np.zeros((40, 3), np.uint8), set(names), (200, 300), None)
    assert legend.height <= 0.6 * 200
    assert legend.rows[-1].text.content == f'{40 - len(legend.rows) + 1} more classes'
    assert make_legend(names, np.zeros((40, 3), np.uint8), set(names), (10, 300), None) is None
    assert make_legend(['x' * 30], np.zeros((1, 3), np.uint8), {'x' * 30}, (300, 60), None) is None


def test_no_labels_and_all_labels_have_short_forms(rng):
    image, found = picture(rng), rectangles([[20, 30, 70, 90]])
    for kind, short in (('all', True), ('none', False)):
        np.testing.assert_array_equal(*(draw_detections(image, found, labels=labels) for labels in (kind, short)))
    with pytest.raises(ValueError, match="auto, all, none, not 'few'"):
        draw_detections(image, found, labels='few')


def test_in_a_crowd_only_masks_are_drawn_and_neighbours_differ():
    boxes = grid(60, 12, pitch=13)
    found = rectangles(boxes, SIZE)
    image = np.full((*SIZE, 3), 128, np.uint8)
    drawn = draw_detections(image, found)[:250]  # above the legend
    changed = (drawn != image[:250]).any(axis=2)
    edges = cv2.dilate(found.masks.any(axis=0).astype(np.uint8), np.ones((3, 3)))[:250].astype(bool)
    assert not (changed & ~edges).any()
    centres = [drawn[top + 6, left + 6].astype(int) for top, left, _, _ in boxes]
    assert min(np.abs(a - b).sum() for a, b in itertools.pairwise(centres)) > 40
    with_boxes = draw_detections(image, rectangles(boxes, SIZE, masks=None))
    assert (with_boxes[:250] != image[:250]).any()


def test_shades_show_the_class():
    boxes = grid(60, 10)
    labels = np.arange(60) % 3 * 12  # labels 0, 12 and 24 prefer the same colour of the palette
    colors = class_colors(boxes, labels, SIZE).astype(int)
    of_class = {label: colors[labels == label] for label in (0, 12, 24)}
    bases = PALETTE[:3].astype(int)
    for base, shades in zip(bases, of_class.values(), strict=True):
        distance = np.abs(shades[:, None] - bases[None]).sum(axis=2)
        own = np.abs(shades - base).sum(axis=1)
        assert (own == distance.min(axis=1)).all()
        assert len(np.unique(shades, axis=0)) == 3
    near = class_colors(grid(3, 10, pitch=10), np.zeros(3, int), SIZE)
    assert len(np.unique(near, axis=0)) == 3


def test_the_colour_of_a_class_does_not_depend_on_other_classes():
    (alone,) = class_colors(np.array([[0, 0, 9, 9]]), np.array([2]), SIZE)
    others = class_colors(np.array([[0, 0, 9, 9], [20, 0, 29, 9], [40, 0, 49, 9]]), np.array([2, 0, 1]), SIZE)
    np.testing.assert_array_equal(others[0], alone)


def test_lines_around_small_objects_are_thin():
    size = 1600, 2000
    image = np.full((*size, 3), 128, np.uint8)

    def margin(box):
        """Return the number of pixels that the contour reaches outside the mask."""
        drawn = draw_detections(image, rectangles([box], size), contour=True, boxes=False, labels='none')
        rows = np.flatnonzero((drawn != image).any(axis=(1, 2)))
        return max(box[0] - rows[0], rows[-1] - box[2] + 1)

    assert margin([700, 700, 720, 720]) <= 1 < margin([200, 200, 1400, 1800])


def test_boxes_of_small_objects_are_thin():
    size = 1600, 2000
    image = np.full((*size, 3), 128, np.uint8)
    found = rectangles([[700, 700, 720, 720]], size, masks=None)
    changed = (draw_detections(image, found, labels='none') != image).any(axis=2)
    assert changed[700:720, 700:720].sum() == 20 * 20 - 18 * 18 == changed.sum()


@pytest.mark.parametrize('count', [1, 60])
def test_splash_shows_objects_in_their_colours_on_grey(rng, count):
    image = picture(rng, SIZE)
    boxes = grid(count, 14)
    found = rectangles(boxes, SIZE)
    inside = found.masks.any(axis=0)
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    expected = np.where(inside[:, :, None], image, grey[:, :, None])
    before = image.copy()
    drawn = draw_detections(image, found, backdrop='splash', labels='none')
    np.testing.assert_array_equal(drawn, expected)
    np.testing.assert_array_equal(image, before)
    floats = image.transpose(2, 0, 1).astype(np.float32)
    np.testing.assert_array_equal(draw_detections(floats, found, backdrop='splash', labels='none'), expected)
    without_masks = rectangles(boxes, SIZE, masks=None)
    drawn = draw_detections(image, without_masks, backdrop='splash', boxes=False, labels='none')
    np.testing.assert_array_equal(drawn, expected)
