"""Resampling of run-length encoded masks in boxes: the mask targets of objects that are not polygons."""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.masks.rle import decode_runs
from mask_rcnn.ops.runtime.parallel import jit


def resample_rle(rle: dict, boxes: np.ndarray, size: int) -> np.ndarray:
    """Crop boxes from a mask and resize each crop by area: a pixel is 1 if the mask covers at least half of it.

    The mask is not decoded: the time depends on the number of runs in a box, not on the size of the image.

    Args:
        rle: Compressed run lengths, ``{'size': [H, W], 'counts': str or bytes}``; pixel ``i`` of the mask extends from
            ``i`` to ``i + 1``, as in COCO's polygons.
        boxes: ``(R, 4)`` float32.  A side below one pixel counts as one pixel.
        size: Height and width M of the results.

    Returns:
        numpy.ndarray: ``(R, M, M)`` int32, 0 or 1.

    Raises:
        ValueError: See :func:`mask_rcnn.ops.masks.rle.decode_runs`.
    """
    coverage = np.zeros((len(boxes), size, size))
    _add_coverage(decode_runs(rle), int(rle['size'][0]), boxes.astype(np.float64), coverage)
    return (coverage >= 0.5).astype(np.int32)


@jit
def _add_coverage(ends: np.ndarray, height: int, boxes: np.ndarray, coverage: np.ndarray) -> None:
    """Add the fraction of each bin that the mask covers to ``coverage``, ``(R, M, M)``."""
    n_bins = coverage.shape[1]
    y_fractions, x_fractions = np.empty(n_bins), np.empty(n_bins)
    for r in range(len(boxes)):
        y_edges, x_edges = _bin_edges(boxes[r, 0], boxes[r, 2], n_bins), _bin_edges(boxes[r, 1], boxes[r, 3], n_bins)
        first_pixel, last_pixel = np.floor(x_edges[0]) * height, np.ceil(x_edges[n_bins]) * height
        for k in range(1, len(ends), 2):  # the runs of 1
            start, end = max(ends[k - 1], first_pixel), min(ends[k], last_pixel)
            while start < end:  # the part of the run in each column of pixels
                column = start // height
                stop = min(end, (column + 1) * height)
                i0, i1 = _overlap(start - column * height, stop - column * height, y_edges, y_fractions)
                j0, j1 = _overlap(column, column + 1, x_edges, x_fractions)
                for i in range(i0, i1):
                    for j in range(j0, j1):
                        coverage[r, i, j] += y_fractions[i] * x_fractions[j]
                start = stop


@jit
def _bin_edges(low: float, high: float, n_bins: int) -> np.ndarray:
    """Return the ``n_bins + 1`` edges of the bins of one side of a box."""
    return low + max(high - low, 1.0) * np.arange(n_bins + 1) / n_bins


@jit
def _overlap(low: float, high: float, edges: np.ndarray, fractions: np.ndarray) -> tuple[int, int]:
    """Compute the fraction of each bin that the interval covers.

    Returns:
        The range ``first, stop`` of the bins that overlap the interval; only their ``fractions`` are written.
    """
    n_bins, width = len(fractions), edges[1] - edges[0]
    first = max(int((low - edges[0]) / width) - 1, 0)  # one less: the quotient is rounded
    while first < n_bins and edges[first + 1] <= low:
        first += 1
    stop = first
    while stop < n_bins and edges[stop] < high:
        fractions[stop] = (min(edges[stop + 1], high) - max(edges[stop], low)) / width
        stop += 1
    return first, stop
