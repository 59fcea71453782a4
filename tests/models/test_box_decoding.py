"""The box head's detections against formulas: the scale of the image, the deltas, and the configuration."""

import numpy as np
import pytest

from mask_rcnn.config import Config
from mask_rcnn.models.box_head import BoxHead
from mask_rcnn.preprocessing.image_transform import ImageTransform

SCALE = 2.0


def decode(boxes, *, deltas=None, size=(400, 500), foreground=(0.9, 0.8), **changes):
    """Return the detections of RoIs, given by their boxes in the image, in a network of one class."""
    n = len(boxes)
    probs = np.array([[1 - p, p] for p in foreground[:n]], np.float32)
    if deltas is None:
        deltas = np.zeros((n, 4))
    all_deltas = np.concatenate([np.zeros((n, 4)), deltas], axis=1).astype(np.float32)  # of the background first
    head = BoxHead(Config(n_fg_class=1, **changes))
    return head.decode(np.float32(boxes) * np.float32(SCALE), probs, all_deltas, ImageTransform.top_left(size, SCALE))


def test_boxes_are_in_pixels_of_the_image():
    boxes, labels, scores = decode([[10, 20, 29.5, 49.5]])
    np.testing.assert_array_equal(boxes, [[10, 20, 29.5, 49.5]])
    np.testing.assert_array_equal(labels, [0])
    np.testing.assert_array_equal(scores, np.float32([0.9]))


def test_boxes_are_clipped_to_the_image():
    boxes, _, _ = decode([[-5, 20, 450, 600]])
    np.testing.assert_array_equal(boxes, [[0, 20, 399, 499]])


def test_deltas_are_divided_by_their_weights():
    """Detectron's weights are 10 for the centre and 5 for the size; a box of 20 x 40 pixels has both corners."""
    boxes, _, _ = decode([[100, 200, 119, 239]], deltas=[[10 * 0.5, 10 * -0.25, 5 * np.log(2), 5 * np.log(0.5)]])
    y, x = 100 + 10 + 0.5 * 20, 200 + 20 - 0.25 * 40
    np.testing.assert_allclose(boxes, [[y - 20, x - 10, y + 20 - 1, x + 10 - 1]], rtol=1e-6)


def test_a_box_grows_to_at_most_1000_sixteenths_of_its_roi():
    """``BBOX_XFORM_CLIP`` of Detectron is log(1000 / 16): a side of 1.5 pixels becomes at most 93.75."""
    boxes, _, _ = decode([[200, 200, 200.5, 200.5]], deltas=[[0, 0, 100, 100]])
    low, high = 200.75 - 93.75 / 2, 200.75 + 93.75 / 2 - 1
    np.testing.assert_allclose(boxes, [[low, low, high, high]], rtol=1e-5)


@pytest.mark.parametrize(
    ('changes', 'count'),
    [
        ({'nms_threshold': 0.59}, 1),
        ({'nms_threshold': 0.61}, 2),
        ({'nms_threshold': 0.61, 'max_detections': 1}, 1),
        ({'nms_threshold': 0.61, 'score_threshold': 0.85}, 1),
    ],
)
def test_detections_are_selected_by_the_settings_of_the_head(changes, count):
    """Two boxes of 100 x 100 pixels that share 100 x 75 have an IoU of 0.6."""
    rois = [[0, 0, 99, 99], [0, 25, 99, 124]]
    boxes, _, scores = decode(rois, **changes)
    np.testing.assert_array_equal(boxes, np.float32(rois)[:count])
    np.testing.assert_array_equal(scores, np.float32([0.9, 0.8])[:count])
