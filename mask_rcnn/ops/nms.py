"""Non-maximum suppression.

Source: Detectron ``detectron/utils/cython_nms.pyx``; the bit mask of the GPU form follows the design of
Faster R-CNN's ``nms_kernel.cu``.
"""

from __future__ import annotations

import chainer
import numpy as np

from mask_rcnn.ops import _cuda, _parallel
from mask_rcnn.ops.top_k import best_first

#: Boxes whose suppression one machine word holds; also threads per block.
_WORD = 64
_REDUCE_THREADS = 256
#: Boxes that fit into what the threads of a block share on the GPU; their overlaps take 8 GiB.
_MAX_BOXES = 4096 * _WORD

_ZERO = np.float32(0)


def nms(boxes, scores, threshold, *, offset=1.0, groups=None, limit=None, suppress_equal=True):
    """Keep the best boxes of which no two overlap too much.

    In falling order of score, a box is kept unless a kept one overlaps it.  IoU and threshold are compared in
    float32, with the same rounding on the CPU and on the GPU.

    On the GPU everything happens on the device; ``(R, R / 64)`` words of memory hold the overlaps.  The host
    waits for the number of kept boxes, which the result's shape needs; :func:`nms_padded` does not wait.

    Args:
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)``.
        scores: (R,) float32.  The first of equal scores counts as the better one.  A box that scores minus infinity
            is nothing: it is not kept, and suppresses none.
        threshold: IoU from which on a box suppresses a worse one.
        offset: A box from ``x_min`` to ``x_max`` is ``x_max - x_min + offset`` wide: Detectron's 1, or 0.
        groups: (R,) ints; boxes suppress only boxes of their own group (their class, or level).
        limit: Keep no more than so many: the best.
        suppress_equal: Suppress at IoU = ``threshold``, too (Detectron); false: only above it.

    Returns:
        Indices of the kept boxes, (K,) int32, in falling order of score.

    Raises:
        ValueError: If a shape is wrong, or there are more than 262,144 boxes on a GPU.
    """
    kept = nms_padded(boxes, scores, threshold, offset=offset, groups=groups, limit=limit,
                      suppress_equal=suppress_equal)
    return kept[kept >= 0]


def nms_padded(boxes, scores, threshold, *, offset=1.0, groups=None, limit=None, suppress_equal=True):
    """Do what :func:`nms` does, with a result whose shape is known before: the host waits for nothing.

    Returns:
        Indices of the kept boxes in falling order of score, (``limit``,) int32 (or (R,) if that is less); -1
        in the places that no box takes.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f'boxes must have the shape (R, 4), not {boxes.shape}')
    for name, values in (('scores', scores), ('groups', groups)):
        if values is not None and values.shape != boxes.shape[:1]:
            raise ValueError(f'{name} must have the shape ({len(boxes)},), not {values.shape}')
    limit = len(boxes) if limit is None else min(limit, len(boxes))
    if limit < 0:
        raise ValueError(f'limit must be 0 or more, not {limit}')
    xp = chainer.backend.get_array_module(boxes)
    if limit == 0:
        return xp.empty((0,), np.int32)
    form = nms_cpu if xp is np else nms_gpu
    return form(boxes.astype(np.float32, copy=False), scores, np.float32(threshold), np.float32(offset),
                groups, limit, bool(suppress_equal))


def nms_gpu(boxes, scores, threshold, offset, groups, limit, suppress_equal):
    """The GPU form: CuPy arrays, not empty; all arguments of :func:`nms_padded` in their final types."""
    xp = chainer.backend.get_array_module(boxes)
    n = len(boxes)
    if n > _MAX_BOXES:
        raise ValueError(f'a GPU takes at most {_MAX_BOXES} boxes, not {n}')
    words = -(-n // _WORD)
    scores = xp.ascontiguousarray(scores, np.float32)
    order = best_first(scores, n).astype(np.int32, copy=False)
    has_groups = groups is not None
    groups = xp.ascontiguousarray(groups, np.int32) if has_groups else order

    overlaps = xp.empty((words * _WORD, words), np.uint64)
    _cuda.kernel('nms.cu', 'nms_overlaps')((words, words), (_WORD,), (
        xp.ascontiguousarray(boxes), scores, groups, np.int32(has_groups), order, np.int32(n), threshold, offset,
        np.int32(suppress_equal), overlaps))
    kept = xp.empty((limit,), np.int32)
    _cuda.kernel('nms.cu', 'nms_reduce')((1,), (_REDUCE_THREADS,), (
        overlaps, order, np.int32(n), np.int32(limit), kept))
    return kept


def nms_cpu(boxes, scores, threshold, offset, groups, limit, suppress_equal):
    """The CPU form: NumPy arrays; all arguments of :func:`nms_padded` in their final types.

    Groups are laid side by side, so that a box meets only boxes of its own.
    """
    order = np.argsort(-scores, kind='stable')
    order = order[scores[order] > -np.inf]
    starts = np.zeros(1, np.int64)
    if groups is not None:
        order = order[np.argsort(groups[order], kind='stable')]
        starts = np.append(starts, np.flatnonzero(np.diff(groups[order])) + 1)
    keep = np.zeros(len(order), np.bool_)
    _suppress(np.ascontiguousarray(boxes[order].T), np.append(starts, len(order)), threshold, offset,
              suppress_equal, limit, keep)
    kept = order[keep]
    if len(starts) > 1:
        kept = kept[np.lexsort((kept, -scores[kept]))]
    padded = np.full(limit, -1, np.int32)
    padded[:len(kept)] = kept[:limit]
    return padded


@_parallel.jit
def _suppress(corners, bounds, threshold, offset, suppress_equal, limit, keep):
    """Mark the kept boxes of every group.

    Args:
        corners: (4, R) float32, group after group, within a group in falling order of score.
        bounds: Where each group begins, and the end of the last.
        keep: (R,) bool, false on entry; written.
    """
    areas = (corners[2] - corners[0] + offset) * (corners[3] - corners[1] + offset)
    gone = np.zeros(areas.size, np.bool_)
    for group in range(bounds.size - 1):
        left = limit
        for i in range(bounds[group], bounds[group + 1]):
            if gone[i]:
                continue
            keep[i] = True
            left -= 1
            if left == 0:
                break
            rest = slice(i + 1, bounds[group + 1])
            _mark_overlapping(corners[:, i], areas[i], corners[0, rest], corners[1, rest],
                              corners[2, rest], corners[3, rest], areas[rest], threshold, offset,
                              suppress_equal, gone[rest])


@_parallel.jit
def _mark_overlapping(box, area, y_min, x_min, y_max, x_max, areas, threshold, offset, suppress_equal, gone):
    """Mark which of many boxes one box suppresses.  A loop over whole arrays is one that LLVM vectorises."""
    top, left, bottom, right = box[0], box[1], box[2], box[3]
    for j in range(gone.size):
        height = min(bottom, y_max[j]) - max(top, y_min[j]) + offset
        width = min(right, x_max[j]) - max(left, x_min[j]) + offset
        overlap = max(height, _ZERO) * max(width, _ZERO)
        iou = overlap / (area + areas[j] - overlap)
        gone[j] |= (iou > threshold) | (suppress_equal & (iou == threshold))
