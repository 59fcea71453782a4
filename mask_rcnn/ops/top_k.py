"""The best of many scores, in order."""

from __future__ import annotations

import numpy as np
from chainer.backend import get_array_module

from mask_rcnn.ops import _cuda

#: Sorting on the device compares every pair; beyond this many, CuPy's sort is faster (it makes the host
#: wait).
_MAX_SORTED = 1 << 14
#: Threads of a block; ``top_k_sort`` keeps as many keys.
_SELECT_THREADS, _SORT_THREADS = 1024, 256


def best_first(scores, limit: int):
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
    form = best_first_cpu if xp is np else best_first_gpu
    return form(scores, limit)


def best_first_cpu(scores, limit: int):
    """The CPU form: NumPy arrays; ``limit`` from 1 to the number of scores."""
    if limit == len(scores):
        return _falling(scores)
    worst = np.partition(scores, len(scores) - limit)[len(scores) - limit]
    candidates = np.flatnonzero(scores >= worst)
    return candidates[_falling(scores[candidates])[:limit]]


def best_first_gpu(scores, limit: int):
    """The GPU form: CuPy arrays; ``limit`` from 1 to the number of scores."""
    xp = get_array_module(scores)
    if limit > _MAX_SORTED:
        return _falling(scores)[:limit].astype(np.int32)
    scores = xp.ascontiguousarray(scores, np.float32)
    chosen, order = xp.empty((limit,), np.int32), xp.empty((limit,), np.int32)
    if limit < len(scores):
        _cuda.kernel('top_k.cu', 'top_k_select')((1,), (_SELECT_THREADS,), (
            scores, np.int32(len(scores)), np.int32(limit), chosen))
    else:
        chosen = xp.arange(limit, dtype=np.int32)
    _cuda.kernel('top_k.cu', 'top_k_sort')((-(-limit // _SORT_THREADS),), (_SORT_THREADS,), (
        scores, chosen, np.int32(limit), order))
    return order


def _falling(scores):
    return get_array_module(scores).argsort(-scores, kind='stable')
