"""RoI max pooling: the largest value in every bin of a region of interest, forward and backward.

Source: Girshick, Fast R-CNN, section 2.1; Caffe2 ``caffe2/operators/roi_pool_op.cc``.
"""

from __future__ import annotations

from dataclasses import dataclass

import chainer
import numpy as np

from mask_rcnn.ops.roi.channel_blocks import BLOCK, count_blocks, gather_maps, scatter_bins
from mask_rcnn.ops.roi.common import (
    BIN_THREADS,
    TILE_THREADS,
    as_pair,
    check_arguments,
    common_lanes,
    pixel_range,
    tile_columns,
    tile_grid,
)
from mask_rcnn.ops.runtime import cuda_kernels, parallel
from mask_rcnn.ops.runtime.memory_layout import channels_first, channels_last, compute_dtype

#: What an element must exceed to be a bin's maximum (Caffe2: ``-FLT_MAX``).
_LOWEST = np.finfo(np.float32).min
#: The most channels that a thread of a kernel takes at once.
_LANES = 4


def roi_max_pooling(x, rois, roi_indices, *, output_size, spatial_scale, bin_step=1) -> chainer.Variable:
    """Pool every RoI to a grid of bins, each the largest value of its pixels.

    A RoI's corners are rounded to pixels, both belong to it; bins overlap where they do not divide the RoI
    evenly.  Differentiable with respect to ``x`` (once); the first of equal values gets the gradient.
    Forward and backward write every number from one thread, in a fixed order, without atomic additions of numbers:
    on one machine, CPU or GPU, the same arguments give the same bits in every run.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU those whose
            channels are innermost in memory are not copied, on the CPU those whose channels are outermost; those in
            float16 are.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the network's input.
        roi_indices: (R,) int32, the map of each RoI.  An index outside the batch raises an error on the CPU;
            on the GPU, where looking would cost a synchronisation, such a RoI is zero.
        output_size: Bins of the grid, one int or ``(height, width)``.
        spatial_scale: Size of the map divided by the size of the input.
        bin_step: Return only every ``bin_step``-th bin of each axis, starting with the first: the same as
            ``[:, :, ::bin_step, ::bin_step]`` of the result, at the cost of what is returned.

    Returns:
        Variable (R, C, ceil(height / bin_step), ceil(width / bin_step)) of ``x``'s type; zero in bins
        without pixels, and for a RoI that is not finite.

    Raises:
        ValueError: If a shape or a parameter is wrong.
        RuntimeError: When a second derivative is asked for.
    """
    rois, roi_indices = check_arguments(x, rois, roi_indices, bin_step)
    bins = []
    for axis, n_bins in enumerate(as_pair(output_size)):
        bins.append(
            _axis_bins(rois[:, axis], rois[:, axis + 2], spatial_scale, n_bins, int(bin_step), x.shape[2 + axis])
        )
    return _RoIMaxPooling(roi_indices, *bins).apply((x,))[0]


@dataclass(frozen=True)
class _AxisBins:
    """The pixels of every bin along one axis, cut to the map.

    Args:
        first: First pixel (R, P) int32.
        count: Number of pixels (R, P) int32; 0 for an empty bin.
        size: Length of the axis.
    """

    first: np.ndarray
    count: np.ndarray
    size: int

    def range(self):
        """Pixels that the whole RoI reads, ``[begin, end)``, two int32 arrays (R,)."""
        xp = chainer.backend.get_array_module(self.first)
        return pixel_range(xp, self.first, self.count, self.size)


def _axis_bins(low, high, scale: float, n_bins: int, step: int, size: int) -> _AxisBins:
    """Divide RoIs from ``low`` to ``high``, (R,) float32; Caffe2's float32 arithmetic."""
    xp = chainer.backend.get_array_module(low)
    start, stop = _round(xp, low * np.float32(scale)), _round(xp, high * np.float32(scale))
    bin_size = xp.maximum(stop - start + 1, 1).astype(np.float32) / np.float32(n_bins)
    bin_index = xp.arange(0, n_bins, step, dtype=np.float32)
    first = xp.floor(bin_index * bin_size[:, None]) + start[:, None]
    end = xp.ceil((bin_index + 1) * bin_size[:, None]) + start[:, None]
    first, end = (xp.clip(edge, 0, size).astype(np.int32) for edge in (first, end))
    is_finite = xp.isfinite(low) & xp.isfinite(high)
    return _AxisBins(first, xp.where(is_finite[:, None], xp.maximum(end - first, 0), 0).astype(np.int32), size)


def _round(xp, values):
    """Round half away from zero, as C's ``round`` (float64 holds the sum exactly); no NaN, no overflow."""
    values = xp.nan_to_num(values.astype(np.float64))
    return xp.clip(xp.copysign(xp.floor(xp.abs(values) + 0.5), values), -(2.0**30), 2.0**30)


class _RoIMaxPooling(chainer.FunctionNode):
    def __init__(self, roi_indices, rows: _AxisBins, columns: _AxisBins):
        self._roi_indices, self._rows, self._columns = roi_indices, rows, columns

    def forward_cpu(self, inputs):
        y, self._argmax = forward_cpu(inputs[0], self._roi_indices, self._rows, self._columns)
        return (y,)

    def forward_gpu(self, inputs):
        y, self._argmax = forward_gpu(inputs[0], self._roi_indices, self._rows, self._columns)
        return (y,)

    def backward(self, indexes, grad_outputs):
        return _RoIMaxPoolingGrad(
            self._argmax, self._roi_indices, self._rows, self._columns, self.inputs[0].shape
        ).apply(grad_outputs)


class _RoIMaxPoolingGrad(chainer.FunctionNode):
    def __init__(self, argmax, roi_indices, rows: _AxisBins, columns: _AxisBins, shape):
        self._argmax, self._roi_indices, self._shape = argmax, roi_indices, shape
        self._rows, self._columns = rows, columns

    def forward_cpu(self, inputs):
        return (backward_cpu(inputs[0], self._argmax, self._roi_indices, self._shape),)

    def forward_gpu(self, inputs):
        return (backward_gpu(inputs[0], self._argmax, self._roi_indices, self._rows, self._columns, self._shape),)

    def backward(self, indexes, grad_outputs):
        raise RuntimeError('roi_max_pooling has no second derivative')


# On the GPU


def forward_gpu(x, roi_indices, rows: _AxisBins, columns: _AxisBins):
    """Return the maxima (R, C, ...), channels innermost in memory, and their index in the map; CuPy arrays.

    The indices are (R, ..., C) int32; -1 in empty bins.
    """
    xp = chainer.backend.get_array_module(x)
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
                rows.first,
                rows.count,
                columns.first,
                columns.count,
                *map(np.int32, (*x.shape, *y.shape[1:3], common_lanes(_LANES, source))),
                y,
                argmax,
            ),
        )
    return y.transpose(0, 3, 1, 2).astype(x.dtype, order='K', copy=False), argmax


def backward_gpu(gy, argmax, roi_indices, rows: _AxisBins, columns: _AxisBins, shape):
    """Return the gradient of the maps, of the given shape; CuPy arrays in and out, as in the forward pass."""
    xp = chainer.backend.get_array_module(gy)
    source = channels_last(gy, compute_dtype(gy.dtype))
    n_images, channels, height, width = shape
    gx = xp.empty((n_images, height, width, channels), source.dtype)
    if gx.size:
        kernel = cuda_kernels.kernel('roi/roi_max_pooling.cu', 'roi_max_pooling_backward', gx.dtype)
        lanes = common_lanes(_LANES, source)
        tile_width = tile_columns(channels // lanes)
        kernel(
            tile_grid(shape, channels // lanes, tile_width),
            (TILE_THREADS,),
            (
                source,
                argmax,
                roi_indices,
                rows.first,
                rows.count,
                *rows.range(),
                columns.first,
                columns.count,
                *columns.range(),
                *map(np.int32, (len(roi_indices), *shape[1:], *gy.shape[2:], tile_width, lanes)),
                gx,
            ),
        )
    return gx.transpose(0, 3, 1, 2).astype(gy.dtype, order='K', copy=False)


# On the CPU


def forward_cpu(x, roi_indices, rows: _AxisBins, columns: _AxisBins):
    """Return the maxima and their index in the map (int32, -1 in empty bins); NumPy arrays in and out."""
    source = channels_first(x, compute_dtype(x.dtype))
    y = np.empty((len(roi_indices), x.shape[1], rows.first.shape[1], columns.first.shape[1]), source.dtype)
    argmax = np.empty(y.shape, np.int32)
    parallel.parallel_for(
        lambda start, stop: _forward_blocks(
            source, roi_indices, rows.first, rows.count, columns.first, columns.count, start, stop, y, argmax
        ),
        count_blocks(x.shape[1]),
    )
    return y.astype(x.dtype, copy=False), argmax


def backward_cpu(gy, argmax, roi_indices, shape):
    """Return the gradient of the maps, whose shape is ``shape``; NumPy arrays in and out."""
    source = np.ascontiguousarray(gy, compute_dtype(gy.dtype))
    gx = np.zeros(shape, source.dtype)
    parallel.parallel_for(
        lambda start, stop: _backward_channels(source, argmax, roi_indices, start, stop, gx), shape[1]
    )
    return gx.astype(gy.dtype, copy=False)


@parallel.jit
def _forward_blocks(x, roi_indices, y_first, y_count, x_first, x_count, start, stop, y, argmax):
    """Pool the channels of blocks ``start`` to ``stop`` from all RoIs."""
    n_rois, _, rows, columns = y.shape
    maps = np.empty((x.shape[1], x.shape[2], x.shape[3] * BLOCK), x.dtype)
    best = np.empty((rows * columns, BLOCK), x.dtype)
    index = np.empty((rows * columns, BLOCK), np.int32)
    for block in range(start, stop):
        gather_maps(x, block * BLOCK, maps)
        for r in range(n_rois):
            index[:] = -1
            for i in range(rows):
                for j in range(columns):
                    is_empty = y_count[r, i] == 0 or x_count[r, j] == 0
                    best[i * columns + j] = 0 if is_empty else _LOWEST
                    for p in range(y_first[r, i], y_first[r, i] + y_count[r, i]):
                        for q in range(x_first[r, j], x_first[r, j] + x_count[r, j]):
                            _update_maximum(
                                maps[roi_indices[r], p, q * BLOCK : (q + 1) * BLOCK],
                                p * x.shape[3] + q,
                                best[i * columns + j],
                                index[i * columns + j],
                            )
            scatter_bins(best, block * BLOCK, y[r])
            scatter_bins(index, block * BLOCK, argmax[r])


@parallel.jit
def _update_maximum(values, pixel, best, index):
    """Replace what ``values`` exceed.  A loop over whole arrays is one that LLVM vectorises."""
    for c in range(values.size):
        index[c] = pixel if values[c] > best[c] else index[c]
        best[c] = values[c] if values[c] > best[c] else best[c]


@parallel.jit
def _backward_channels(gy, argmax, roi_indices, start, stop, gx):
    """Add up the gradient of channels ``start`` to ``stop``, RoI by RoI."""
    n_rois, _, rows, columns = gy.shape
    width = gx.shape[3]
    for c in range(start, stop):
        for r in range(n_rois):
            for i in range(rows):
                for j in range(columns):
                    index = argmax[r, c, i, j]
                    if index >= 0:
                        gx[roi_indices[r], c, index // width, index % width] += gy[r, c, i, j]
