"""The weights of Pillow's bilinear resize, which the CPU and the GPU share."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Bits of the fractional part of a weight: those that a sum of 32 bits leaves beside a byte and two bits of reserve.
WEIGHT_BITS = 32 - 8 - 2


class TriangleFilter(NamedTuple):
    """The resize of one axis: each output pixel is a weighted sum of consecutive input pixels.

    Attributes:
        first: ``(n_out,)`` int32, the first input pixel.
        n_taps: ``(n_out,)`` int32, the number of input pixels.
        weights: ``(n_out, max_taps)`` int32, in units of ``2 ** -WEIGHT_BITS``; zeros follow the ``n_taps`` weights.
    """

    first: np.ndarray
    n_taps: np.ndarray
    weights: np.ndarray


def triangle_filter(n_in: int, n_out: int) -> TriangleFilter:
    """Return the weights of a resize from ``n_in`` to ``n_out`` pixels.

    A triangle of a width of two output pixels, but at least two input pixels, is centred on each output pixel.  The
    order of the operations is that of Pillow (``src/libImaging/Resample.c``), because a weight may be near the limit
    between two integers.  If the sizes are equal, the weight of each pixel is 1.

    Args:
        n_in: Number of input pixels, at least 1.
        n_out: Number of output pixels, at least 1.
    """
    step = n_in / n_out
    radius = max(step, 1.0)
    centres = (np.arange(n_out) + 0.5) * step
    first = np.maximum((centres - radius + 0.5).astype(np.int64), 0)
    n_taps = np.minimum((centres + radius + 0.5).astype(np.int64), n_in) - first
    taps = np.arange(n_taps.max())
    distances = (taps + first[:, None] - centres[:, None] + 0.5) * (1 / radius)
    weights = np.where(taps < n_taps[:, None], np.maximum(1 - np.abs(distances), 0), 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # a cumulative sum adds in the order of the pixels, unlike np.sum
    fixed_point = (weights * (1 << WEIGHT_BITS) + 0.5).astype(np.int32)
    return TriangleFilter(first.astype(np.int32), n_taps.astype(np.int32), fixed_point)
