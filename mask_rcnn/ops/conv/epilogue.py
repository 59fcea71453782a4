"""The epilogue of convolutions on the CPU: bias, residual and ReLU, compiled."""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import add, fill, load, load_first, maximum, store, store_first


@jit
def store_vector(sums, begin, n, bias, residual, lowest, lanes, y, out):
    """Apply the epilogue to the vector of sums at an element and write its first values.

    Args:
        sums: Contiguous; a whole vector begins at the element ``begin``.
        begin: See ``sums``.
        n: Number of values to write, 1 to ``lanes``.
        bias: Vector of the channel's bias.
        residual: Like ``y``, or empty.
        lowest: Vector of zeros for ReLU, otherwise of minus infinity.
        lanes: Elements of a vector.
        y: Contiguous, written from the element ``out``; may be ``residual``.
        out: See ``y``.
    """
    vector = add(load(sums, begin), bias)
    if n == lanes:
        if residual.size > 0:
            vector = add(vector, load(residual, out))
        store(y, out, maximum(vector, lowest))
    else:
        if residual.size > 0:
            vector = add(vector, load_first(residual, out, n))
        store_first(y, out, n, maximum(vector, lowest))


@jit
def store_row(sums, start, bias, residual, relu, lanes, y):
    """Apply the epilogue to sums and write them to a row.

    Args:
        sums: 1-D; those of the row begin at ``start``.
        start: See ``sums``.
        bias: The bias of the channel.
        residual: Like ``y``, or empty.
        relu: Whether to apply ReLU.
        lanes: Elements of a vector.
        y: 1-D, written.
    """
    lowest = y.dtype.type(0 if relu else -np.inf)
    if y.size < lanes:
        for i in range(y.size):
            value = sums[start + i] + bias
            value = value + residual[i] if residual.size > 0 else value
            y[i] = lowest if value < lowest else value
        return
    for k in range(0, y.size, lanes):
        i = min(k, y.size - lanes)  # the last two vectors overlap
        vector = add(load(sums, start + i), fill(bias))
        if residual.size > 0:
            vector = add(vector, load(residual, i))
        store(y, i, maximum(vector, fill(lowest)))


@jit
def _bias_residual_relu(row, bias, residual, relu):
    """Add a bias and a residual to a row and apply ReLU, in place.

    Args:
        row: 1-D, values of one channel.
        bias: The bias of the channel.
        residual: Values to add, of the length of ``row``; empty if there is no residual.
        relu: Whether to apply ReLU.
    """
    zero = row.dtype.type(0)
    if residual.size > 0:
        for i in range(row.size):
            value = row[i] + bias + residual[i]
            row[i] = max(value, zero) if relu else value
    else:
        for i in range(row.size):
            value = row[i] + bias
            row[i] = max(value, zero) if relu else value


@jit
def apply_epilogue_to_rows(rows, bias, residual, relu):
    """Apply the epilogue to channels ``(O, n)`` in place; without a residual ``residual`` is ``(O, 0)``."""
    for i in range(len(rows)):
        _bias_residual_relu(rows[i], bias[i], residual[i], relu)
