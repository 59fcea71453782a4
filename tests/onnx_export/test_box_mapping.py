"""Mapping of boxes in ONNX graphs against the library's, to the bit."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DETECTRON, DIALECTS, MATTERPORT, Config
from mask_rcnn.inference import predictor
from mask_rcnn.onnx_export import box_mapping as graph_boxes
from mask_rcnn.preprocessing.image_transform import input_transform
from tests.support.onnx_graphs import constant_transform, run_graph

VARIANTS = {
    **DIALECTS,
    'matterport, clipped': MATTERPORT.replace(detections={'clip_to_original': True, 'integer_boxes': False}),
    'detectron, in the input': DETECTRON.replace(detections={'postprocess_in_input_space': True}),
}
each_dialect = pytest.mark.parametrize('dialect', VARIANTS.values(), ids=VARIANTS)
SIZES = [(481, 640), (333, 97), (1500, 1201)]


def random_boxes(rng, n):
    return rng.uniform(-50, 400, (n, 4)).astype(np.float32)


@each_dialect
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('n', [0, 50])
def test_detections_are_mapped_to_the_image(rng, dialect, size, n):
    transform = input_transform(size, Config(dialect=dialect, min_size=320, max_size=512))

    def outputs(graph, boxes):
        mapped = graph_boxes.map_to_image(boxes, constant_transform(graph, transform), dialect)
        finished = graph_boxes.finish_boxes(mapped, dialect)
        return [mapped, finished, graph_boxes.has_area(finished)]

    boxes = random_boxes(rng, n)
    mapped = predictor.map_to_image(boxes, transform, dialect)
    finished = predictor.finish_boxes(mapped, dialect)
    found = run_graph(outputs, boxes)
    for array, expected in zip(found, (mapped, finished, predictor.has_area(finished)), strict=True):
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


@each_dialect
@pytest.mark.parametrize('size', SIZES)
def test_boxes_are_mapped_between_image_and_input(rng, dialect, size):
    transform = input_transform(size, Config(dialect=dialect, min_size=320, max_size=512))

    def outputs(graph, boxes):
        mapping = constant_transform(graph, transform)
        return [function(boxes, mapping) for function in (graph_boxes.apply_boxes, graph_boxes.invert_boxes)]

    boxes = random_boxes(rng, 50)
    applied, inverted = run_graph(outputs, boxes)
    np.testing.assert_array_equal(applied, transform.apply_boxes(boxes))
    np.testing.assert_array_equal(inverted, transform.invert_boxes(boxes))


def test_boxes_without_height_or_width_have_no_area():
    boxes = np.array([(0, 0, 1, 1), (0, 0, 0, 5), (0, 0, 5, 0), (3, 3, 2, 9), (-2, -2, -1, -1)], np.float32)
    (found,) = run_graph(lambda graph, boxes: graph_boxes.has_area(boxes), boxes)
    np.testing.assert_array_equal(found, [True, False, False, False, True])


def test_integer_boxes_end_after_their_last_pixel():
    boxes = np.array([(0.5, 1.5, 3.4, 3.6)], np.float32)
    (found,) = run_graph(lambda graph, boxes: graph_boxes.finish_boxes(boxes, MATTERPORT), boxes)
    np.testing.assert_array_equal(found, [(0, 2, 4, 5)])
