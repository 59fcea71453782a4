"""The anchors of ONNX graphs against those of the RPN."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DIALECTS, FPN_STRIDES, Config
from mask_rcnn.models.rpn import RPN
from mask_rcnn.onnx_export.anchors import rpn_anchors
from tests.support.onnx_graphs import run_graph


@pytest.mark.parametrize('extractor', ['resnet50', 'resnet50_fpn'])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_anchors_equal_those_of_the_rpn(dialect, extractor):
    """Input sides that are not multiples of the strides move torchvision's anchors; one map has a single location."""
    config = Config(extractor=extractor, dialect=DIALECTS[dialect], max_size=1344, anchor_sizes=(8, 21, 50, 128, 333))
    strides = FPN_STRIDES if config.has_fpn else (16,)
    input_size = (61, 139)
    sizes = np.array([[-(-side // stride) for side in input_size] for stride in strides])

    def function(graph, input_size, sizes):
        lengths = [[sizes.take([level]).squeeze(0).slice(i, i + 1) for i in (0, 1)] for level in range(len(strides))]
        return rpn_anchors(graph, lengths, input_size, config)

    found = run_graph(function, np.array(input_size), sizes)
    expected = RPN(1, strides=strides, config=config).anchors(sizes, input_size)
    for level, level_anchors in zip(found, expected, strict=True):
        assert level.dtype == np.float32
        np.testing.assert_array_equal(level, level_anchors)


def test_a_map_without_locations_has_no_anchors():
    def function(graph, size):
        return rpn_anchors(graph, [(size.slice(0, 1), size.slice(1, 2))], size, Config())

    assert run_graph(function, np.array([0, 4]))[0].shape == (0, 4)
