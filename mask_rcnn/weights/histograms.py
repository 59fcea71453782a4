"""Histograms of the finite values of arrays: weights, running statistics and gradients."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

#: Larger values count as infinite: the width of a histogram of them would overflow.
_MAX_VALUE = 1e300

#: Number of bins of a histogram.
N_BINS = 64


@dataclass(frozen=True, eq=False)
class Histogram:
    """The histogram of the finite values of an array.

    Args:
        counts: ``(B,)`` int64, the number of values in each bin; all 0 without finite values.
        edges: ``(B + 1,)`` float64, the borders of the bins in ascending order.  A bin contains its left border; the
            last one also contains its right border.
    """

    counts: np.ndarray
    edges: np.ndarray


def finite_values(array: np.ndarray) -> np.ndarray:
    """Return the finite values of an array in memory order, ``(K,)`` float64; it may be a view of the array."""
    values = np.asarray(array, np.float64).ravel(order='K')
    is_finite = np.isfinite(values)
    return values if is_finite.all() else values[is_finite]


def histogram_of(values: np.ndarray, n_bins: int = N_BINS) -> Histogram:
    """Return the histogram of finite values over bins of equal width from the smallest to the largest one.

    If all values are (almost) equal, the bins extend from 0.5 below to 0.5 above them, or farther for large values.

    Args:
        values: ``(K,)`` float64, finite, such as the result of :func:`finite_values`; ``K`` may be 0.
        n_bins: The number of bins.
    """
    if not values.size:
        return Histogram(np.zeros(n_bins, np.int64), np.linspace(0, 1, n_bins + 1))
    low, high = float(values.min()), float(values.max())
    if max(-low, high) > _MAX_VALUE:
        return histogram_of(values[np.abs(values) <= _MAX_VALUE], n_bins)
    resolution = float(np.spacing(max(abs(low), abs(high))))
    if high - low <= 4 * n_bins * resolution:  # the bins would be narrower than the distance of two floats
        margin = max(0.5, 4 * n_bins * resolution)
        low, high = low - margin, high + margin
    counts, edges = np.histogram(values, n_bins, (low, high))
    return Histogram(counts.astype(np.int64), edges)
