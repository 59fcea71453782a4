"""Decoding of keypoints in ONNX graphs against the keypoint head's."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DETECTRON, DETECTRON2, DIALECTS, Config
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.onnx_export.box_mapping import map_to_input
from mask_rcnn.onnx_export.keypoints import decode_keypoints
from mask_rcnn.preprocessing.image_transform import input_transform
from tests.support.onnx_graphs import constant_transform, run_graph

VARIANTS = {
    **DIALECTS,
    'decoded in the image': DETECTRON2.replace(keypoints={'decode_in_input': False}),
    'decoded in the input': DETECTRON.replace(keypoints={'decode_in_input': True}),
}
each_dialect = pytest.mark.parametrize('dialect', VARIANTS.values(), ids=VARIANTS)
N_KEYPOINTS = 3
BASE = Config(extractor='resnet50_fpn', n_keypoint=N_KEYPOINTS, masks=False, min_size=128, max_size=192)


def run(heat_maps, boxes, transform, config):
    """Return the RoIs and the keypoints of a graph."""

    def outputs(graph, heat_maps, boxes):
        mapping = constant_transform(graph, transform)
        return [
            map_to_input(boxes, mapping, config.dialect),
            decode_keypoints(graph, heat_maps, boxes, mapping, config),
        ]

    return run_graph(outputs, heat_maps, boxes)


@each_dialect
@pytest.mark.parametrize('side', [7, 56])
def test_keypoints_are_those_of_the_head(rng, monkeypatch, dialect, side):
    """Boxes smaller than a pixel, smaller and larger than the heat map, of integer and fractional sizes."""
    monkeypatch.setattr(KeypointHead, 'channels', 1)
    config = BASE.replace(dialect=dialect)
    transform = input_transform((100, 131), config)
    low = rng.uniform(0, 60, (12, 2))
    sides = np.concatenate([[(0.3, 0.4), (1, 1), (5, 40)], rng.uniform(2, 90, (9, 2))])
    boxes = np.hstack([low, low + sides]).astype(np.float32)
    boxes[5:8] = np.round(boxes[5:8])
    heat_maps = rng.randn(12, N_KEYPOINTS, side, side).astype(np.float32) * 3
    head, rois = KeypointHead(1, pool=None, config=config), []

    def predict_heatmaps(features, head_rois, roi_indices):
        rois.append(head_rois)
        return (heat_maps,)

    monkeypatch.setattr(head, '_predict_heatmaps', predict_heatmaps)
    (expected,) = head.predict([np.zeros((1, 1, 8, 8), np.float32)], [boxes], [transform])
    found_rois, found = run(heat_maps, boxes, transform, config)
    np.testing.assert_array_equal(found_rois, rois[0])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, :, :3], expected[:, :, :3])
    np.testing.assert_allclose(found[:, :, 3], expected[:, :, 3], rtol=2e-6)


@each_dialect
def test_no_keypoints(dialect):
    config = BASE.replace(dialect=dialect)
    heat_maps, boxes = np.zeros((0, N_KEYPOINTS, 56, 56), np.float32), np.zeros((0, 4), np.float32)
    _, found = run(heat_maps, boxes, input_transform((100, 131), config), config)
    assert found.shape == (0, N_KEYPOINTS, 4)


def test_the_first_of_equal_maxima_is_the_keypoint():
    heat_maps, config = np.zeros((1, 1, 4, 4), np.float32), BASE.replace(n_keypoint=1)
    boxes = np.array([[10, 20, 18, 28]], np.float32)
    _, found = run(heat_maps, boxes, input_transform((800, 800), config), config)
    np.testing.assert_allclose(found[0, 0], [10.5, 20.5, 0, 1 / 64], rtol=1e-6)
