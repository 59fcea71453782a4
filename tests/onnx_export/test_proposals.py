"""The proposals of ONNX graphs against those of the CPU, in order.

Logits are multiples of 1/8, because the last bit of a probability differs.  Exponentials differ by at most two units in
the last place, and so do the sides of boxes.
"""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DIALECTS, FPN_STRIDES
from mask_rcnn.models.rpn import RPN
from mask_rcnn.onnx_export.proposals import propose
from mask_rcnn.onnx_export.transform import GraphTransform
from tests.support.onnx_graphs import run_graph
from tests.support.onnx_selection import IMAGE_SIZES, config_of, padded_size, transform_of

#: Proposals of a network input of at most 192 pixels.
TOLERANCES = {'rtol': 0, 'atol': 192 * 4 * 2.0**-24}


def rpn_of(config):
    """Return the RPN of a configuration, with the strides of its feature maps."""
    return RPN(1, strides=FPN_STRIDES if config.has_fpn else (16,), config=config)


def outputs_of(rng, config, transform, *, delta_values=None):
    """Return random logits and deltas of the RPN; deltas are drawn from values, or are normal."""
    rpn = rpn_of(config)
    n_anchors = len(rpn.cell_anchors[0])
    maps = [[-(-side // stride) for side in padded_size(transform, config)] for stride in rpn.strides]
    logits = [np.float32(rng.randint(-32, 32, (1, n_anchors, *size)) / 8) for size in maps]
    shapes = [(1, 4 * n_anchors, *size) for size in maps]
    if delta_values is None:
        return logits, [np.float32(rng.normal(0, 0.4, shape)) for shape in shapes]
    return logits, [rng.choice(np.float32(delta_values), shape) for shape in shapes]


def check_proposals(config, size, logits, deltas):
    """Compare the proposals of the graph and the CPU; return them."""
    transform, transform_arrays = transform_of(config, size)
    n_levels = len(logits)

    def function(graph, *inputs):
        arrays = inputs[: 2 * n_levels]
        return propose(graph, arrays[:n_levels], arrays[n_levels:], GraphTransform(*inputs[2 * n_levels :]), config)

    (found,) = run_graph(function, *logits, *deltas, *transform_arrays)
    rpn = rpn_of(config)
    with np.errstate(all='ignore'):
        expected, _ = rpn.decode(
            [level[0] for level in logits], [level[0] for level in deltas], padded_size(transform, config), transform
        )
    assert found.dtype == np.float32 and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, **TOLERANCES)
    return expected


@pytest.mark.parametrize('extractor', ['resnet50', 'resnet50_fpn'])
@pytest.mark.parametrize('size', IMAGE_SIZES)
@pytest.mark.parametrize('dialect', DIALECTS)
def test_proposals_of_random_boxes(rng, dialect, size, extractor):
    config = config_of(dialect, extractor=extractor, rpn_pre_nms=250, rpn_post_nms=80)
    logits, deltas = outputs_of(rng, config, transform_of(config, size)[0])
    assert len(check_proposals(config, size, logits, deltas)) > 10


@pytest.mark.parametrize('threshold', [0.5, 0.7])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_equal_boxes_and_scores(rng, dialect, threshold):
    """Deltas of a few values give equal boxes, IoUs of the threshold, and boxes outside the image."""
    config = config_of(dialect, rpn_pre_nms=150, rpn_post_nms=200, rpn_nms_threshold=threshold)
    transform, _ = transform_of(config, (64, 101))
    logits, deltas = outputs_of(rng, config, transform, delta_values=[0, 0, 0, 0, 0.5, -1, 40])
    deltas = [level * np.tile(np.float32([1, 1, 0, 0]), level.shape[1] // 4)[:, None, None] for level in deltas]
    logits[0] = np.float32([20, 30, 40, -3])[rng.randint(0, 4, logits[0].shape)]  # the sigmoid of the first three is 1
    logits[2][:] = 0.125
    assert 10 < len(check_proposals(config, (64, 101), logits, deltas)) <= 200


@pytest.mark.parametrize('dialect', DIALECTS)
def test_values_that_are_not_finite(rng, dialect):
    """Exponentials overflow without a limit; NaN and infinite logits and deltas occur in networks that overflow."""
    config = config_of(dialect, rpn_pre_nms=3000, rpn_post_nms=300)
    logits, deltas = outputs_of(
        rng, config, transform_of(config, (64, 101))[0], delta_values=[0, 0, 1, 90, -90, np.nan, np.inf, -np.inf]
    )
    logits[1] = rng.choice(np.float32([np.nan, -np.inf, 3, np.inf]), logits[1].shape)
    check_proposals(config, (64, 101), logits, deltas)


@pytest.mark.parametrize('min_size', [0, 1.25, 3.1, 100])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_small_boxes(rng, dialect, min_size):
    """The factors of ``y`` and ``x`` differ in a letterbox."""
    size = (7, 5)
    config = config_of(dialect, rpn_pre_nms=600, rpn_post_nms=40, rpn_min_size=min_size)
    if config.dialect.rpn.min_size_in_input:
        config = config.replace(rpn_min_size=min_size * 19)
    logits, deltas = outputs_of(rng, config, transform_of(config, size)[0])
    assert (len(check_proposals(config, size, logits, deltas)) > 0) == (min_size < 100)


def test_proposals_with_a_centre_outside(rng):
    """With an offset, the centre of an empty box at the border of continuous coordinates is half a pixel outside."""
    config = config_of('detectron', rpn_pre_nms=600)
    transform, _ = transform_of(config, (64, 101))
    logits, deltas = outputs_of(rng, config, transform, delta_values=[0, 0, 9])
    counts = []
    for require_centre_inside in (False, True):
        rpn = {'require_centre_inside': require_centre_inside}
        changed = config.replace(dialect=config.dialect.replace(boxes={'clip_offset': 0.0}, rpn=rpn))
        counts.append(len(check_proposals(changed, (64, 101), logits, deltas)))
    assert counts[0] > counts[1] > 0


@pytest.mark.parametrize('changes', [{'clip_to_image': True}, {'min_size_in_input': True, 'min_size_inclusive': False}])
@pytest.mark.parametrize('dialect', ['dena', 'matterport'])
def test_conventions_of_one_program_in_another(rng, dialect, changes):
    """The fields of a dialect are independent of each other."""
    changed = DIALECTS[dialect].replace(
        boxes={'last_of_ties_first': True, 'nms_shift_limit': 1000, 'rpn_delta_weights': (10.0, 8.0, 5.0, 4.0)},
        rpn={'proposals_per_level': False, **changes},
    )
    config = config_of(dialect, rpn_pre_nms=200, rpn_min_size=8).replace(dialect=changed)
    logits, deltas = outputs_of(rng, config, transform_of(config, (64, 101))[0])
    check_proposals(config, (64, 101), logits, [level * 8 for level in deltas])


def test_maps_without_locations():
    config = config_of('detectron', extractor='resnet50')
    check_proposals(config, (64, 101), [np.zeros((1, 15, 0, 5), np.float32)], [np.zeros((1, 60, 0, 5), np.float32)])
