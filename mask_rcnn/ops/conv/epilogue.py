"""Compiled epilogues of a convolution: bias, residual and ReLU while the product is still in the cache."""

from __future__ import annotations

from mask_rcnn.ops.runtime.parallel import jit


@jit
def bias_residual_relu(row, bias, residual, relu):
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
        bias_residual_relu(rows[i], bias[i], residual[i], relu)


@jit
def store_with_epilogue(product, bias, residual, relu, y, start):
    """Apply the epilogue to ``product`` ``(O, n)`` and write it to the columns of ``y`` that begin at ``start``.

    ``y`` may be the residual.
    """
    for i in range(len(product)):
        row, columns = product[i], slice(start, start + product.shape[1])
        bias_residual_relu(row, bias[i], residual[i, columns], relu)
        y[i, columns] = row
