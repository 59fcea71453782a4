"""The compiled IoU and matching against the array operations, bit for bit."""

import numpy as np
import pytest

from mask_rcnn.ops.boxes import boxes as boxes_module
from mask_rcnn.ops.boxes import iou as iou_module
from mask_rcnn.ops.boxes.anchors import detectron_cell_anchors, shift_anchors
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.boxes.iou import match_boxes
from tests.support.arrays import random_boxes

SIZE = (50, 60)


def iou_of_arrays(boxes, objects, offset):
    """Return the IoU that a GPU computes, with NumPy."""
    return boxes_module._box_iou_of_arrays(boxes, objects, offset)


def is_inside(boxes, size, straddle):
    """Return whether the boxes extend at most ``straddle`` pixels beyond an image, ``(R,)`` bool."""
    low, high = boxes[:, :2], boxes[:, 2:]
    return ((low >= -straddle) & (high < np.asarray(size) + straddle)).all(axis=1)


def match_by_iou(iou):
    """Match boxes as :func:`match_boxes` does, given all IoUs ``(R, G)``."""
    if iou.size == 0:
        return np.zeros(len(iou)), np.zeros(len(iou)), np.zeros(len(iou), bool)
    best_of_object = iou.max(axis=0)
    return iou.max(axis=1), iou.argmax(axis=1), ((iou == best_of_object) & (best_of_object > 0)).any(axis=1)


@pytest.fixture(params=[1, 4])
def n_cpus(request, monkeypatch):
    """Run on one thread, and on four with few boxes each."""
    monkeypatch.setattr(iou_module.parallel, 'cpu_count', lambda: request.param)
    monkeypatch.setattr(iou_module, '_MIN_PAIRS', 1)


def cases(rng):
    """Yield boxes and objects: fractions, ties in integers, no overlap, areas of zero, every number of objects."""
    anchors = shift_anchors(detectron_cell_anchors(4, (8, 16, 40), (0.5, 1, 2)), 4, 12, 15)
    for n_objects in (0, 1, 2, 9):
        yield random_boxes(rng, 300), random_boxes(rng, n_objects)
        yield anchors, np.round(random_boxes(rng, n_objects, limit=40))
        yield np.floor(random_boxes(rng, 500) / 8) * 4, np.floor(random_boxes(rng, n_objects) / 8) * 4
        yield random_boxes(rng, 100, limit=20) + np.float32(500), random_boxes(rng, n_objects)
        yield random_boxes(rng, 1, min_side=-3, max_side=1), random_boxes(rng, n_objects, min_side=-3, max_side=1)
    yield np.zeros((0, 4), np.float32), random_boxes(rng, 3)
    yield random_boxes(rng, 65, limit=6000, max_side=6000), random_boxes(rng, 5, limit=6000, max_side=6000)


@pytest.mark.parametrize('offset', [0.0, 1.0])
@pytest.mark.usefixtures('n_cpus')
def test_box_iou_equals_array_operations(rng, offset):
    for boxes, objects in cases(rng):
        iou = box_iou(boxes, objects, offset=offset)
        assert iou.dtype == np.float32
        np.testing.assert_array_equal(iou, iou_of_arrays(boxes, objects, offset))


@pytest.mark.parametrize('offset', [0.0, 1.0])
@pytest.mark.parametrize('straddle', [0, 2.5, 7, -1])
@pytest.mark.usefixtures('n_cpus')
def test_matches_equal_array_operations(rng, offset, straddle):
    has_ties = False
    for boxes, objects in cases(rng):
        inside = is_inside(boxes, SIZE, straddle) if straddle >= 0 else np.ones(len(boxes), bool)
        limits = {'low': -straddle, 'high': np.asarray(SIZE) + straddle} if straddle >= 0 else {}
        found = match_boxes(boxes, objects, offset=offset, **limits)
        iou = iou_of_arrays(boxes[inside], objects, offset)
        for values, expected, outside in zip(found, match_by_iou(iou), (-1, 0, False), strict=True):
            np.testing.assert_array_equal(values[inside], expected)
            np.testing.assert_array_equal(values[~inside], outside)
        has_ties |= np.count_nonzero(found[2]) > len(objects)
    assert has_ties


def test_arrays_of_other_types_are_not_compiled_again(rng):
    """Views and read-only arrays would be further types, each with its own compilation."""
    boxes, objects = random_boxes(rng, 7), random_boxes(rng, 3)
    expected = box_iou(boxes, objects)
    n_variants = len(iou_module._fill_iou.signatures)
    read_only = boxes.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(box_iou(read_only, np.asfortranarray(objects)), expected)
    assert len(iou_module._fill_iou.signatures) == n_variants


def test_other_dtypes_use_array_operations(rng):
    boxes, objects = random_boxes(rng, 7).astype(np.float64), random_boxes(rng, 3).astype(np.float64)
    iou = box_iou(boxes, objects)
    assert iou.dtype == np.float64
    np.testing.assert_allclose(iou, box_iou(boxes.astype('f'), objects.astype('f')), atol=1e-6)


@pytest.mark.usefixtures('n_cpus')
def test_boxes_matched_in_single_precision(rng):
    """PyTorch's formula in float32, with anchors whose areas differ by their rounding only."""
    shapes = 128 * np.array([[0.5**0.5, 2**0.5], [2**0.5, 0.5**0.5]])
    centres = np.stack(np.meshgrid(np.arange(50) * 16.0, np.arange(60) * 16.0), axis=-1).reshape(-1, 1, 2)
    boxes = np.concatenate([centres - shapes / 2, centres + shapes / 2], axis=2).reshape(-1, 4).astype('f')
    objects = np.concatenate([random_boxes(rng, 5), np.float32([[3, 2, 777, 861], [400.3, 508.7, 414.9, 612.2]])])
    sides = np.minimum(boxes[:, None, 2:], objects[:, 2:]) - np.maximum(boxes[:, None, :2], objects[:, :2])
    intersection = np.prod(np.maximum(sides, np.float32(0)), axis=2)
    areas = [(b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, objects)]
    iou = intersection / (areas[0][:, None] + areas[1] - intersection)
    assert iou.dtype == np.float32
    expected, found = match_by_iou(iou), match_boxes(boxes, objects, offset=0.0, single_precision=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[2], expected[2])
    assert (match_boxes(boxes, objects, offset=0.0)[2] != expected[2]).any()
