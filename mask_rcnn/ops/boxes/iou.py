"""Compiled intersection over union on the CPU.

The arithmetic is that of Detectron's C code, bit by bit, as in :func:`mask_rcnn.ops.boxes.boxes.box_iou`, for finite
float32 boxes.  Boxes are processed in blocks with one array per coordinate, so that LLVM vectorises the loops.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask_rcnn.ops.runtime import parallel

#: The number of pairs of boxes that justify a thread: about 100 microseconds.
_MIN_PAIRS = 1 << 17

#: Boxes per block.  Consecutive anchors are neighbours: most objects do not overlap the bounding box of a block.
_BLOCK = 64

_ZERO, _ONE, _OUTSIDE, _INFINITY = np.float32(0), np.float32(1), np.float32(-1), np.float32(np.inf)


def box_iou_cpu(boxes_a: np.ndarray, boxes_b: np.ndarray, offset: float) -> np.ndarray:
    """Return the pairwise intersection over union; arguments and result are those of ``box_iou``, float32."""
    boxes_a, boxes_b = _as_compiled(boxes_a), _as_compiled(boxes_b)
    iou = np.empty((len(boxes_a), len(boxes_b)), np.float32)
    parallel.parallel_for(
        lambda start, stop: _fill_iou(boxes_a, boxes_b, float(offset), start, stop, iou),
        len(boxes_a),
        min_per_thread=_MIN_PAIRS // (len(boxes_b) + 1),
    )
    return iou


def match_boxes(
    boxes: np.ndarray,
    objects: np.ndarray,
    *,
    offset: float,
    low: float = -np.inf,
    high: Sequence[float] | np.ndarray = (np.inf, np.inf),
    single_precision: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match boxes that lie inside a region with objects, without an array of all pairs.

    Args:
        boxes: ``(R, 4)`` float32.
        objects: ``(G, 4)`` float32.
        offset: 1 or 0; see :mod:`mask_rcnn.ops.boxes.boxes`.
        low: Boxes whose ``y_min`` or ``x_min`` is less than this value, rounded to float32, are outside the region.
        high: Boxes whose ``y_max`` or ``x_max`` is not less than the first or second value are outside.
        single_precision: Whether areas and their sum are rounded to float32, as in PyTorch.  It decides which of
            several boxes with almost equal IoUs is the best one.

    Returns:
        tuple: Three arrays with one entry per box: its best IoU ``(R,)`` float32 (0 if it overlaps no object, -1 if it
        is outside), the index of that object ``(R,)`` int32 (the first one of several with this IoU), and ``(R,)``
        bool, True if no box inside has a higher IoU with some object that it overlaps.
    """
    boxes, objects = _as_compiled(boxes), _as_compiled(objects)
    limits = np.float32(low), float(high[0]), float(high[1])
    best_iou, best_object = np.empty(len(boxes), np.float32), np.empty(len(boxes), np.int32)
    is_best = np.zeros(len(boxes), np.bool_)
    maxima = {}  # start of a range -> best IoU of each object in the range

    area_type = np.float32 if single_precision else np.float64

    def match(start, stop):
        areas = np.empty(_BLOCK, area_type)
        maxima[start] = _match(boxes, objects, float(offset), *limits, start, stop, areas, best_iou, best_object)

    parallel.parallel_for(match, len(boxes), min_per_thread=_MIN_PAIRS // (len(objects) + 1))
    if len(boxes) and len(objects):
        best_of_object = np.max(list(maxima.values()), axis=0)
        parallel.parallel_for(
            lambda start, stop: _mark_best(
                boxes, objects, float(offset), best_iou, best_of_object, start, stop, np.empty(1, area_type), is_best
            ),
            len(boxes),
            min_per_thread=_MIN_PAIRS,
        )
    return best_iou, best_object, is_best


def _as_compiled(boxes: np.ndarray) -> np.ndarray:
    """Return the boxes as an array of the one type that the kernels are compiled for; copy only if necessary."""
    return np.require(boxes, np.float32, ('C', 'W'))


@parallel.jit
def _area(top, left, bottom, right, offset):
    """Return the area in float64 of sides that are subtracted in float32."""
    return (np.float64(bottom - top) + offset) * (np.float64(right - left) + offset)


@parallel.jit
def _iou(top, left, bottom, right, area, other, other_area, offset):
    """Return the IoU of a box and its ``area`` with ``other`` ``(4,)`` and its float32 area; float32 offset.

    The union is computed in the precision of ``area``, float64 or float32.
    """
    height = max(min(bottom, other[2]) - max(top, other[0]) + offset, _ZERO)
    width = max(min(right, other[3]) - max(left, other[1]) + offset, _ZERO)
    intersection = height * width
    union = np.float32(area + other_area - intersection)
    return intersection / (union if intersection > _ZERO else _ONE)


@parallel.jit
def _areas_float32(boxes, offset):
    """Return the areas rounded to float32."""
    areas = np.empty(len(boxes), np.float32)
    for i in range(len(boxes)):
        areas[i] = _area(boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3], offset)
    return areas


@parallel.jit
def _load_block(boxes, low, high_y, high_x, corners, areas, offset):
    """Write the boxes inside the limits to ``corners`` ``(4, n)`` and ``areas`` ``(n,)``, the others as empty boxes."""
    for k in range(len(boxes)):
        top, left, bottom, right = boxes[k, 0], boxes[k, 1], boxes[k, 2], boxes[k, 3]
        is_inside = (top >= low) & (left >= low) & (bottom < high_y) & (right < high_x)
        corners[0, k] = top if is_inside else _INFINITY
        corners[1, k] = left if is_inside else _INFINITY
        corners[2, k] = bottom if is_inside else -_INFINITY
        corners[3, k] = right if is_inside else -_INFINITY
        areas[k] = _area(top, left, bottom, right, offset)


@parallel.jit
def _iou_of_block(tops, lefts, bottoms, rights, areas, other, other_area, offset, iou):
    """Write the IoUs of the boxes of a block with another box; LLVM vectorises this loop over whole arrays."""
    other = other[0], other[1], other[2], other[3]
    for k in range(iou.size):
        iou[k] = _iou(tops[k], lefts[k], bottoms[k], rights[k], areas[k], other, other_area, offset)


@parallel.jit
def _fill_iou(boxes_a, boxes_b, offset, start, stop, iou):
    """Fill rows ``start`` to ``stop`` of ``iou`` ``(R, K)``."""
    areas_b = _areas_float32(boxes_b, offset)
    corners, areas = np.empty((4, _BLOCK), np.float32), np.empty(_BLOCK, np.float64)
    column = np.empty(_BLOCK, np.float32)
    for first in range(start, stop, _BLOCK):
        n = min(_BLOCK, stop - first)
        _load_block(boxes_a[first : first + n], -_INFINITY, np.inf, np.inf, corners, areas, offset)
        corners_of_block = corners[0], corners[1], corners[2], corners[3]
        for j in range(len(boxes_b)):
            _iou_of_block(*corners_of_block, areas, boxes_b[j], areas_b[j], np.float32(offset), column[:n])
            for k in range(n):
                iou[first + k, j] = column[k]


@parallel.jit
def _match(boxes, objects, offset, low, high_y, high_x, start, stop, areas, best_iou, best_object):
    """Match boxes ``start`` to ``stop``; return the best IoU of each object ``(G,)`` with them.

    ``areas`` is a buffer of a block, whose type is the precision of the areas.
    """
    object_areas = _areas_float32(objects, offset)
    best_of_object = np.zeros(len(objects), np.float32)
    best_bits = best_of_object.view(np.int32)
    near = np.empty(len(objects), np.int32)
    corners = np.empty((4, _BLOCK), np.float32)
    iou = np.empty(_BLOCK, np.float32)
    for first in range(start, stop, _BLOCK):
        n = min(_BLOCK, stop - first)
        _load_block(boxes[first : first + n], low, high_y, high_x, corners, areas, offset)
        corners_of_block = corners[0], corners[1], corners[2], corners[3]
        best, best_j = best_iou[first : first + n], best_object[first : first + n]
        for k in range(n):
            best[k] = _ZERO if corners[0, k] < _INFINITY else _OUTSIDE
            best_j[k] = 0
        for j in near[: _find_near(corners[:, :n], objects, offset, near)]:
            _iou_of_block(*corners_of_block, areas, objects[j], object_areas[j], np.float32(offset), iou[:n])
            best_bits[j] = max(best_bits[j], _update_best(iou[:n], j, best, best_j))
    return best_of_object


@parallel.jit
def _update_best(iou, j, best_iou, best_object):
    """Replace the best IoUs of a block by higher IoUs with object ``j``; return the bits of the highest one."""
    # The bits of floats that are not negative have the order of the floats, and LLVM vectorises a maximum of integers.
    bits, max_bits = iou.view(np.int32), np.int32(0)
    for k in range(iou.size):
        is_greater = iou[k] > max(best_iou[k], _ZERO)
        best_iou[k] = iou[k] if is_greater else best_iou[k]
        best_object[k] = j if is_greater else best_object[k]
        max_bits = max(max_bits, bits[k])
    return max_bits


@parallel.jit
def _find_near(corners, objects, offset, near):
    """Write the indices of the objects that overlap the bounding box of a block ``(4, n)``; return their number.

    Rounding is monotonic: the computed overlap with the bounding box is at least that with each box of the block.
    """
    top, left, bottom, right = corners[0, 0], corners[1, 0], corners[2, 0], corners[3, 0]
    for k in range(1, corners.shape[1]):  # four independent chains of operations
        top, left = min(top, corners[0, k]), min(left, corners[1, k])
        bottom, right = max(bottom, corners[2, k]), max(right, corners[3, k])
    n_near = 0
    for j in range(len(objects)):
        height = min(bottom, objects[j, 2]) - max(top, objects[j, 0]) + np.float32(offset)
        width = min(right, objects[j, 3]) - max(left, objects[j, 1]) + np.float32(offset)
        if height > _ZERO and width > _ZERO:
            near[n_near] = j
            n_near += 1
    return n_near


@parallel.jit
def _mark_best(boxes, objects, offset, best_iou, best_of_object, start, stop, areas, is_best):
    """Mark the boxes ``start`` to ``stop`` that have the best IoU of an object that overlaps a box.

    ``areas`` is a buffer of one element; see :func:`_match`.
    """
    object_areas = _areas_float32(objects, offset)
    lowest = _INFINITY
    for best in best_of_object:
        if best > _ZERO:
            lowest = min(lowest, best)
    for i in range(start, stop):
        if best_iou[i] >= lowest:  # few boxes; no other one can be the best
            top, left, bottom, right = boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3]
            areas[0] = _area(top, left, bottom, right, offset)
            for j in range(len(objects)):
                iou = _iou(top, left, bottom, right, areas[0], objects[j], object_areas[j], np.float32(offset))
                is_best[i] |= iou == best_of_object[j] and iou > _ZERO
