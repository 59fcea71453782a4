"""How activations lie in memory behind the usual shape ``(N, C, H, W)``.

On the CPU with the channels outermost, on a GPU innermost.
"""

from __future__ import annotations

import numpy as np


def channels_first(x, dtype=None):
    """Return ``(N, C, H, W)`` as a contiguous ``(C, N, H, W)``, copying only what is laid out otherwise.

    Args:
        x: NumPy array.
        dtype: Type of the result; by default that of ``x``.
    """
    return np.ascontiguousarray(x.transpose(1, 0, 2, 3), dtype)


def as_images(channels):
    """Return ``(C, N, H, W)`` as ``(N, C, H, W)``, without a copy."""
    return channels.transpose(1, 0, 2, 3)


def memory_axis_order(x) -> list[int]:
    """Return the axes of an array as its memory runs, the longest stride first.

    CuPy's element-wise kernels walk through an array in the order of its axes: transposed this way they read
    neighbours, and make their results alike.
    """
    return sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
