"""The detections of ONNX graphs against those of the CPU, in order.

Exponentials differ by at most two units in the last place, and so do the sides of boxes.
"""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.config import DIALECTS
from mask_rcnn.models.box_head import BoxHead
from mask_rcnn.onnx_export.selection import select_detections
from mask_rcnn.onnx_export.transform import GraphTransform
from tests.support.arrays import random_boxes
from tests.support.onnx_graphs import run_graph
from tests.support.onnx_selection import IMAGE_SIZES, config_of, transform_of

N_CLASS = 5  # with the background


def check_detections(config, size, rois, probs, deltas):
    """Compare the detections of the graph and the CPU; return them."""
    transform, transform_arrays = transform_of(config, size)
    arrays = [np.asarray(array, np.float32) for array in (rois, probs, deltas)]

    def function(graph, rois, probs, deltas, *transform):
        return select_detections(graph, rois, probs, deltas, GraphTransform(*transform), config)

    boxes, labels, scores = run_graph(function, *arrays, *transform_arrays)
    with np.errstate(all='ignore'):
        expected = BoxHead(config).decode(*arrays, transform)
    assert boxes.dtype == scores.dtype == np.float32 and labels.dtype == np.int64
    np.testing.assert_array_equal(labels, expected[1])
    np.testing.assert_array_equal(scores, expected[2])
    assert boxes.shape == expected[0].shape
    np.testing.assert_allclose(boxes, expected[0], rtol=0, atol=max(*size, 192) * 4 * 2.0**-24)
    return expected


def random_outputs(rng, n, *, delta_values=(0,)):
    """Return RoIs of a small network input, and probabilities and deltas of a few values, so that many are equal."""
    rois = np.round(random_boxes(rng, n, limit=90, min_side=0, max_side=60))
    probs = rng.choice(np.float32([0, 0.05, 0.125, 0.25, 0.5, 0.75]), (n, N_CLASS))
    return rois, probs, rng.choice(np.float32(delta_values), (n, 4 * N_CLASS))


@pytest.mark.parametrize('size', IMAGE_SIZES)
@pytest.mark.parametrize('dialect', DIALECTS)
def test_detections_of_random_boxes(rng, dialect, size):
    config = config_of(dialect, max_detections=30)
    rois = random_boxes(rng, 150, limit=90, min_side=1, max_side=60)
    logits = rng.normal(0, 2, (150, N_CLASS))
    probs = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    boxes, _, _ = check_detections(config, size, rois, probs, rng.normal(0, 1, (150, 4 * N_CLASS)))
    assert len(boxes) == 30


@pytest.mark.parametrize('max_detections', [0, 1, 12, 5000])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_equal_boxes_and_scores(rng, dialect, max_detections):
    """RoIs of few sizes and deltas of 0 give equal boxes, IoUs of the threshold and equal scores."""
    config = config_of(dialect, max_detections=max_detections)
    corners = rng.randint(0, 6, (120, 2)) * 8
    rois = np.concatenate([corners, corners + rng.randint(0, 5, (120, 2)) * 8], axis=1)
    _, probs, deltas = random_outputs(rng, 120)
    check_detections(config, (96, 96), rois, probs, deltas)


@pytest.mark.parametrize('threshold', [0, 0.5, 1])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_thresholds(rng, dialect, threshold):
    """A score equal to the threshold; IoU thresholds of 0 and 1."""
    config = config_of(dialect, score_threshold=0.25, nms_threshold=threshold)
    boxes, _, scores = check_detections(config, (80, 96), *random_outputs(rng, 100))
    assert (scores.min() == 0.25) == config.dialect.detections.score_threshold_inclusive
    assert len(boxes)


@pytest.mark.parametrize('dialect', DIALECTS)
def test_values_that_are_not_finite(rng, dialect):
    """Exponentials overflow without a limit; NaN and infinity occur in networks that overflow."""
    rois, probs, deltas = random_outputs(rng, 200, delta_values=[0] * 20 + [900, -900, np.nan, np.inf, -np.inf])
    probs[rng.rand(*probs.shape) < 0.1] = np.nan
    boxes, _, _ = check_detections(config_of(dialect, max_detections=0), (80, 96), rois, probs, deltas)
    assert len(boxes) and not np.isnan(boxes).any()


@pytest.mark.parametrize('changes', [{'keep_ties': True}, {'keep_ties': False}])
@pytest.mark.parametrize('dialect', ['dena', 'torchvision'])
def test_conventions_of_one_program_in_another(rng, dialect, changes):
    """The fields of a dialect are independent of each other."""
    changed = DIALECTS[dialect].replace(
        boxes={'last_of_ties_first': True, 'nms_shift_limit': 300, 'box_delta_weights': (10.0, 8.0, 5.0, 4.0)},
        detections={'best_class_only': True, 'min_box_size': 8.0, 'postprocess_in_input_space': True, **changes},
    )
    config = config_of(dialect, max_detections=10).replace(dialect=changed)
    rois, probs, deltas = random_outputs(rng, 150, delta_values=[0, 1, -1])
    boxes, _, _ = check_detections(config, (80, 96), rois, probs, deltas)
    assert (len(boxes) > 10) == changes['keep_ties']


@pytest.mark.parametrize('shift_counts_background', [False, True])
def test_shifted_classes(rng, shift_counts_background):
    """Huge images, where the rounding of shifted corners decides which boxes are kept."""
    dialect = DIALECTS['torchvision'].replace(detections={'shift_counts_background': shift_counts_background})
    config = config_of('torchvision', min_size=60000, max_size=60000, max_detections=0).replace(dialect=dialect)
    rois = random_boxes(rng, 200, limit=0.1, min_side=0.02, max_side=0.1) + np.float32(50000)
    _, probs, deltas = random_outputs(rng, 200)
    check_detections(config, (60000, 60000), rois, probs, deltas)


@pytest.mark.parametrize('n_rois', [0, 1, 3])
@pytest.mark.parametrize('dialect', DIALECTS)
def test_no_detections(dialect, n_rois):
    for max_detections in (0, 5):
        config = config_of(dialect, max_detections=max_detections)
        outputs = np.zeros((n_rois, 4)), np.zeros((n_rois, N_CLASS)), np.zeros((n_rois, 4 * N_CLASS))
        assert len(check_detections(config, (80, 96), *outputs)[0]) == 0
