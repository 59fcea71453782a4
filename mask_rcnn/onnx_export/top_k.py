"""The indices of the largest scores in an ONNX graph; the counterpart of :mod:`mask_rcnn.ops.boxes.top_k`."""

from __future__ import annotations

import numpy as np

from mask_rcnn.onnx_export.graph import Tensor


def top_k(scores: Tensor, limit: int | None = None, *, last_of_ties_first: bool = False) -> Tensor:
    """Return the indices of the largest scores of the last axis, in descending order.

    Args:
        scores: ``(..., N)`` floats without NaN, whose order the operator leaves open.
        limit: Maximum number of indices; ``None`` for all.
        last_of_ties_first: Whether ties have the reverse order of the input, or its order.

    Returns:
        Tensor: ``(..., min(limit, N))`` int64.
    """
    graph = scores.graph
    n = graph.op('Shape', scores, start=-1, dtype=np.int64)
    if last_of_ties_first:
        scores = scores.slice(-1, np.iinfo(np.int64).min, axis=-1, step=-1)
    k = n if limit is None else n.minimum(limit)
    indices = graph.multi_op('TopK', scores, k, dtypes=[None, np.int64])[1]
    return n - 1 - indices if last_of_ties_first else indices
