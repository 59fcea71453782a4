"""The indices of the largest scores, sorted."""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module

#: The sorting kernel compares every pair of scores.  Above this limit CuPy's sort is faster, although it synchronises.
_MAX_PAIRWISE_SORT = 1 << 14
#: Up to this count, all scores are sorted without a radix selection first: one launch instead of five.
_MAX_FULL_SORT = 1 << 13
#: Threads of a block, scores of a block of the counting and collecting kernels, and of the sorting kernel (top_k.cu).
_THREADS, _SCORES_PER_BLOCK, _SORTED_PER_BLOCK = 256, 1024, 32
#: The digits of a score's rank, and the number of values of a digit and of the last, shorter one (top_k.cu).
_DIGITS, _VALUES, _LAST_VALUES = 3, 2048, 1024


def top_k_indices(scores: Array, limit: int, *, last_of_ties_first: bool = False) -> Array:
    """Return the indices of the ``limit`` largest scores, in descending order; ties keep the order of the input.

    The result has the same bits in every run.  The host does not wait for a GPU unless ``limit`` exceeds 16,384.

    Args:
        scores: ``(N,)`` float32; NaN is the lowest score.
        limit: Maximum number of indices, 0 or more.
        last_of_ties_first: Whether ties have the reverse order of the input instead.

    Returns:
        ``(min(limit, N),)`` integers.
    """
    limit = min(limit, len(scores))
    xp = get_array_module(scores)
    if limit == 0:
        return xp.empty((0,), np.int32)
    implementation = top_k_indices_cpu if xp is np else top_k_indices_gpu
    if last_of_ties_first:
        return len(scores) - 1 - implementation(scores[::-1], limit)
    return implementation(scores, limit)


def top_k_indices_cpu(scores: np.ndarray, limit: int) -> np.ndarray:
    """The CPU implementation; ``limit`` is between 1 and the number of scores."""
    if limit == len(scores):
        return _argsort_descending(scores)
    descending = -scores  # NumPy sorts NaN last
    lowest = np.partition(descending, limit - 1)[limit - 1]
    if np.isnan(lowest):
        return _argsort_descending(scores)[:limit]
    candidates = np.flatnonzero(descending <= lowest)
    return candidates[np.argsort(descending[candidates], kind='stable')[:limit]]


def top_k_indices_gpu(scores: Array, limit: int) -> Array:
    """The GPU implementation; ``limit`` is between 1 and the number of scores."""
    xp = get_array_module(scores)
    if limit > _MAX_PAIRWISE_SORT:
        return _argsort_descending(scores)[:limit].astype(np.int32)
    scores = xp.ascontiguousarray(scores, np.float32)
    is_selected = limit < len(scores) > _MAX_FULL_SORT
    selected = _radix_select(scores, limit) if is_selected else None
    n, order = limit if is_selected else len(scores), xp.empty((limit,), np.int32)
    cuda_kernels.kernel('boxes/top_k.cu', 'top_k_sort')(
        (-(-n // _SORTED_PER_BLOCK),),
        (_THREADS,),
        (scores, selected if is_selected else order, np.int32(is_selected), np.int32(n), np.int32(limit), order),
    )
    return order


def _radix_select(scores: Array, limit: int) -> Array:
    """Return the indices of the ``limit`` largest scores, unsorted; of tied scores, those that come first."""
    xp = get_array_module(scores)
    n, grid = len(scores), (-(-len(scores) // _SCORES_PER_BLOCK),)
    counts, n_above = xp.split(xp.zeros((_DIGITS * _VALUES + 1,), np.int32), [_DIGITS * _VALUES])
    block_counts = xp.empty((*grid, _LAST_VALUES), np.int32)
    for digit in range(_DIGITS):
        cuda_kernels.kernel('boxes/top_k.cu', 'top_k_count')(
            grid, (_THREADS,), (scores, np.int32(n), np.int32(limit), np.int32(digit), counts, block_counts)
        )
    selected = xp.empty((limit,), np.int32)
    cuda_kernels.kernel('boxes/top_k.cu', 'top_k_collect')(
        grid, (_THREADS,), (scores, np.int32(n), np.int32(limit), counts, block_counts, n_above, selected)
    )
    return selected


def _argsort_descending(scores: Array) -> Array:
    return get_array_module(scores).argsort(-scores, kind='stable')
