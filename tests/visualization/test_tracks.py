"""Pictures of tracked instances: constant colours, numbers in labels, and traces."""

import numpy as np
import pytest

from mask_rcnn.inference import Tracker
from mask_rcnn.visualization import draw_detections
from mask_rcnn.visualization.colors import PALETTE, track_colors
from mask_rcnn.visualization.cover import Cover
from mask_rcnn.visualization.labels import label_candidates, place_labels
from tests.visualization.test_drawing import SIZE, rectangles

BOXES = [[10, 10, 60, 60], [30, 40, 110, 150], [70, 10, 90, 30]]


def black(size=SIZE):
    return np.zeros((*size, 3), np.uint8)


def test_colours_depend_on_the_id_only():
    colors = track_colors([3, 1, 40])
    assert colors.dtype == np.uint8
    np.testing.assert_array_equal(colors[:2], PALETTE[[2, 0]])
    np.testing.assert_array_equal(track_colors([40]), colors[2:])
    assert track_colors([]).shape == (0, 3)


def test_36_consecutive_ids_have_different_colours():
    assert len(np.unique(track_colors(np.arange(5, 41)), axis=0)) == 36


def test_instances_have_the_colours_of_their_ids():
    """The instances are drawn in another order than they are given, the largest first."""
    drawn = draw_detections(black(), rectangles(BOXES), ids=[7, 2, 11], boxes=False, labels=False, backdrop='black')
    for (y, x), number in (((20, 20), 7), ((100, 140), 2), ((80, 15), 11)):
        np.testing.assert_allclose(drawn[y, x], 0.85 * PALETTE[number - 1], atol=1)


def test_a_legend_does_not_change_the_colours():
    """Objects of two classes that are too small for labels, which otherwise have the colours of their classes."""
    boxes = [[10, 10, 16, 16], [30, 40, 36, 46], [70, 10, 76, 16]]
    found = rectangles(boxes, labels=[0, 1, 1], class_names=('cat', 'dog'))
    drawn = draw_detections(black(), found, ids=[5, 6, 7], backdrop='black', boxes=False)
    for (y, x), number in (((13, 13), 5), ((33, 43), 6), ((73, 13), 7)):
        np.testing.assert_allclose(drawn[y, x], 0.85 * PALETTE[number - 1], atol=1)


def test_colours_are_constant_in_300_drawn_frames():
    """Two squares of one class cross in a small video."""
    tracker = Tracker()
    for i in range(300):
        centres = [(30, 20 + i // 3), (90, 130 - i // 3)]
        found = rectangles([[y - 10, x - 10, y + 10, x + 10] for y, x in centres[:: 1 - 2 * (i % 2)]])
        options = {'ids': tracker.update(found), 'boxes': False, 'labels': False, 'backdrop': 'white'}
        drawn = draw_detections(black(), found, **options)
        for (y, x), color in zip(centres, PALETTE[:2].astype(float), strict=True):
            np.testing.assert_allclose(drawn[y, x], 255 + 0.85 * (color - 255), atol=1, err_msg=str(i))


def test_labels_contain_the_id():
    texts = [text.content for _, text in label_candidates('traffic light', 0.876, SIZE, None, track_id=12)]
    assert texts == ['traffic light #12 0.88'] * 2 + ['traffic light #12']
    (_, text), *_ = label_candidates('x' * 100, None, SIZE, None, track_id=123)
    assert text.content.endswith('… #123')
    found = rectangles(BOXES[:1])
    options = {'labels': 'all', 'boxes': False, 'scores': False, 'ids': [1]}
    labels = [(draw_detections(black(), found, **options) != 0).sum()]
    options['ids'] = [100_001]
    labels.append((draw_detections(black(), found, **options) != 0).sum())
    assert labels[1] > labels[0]


def test_labels_stay_at_their_places_in_consecutive_frames(rng):
    """Boxes that tremble; a label jumps if it moves by more than 12 pixels relative to its box."""
    size, count = (480, 640), 8
    low = rng.uniform(0, (380, 500), (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(50, 100, (count, 2))], axis=1)
    jumps = {}
    for steady in (False, True):
        offsets = []
        for i in range(60):
            shifted = np.clip(boxes + [2 * i, i] * 2 + rng.uniform(-1.5, 1.5, boxes.shape), 0, size * 2)
            cover = Cover(size)
            for box in shifted:
                cover.add(None, box)
            candidates = [label_candidates('person', 0.8, size, None, track_id=k + 1) for k in range(count)]
            placed = place_labels(candidates, shifted, cover.saliency, size, steady=steady)
            places = [(np.nan, np.nan) if label is None else (label.top, label.left) for label in placed]
            offsets.append(np.array(places) - shifted[:, :2])
        jumps[steady] = (np.abs(np.diff(offsets, axis=0)).max(axis=2) > 12).sum()
    assert jumps[True] < jumps[False] / 2


def test_traces_are_lines_with_dots_at_their_ends():
    traces = [np.array([[20.5, 10.5], [20.5, 100.5]]), np.zeros((0, 2)), np.array([[90.5, 20.5]])]
    image = np.full((*SIZE, 3), 255, np.uint8)
    options = {'ids': [1, 2, 3], 'boxes': False, 'labels': False, 'masks': False}
    drawn = draw_detections(image, rectangles(BOXES), traces=traces, **options)
    np.testing.assert_allclose(drawn[20, 20:95], np.tile(PALETTE[0], (75, 1)), rtol=0.1)  # anti-aliased
    np.testing.assert_array_equal(drawn[90, 20], PALETTE[2])
    drawn[15:26, 5:106] = drawn[85:96, 15:26] = 255
    assert (drawn == 255).all()


def test_points_of_traces_can_lie_outside_the_picture():
    traces = [np.array([[-500.0, -500.0], [60, 80], [1e6, 1e6]])] * 3
    assert draw_detections(black(), rectangles(BOXES), traces=traces)[60, 80].any()


@pytest.mark.parametrize('ids', [[1, 2], [1, 2, 3, 4], [0, 1, 2], [[1, 2, 3]]])
def test_wrong_ids_are_rejected(ids):
    with pytest.raises(ValueError, match='ids must be 3 positive integers, one for each instance'):
        draw_detections(black(), rectangles(BOXES), ids=ids)


def test_a_wrong_number_of_traces_is_rejected():
    with pytest.raises(ValueError, match='1 trace is given for 3 instances'):
        draw_detections(black(), rectangles(BOXES), traces=[np.zeros((0, 2))])
