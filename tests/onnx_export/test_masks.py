"""Pasting of masks in ONNX graphs against the library's, pixel for pixel."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DETECTRON, DIALECTS, MATTERPORT
from mask_rcnn.inference.detections import Detections
from mask_rcnn.onnx_export.masks import paste_masks
from mask_rcnn.preprocessing.image_transform import ImageTransform
from tests.support.onnx_graphs import build, constant_transform, session

VARIANTS = {
    **DIALECTS,
    'padding of 2': DETECTRON.replace(masks={'padding': 2, 'box_offset': 0}),
    'squeezed with a margin': MATTERPORT.replace(masks={'squeeze_at_border': True, 'threshold': 0.25}),
}
each_dialect = pytest.mark.parametrize('dialect', VARIANTS.values(), ids=VARIANTS)


def paste(dialect, size):
    """Return a function that pastes masks into an image of a size with ONNX Runtime."""

    def pasted(graph, probs, boxes):
        transform = constant_transform(graph, ImageTransform.top_left(size, 1.0))
        return paste_masks(graph, probs, boxes, transform, dialect)

    model_session = session(build(pasted, np.zeros((1, 1, 1), np.float32), np.zeros((1, 4), np.float32)))
    return lambda probs, boxes: model_session.run(None, {'input0': probs, 'input1': boxes})[0]


def expected_masks(probs, boxes, size, dialect):
    labels, scores = np.zeros(len(boxes), np.int32), np.ones(len(boxes), np.float32)
    return Detections(boxes=boxes, labels=labels, scores=scores, size=size, mask_probs=probs, dialect=dialect).masks


@each_dialect
def test_masks_are_those_of_the_library(rng, dialect):
    """Boxes inside and beyond the image, with ordered and swapped corners, and probabilities at the threshold."""
    size = (61, 87)
    pasted = paste(dialect, size)
    for mask_size in (1, 7, 28):
        probs = rng.uniform(size=(40, mask_size, mask_size)).astype(np.float32)
        probs[::4] = np.round(probs[::4] * 2) / 2
        corners = rng.uniform(-40, 130, (40, 2, 2))
        corners[:30].sort(axis=1)
        corners[::3] = np.round(corners[::3])
        boxes = corners.reshape(40, 4).astype(np.float32)
        found = pasted(probs, boxes)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected_masks(probs, boxes, size, dialect))


@each_dialect
def test_boxes_at_and_beyond_the_border(rng, dialect):
    size = (30, 40)
    boxes = np.array(
        [
            *[(0, 0, 29, 39), (0, 0, 30, 40), (-100, -100, 200, 200), (10, 10, 10, 10), (20, 5, 10, 30)],
            *[(-20, 0, -10, 20), (40, 0, 50, 20), (0, 60, 20, 80), (0, -80, 20, -60), (29, 39, 60, 80)],
            *[(-1e9, 0, 1e9, 20), (0, 1e9, 10, 2e9), (-np.inf, 5, np.inf, 10), (np.nan, 0, 20, 20)],
        ],
        np.float32,
    )
    probs = rng.uniform(0.2, 0.9, (len(boxes), 7, 7)).astype(np.float32)
    found = paste(dialect, size)(probs, boxes)
    np.testing.assert_array_equal(found, expected_masks(probs, boxes, size, dialect))
    assert found[2].any() and not found[5:9].any()


@each_dialect
def test_no_masks(dialect):
    found = paste(dialect, (5, 9))(np.zeros((0, 28, 28), np.float32), np.zeros((0, 4), np.float32))
    assert found.shape == (0, 5, 9) and found.dtype == bool


def test_a_full_mask_fills_its_box():
    boxes = np.array([[2, 3, 8, 12]], np.float32)
    expected = np.zeros((1, 12, 20), bool)
    expected[:, 2:8, 3:12] = True
    np.testing.assert_array_equal(paste(MATTERPORT, (12, 20))(np.ones((1, 4, 4), np.float32), boxes), expected)
