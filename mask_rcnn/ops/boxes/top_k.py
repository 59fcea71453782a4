"""The best of many scores, in order."""

from __future__ import annotations

import numpy as np
from chainer.backend import get_array_module

from mask_rcnn.ops.runtime import cuda_kernels

#: Sorting on the device compares every pair; beyond this many, CuPy's sort is faster (it makes the host
#: wait).
_MAX_SORTED = 1 << 14
#: Up to so many scores are all sorted, however few are wanted: one launch instead of five.
_MAX_SORTED_WHOLE = 1 << 13
#: Threads of a block, and what a block of each kernel takes.
_THREADS, _COUNTED_SCORES, _SORTED_SCORES = 256, 1024, 32
#: Digits of a score's rank, and values of each; the last has fewer.
_DIGITS, _VALUES, _LAST_VALUES = 3, 2048, 1024


def top_k_indices(scores, limit: int):
    """Return the indices of the ``limit`` largest scores, falling; of equal ones the first comes first.

    On the GPU nothing is read back, so the host does not wait; the result is the same in every run.

    Args:
        scores: ``(N,)`` float32, without NaN.
        limit: 0 or more; all scores are sorted where there are fewer.

    Returns:
        ``(min(limit, N),)`` integers.
    """
    limit = min(limit, len(scores))
    xp = get_array_module(scores)
    if limit == 0:
        return xp.empty((0,), np.int32)
    implementation = top_k_indices_cpu if xp is np else top_k_indices_gpu
    return implementation(scores, limit)


def top_k_indices_cpu(scores, limit: int):
    """The CPU implementation: NumPy arrays; ``limit`` from 1 to the number of scores."""
    if limit == len(scores):
        return _falling(scores)
    worst = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    candidates = np.flatnonzero(scores >= worst)
    return candidates[_falling(scores[candidates])[:limit]]


def top_k_indices_gpu(scores, limit: int):
    """The GPU implementation: CuPy arrays; ``limit`` from 1 to the number of scores."""
    xp = get_array_module(scores)
    if limit > _MAX_SORTED:
        return _falling(scores)[:limit].astype(np.int32)
    scores = xp.ascontiguousarray(scores, np.float32)
    is_chosen = limit < len(scores) > _MAX_SORTED_WHOLE
    chosen = _choose(scores, limit) if is_chosen else None
    n, order = limit if is_chosen else len(scores), xp.empty((limit,), np.int32)
    cuda_kernels.kernel('boxes/top_k.cu', 'top_k_sort')(
        (-(-n // _SORTED_SCORES),),
        (_THREADS,),
        (scores, chosen if is_chosen else order, np.int32(is_chosen), np.int32(n), np.int32(limit), order),
    )
    return order


def _choose(scores, limit: int):
    """Return the indices that :func:`top_k_indices_gpu` does, in another order."""
    xp = get_array_module(scores)
    n, grid = len(scores), (-(-len(scores) // _COUNTED_SCORES),)
    counts, n_above = xp.split(xp.zeros((_DIGITS * _VALUES + 1,), np.int32), [_DIGITS * _VALUES])
    counts_of_blocks = xp.empty((*grid, _LAST_VALUES), np.int32)
    for digit in range(_DIGITS):
        cuda_kernels.kernel('boxes/top_k.cu', 'top_k_count')(
            grid, (_THREADS,), (scores, np.int32(n), np.int32(limit), np.int32(digit), counts, counts_of_blocks)
        )
    chosen = xp.empty((limit,), np.int32)
    cuda_kernels.kernel('boxes/top_k.cu', 'top_k_collect')(
        grid, (_THREADS,), (scores, np.int32(n), np.int32(limit), counts, counts_of_blocks, n_above, chosen)
    )
    return chosen


def _falling(scores):
    return get_array_module(scores).argsort(-scores, kind='stable')
