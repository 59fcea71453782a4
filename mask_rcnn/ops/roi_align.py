"""RoIAlign: mean of bilinear samples in every bin of a region of interest, forward and backward.

Source: He et al., Mask R-CNN, section 3 (RoIAlign); Caffe2 ``caffe2/operators/roi_align_op.cc``.

A bin's samples form a grid, and a bilinear weight is a product of a vertical and a horizontal one, so the
mean over the samples is a product, too: with ``wy[p]`` the sum, over the bin's sample rows, of the weights
of map row ``p``, and ``wx[q]`` the same for columns,

    y[bin] = sum_p wy[p] * sum_q wx[q] * x[p, q] / (sample rows * sample columns).

Both forms tabulate ``wy`` and ``wx`` once per RoI.  The CPU sums over rows first, for all columns of the RoI
at once, then over columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import chainer
import numpy as np

from mask_rcnn.ops import _cuda, _parallel
from mask_rcnn.ops._channel_blocks import (BLOCK, count_blocks, gather_bins, gather_maps, scatter_bins,
                                           scatter_maps)
from mask_rcnn.ops._layout import as_images, channels_first
from mask_rcnn.ops._rois import as_pair, check_arguments, compute_dtype, pixel_range

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)


def roi_align(x, rois, roi_indices, *, output_size, spatial_scale, sampling_ratio=0, aligned=False,
              bin_step=1) -> chainer.Variable:
    """Pool every RoI to a grid of bins, each the mean of bilinear samples.

    Differentiable with respect to ``x`` (twice).  Forward and backward write every number from one thread,
    in a fixed order, without atomic operations: on one machine, CPU or GPU, the same arguments give the same
    bits in every run.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the network's input.
        roi_indices: (R,) int32, the map of each RoI.  An index outside the batch raises an error on the CPU;
            on the GPU, where looking would cost a synchronisation, such a RoI is zero.
        output_size: Bins of the grid, one int or ``(height, width)``.
        spatial_scale: Size of the map divided by the size of the input.
        sampling_ratio: Samples per bin and axis; 0 takes ceil(bin size), as many as the bin has pixels.
        aligned: False is Caffe2's form: coordinates are scaled only, and a RoI is at least one pixel of the
            map high and wide.  True is detectron2's: RoIs are moved by half a pixel, and may be smaller.
        bin_step: Return only every ``bin_step``-th bin of each axis, starting with the first: the same as
            ``[:, :, ::bin_step, ::bin_step]`` of the result, at the cost of what is returned.

    Returns:
        Variable (R, C, ceil(height / bin_step), ceil(width / bin_step)) of ``x``'s type.  Samples that are
        more than one pixel outside of the map count as zero; a RoI that is not finite is zero.

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    rois, roi_indices = check_arguments(x, rois, roi_indices, bin_step)
    if sampling_ratio < 0:
        raise ValueError(f'sampling_ratio must be 0 or more, not {sampling_ratio!r}')
    grid = _Grid(as_pair(output_size), float(spatial_scale), int(sampling_ratio), bool(aligned),
                 int(bin_step))
    return _RoIAlign(rois, roi_indices, grid).apply((x,))[0]


@dataclass(frozen=True)
class _Grid:
    """How RoIs are divided; the fields are :func:`roi_align`'s arguments."""

    output_size: tuple[int, int]
    spatial_scale: float
    sampling_ratio: int
    aligned: bool
    bin_step: int

    def bins(self, axis: int) -> int:
        """Number of bins that are computed along one axis."""
        return -(-self.output_size[axis] // self.bin_step)


@dataclass(frozen=True)
class _AxisWeights:
    """What one axis of the map contributes to every bin of every RoI.

    Args:
        first: First pixel with a weight (R, P) int32.
        count: Number of pixels from there on that may have one (R, P) int32; 0 for an empty bin.
        weight: (R, P, size of the axis) float32, defined only at those pixels.
        samples: Samples per bin (R,) float32, at least 1.
    """

    first: np.ndarray
    count: np.ndarray
    weight: np.ndarray
    samples: np.ndarray

    def range(self):
        """Pixels that the whole RoI reads, ``[begin, end)``, two int32 arrays (R,)."""
        xp = chainer.backend.get_array_module(self.first)
        return pixel_range(xp, self.first, self.count, self.weight.shape[2])


class _RoIAlign(chainer.FunctionNode):
    """Maps to pooled RoIs."""

    def __init__(self, rois, roi_indices, grid: _Grid):
        self._rois, self._roi_indices, self._grid = rois, roi_indices, grid

    def forward_cpu(self, inputs):
        return forward_cpu(inputs[0], self._rois, self._roi_indices, self._grid),

    def forward_gpu(self, inputs):
        return forward_gpu(inputs[0], self._rois, self._roi_indices, self._grid),

    def backward(self, indexes, grad_outputs):
        shape = self.inputs[0].shape
        return _RoIAlignGrad(self._rois, self._roi_indices, self._grid, shape).apply(grad_outputs)


class _RoIAlignGrad(chainer.FunctionNode):
    """The transposed map: gradients of pooled RoIs to gradients of the maps."""

    def __init__(self, rois, roi_indices, grid: _Grid, shape):
        self._rois, self._roi_indices, self._grid, self._shape = rois, roi_indices, grid, shape

    def forward_cpu(self, inputs):
        return backward_cpu(inputs[0], self._rois, self._roi_indices, self._grid, self._shape),

    def forward_gpu(self, inputs):
        return backward_gpu(inputs[0], self._rois, self._roi_indices, self._grid, self._shape),

    def backward(self, indexes, grad_outputs):
        return _RoIAlign(self._rois, self._roi_indices, self._grid).apply(grad_outputs)


# On the GPU

def forward_gpu(x, rois, roi_indices, grid: _Grid):
    """Return the pooled RoIs (R, C, ...), channels innermost in memory; CuPy arrays in and out."""
    xp = chainer.backend.get_array_module(x)
    dtype = compute_dtype(x.dtype)
    source = xp.ascontiguousarray(x.transpose(0, 2, 3, 1), dtype)
    y = xp.empty((len(rois), grid.bins(0), grid.bins(1), x.shape[1]), dtype)
    rows, columns = (_axis_weights_gpu(rois, axis, grid, x.shape[2 + axis]) for axis in (0, 1))
    kernel, n = _by_lanes('roi_align_forward', y)
    _cuda.launch(kernel, n, (
        source, roi_indices, *_fields(rows), *_fields(columns), np.int64(n),
        *map(np.int32, (*x.shape, *y.shape[1:3])), y))
    return y.transpose(0, 3, 1, 2).astype(x.dtype, order='K', copy=False)


def backward_gpu(gy, rois, roi_indices, grid: _Grid, shape):
    """Return the gradient of the maps, whose shape is ``shape``; CuPy arrays in and out, as in the forward
    pass."""
    xp = chainer.backend.get_array_module(gy)
    dtype = compute_dtype(gy.dtype)
    source = xp.ascontiguousarray(gy.transpose(0, 2, 3, 1), dtype)
    n_images, channels, height, width = shape
    gx = xp.empty((n_images, height, width, channels), dtype)
    rows, columns = (_axis_weights_gpu(rois, axis, grid, shape[2 + axis]) for axis in (0, 1))
    kernel, n = _by_lanes('roi_align_backward', gx)
    _cuda.launch(kernel, n, (
        source, roi_indices, *_fields(rows), *rows.range(), *_fields(columns), *columns.range(), np.int64(n),
        *map(np.int32, (len(rois), *shape[1:], *gy.shape[2:])), gx))
    return gx.transpose(0, 3, 1, 2).astype(gy.dtype, order='K', copy=False)


def _by_lanes(name: str, out):
    """Return the kernel that takes as many channels at a time as fit, and the number of its threads'
    tasks."""
    lanes = 4 if out.shape[3] % 4 == 0 else 1
    return _cuda.kernel('roi_align.cu', f'{name}_{lanes}', out.dtype), out.size // lanes


def _axis_weights_gpu(rois, axis: int, grid: _Grid, size: int) -> _AxisWeights:
    xp = chainer.backend.get_array_module(rois)
    weights = _empty_weights(xp, len(rois), grid.bins(axis), size)
    _cuda.launch(_cuda.kernel('roi_align.cu', 'roi_align_weights'), weights.first.size, (
        rois, np.int32(len(rois)), np.int32(axis), *_parameters(grid, axis), np.int32(size),
        np.int32(grid.bins(axis)), *_fields(weights)))
    return weights


# On the CPU

def forward_cpu(x, rois, roi_indices, grid: _Grid):
    """Return the pooled RoIs (R, C, ...), in memory as convolutions want them; NumPy arrays in and out."""
    source = np.ascontiguousarray(x, compute_dtype(x.dtype))
    y = np.empty((x.shape[1], len(rois), grid.bins(0), grid.bins(1)), source.dtype)
    rows, columns = (_axis_weights_cpu(rois, axis, grid, x.shape[2 + axis]) for axis in (0, 1))
    _parallel.parallel_for(
        lambda start, stop: _forward_blocks(source, roi_indices, *_fields(rows), *_fields(columns),
                                            *columns.range(), start, stop, y),
        count_blocks(x.shape[1]))
    return as_images(y).astype(x.dtype, copy=False)


def backward_cpu(gy, rois, roi_indices, grid: _Grid, shape):
    """Return the gradient of the maps, whose shape is ``shape``; NumPy arrays in and out."""
    source = channels_first(gy, compute_dtype(gy.dtype))
    gx = np.empty(shape, source.dtype)
    rows, columns = (_axis_weights_cpu(rois, axis, grid, shape[2 + axis]) for axis in (0, 1))
    _parallel.parallel_for(
        lambda start, stop: _backward_blocks(source, roi_indices, *_fields(rows), *_fields(columns),
                                             *columns.range(), start, stop, gx),
        count_blocks(shape[1]))
    return gx.astype(gy.dtype, copy=False)


def _axis_weights_cpu(rois, axis: int, grid: _Grid, size: int) -> _AxisWeights:
    weights = _empty_weights(np, len(rois), grid.bins(axis), size)
    _fill_axis_weights(rois[:, axis], rois[:, axis + 2], *_parameters(grid, axis), *_fields(weights))
    return weights


def _empty_weights(xp, n_rois: int, bins: int, size: int) -> _AxisWeights:
    return _AxisWeights(xp.empty((n_rois, bins), np.int32), xp.empty((n_rois, bins), np.int32),
                        xp.empty((n_rois, bins, size), np.float32), xp.empty((n_rois,), np.float32))


def _fields(weights: _AxisWeights) -> tuple:
    return weights.first, weights.count, weights.weight, weights.samples


def _parameters(grid: _Grid, axis: int) -> tuple:
    """What the tables depend on besides the RoIs, in the types that the compiled code takes."""
    return (np.float32(grid.spatial_scale), np.int32(grid.output_size[axis]),
            np.int32(grid.sampling_ratio), np.int32(grid.aligned), np.int32(grid.bin_step))


@_parallel.jit
def _fill_axis_weights(low, high, scale, bins, ratio, aligned, step, first, count, weight, samples):
    """Fill the fields of :class:`_AxisWeights` for RoIs from ``low`` to ``high`` (R,) float32."""
    offset = _HALF if aligned else _ZERO
    for r in range(first.shape[0]):
        start = low[r] * scale - offset
        length = high[r] * scale - offset - start
        if not aligned and not length >= _ONE:
            length = _ONE
        bin_size = length / np.float32(bins)
        grid = 0
        if math.isfinite(start) and math.isfinite(length):
            grid = ratio if ratio > 0 else int(math.ceil(bin_size))
        samples[r] = max(grid, 1)
        for j in range(first.shape[1]):
            bin_start = start + np.float32(j * step) * bin_size
            first[r, j], count[r, j] = _fill_bin_weights(bin_start, bin_size, grid, weight[r, j])


@_parallel.jit
def _fill_bin_weights(bin_start, bin_size, grid, weight):
    """Add up one bin's bilinear weights; return the first pixel and the number of pixels written."""
    size = weight.size
    begin, end = 0, 0
    for i in range(grid):
        # Caffe2's expression, operation by operation: which pixel a sample falls on depends on it.
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
        while begin > pixel:  # the samples of a reversed RoI go down
            begin -= 1
            weight[begin] = _ZERO
        while end <= upper:
            weight[end] = _ZERO
            end += 1
        fraction = position - np.float32(pixel)
        weight[pixel] += _ONE - fraction
        weight[upper] += fraction
    return begin, end - begin


@_parallel.jit
def _forward_blocks(x, roi_indices, y_first, y_count, y_weight, y_samples,
                    x_first, x_count, x_weight, x_samples, x_begin, x_end, start, stop, out):
    """Pool the channels of blocks ``start`` to ``stop`` from all RoIs to ``out`` (C, R, ...)."""
    n_rois, rows, columns = out.shape[1:]
    maps = np.empty((x.shape[0], x.shape[2], x.shape[3] * BLOCK), x.dtype)
    row = np.empty(x.shape[3] * BLOCK, x.dtype)
    pooled = np.empty((rows * columns, BLOCK), x.dtype)
    for block in range(start, stop):
        gather_maps(x, block * BLOCK, maps)
        for r in range(n_rois):
            part = slice(x_begin[r] * BLOCK, x_end[r] * BLOCK)
            pooled[:] = 0
            for i in range(rows):
                row[part] = 0
                for p in range(y_first[r, i], y_first[r, i] + y_count[r, i]):
                    _add_scaled(y_weight[r, i, p], maps[roi_indices[r], p, part], row[part])
                for j in range(columns):
                    for q in range(x_first[r, j], x_first[r, j] + x_count[r, j]):
                        _add_scaled(x_weight[r, j, q], row[q * BLOCK:(q + 1) * BLOCK],
                                    pooled[i * columns + j])
            pooled /= x.dtype.type(y_samples[r] * x_samples[r])
            scatter_bins(pooled, block * BLOCK, out[:, r])


@_parallel.jit
def _backward_blocks(gy, roi_indices, y_first, y_count, y_weight, y_samples,
                     x_first, x_count, x_weight, x_samples, x_begin, x_end, start, stop, gx):
    """Add up the gradient, from ``gy`` (C, R, ...), of blocks ``start`` to ``stop``: forward, transposed."""
    n_rois, rows, columns = gy.shape[1:]
    maps = np.empty((gx.shape[0], gx.shape[2], gx.shape[3] * BLOCK), gx.dtype)
    row = np.empty(gx.shape[3] * BLOCK, gx.dtype)
    pooled = np.zeros((rows * columns, BLOCK), gx.dtype)
    for block in range(start, stop):
        maps[:] = 0
        for r in range(n_rois):
            part = slice(x_begin[r] * BLOCK, x_end[r] * BLOCK)
            gather_bins(gy[:, r], block * BLOCK, pooled)
            pooled /= gy.dtype.type(y_samples[r] * x_samples[r])
            for i in range(rows):
                row[part] = 0
                for j in range(columns):
                    for q in range(x_first[r, j], x_first[r, j] + x_count[r, j]):
                        _add_scaled(x_weight[r, j, q], pooled[i * columns + j],
                                    row[q * BLOCK:(q + 1) * BLOCK])
                for p in range(y_first[r, i], y_first[r, i] + y_count[r, i]):
                    _add_scaled(y_weight[r, i, p], row[part], maps[roi_indices[r], p, part])
        scatter_maps(maps, block * BLOCK, gx)


@_parallel.jit
def _add_scaled(factor, source, target):
    """Add ``factor * source`` to ``target``.  A loop over a whole array is one that LLVM vectorises."""
    for k in range(target.size):
        target[k] += factor * source[k]
