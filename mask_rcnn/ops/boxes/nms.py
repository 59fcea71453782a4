"""Non-maximum suppression.

Source: Detectron ``detectron/utils/cython_nms.pyx``.  The bit mask of the GPU implementation follows Faster R-CNN's
``nms_kernel.cu``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mask_rcnn.ops.boxes.top_k import top_k_indices
from mask_rcnn.ops.runtime import cuda_kernels, parallel
from mask_rcnn.ops.runtime.array import Array, get_array_module

#: Boxes per 64-bit mask word; also the number of threads per block.
_WORD_BITS = 64
_REDUCE_THREADS = 256
#: Threads of the block that shifts the boxes, a power of two (nms.cu).
_SHIFT_THREADS = 256
#: Maximum number of boxes on a GPU: one bit per box fits into shared memory.  Their overlaps take 8 GiB.
_MAX_BOXES = 4096 * _WORD_BITS

_ZERO = np.float32(0)


class GroupShift(NamedTuple):
    """The shift by which the NMS of several groups becomes one NMS of boxes that do not overlap (torchvision).

    Boxes are shifted by the number of their group times (largest coordinate + 1).  The rounding of the shifted corners
    changes the overlaps: at a shift of 10,000 pixels, corners are multiples of 1/1024.  Source:
    ``_batched_nms_coordinate_trick`` of ``torchvision/ops/boxes.py``.

    Attributes:
        max_boxes: Maximum number of boxes that are shifted; more boxes, and padding, are not shifted.  0 for no shift.
        first_group: The number of group 0.
    """

    max_boxes: int = 0
    first_group: int = 0


#: No shift.
NO_SHIFT = GroupShift()


def nms(
    boxes: Array,
    scores: Array,
    threshold: float,
    *,
    offset: float = 1.0,
    groups: Array | None = None,
    limit: int | None = None,
    suppress_equal: bool = True,
    shift: GroupShift = NO_SHIFT,
) -> Array:
    """Suppress every box whose IoU with a kept box of higher score is at or above a threshold.

    IoU and threshold are compared in float32, with the same rounding on the CPU and on the GPU.

    The GPU implementation runs on the device and stores the overlaps in ``(R, R / 64)`` words.  The host waits for
    the number of kept boxes, which is the length of the result; :func:`nms_padded` does not wait.

    Args:
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)``.
        scores: (R,) float32.  Of boxes with equal scores, the first takes precedence.  A box with a score of minus
            infinity or NaN is padding: it is not kept and does not suppress other boxes.
        threshold: IoU threshold of suppression.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.
        groups: (R,) ints, the class or level of each box; boxes of different groups do not suppress each other.
        limit: Maximum number of kept boxes, or ``None``; the boxes with the highest scores are kept.
        suppress_equal: Whether a box is suppressed at an IoU equal to the threshold (Detectron), or only above it.
        shift: The shift of the boxes of each group before their IoUs are computed.

    Returns:
        Indices of the kept boxes, (K,) int32, in descending order of score.

    Raises:
        ValueError: A shape is wrong, ``limit`` is negative, or a GPU gets more than 262,144 boxes.
    """
    kept = nms_padded(
        boxes,
        scores,
        threshold,
        offset=offset,
        groups=groups,
        limit=limit,
        suppress_equal=suppress_equal,
        shift=shift,
    )
    return kept[kept >= 0]


def nms_padded(
    boxes: Array,
    scores: Array,
    threshold: float,
    *,
    offset: float = 1.0,
    groups: Array | None = None,
    limit: int | None = None,
    suppress_equal: bool = True,
    shift: GroupShift = NO_SHIFT,
) -> Array:
    """Suppress boxes as :func:`nms` does, and return a padded result.

    The number of kept boxes is data-dependent, and reading it would synchronise the host with the GPU.  The shape of
    this result depends only on ``limit`` and the number of boxes.  Arguments and errors are those of :func:`nms`.

    Returns:
        Indices of the kept boxes in descending order of score, followed by -1, ``(min(limit, R),)`` int32.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f'boxes must have the shape (R, 4), not {boxes.shape}')
    for name, values in (('scores', scores), ('groups', groups)):
        if values is not None and values.shape != boxes.shape[:1]:
            raise ValueError(f'{name} must have the shape ({len(boxes)},), not {values.shape}')
    limit = len(boxes) if limit is None else min(limit, len(boxes))
    if limit < 0:
        raise ValueError(f'limit must be 0 or more, not {limit}')
    xp = get_array_module(boxes)
    if limit == 0:
        return xp.empty((0,), np.int32)
    implementation = nms_cpu if xp is np else nms_gpu
    return implementation(
        boxes.astype(np.float32, copy=False),
        scores,
        np.float32(threshold),
        np.float32(offset),
        groups,
        limit,
        bool(suppress_equal),
        shift,
    )


def nms_gpu(
    boxes: Array,
    scores: Array,
    threshold: np.float32,
    offset: np.float32,
    groups: Array | None,
    limit: int,
    suppress_equal: bool,
    shift: GroupShift = NO_SHIFT,
) -> Array:
    """Suppress boxes on a GPU; takes the arguments of :func:`nms_padded` in their final types, and at least one box."""
    xp = get_array_module(boxes)
    n = len(boxes)
    if n > _MAX_BOXES:
        raise ValueError(f'a GPU takes at most {_MAX_BOXES} boxes, not {n}')
    n_words = -(-n // _WORD_BITS)
    scores = xp.ascontiguousarray(scores, np.float32)
    order = top_k_indices(scores, n).astype(np.int32, copy=False)
    has_groups = groups is not None
    groups = xp.ascontiguousarray(groups, np.int32) if has_groups else order
    boxes = xp.ascontiguousarray(boxes)
    if has_groups and shift.max_boxes:
        boxes = _shift_groups_gpu(boxes, scores, groups, shift)

    overlaps = xp.empty((n_words * _WORD_BITS, n_words), np.uint64)
    cuda_kernels.kernel('boxes/nms.cu', 'nms_overlaps')(
        (n_words, n_words),
        (_WORD_BITS,),
        (
            boxes,
            scores,
            groups,
            np.int32(has_groups),
            order,
            np.int32(n),
            threshold,
            offset,
            np.int32(suppress_equal),
            overlaps,
        ),
    )
    kept = xp.empty((limit,), np.int32)
    cuda_kernels.kernel('boxes/nms.cu', 'nms_reduce')(
        (1,), (_REDUCE_THREADS,), (overlaps, order, np.int32(n), np.int32(limit), kept)
    )
    return kept


def _shift_groups_gpu(boxes: Array, scores: Array, groups: Array, shift: GroupShift) -> Array:
    """Return the boxes of :func:`shift_groups`; the host does not wait for the number of boxes."""
    shifted = get_array_module(boxes).empty_like(boxes)
    cuda_kernels.kernel('boxes/nms.cu', 'shift_groups')(
        (1,), (_SHIFT_THREADS,), (boxes, scores, groups, *map(np.int32, (len(boxes), *shift)), shifted)
    )
    return shifted


def shift_groups(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray | None, shift: GroupShift) -> np.ndarray:
    """Return the boxes whose overlaps decide in :func:`nms`, on the CPU.

    Args:
        boxes: ``(R, 4)`` float32.
        scores: ``(R,)`` float32; minus infinity or NaN for padding.
        groups: ``(R,)`` ints, or ``None`` for no shift.
        shift: The shift.
    """
    is_box = scores > -np.inf
    if groups is None or not 0 < np.count_nonzero(is_box) <= shift.max_boxes:
        return boxes
    distance = boxes[is_box].max() + np.float32(1)
    return boxes + ((groups + shift.first_group).astype(np.float32) * distance)[:, None]


def nms_cpu(
    boxes: np.ndarray,
    scores: np.ndarray,
    threshold: np.float32,
    offset: np.float32,
    groups: np.ndarray | None,
    limit: int,
    suppress_equal: bool,
    shift: GroupShift = NO_SHIFT,
) -> np.ndarray:
    """Suppress boxes on the CPU; takes the arguments of :func:`nms_padded` in their final types.

    The boxes are sorted by group, so that a box is compared only with boxes of its group.
    """
    boxes = shift_groups(boxes, scores, groups, shift)
    order = np.argsort(-scores, kind='stable')
    order = order[scores[order] > -np.inf]
    starts = np.zeros(1, np.int64)
    if groups is not None:
        order = order[np.argsort(groups[order], kind='stable')]
        starts = np.append(starts, np.flatnonzero(np.diff(groups[order])) + 1)
    keep = np.zeros(len(order), np.bool_)
    _suppress(
        np.ascontiguousarray(boxes[order].T),
        np.append(starts, len(order)),
        threshold,
        offset,
        suppress_equal,
        limit,
        keep,
    )
    kept = order[keep]
    if len(starts) > 1:
        kept = kept[np.lexsort((kept, -scores[kept]))]
    padded = np.full(limit, -1, np.int32)
    padded[: len(kept)] = kept[:limit]
    return padded


def find_suppressors(
    boxes: np.ndarray,
    scores: np.ndarray,
    kept: np.ndarray,
    threshold: float,
    *,
    offset: float = 1.0,
    groups: np.ndarray | None = None,
    suppress_equal: bool = True,
    shift: GroupShift = NO_SHIFT,
) -> np.ndarray:
    """Return the index of the kept box that suppresses each box, on the CPU; the one with the highest score of several.

    Args:
        boxes: See :func:`nms`, as for the other arguments.
        scores: ``(R,)`` float32.
        kept: The result of :func:`nms` for these boxes.
        threshold: IoU threshold of suppression.
        offset: 1 or 0.
        groups: ``(R,)`` ints, or ``None``.
        suppress_equal: Whether a box is suppressed at an IoU equal to the threshold.
        shift: The shift of the boxes of each group.

    Returns:
        numpy.ndarray: ``(R,)`` int64 index of the suppressing box; -1 for kept boxes, padding, and the boxes that
        :func:`nms` did not reach because of its limit.
    """
    order = np.argsort(-scores, kind='stable')
    order = order[scores[order] > -np.inf]
    rank = np.full(len(boxes), -1, np.int64)
    rank[order] = np.arange(len(order))
    boxes = shift_groups(boxes, scores, groups, shift)
    groups = np.zeros(len(boxes), np.int64) if groups is None else np.asarray(groups)
    corners = np.ascontiguousarray(boxes[order].T.astype(np.float32, copy=False))
    offset = np.float32(offset)
    areas = (corners[2] - corners[0] + offset) * (corners[3] - corners[1] + offset)
    suppressors = np.full(len(boxes), -1, np.int64)
    for i in kept.tolist():
        start = rank[i] + 1
        overlaps = np.zeros(len(order) - start, np.bool_)
        box, area = corners[:, start - 1], areas[start - 1]
        _mark_overlapping(
            box, area, *corners[:, start:], areas[start:], np.float32(threshold), offset, suppress_equal, overlaps
        )
        following = order[start:][overlaps]
        following = following[(groups[following] == groups[i]) & (suppressors[following] < 0)]
        suppressors[following] = i
    suppressors[kept] = -1
    return suppressors


@parallel.jit
def _suppress(corners, bounds, threshold, offset, suppress_equal, limit, keep):
    """Mark the kept boxes of every group.

    Args:
        corners: (4, R) float32, group after group, within a group in descending order of score.
        bounds: Index of the first box of each group, and the number of boxes.
        threshold: IoU threshold, float32.
        offset: 1 or 0, float32.
        suppress_equal: Whether an IoU equal to the threshold suppresses.
        limit: Maximum number of kept boxes in each group.
        keep: (R,) bool, initially false; receives the result.
    """
    areas = (corners[2] - corners[0] + offset) * (corners[3] - corners[1] + offset)
    suppressed = np.zeros(areas.size, np.bool_)
    for group in range(bounds.size - 1):
        n_kept = 0
        for i in range(bounds[group], bounds[group + 1]):
            if suppressed[i]:
                continue
            keep[i] = True
            n_kept += 1
            if n_kept == limit:
                break
            following = slice(i + 1, bounds[group + 1])
            _mark_overlapping(
                corners[:, i],
                areas[i],
                corners[0, following],
                corners[1, following],
                corners[2, following],
                corners[3, following],
                areas[following],
                threshold,
                offset,
                suppress_equal,
                suppressed[following],
            )


@parallel.jit
def _mark_overlapping(box, area, y_min, x_min, y_max, x_max, areas, threshold, offset, suppress_equal, suppressed):
    """Mark the boxes that one box suppresses.  LLVM vectorises this loop because it runs over whole arrays."""
    top, left, bottom, right = box[0], box[1], box[2], box[3]
    for j in range(suppressed.size):
        height = min(bottom, y_max[j]) - max(top, y_min[j]) + offset
        width = min(right, x_max[j]) - max(left, x_min[j]) + offset
        overlap = max(height, _ZERO) * max(width, _ZERO)
        iou = overlap / (area + areas[j] - overlap)
        suppressed[j] |= (iou > threshold) | (suppress_equal & (iou == threshold))
