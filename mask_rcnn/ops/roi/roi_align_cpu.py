"""RoIAlign on the CPU, forward and backward; see :mod:`~mask_rcnn.ops.roi.roi_align` for the formula.

The weights are tabulated once per RoI.  The forward pass sums over rows first, for all columns of the RoI at once, then
over columns; the backward pass is its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mask_rcnn.ops.roi.common import (
    BLOCK,
    count_blocks,
    gather_bins,
    gather_features,
    pixel_range,
    scatter_bins,
    scatter_features,
)
from mask_rcnn.ops.roi.roi_align_regions import Regions
from mask_rcnn.ops.runtime import array_pool, parallel
from mask_rcnn.ops.runtime.memory_layout import as_images, channels_first, compute_dtype

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


class _AxisWeights(NamedTuple):
    """The weights of one axis of the map in every bin of every RoI.

    Args:
        first: First pixel with a weight (R, P) int32.
        n_pixels: Number of pixels, starting with ``first``, that may have a weight (R, P) int32; 0 for an empty bin.
        weight: (R, P, size of the axis) float32, defined only at those pixels.
        samples: Samples per bin (R,) float32, at least 1.
    """

    first: np.ndarray
    n_pixels: np.ndarray
    weight: np.ndarray
    samples: np.ndarray


def forward_cpu(features: Sequence[np.ndarray], regions: Regions) -> np.ndarray:
    """Return the pooled RoIs (R, C, ...), channels first in memory."""
    levels = regions.levels
    if len(levels) and not (levels.min() >= 0 and levels.max() < len(features)):
        raise ValueError(f'levels must be in [0, {len(features)}), got {levels.min()} to {levels.max()}')
    dtype = compute_dtype(features[0].dtype)
    y = array_pool.empty((features[0].shape[1], len(levels), *regions.bins), dtype)
    for level, x in enumerate(features):
        members = regions.members(level)
        if len(members):
            _forward_level_cpu(channels_first(x, dtype), regions, level, members, y)
    return as_images(y).astype(features[0].dtype, copy=False)


def backward_cpu(gy: np.ndarray, regions: Regions, shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Return the gradients of the feature maps, with the given shapes and channels first in memory."""
    source = channels_first(gy, compute_dtype(gy.dtype))
    return tuple(
        as_images(_backward_level_cpu(source, regions, level, shape)).astype(gy.dtype, copy=False)
        for level, shape in enumerate(shapes)
    )


def _forward_level_cpu(x: np.ndarray, regions: Regions, level: int, members: np.ndarray, y: np.ndarray) -> None:
    """Pool the RoIs ``members`` from one feature map (C, N, H, W) into ``y`` (C, R, ...)."""
    rows = _axis_weights(regions, level, members, 0, x.shape[2])
    columns = _axis_weights(regions, level, members, 1, x.shape[3])
    column_range = _read_range(columns)
    parallel.parallel_for(
        lambda start, stop: _forward_blocks(
            x, members, regions.roi_indices, rows, columns, column_range, start, stop, y
        ),
        count_blocks(x.shape[0]),
    )


def _backward_level_cpu(gy: np.ndarray, regions: Regions, level: int, shape: tuple[int, ...]) -> np.ndarray:
    """Return the gradient (C, N, H, W) of one feature map of the given shape from ``gy`` (C, R, ...)."""
    n_images, n_channels, height, width = shape
    members = regions.members(level)
    gx = np.empty((n_channels, n_images, height, width), gy.dtype)
    rows = _axis_weights(regions, level, members, 0, height)
    columns = _axis_weights(regions, level, members, 1, width)
    column_range = _read_range(columns)
    parallel.parallel_for(
        lambda start, stop: _backward_blocks(
            gy, members, regions.roi_indices, rows, columns, column_range, start, stop, gx
        ),
        count_blocks(n_channels),
    )
    return gx


def _axis_weights(regions: Regions, level: int, members: np.ndarray, axis: int, size: int) -> _AxisWeights:
    """Tabulate the weights of the RoIs ``members`` along an axis of ``size`` pixels."""
    rois, n_bins = regions.rois[members], regions.bins[axis]
    weights = _AxisWeights(
        np.empty((len(rois), n_bins), np.int32),
        np.empty((len(rois), n_bins), np.int32),
        np.empty((len(rois), n_bins, size), np.float32),
        np.empty((len(rois),), np.float32),
    )
    _fill_axis_weights(
        rois[:, axis],
        rois[:, axis + 2],
        np.float32(regions.spatial_scales[level]),
        np.int32(regions.output_size[axis]),
        np.int32(regions.sampling_ratio),
        np.int32(regions.aligned),
        np.int32(regions.bin_step),
        weights,
    )
    return weights


def _read_range(weights: _AxisWeights) -> Any:
    """Return the range of pixels that each RoI reads, ``begin`` and ``end``, both (R,) int32."""
    return pixel_range(weights.first, weights.n_pixels, weights.weight.shape[2])


@parallel.jit
def _fill_axis_weights(low, high, scale, bins, ratio, aligned, step, weights):
    """Fill :class:`_AxisWeights` for RoIs from ``low`` to ``high`` (R,) float32."""
    offset = _HALF if aligned else _ZERO
    for r in range(low.size):
        start = low[r] * scale - offset
        length = high[r] * scale - offset - start
        if not aligned and not length >= _ONE:
            length = _ONE
        bin_size = length / np.float32(bins)
        grid = 0
        if math.isfinite(start) and math.isfinite(length):
            grid = ratio if ratio > 0 else math.ceil(bin_size)
        weights.samples[r] = max(grid, 1)
        for j in range(weights.first.shape[1]):
            bin_start = start + np.float32(j * step) * bin_size
            weights.first[r, j], weights.n_pixels[r, j] = _fill_bin_weights(
                bin_start, bin_size, grid, weights.weight[r, j]
            )


@parallel.jit
def _fill_bin_weights(bin_start, bin_size, grid, weight):
    """Add up the bilinear weights of one bin; return the first pixel and the number of pixels written."""
    size = weight.size
    begin, end = 0, 0
    for i in range(grid):
        # roi_align_op.cc's expression, operation by operation: its rounding decides which pixel a sample falls on.
        position = bin_start + (np.float32(i) + _HALF) * bin_size / np.float32(grid)
        if position < -_ONE or position > np.float32(size):
            continue
        position = max(position, _ZERO)
        pixel = int(position)
        if pixel >= size - 1:
            pixel = size - 1
            position = np.float32(pixel)
        upper = min(pixel + 1, size - 1)
        if begin == end:
            begin, end = pixel, pixel
        while begin > pixel:  # the samples of a reversed RoI descend
            begin -= 1
            weight[begin] = _ZERO
        while end <= upper:
            weight[end] = _ZERO
            end += 1
        fraction = position - np.float32(pixel)
        weight[pixel] += _ONE - fraction
        weight[upper] += fraction
    return begin, end - begin


@parallel.jit
def _forward_blocks(x, members, roi_indices, rows, columns, column_range, start, stop, out):
    """Pool the channels of blocks ``start`` to ``stop`` for the RoIs ``members`` into ``out`` (C, R, ...).

    ``rows`` and ``columns`` (:class:`_AxisWeights`) and ``column_range`` have one entry for each member.
    """
    n_rows, n_columns = out.shape[2:]
    x_begin, x_end = column_range
    features = np.empty((x.shape[1], x.shape[2], x.shape[3] * BLOCK), x.dtype)
    row = np.empty(x.shape[3] * BLOCK, x.dtype)
    pooled = np.empty((n_rows * n_columns, BLOCK), x.dtype)
    for block in range(start, stop):
        gather_features(x, block * BLOCK, features)
        for r in range(members.size):
            span = slice(x_begin[r] * BLOCK, x_end[r] * BLOCK)
            pooled[:] = 0
            for i in range(n_rows):
                row[span] = 0
                for p in range(rows.first[r, i], rows.first[r, i] + rows.n_pixels[r, i]):
                    _add_scaled(rows.weight[r, i, p], features[roi_indices[members[r]], p, span], row[span])
                for j in range(n_columns):
                    for q in range(columns.first[r, j], columns.first[r, j] + columns.n_pixels[r, j]):
                        pixel = row[q * BLOCK : (q + 1) * BLOCK]
                        _add_scaled(columns.weight[r, j, q], pixel, pooled[i * n_columns + j])
            pooled /= x.dtype.type(rows.samples[r] * columns.samples[r])
            scatter_bins(pooled, block * BLOCK, out[:, members[r]])


@parallel.jit
def _backward_blocks(gy, members, roi_indices, rows, columns, column_range, start, stop, gx):
    """Add up the gradient of blocks ``start`` to ``stop`` from ``gy`` (C, R, ...): the transposed forward pass."""
    n_rows, n_columns = gy.shape[2:]
    x_begin, x_end = column_range
    features = np.empty((gx.shape[1], gx.shape[2], gx.shape[3] * BLOCK), gx.dtype)
    row = np.empty(gx.shape[3] * BLOCK, gx.dtype)
    pooled = np.zeros((n_rows * n_columns, BLOCK), gx.dtype)
    for block in range(start, stop):
        features[:] = 0
        for r in range(members.size):
            span = slice(x_begin[r] * BLOCK, x_end[r] * BLOCK)
            gather_bins(gy[:, members[r]], block * BLOCK, pooled)
            pooled /= gy.dtype.type(rows.samples[r] * columns.samples[r])
            for i in range(n_rows):
                row[span] = 0
                for j in range(n_columns):
                    for q in range(columns.first[r, j], columns.first[r, j] + columns.n_pixels[r, j]):
                        pixel = row[q * BLOCK : (q + 1) * BLOCK]
                        _add_scaled(columns.weight[r, j, q], pooled[i * n_columns + j], pixel)
                for p in range(rows.first[r, i], rows.first[r, i] + rows.n_pixels[r, i]):
                    _add_scaled(rows.weight[r, i, p], row[span], features[roi_indices[members[r]], p, span])
        scatter_features(features, block * BLOCK, gx)


@parallel.jit
def _add_scaled(factor, source, target):
    """Add ``factor * source`` to ``target``.  LLVM vectorises this loop because it runs over whole arrays."""
    for k in range(target.size):
        target[k] += factor * source[k]
