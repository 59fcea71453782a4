"""RoIAlign: mean of bilinear samples in every bin of a region of interest, forward and backward.

Source: He et al., Mask R-CNN, section 3 (RoIAlign); Caffe2 ``caffe2/operators/roi_align_op.cc``.

A bin's samples form a grid, and a bilinear weight is a product of a vertical and a horizontal one, so the
mean over the samples is a product, too: with ``wy[p]`` the sum, over the bin's sample rows, of the weights
of map row ``p``, and ``wx[q]`` the same for columns,

    y[bin] = sum_p wy[p] * sum_q wx[q] * x[p, q] / (sample rows * sample columns).

Both tabulate ``wy`` and ``wx``.  The CPU does it once per RoI, and sums over rows first, for all columns of
the RoI at once, then over columns.  On the GPU every block tabulates what it needs: forward, a row of a RoI's bins;
backward, the RoIs that touch a tile of the map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import chainer
import numpy as np

from mask_rcnn.ops.roi.channel_blocks import BLOCK, count_blocks, gather_bins, gather_maps, scatter_bins, scatter_maps
from mask_rcnn.ops.roi.common import (
    BIN_THREADS,
    TILE_ROWS,
    TILE_THREADS,
    as_pair,
    check_arguments,
    common_lanes,
    pixel_range,
    tile_columns,
    tile_grid,
)
from mask_rcnn.ops.runtime import cuda_kernels, parallel
from mask_rcnn.ops.runtime.memory_layout import as_images, channels_first, channels_last, compute_dtype

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)

#: Maps that the forward kernel takes, and bins of a row that one of its blocks computes.
_MAX_MAPS, _MAX_COLUMNS = 4, 32
#: Weights for which a block of the backward kernel has room, and bins of an axis for which that is enough.
_TABLE, _MAX_BINS = 2048, 256


def roi_align(
    x, rois, roi_indices, *, output_size, spatial_scale, sampling_ratio=0, aligned=False, bin_step=1
) -> chainer.Variable:
    """Pool every RoI to a grid of bins, each the mean of bilinear samples.

    Differentiable with respect to ``x`` (twice).  Forward and backward write every number from one thread,
    in a fixed order, without atomic additions of numbers: on one machine, CPU or GPU, the same arguments give the
    same bits in every run.  What is float16 is read and written as such, and calculated in float32.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU those whose
            channels are innermost in memory are not copied, on the CPU those whose channels are outermost.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the network's input.
        roi_indices: (R,) int32, the map of each RoI.  An index outside the batch raises an error on the CPU;
            on the GPU, where looking would cost a synchronisation, such a RoI is zero.
        output_size: Bins of the grid, one int or ``(height, width)``.
        spatial_scale: Size of the map divided by the size of the input.
        sampling_ratio: Samples per bin and axis; 0 takes ceil(bin size), as many as the bin has pixels.
        aligned: False is Caffe2's form: coordinates are scaled only, and a RoI is at least one pixel of the
            map high and wide.  True is detectron2's: RoIs are moved by half a pixel, and may be smaller.
        bin_step: Return only every ``bin_step``-th bin of each axis, starting with the first: the same as
            ``[:, :, ::bin_step, ::bin_step]`` of the result, at the cost of what is returned.  At most 256
            bins of an axis are returned.

    Returns:
        Variable (R, C, ceil(height / bin_step), ceil(width / bin_step)) of ``x``'s type.  Samples that are
        more than one pixel outside of the map count as zero; a RoI that is not finite is zero.

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    xp = chainer.backend.get_array_module(roi_indices)
    return roi_align_pyramid(
        (x,),
        rois,
        roi_indices,
        xp.zeros(roi_indices.shape, np.int32),
        output_size=output_size,
        spatial_scales=(spatial_scale,),
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        bin_step=bin_step,
    )


def roi_align_pyramid(
    features: Sequence,
    rois,
    roi_indices,
    levels,
    *,
    output_size,
    spatial_scales: Sequence[float],
    sampling_ratio=0,
    aligned=False,
    bin_step=1,
) -> chainer.Variable:
    """Pool every RoI from one of several maps; :func:`roi_align` otherwise, which documents what is not said here.

    On the GPU it is one launch that writes every number once, and the host waits for nothing.

    Args:
        features: One to four feature maps (N, C, H, W) of one type, which differ in their size only.
        rois: (R, 4) float32.
        roi_indices: (R,) int32: which of the ``N`` images each RoI is part of.
        levels: (R,) int32: the index in ``features`` of the one each RoI is pooled from.  One outside raises an error
            on the CPU; on the GPU such a RoI is zero.
        output_size: Bins of the grid.
        spatial_scales: Of each map, its size divided by the size of the input.
        sampling_ratio: Samples per bin and axis.
        aligned: How coordinates become the maps'.
        bin_step: Which bins to return.

    Returns:
        Variable (R, C, ...), the RoIs in their order; differentiable with respect to all maps (twice).

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    if not 0 < len(features) == len(spatial_scales) <= _MAX_MAPS:
        raise ValueError(
            f'maps must be 1 to {_MAX_MAPS}, with a scale each, not {len(features)} with {len(spatial_scales)} scales'
        )
    for x in features[1:]:
        if x.ndim != 4 or x.shape[:2] != features[0].shape[:2] or x.dtype != features[0].dtype or 0 in x.shape:
            raise ValueError(
                f'maps must differ in their size only, not {features[0].dtype} {features[0].shape} and '
                f'{x.dtype} {x.shape}'
            )
    rois, roi_indices = check_arguments(features[0], rois, roi_indices, bin_step)
    if levels.shape != roi_indices.shape:
        raise ValueError(f'levels must have the shape {roi_indices.shape}, not {levels.shape}')
    if sampling_ratio < 0:
        raise ValueError(f'sampling_ratio must be 0 or more, not {sampling_ratio!r}')
    levels = chainer.backend.get_array_module(levels).ascontiguousarray(levels, np.int32)
    regions = _Regions(
        rois,
        roi_indices,
        levels,
        tuple(map(float, spatial_scales)),
        as_pair(output_size),
        int(sampling_ratio),
        bool(aligned),
        int(bin_step),
    )
    if max(regions.bins) > _MAX_BINS:
        raise ValueError(f'output_size must give at most {_MAX_BINS} bins of an axis, not {regions.bins}')
    return _RoIAlign(regions).apply(tuple(features))[0]


@dataclass(frozen=True)
class _Regions:
    """RoIs and how they are divided; the fields are :func:`roi_align_pyramid`'s arguments."""

    rois: np.ndarray
    roi_indices: np.ndarray
    levels: np.ndarray
    spatial_scales: tuple[float, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    bin_step: int

    @property
    def bins(self) -> tuple[int, int]:
        """Number of bins that are computed along each axis."""
        rows, columns = (-(-bins // self.bin_step) for bins in self.output_size)
        return rows, columns

    @property
    def division(self) -> tuple:
        """What the GPU must know besides the RoIs and the scales, in the types that it takes."""
        return tuple(map(np.int32, (*self.output_size, self.sampling_ratio, self.aligned, self.bin_step)))

    def members(self, level: int):
        """Numbers of the RoIs that belong to one map (CPU)."""
        return np.flatnonzero(self.levels == level)


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

    def fields(self) -> tuple:
        """All of them."""
        return self.first, self.count, self.weight, self.samples

    def range(self):
        """Pixels that the whole RoI reads, ``[begin, end)``, two int32 arrays (R,)."""
        return pixel_range(np, self.first, self.count, self.weight.shape[2])


class _RoIAlign(chainer.FunctionNode):
    """Maps to pooled RoIs."""

    def __init__(self, regions: _Regions):
        self._regions = regions

    def forward_cpu(self, inputs):
        return (forward_cpu(inputs, self._regions),)

    def forward_gpu(self, inputs):
        return (forward_gpu(inputs, self._regions),)

    def backward(self, indexes, grad_outputs):
        gradients = _RoIAlignGrad(self._regions, [x.shape for x in self.inputs]).apply(grad_outputs)
        return tuple(gradients[i] for i in indexes)


class _RoIAlignGrad(chainer.FunctionNode):
    """The transposed map: gradients of pooled RoIs to gradients of the maps."""

    def __init__(self, regions: _Regions, shapes):
        self._regions, self._shapes = regions, shapes

    def forward_cpu(self, inputs):
        return backward_cpu(inputs[0], self._regions, self._shapes)

    def forward_gpu(self, inputs):
        return backward_gpu(inputs[0], self._regions, self._shapes)

    def backward(self, indexes, grad_outputs):
        given = next(gradient for gradient in grad_outputs if gradient is not None)
        features = [
            given.xp.zeros(shape, given.dtype) if gradient is None else gradient
            for gradient, shape in zip(grad_outputs, self._shapes)
        ]
        return _RoIAlign(self._regions).apply(features)


# On the GPU


def forward_gpu(features, regions: _Regions):
    """Return the pooled RoIs (R, C, ...), channels innermost in memory; CuPy arrays in and out."""
    xp = chainer.backend.get_array_module(*features)
    n_images, channels = features[0].shape[:2]
    rows, columns = regions.bins
    sources = [channels_last(x) for x in features]
    y = xp.empty((len(regions.rois), rows, columns, channels), features[0].dtype)
    if y.size:
        kernel, max_lanes, view = _variant('forward', y.dtype)
        heights, widths = ([x.shape[axis] for x in sources] for axis in (1, 2))
        kernel(
            (len(y) * rows, -(-columns // _MAX_COLUMNS)),
            (BIN_THREADS,),
            (
                *_repeat(map(view, sources)),
                *_repeat(map(np.int32, heights)),
                *_repeat(map(np.int32, widths)),
                *_repeat(map(np.float32, regions.spatial_scales)),
                np.int32(len(features)),
                regions.rois,
                regions.roi_indices,
                regions.levels,
                np.int32(n_images),
                np.int32(channels),
                *regions.division,
                np.int32(common_lanes(max_lanes, *sources)),
                view(y),
            ),
        )
    return y.transpose(0, 3, 1, 2)


def backward_gpu(gy, regions: _Regions, shapes):
    """Return the gradients of the maps, of the given shapes; CuPy arrays in and out, as in the forward pass."""
    source = channels_last(gy)
    return tuple(
        _backward_level_gpu(source, regions, level, shape).transpose(0, 3, 1, 2) for level, shape in enumerate(shapes)
    )


def _backward_level_gpu(gy, regions: _Regions, level: int, shape):
    """Return the gradient of one map, channels last, as ``gy``."""
    xp = chainer.backend.get_array_module(gy)
    n_images, channels, height, width = shape
    gx = xp.empty((n_images, height, width, channels), gy.dtype)
    if gx.size:
        kernel, max_lanes, view = _variant('backward', gx.dtype)
        lanes = common_lanes(max_lanes, gy)
        groups = channels // lanes
        rows, columns = regions.bins
        tile_width = tile_columns(groups)
        while TILE_ROWS * rows + tile_width * columns > _TABLE:
            tile_width //= 2
        kernel(
            tile_grid(shape, groups, tile_width),
            (TILE_THREADS,),
            (
                view(gy),
                regions.rois,
                regions.roi_indices,
                regions.levels,
                np.int32(len(regions.rois)),
                np.int32(level),
                np.float32(regions.spatial_scales[level]),
                *map(np.int32, shape[1:]),
                *regions.division,
                np.int32(tile_width),
                np.int32(lanes),
                view(gx),
            ),
        )
    return gx


def _variant(direction: str, dtype):
    """Return a type's kernel, the most channels that its threads take at once, and how it wants to see arrays."""
    if dtype != np.float16:
        return cuda_kernels.kernel('roi/roi_align.cu', f'roi_align_{direction}_4', dtype), 4, lambda array: array
    lanes = 8 if direction == 'forward' else 4
    kernel = cuda_kernels.kernel('roi/roi_align.cu', f'roi_align_{direction}_half_{lanes}')
    return kernel, lanes, lambda array: array.view(np.uint16)


def _repeat(values) -> list:
    """Return a value for each map that the kernel takes."""
    values = list(values)
    return values + values[:1] * (_MAX_MAPS - len(values))


# On the CPU


def forward_cpu(features, regions: _Regions):
    """Return the pooled RoIs (R, C, ...), in memory as convolutions want them; NumPy arrays in and out."""
    levels = regions.levels
    if len(levels) and not (levels.min() >= 0 and levels.max() < len(features)):
        raise ValueError(f'levels must be in [0, {len(features)}), got {levels.min()} to {levels.max()}')
    dtype = compute_dtype(features[0].dtype)
    y = np.empty((features[0].shape[1], len(levels), *regions.bins), dtype)
    for level, x in enumerate(features):
        members = regions.members(level)
        if len(members):
            _forward_level_cpu(channels_first(x, dtype), regions, level, members, y)
    return as_images(y).astype(features[0].dtype, copy=False)


def backward_cpu(gy, regions: _Regions, shapes):
    """Return the gradients of the maps, of the given shapes; NumPy arrays in and out, as in the forward pass."""
    source = channels_first(gy, compute_dtype(gy.dtype))
    return tuple(
        as_images(_backward_level_cpu(source, regions, level, shape)).astype(gy.dtype, copy=False)
        for level, shape in enumerate(shapes)
    )


def _forward_level_cpu(x, regions: _Regions, level: int, members, y):
    """Pool the RoIs ``members`` from one map (C, N, H, W) to their places in ``y`` (C, R, ...)."""
    rows, columns = (_axis_weights_cpu(regions, level, members, axis, x.shape[2 + axis]) for axis in (0, 1))
    parallel.parallel_for(
        lambda start, stop: _forward_blocks(
            x, members, regions.roi_indices, *rows.fields(), *columns.fields(), *columns.range(), start, stop, y
        ),
        count_blocks(x.shape[0]),
    )


def _backward_level_cpu(gy, regions: _Regions, level: int, shape):
    """Return the gradient (C, N, H, W) of one map, whose shape is ``shape``, from ``gy`` (C, R, ...)."""
    n_images, channels, *size = shape
    members = regions.members(level)
    gx = np.empty((channels, n_images, *size), gy.dtype)
    rows, columns = (_axis_weights_cpu(regions, level, members, axis, size[axis]) for axis in (0, 1))
    parallel.parallel_for(
        lambda start, stop: _backward_blocks(
            gy, members, regions.roi_indices, *rows.fields(), *columns.fields(), *columns.range(), start, stop, gx
        ),
        count_blocks(channels),
    )
    return gx


def _axis_weights_cpu(regions: _Regions, level: int, members, axis: int, size: int) -> _AxisWeights:
    rois, bins = regions.rois[members], regions.bins[axis]
    weights = _AxisWeights(
        np.empty((len(rois), bins), np.int32),
        np.empty((len(rois), bins), np.int32),
        np.empty((len(rois), bins, size), np.float32),
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
        *weights.fields(),
    )
    return weights


@parallel.jit
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


@parallel.jit
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


@parallel.jit
def _forward_blocks(
    x,
    members,
    roi_indices,
    y_first,
    y_count,
    y_weight,
    y_samples,
    x_first,
    x_count,
    x_weight,
    x_samples,
    x_begin,
    x_end,
    start,
    stop,
    out,
):
    """Pool the channels of blocks ``start`` to ``stop`` for the RoIs ``members`` to ``out`` (C, R, ...).

    The tables have a line for each member.
    """
    rows, columns = out.shape[2:]
    features = np.empty((x.shape[1], x.shape[2], x.shape[3] * BLOCK), x.dtype)
    row = np.empty(x.shape[3] * BLOCK, x.dtype)
    pooled = np.empty((rows * columns, BLOCK), x.dtype)
    for block in range(start, stop):
        gather_maps(x, block * BLOCK, features)
        for r in range(members.size):
            part = slice(x_begin[r] * BLOCK, x_end[r] * BLOCK)
            pooled[:] = 0
            for i in range(rows):
                row[part] = 0
                for p in range(y_first[r, i], y_first[r, i] + y_count[r, i]):
                    _add_scaled(y_weight[r, i, p], features[roi_indices[members[r]], p, part], row[part])
                for j in range(columns):
                    for q in range(x_first[r, j], x_first[r, j] + x_count[r, j]):
                        _add_scaled(x_weight[r, j, q], row[q * BLOCK : (q + 1) * BLOCK], pooled[i * columns + j])
            pooled /= x.dtype.type(y_samples[r] * x_samples[r])
            scatter_bins(pooled, block * BLOCK, out[:, members[r]])


@parallel.jit
def _backward_blocks(
    gy,
    members,
    roi_indices,
    y_first,
    y_count,
    y_weight,
    y_samples,
    x_first,
    x_count,
    x_weight,
    x_samples,
    x_begin,
    x_end,
    start,
    stop,
    gx,
):
    """Add up the gradient, from ``gy`` (C, R, ...), of blocks ``start`` to ``stop``: forward, transposed."""
    rows, columns = gy.shape[2:]
    features = np.empty((gx.shape[1], gx.shape[2], gx.shape[3] * BLOCK), gx.dtype)
    row = np.empty(gx.shape[3] * BLOCK, gx.dtype)
    pooled = np.zeros((rows * columns, BLOCK), gx.dtype)
    for block in range(start, stop):
        features[:] = 0
        for r in range(members.size):
            part = slice(x_begin[r] * BLOCK, x_end[r] * BLOCK)
            gather_bins(gy[:, members[r]], block * BLOCK, pooled)
            pooled /= gy.dtype.type(y_samples[r] * x_samples[r])
            for i in range(rows):
                row[part] = 0
                for j in range(columns):
                    for q in range(x_first[r, j], x_first[r, j] + x_count[r, j]):
                        _add_scaled(x_weight[r, j, q], pooled[i * columns + j], row[q * BLOCK : (q + 1) * BLOCK])
                for p in range(y_first[r, i], y_first[r, i] + y_count[r, i]):
                    _add_scaled(y_weight[r, i, p], row[part], features[roi_indices[members[r]], p, part])
        scatter_maps(features, block * BLOCK, gx)


@parallel.jit
def _add_scaled(factor, source, target):
    """Add ``factor * source`` to ``target``.  A loop over a whole array is one that LLVM vectorises."""
    for k in range(target.size):
        target[k] += factor * source[k]
