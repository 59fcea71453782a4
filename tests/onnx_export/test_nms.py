"""The NMS of ONNX graphs against that of the CPU."""

import numpy as np
import pytest

pytest.importorskip('onnxruntime')

from mask_rcnn.onnx_export.nms import shift_groups, suppress
from mask_rcnn.ops.boxes import nms as nms_module
from mask_rcnn.ops.boxes.nms import GroupShift, nms
from tests.support.arrays import random_boxes
from tests.support.onnx_graphs import run_graph


def kept_rows(boxes, threshold, groups=None, *, shift=None, offset=1.0, suppress_equal=True, limit=None):
    """Return the rows that the graph keeps of boxes in descending order of precedence."""
    groups = np.zeros(len(boxes), np.int64) if groups is None else groups
    options = {'offset': offset, 'suppress_equal': suppress_equal, 'limit': limit}

    def function(graph, boxes, groups):
        if shift is not None:
            boxes = shift_groups(graph, boxes, groups >= 0, groups, shift)
        candidates = groups.expand_dims(0).equal(np.arange(3)[:, None])
        return suppress(graph, boxes.expand_dims(0), candidates.expand_dims(0), threshold, **options)

    (rows,) = run_graph(function, boxes, groups)
    return rows.tolist()


def expected_rows(boxes, threshold, groups=None, **options):
    """Return the rows that the CPU keeps, where boxes of group -1 are padding."""
    scores = np.linspace(1, 0.5, len(boxes)).astype(np.float32)
    if groups is not None:
        scores[groups < 0] = -np.inf
    options = {'shift': nms_module.NO_SHIFT, **options}
    limit = options.pop('limit', None)
    kept = nms(boxes, scores, threshold, groups=groups, **options)
    if limit is not None:  # of each group
        groups = np.zeros(len(boxes), int) if groups is None else groups
        kept = np.concatenate([kept[groups[kept] == group][:limit] for group in range(3)])
    return sorted(kept.tolist())


def integer_boxes(rng, n):
    """Return boxes of few different sizes, so that IoUs equal simple fractions, and empty boxes."""
    corners = rng.randint(-2, 6, (n, 2))
    return np.concatenate([corners, corners + rng.randint(-1, 4, (n, 2))], axis=1).astype(np.float32)


@pytest.mark.parametrize('suppress_equal', [False, True])
@pytest.mark.parametrize('offset', [0.0, 1.0])
@pytest.mark.parametrize('threshold', [0.25, 1 / 3, 0.5, 0.6, 0.7, 1.0])
def test_suppression_at_iou_equal_to_the_threshold(rng, threshold, offset, suppress_equal):
    boxes, options = integer_boxes(rng, 300), {'offset': offset, 'suppress_equal': suppress_equal}
    kept = kept_rows(boxes, threshold, **options)
    assert kept == expected_rows(boxes, threshold, **options)
    assert 3 < len(kept) < 300 or threshold == 1


@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_groups_of_boxes_that_are_not_integers(rng, offset):
    boxes = random_boxes(rng, 400, limit=100, min_side=0, max_side=60)
    groups = rng.randint(-1, 3, 400)
    for limit in (None, 5):
        kept = kept_rows(boxes, 0.4, groups, offset=offset, limit=limit)
        assert kept == expected_rows(boxes, 0.4, groups, offset=offset, limit=limit)


@pytest.mark.parametrize('first_group', [0, 1])
@pytest.mark.parametrize('max_boxes', [0, 119, 120])
def test_shifted_groups(rng, first_group, max_boxes):
    """With huge coordinates, the rounding of shifted corners changes which boxes are kept; padding does not count."""
    boxes = random_boxes(rng, 150, limit=30, min_side=1, max_side=20) + np.float32(2**21)
    groups = rng.permutation(np.r_[np.full(30, -1), np.arange(120) % 3])
    boxes[groups < 0] *= 2
    options = {'offset': 0.0, 'suppress_equal': False}
    kept = kept_rows(boxes, 0.4, groups, shift=GroupShift(max_boxes, first_group), **options)
    assert kept == expected_rows(boxes, 0.4, groups, shift=GroupShift(max_boxes, first_group), **options)
    assert (kept != kept_rows(boxes, 0.4, groups, **options)) == (max_boxes == 120)


def test_a_threshold_of_zero():
    boxes = np.float32([[0, 0, 4, 4], [50, 50, 60, 60], [4, 4, 8, 8]])
    assert kept_rows(boxes, 0.0) == expected_rows(boxes, 0.0) == [0]
    assert kept_rows(boxes, 0.0, suppress_equal=False) == expected_rows(boxes, 0.0, suppress_equal=False) == [0, 1]


def test_boxes_with_negative_sides_are_empty():
    """ONNX's operator would exchange the corners of the second box."""
    boxes = np.float32([[0, 0, 9, 9], [9.5, 9.5, 0, 0], [10, 10, 9, 9], [10, 10, 9, 9]])
    assert kept_rows(boxes, 0.5) == expected_rows(boxes, 0.5) == [0, 1, 2, 3]


@pytest.mark.parametrize('shift', [None, GroupShift(1000)])
def test_no_boxes(shift):
    assert kept_rows(np.zeros((0, 4), np.float32), 0.5, np.zeros(0, np.int64), shift=shift) == []
    assert kept_rows(np.ones((2, 4), np.float32), 0.5, np.full(2, -1), shift=shift) == []


def test_batches():
    """Boxes of different batches do not suppress each other; rows count through all batches."""
    boxes = np.float32([[[0, 0, 9, 9], [0, 0, 9, 8]], [[50, 50, 59, 59], [0, 0, 9, 9]]])

    def function(graph, boxes, candidates):
        return suppress(graph, boxes, candidates, 0.5, offset=1.0, suppress_equal=True)

    assert run_graph(function, boxes, np.ones((2, 1, 2), bool))[0].tolist() == [0, 2, 3]
    assert run_graph(function, boxes, np.array([[[False, True]], [[True, False]]]))[0].tolist() == [1, 2]
