"""How activations lie in memory on the CPU: channels outermost, behind the usual shape ``(N, C, H, W)``."""

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
