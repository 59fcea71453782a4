"""What follows a matrix product while its result is still in the cache: bias, residual and ReLU."""

from __future__ import annotations

from mask_rcnn.ops.runtime.parallel import jit


@jit
def bias_residual_relu(row, bias, residual, relu):
    """Add a bias and a residual to a row, and apply ReLU, in place.

    Args:
        row: 1-D, some numbers of one channel.
        bias: The channel's bias.
        residual: As many numbers to add, or none at all.
        relu: Whether to replace negative numbers by zero.
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
