"""RoI max pooling: the maximum of every bin of a region of interest, forward and backward.

Source: Girshick, Fast R-CNN, section 2.1; Caffe2 ``caffe2/operators/roi_pool_op.cc``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import chainer
import numpy as np

from mask_rcnn.ops.roi.common import (
    BLOCK,
    as_pair,
    check_arguments,
    count_blocks,
    gather_features,
    pixel_range,
    scatter_bins,
)
from mask_rcnn.ops.roi.tiles import BIN_THREADS, TILE_THREADS, choose_tile_width, tile_grid
from mask_rcnn.ops.runtime import array_pool, cuda_kernels, parallel
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, channels_first, channels_last, compute_dtype, vector_lanes

#: A value must exceed this one to become the maximum of a bin (Caffe2: ``-FLT_MAX``).
_LOWEST = np.finfo(np.float32).min
#: Maximum number of channels that a thread of a kernel processes at once.
_LANES = 4


def roi_max_pooling(
    x: chainer.Variable | Array,
    rois: Array,
    roi_indices: Array,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    bin_step: int = 1,
) -> chainer.Variable:
    """Pool every RoI to a grid of bins, each the maximum of its pixels.

    The corners of a RoI are rounded to pixels, and both belong to it.  Bins overlap if they do not divide the RoI
    evenly.

    Differentiable with respect to ``x`` (once); the first of equal values receives the gradient.  Forward and backward
    compute each element in one thread and in a fixed order, without floating-point atomics: on one machine, CPU or GPU,
    the same arguments give the same bits in every run.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU, maps whose channels
            are last in memory are not copied; on the CPU, maps whose channels are first in memory are not copied;
            float16 maps always are.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the network input.
        roi_indices: (R,) int32, the image of each RoI.  An index outside the batch raises an error on the CPU.  On the
            GPU, where validation would cost a synchronisation, such a RoI is zero.
        output_size: Height and width of the grid of bins, or one int for both.
        spatial_scale: Size of the feature map divided by the size of the input.
        bin_step: Compute only every ``bin_step``-th bin of each axis, starting with the first.  The result is that of
            ``[:, :, ::bin_step, ::bin_step]``, and the other bins cost nothing.

    Returns:
        Variable (R, C, ceil(height / bin_step), ceil(width / bin_step)) of the dtype of ``x``; zero in bins without
        pixels, and for a RoI that is not finite.

    Raises:
        ValueError: If a shape or a parameter is wrong.
        RuntimeError: If a second derivative is computed.
    """
    rois, roi_indices = check_arguments(x, rois, roi_indices, bin_step)
    rows, columns = (
        _axis_bins(rois[:, axis], rois[:, axis + 2], spatial_scale, n_bins, int(bin_step), x.shape[2 + axis])
        for axis, n_bins in enumerate(as_pair(output_size))
    )
    return _RoIMaxPooling(roi_indices, rows, columns, x.shape).apply((x,))[0]


class _AxisBins(NamedTuple):
    """The pixels of every bin along one axis, clipped to the map.

    Args:
        first: First pixel (R, P) int32.
        n_pixels: Number of pixels (R, P) int32; 0 for an empty bin.
    """

    first: Array
    n_pixels: Array


def _axis_bins(low: Array, high: Array, scale: float, n_bins: int, step: int, size: int) -> _AxisBins:
    """Divide RoIs from ``low`` to ``high``, (R,) float32, into bins, with Caffe2's float32 arithmetic."""
    xp = get_array_module(low)
    start, stop = _round(xp, low * np.float32(scale)), _round(xp, high * np.float32(scale))
    bin_size = xp.maximum(stop - start + 1, 1).astype(np.float32) / np.float32(n_bins)
    bin_index = xp.arange(0, n_bins, step, dtype=np.float32)
    first = xp.floor(bin_index * bin_size[:, None]) + start[:, None]
    end = xp.ceil((bin_index + 1) * bin_size[:, None]) + start[:, None]
    first, end = (xp.clip(edge, 0, size).astype(np.int32) for edge in (first, end))
    is_finite = xp.isfinite(low) & xp.isfinite(high)
    return _AxisBins(first, xp.where(is_finite[:, None], xp.maximum(end - first, 0), 0).astype(np.int32))


def _round(xp: Any, values: Array) -> Array:
    """Round half away from zero, as C's ``round`` (float64 represents the sum exactly); no NaN, no overflow."""
    values = xp.nan_to_num(values.astype(np.float64))
    return xp.clip(xp.copysign(xp.floor(xp.abs(values) + 0.5), values), -(2.0**30), 2.0**30)


class _RoIMaxPooling(chainer.FunctionNode):
    """Feature maps to maxima."""

    def __init__(self, roi_indices: Array, rows: _AxisBins, columns: _AxisBins, shape: Sequence[int]):
        self._roi_indices, self._rows, self._columns, self._shape = roi_indices, rows, columns, shape

    def forward_cpu(self, inputs):
        y, self._argmax = forward_cpu(inputs[0], self._roi_indices, self._rows, self._columns)
        return (y,)

    def forward_gpu(self, inputs):
        y, self._argmax = forward_gpu(inputs[0], self._roi_indices, self._rows, self._columns)
        return (y,)

    def backward(self, indexes, grad_outputs):
        gradient = _RoIMaxPoolingGrad(self._argmax, self._roi_indices, self._rows, self._columns, self._shape)
        return gradient.apply(grad_outputs)


class _RoIMaxPoolingGrad(chainer.FunctionNode):
    """Gradients of maxima to gradients of feature maps."""

    def __init__(self, argmax: Array, roi_indices: Array, rows: _AxisBins, columns: _AxisBins, shape: Sequence[int]):
        self._argmax, self._roi_indices, self._shape = argmax, roi_indices, shape
        self._rows, self._columns = rows, columns

    def forward_cpu(self, inputs):
        return (backward_cpu(inputs[0], self._argmax, self._roi_indices, self._shape),)

    def forward_gpu(self, inputs):
        return (backward_gpu(inputs[0], self._argmax, self._roi_indices, self._rows, self._columns, self._shape),)

    def backward(self, indexes, grad_outputs):
        raise RuntimeError('roi_max_pooling has no second derivative')


# GPU


def forward_gpu(x: Array, roi_indices: Array, rows: _AxisBins, columns: _AxisBins) -> tuple[Array, Array]:
    """Return the maxima (R, C, ...), channels last in memory, and the indices of their pixels in the map.

    The indices are (R, ..., C) int32; -1 in empty bins.
    """
    xp = get_array_module(x)
    source = channels_last(x, compute_dtype(x.dtype))
    y = xp.empty((len(roi_indices), rows.first.shape[1], columns.first.shape[1], x.shape[1]), source.dtype)
    argmax = xp.empty(y.shape, np.int32)
    if y.size:
        kernel = cuda_kernels.kernel('roi/roi_max_pooling.cu', 'roi_max_pooling_forward', y.dtype)
        kernel(
            (y.shape[0] * y.shape[1],),
            (BIN_THREADS,),
            (
                source,
                roi_indices,
                *rows,
                *columns,
                *map(np.int32, (*x.shape, *y.shape[1:3], vector_lanes(_LANES, source))),
                y,
                argmax,
            ),
        )
    return as_nchw(y).astype(x.dtype, order='K', copy=False), argmax


def backward_gpu(
    gy: Array, argmax: Array, roi_indices: Array, rows: _AxisBins, columns: _AxisBins, shape: Sequence[int]
) -> Array:
    """Return the gradient of the feature maps, with the given shape and channels last in memory."""
    xp = get_array_module(gy)
    source = channels_last(gy, compute_dtype(gy.dtype))
    n_images, n_channels, height, width = shape
    gx = xp.empty((n_images, height, width, n_channels), source.dtype)
    if gx.size:
        kernel = cuda_kernels.kernel('roi/roi_max_pooling.cu', 'roi_max_pooling_backward', gx.dtype)
        lanes = vector_lanes(_LANES, source)
        tile_width = choose_tile_width(n_channels // lanes)
        kernel(
            tile_grid(shape, n_channels // lanes, tile_width),
            (TILE_THREADS,),
            (
                source,
                argmax,
                roi_indices,
                *rows,
                *pixel_range(*rows, height),
                *columns,
                *pixel_range(*columns, width),
                *map(np.int32, (len(roi_indices), *shape[1:], *gy.shape[2:], tile_width, lanes)),
                gx,
            ),
        )
    return as_nchw(gx).astype(gy.dtype, order='K', copy=False)


# CPU


def forward_cpu(
    x: np.ndarray, roi_indices: np.ndarray, rows: _AxisBins, columns: _AxisBins
) -> tuple[np.ndarray, np.ndarray]:
    """Return the maxima (R, C, ...) and the indices of their pixels in the map (int32, -1 in empty bins)."""
    source = channels_first(x, compute_dtype(x.dtype))
    y = array_pool.empty((len(roi_indices), x.shape[1], rows.first.shape[1], columns.first.shape[1]), source.dtype)
    argmax = array_pool.empty(y.shape, np.int32)
    parallel.parallel_for(
        lambda start, stop: _forward_blocks(source, roi_indices, rows, columns, start, stop, y, argmax),
        count_blocks(x.shape[1]),
    )
    return y.astype(x.dtype, copy=False), argmax


def backward_cpu(gy: np.ndarray, argmax: np.ndarray, roi_indices: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Return the gradient of the feature maps, with the given shape."""
    source = np.ascontiguousarray(gy, compute_dtype(gy.dtype))
    gx = np.zeros(shape, source.dtype)
    parallel.parallel_for(
        lambda start, stop: _backward_channels(source, argmax, roi_indices, start, stop, gx), shape[1]
    )
    return gx.astype(gy.dtype, copy=False)


@parallel.jit
def _forward_blocks(x, roi_indices, rows, columns, start, stop, y, argmax):
    """Pool the channels of blocks ``start`` to ``stop`` of ``x`` (C, N, H, W) for all RoIs."""
    n_rois, _, n_rows, n_columns = y.shape
    features = np.empty((x.shape[1], x.shape[2], x.shape[3] * BLOCK), x.dtype)
    best = np.empty((n_rows * n_columns, BLOCK), x.dtype)
    index = np.empty((n_rows * n_columns, BLOCK), np.int32)
    for block in range(start, stop):
        gather_features(x, block * BLOCK, features)
        for r in range(n_rois):
            index[:] = -1
            for i in range(n_rows):
                for j in range(n_columns):
                    is_empty = rows.n_pixels[r, i] == 0 or columns.n_pixels[r, j] == 0
                    best[i * n_columns + j] = 0 if is_empty else _LOWEST
                    for p in range(rows.first[r, i], rows.first[r, i] + rows.n_pixels[r, i]):
                        for q in range(columns.first[r, j], columns.first[r, j] + columns.n_pixels[r, j]):
                            _update_maximum(
                                features[roi_indices[r], p, q * BLOCK : (q + 1) * BLOCK],
                                p * x.shape[3] + q,
                                best[i * n_columns + j],
                                index[i * n_columns + j],
                            )
            scatter_bins(best, block * BLOCK, y[r])
            scatter_bins(index, block * BLOCK, argmax[r])


@parallel.jit
def _update_maximum(values, pixel, best, index):
    """Replace the maxima that ``values`` exceed.  LLVM vectorises this loop because it runs over whole arrays."""
    for c in range(values.size):
        index[c] = pixel if values[c] > best[c] else index[c]
        best[c] = values[c] if values[c] > best[c] else best[c]


@parallel.jit
def _backward_channels(gy, argmax, roi_indices, start, stop, gx):
    """Add up the gradient of channels ``start`` to ``stop``, RoI by RoI."""
    n_rois, _, n_rows, n_columns = gy.shape
    width = gx.shape[3]
    for c in range(start, stop):
        for r in range(n_rois):
            for i in range(n_rows):
                for j in range(n_columns):
                    index = argmax[r, c, i, j]
                    if index >= 0:
                        gx[roi_indices[r], c, index // width, index % width] += gy[r, c, i, j]
