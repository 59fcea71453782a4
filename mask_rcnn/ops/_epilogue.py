"""What follows a matrix product while its result is still in the cache: bias, residual and ReLU."""

from __future__ import annotations

from mask_rcnn.ops._parallel import jit


@jit
def finish(line, bias, residual, relu):
    """Add a number and another line, and cut off what is negative, in place.

    Args:
        line: 1-D, some numbers of one channel.
        bias: The channel's bias.
        residual: As many numbers to add, or none at all.
        relu: Whether to replace negative numbers by zero.
    """
    zero = line.dtype.type(0)
    if residual.size > 0:
        for i in range(line.size):
            value = line[i] + bias + residual[i]
            line[i] = max(value, zero) if relu else value
    else:
        for i in range(line.size):
            value = line[i] + bias
            line[i] = max(value, zero) if relu else value
