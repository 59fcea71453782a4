"""RoIAlign: the mean of bilinear samples in every bin of a region of interest, forward and backward.

Source: He et al., Mask R-CNN, section 3 (RoIAlign); Caffe2 ``caffe2/operators/roi_align_op.cc``.

The samples of a bin form a grid, and a bilinear weight is the product of a vertical and a horizontal one, so the mean
over the samples is separable.  With ``wy[p]`` the sum of the weights of map row ``p`` over the bin's sample rows, and
``wx[q]`` the same for columns,

    y[bin] = sum_p wy[p] * sum_q wx[q] * x[p, q] / (sample rows * sample columns).

Both implementations tabulate ``wy`` and ``wx``.  The CPU does so once per RoI; it sums over rows first, for all columns
of the RoI at once, then over columns.  On the GPU, every block tabulates the weights that it needs: a forward block
those of some bins of a RoI, a backward block those of the RoIs that overlap a tile of the map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import chainer
import numpy as np

from mask_rcnn.ops.conv.convolution import apply_epilogue
from mask_rcnn.ops.cudnn_frontend.gradient_sum import add_gradient
from mask_rcnn.ops.roi.common import (
    BLOCK,
    as_pair,
    check_arguments,
    count_blocks,
    gather_bins,
    gather_features,
    pixel_range,
    scatter_bins,
    scatter_features,
)
from mask_rcnn.ops.roi.tiles import TILE_ROWS, TILE_THREADS, choose_tile_width, tile_grid
from mask_rcnn.ops.runtime import cuda_kernels, parallel
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import (
    as_images,
    as_nchw,
    channels_first,
    channels_last,
    compute_dtype,
    vector_lanes,
)

_ZERO, _HALF, _ONE = np.float32(0), np.float32(0.5), np.float32(1)

#: Maximum number of feature maps of the forward kernel, and of rows and columns of bins of one of its blocks.
_MAX_LEVELS, _MAX_ROWS, _MAX_COLUMNS = 4, 16, 16
#: Threads of a warp, and maximum number of warps of a forward block.
_WARP, _MAX_WARPS = 32, 7
#: Number of warps of a forward launch that keeps a GPU busy.  With fewer RoIs, a block computes fewer rows of bins.
_MIN_WARPS = 4096
#: For each dtype, the numbers of channels that a thread of a forward kernel can process, in addition to 1.
_FORWARD_LANES = {np.dtype(np.float16): (8,), np.dtype(np.float32): (8, 4), np.dtype(np.float64): (4,)}
#: Maximum number of channels per thread of the backward kernels.
_BACKWARD_LANES = 4
#: Number of weights in the table of a block of the backward kernel, and the number of bins per axis for which it
#: suffices.
_TABLE_SIZE, _MAX_BINS = 2048, 256


def roi_align(
    x: chainer.Variable | Array,
    rois: Array,
    roi_indices: Array,
    *,
    output_size: int | tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int = 0,
    aligned: bool = False,
    bin_step: int = 1,
    bias: Array | None = None,
    relu: bool = False,
) -> chainer.Variable:
    """Pool every RoI to a grid of bins, each the mean of bilinear samples.

    Differentiable with respect to ``x`` (twice).  Forward and backward compute each element in one thread and in a
    fixed order, without floating-point atomics: on one machine, CPU or GPU, the same arguments give the same bits in
    every run.  float16 is a storage type; the arithmetic is float32.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU, maps whose channels
            are last in memory are not copied; on the CPU, maps whose channels are first in memory are not copied.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the network input.
        roi_indices: (R,) int32, the image of each RoI.  An index outside the batch raises an error on the CPU.  On the
            GPU, where validation would cost a synchronisation, such a RoI is zero.
        output_size: Height and width of the grid of bins, or one int for both.
        spatial_scale: Size of the feature map divided by the size of the input.
        sampling_ratio: Samples per bin and axis; 0 for ceil(bin size), one per pixel of the bin.
        aligned: False for Caffe2's definition: coordinates are scaled only, and a RoI has at least the size of one
            pixel of the map.  True for detectron2's: RoIs are shifted by half a pixel and may be smaller.
        bin_step: Compute only every ``bin_step``-th bin of each axis, starting with the first.  The result is that of
            ``[:, :, ::bin_step, ::bin_step]``, and the other bins cost nothing.  The limit is 256 bins per axis.
        bias: (C,) to add to the pooled RoIs, or ``None``.
        relu: Whether to apply ReLU after it.  With a bias or ReLU the result has no graph; on a GPU, they cost no
            further pass over the pooled RoIs.

    Returns:
        Variable (R, C, ceil(height / bin_step), ceil(width / bin_step)) of the dtype of ``x``.  Samples more than one
        pixel outside the map are zero; a RoI that is not finite is zero.

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    xp = get_array_module(roi_indices)
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
        bias=bias,
        relu=relu,
    )


def roi_align_pyramid(
    features: Sequence[chainer.Variable | Array],
    rois: Array,
    roi_indices: Array,
    levels: Array,
    *,
    output_size: int | tuple[int, int],
    spatial_scales: Sequence[float],
    sampling_ratio: int = 0,
    aligned: bool = False,
    bin_step: int = 1,
    bias: Array | None = None,
    relu: bool = False,
) -> chainer.Variable:
    """Pool every RoI from one of several feature maps, as :func:`roi_align` pools from one map.

    On a GPU this is a single launch, which writes every element once and does not synchronise.

    Args:
        features: One to four feature maps (N, C, H, W) of one dtype, which differ only in height and width.
        rois: (R, 4) float32.
        roi_indices: (R,) int32, the image of each RoI.
        levels: (R,) int32, the index in ``features`` of the map of each RoI.  An index out of range raises an error on
            the CPU; on the GPU such a RoI is zero.
        output_size: Height and width of the grid of bins, or one int for both.
        spatial_scales: For each map, its size divided by the size of the input.
        sampling_ratio: Samples per bin and axis; see :func:`roi_align`.
        aligned: Definition of coordinates; see :func:`roi_align`.
        bin_step: Step between the computed bins; see :func:`roi_align`.
        bias: (C,) to add to the pooled RoIs, or ``None``; see :func:`roi_align`.
        relu: Whether to apply ReLU; see :func:`roi_align`.

    Returns:
        Variable (R, C, ...) in the order of ``rois``; differentiable with respect to all maps (twice).

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    if not 0 < len(features) == len(spatial_scales) <= _MAX_LEVELS:
        raise ValueError(
            f'features must be 1 to {_MAX_LEVELS} maps with one scale each, not {len(features)} maps and '
            f'{len(spatial_scales)} scales'
        )
    for x in features[1:]:
        if x.ndim != 4 or x.shape[:2] != features[0].shape[:2] or x.dtype != features[0].dtype or 0 in x.shape[1:]:
            raise ValueError(
                f'features must differ only in height and width, not {features[0].dtype} {features[0].shape} and '
                f'{x.dtype} {x.shape}'
            )
    rois, roi_indices = check_arguments(features[0], rois, roi_indices, bin_step)
    if levels.shape != roi_indices.shape:
        raise ValueError(f'levels must have the shape {roi_indices.shape}, not {levels.shape}')
    if sampling_ratio < 0:
        raise ValueError(f'sampling_ratio must be 0 or more, not {sampling_ratio!r}')
    levels = get_array_module(levels).ascontiguousarray(levels, np.int32)
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
    pooling = _RoIAlign(regions, [x.shape for x in features], _Epilogue(bias, relu))
    if bias is None and not relu:
        return pooling.apply(tuple(features))[0]
    return chainer.as_variable(pooling.forward(tuple(map(chainer.as_array, features)))[0])


@dataclass(frozen=True)
class _Regions:
    """RoIs and their division into bins; the fields are the arguments of :func:`roi_align_pyramid`."""

    rois: Array
    roi_indices: Array
    levels: Array
    spatial_scales: tuple[float, ...]
    output_size: tuple[int, int]
    sampling_ratio: int
    aligned: bool
    bin_step: int

    @property
    def bins(self) -> tuple[int, int]:
        """Number of computed bins along each axis."""
        height, width = self.output_size
        return -(-height // self.bin_step), -(-width // self.bin_step)

    @property
    def kernel_arguments(self) -> tuple:
        """Arguments of the CUDA kernels that are the same for all RoIs and levels."""
        return tuple(map(np.int32, (*self.output_size, self.sampling_ratio, self.aligned, self.bin_step)))

    def members(self, level: int) -> np.ndarray:
        """Return the indices of the RoIs of one level (CPU)."""
        return np.flatnonzero(self.levels == level)


class _Epilogue(NamedTuple):
    """The epilogue of pooling: a bias (C,) or ``None``, and whether to apply ReLU."""

    bias: Array | None = None
    relu: bool = False


_NO_EPILOGUE = _Epilogue()


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


class _RoIAlign(chainer.FunctionNode):
    """Feature maps to pooled RoIs; not differentiable with an epilogue."""

    def __init__(self, regions: _Regions, shapes: Sequence[tuple[int, ...]], epilogue: _Epilogue = _NO_EPILOGUE):
        self._regions, self._shapes, self._epilogue = regions, shapes, epilogue

    def forward_cpu(self, inputs):
        y = forward_cpu(inputs, self._regions)
        return (apply_epilogue(y, self._epilogue.bias, relu=self._epilogue.relu),)

    def forward_gpu(self, inputs):
        return (forward_gpu(inputs, self._regions, self._epilogue),)

    def backward(self, indexes, grad_outputs):
        gradients = _RoIAlignGrad(self._regions, self._shapes).apply(grad_outputs)
        return tuple(gradients[i] for i in indexes)

    def backward_accumulate(self, target_input_indexes, grad_outputs, grad_inputs):
        gradients = self.backward(target_input_indexes, grad_outputs)
        return tuple(map(add_gradient, gradients, grad_inputs))


class _RoIAlignGrad(chainer.FunctionNode):
    """The transposed linear map: gradients of pooled RoIs to gradients of feature maps."""

    def __init__(self, regions: _Regions, shapes: Sequence[tuple[int, ...]]):
        self._regions, self._shapes = regions, shapes

    def forward_cpu(self, inputs):
        return backward_cpu(inputs[0], self._regions, self._shapes)

    def forward_gpu(self, inputs):
        return backward_gpu(inputs[0], self._regions, self._shapes)

    def backward(self, indexes, grad_outputs):
        given = next(gradient for gradient in grad_outputs if gradient is not None)
        features = [
            given.xp.zeros(shape, given.dtype) if gradient is None else gradient
            for gradient, shape in zip(grad_outputs, self._shapes, strict=True)
        ]
        return _RoIAlign(self._regions, self._shapes).apply(features)


# GPU


def forward_gpu(features: Sequence[Array], regions: _Regions, epilogue: _Epilogue = _NO_EPILOGUE) -> Array:
    """Return the pooled RoIs (R, C, ...), channels last in memory."""
    xp = get_array_module(*features)
    n_images, n_channels = features[0].shape[:2]
    sources = [channels_last(x) for x in features]
    y = xp.empty((len(regions.rois), *regions.bins, n_channels), features[0].dtype)
    if y.size:
        bias = xp.empty(0, compute_dtype(y.dtype))
        if epilogue.bias is not None:
            bias = xp.ascontiguousarray(epilogue.bias, bias.dtype)
        lanes = max(vector_lanes(n, *sources, bias) for n in _FORWARD_LANES[y.dtype])
        kernel, view = _variant('forward', y.dtype, lanes)
        grid, block, n_rows = _forward_launch(len(y), regions.bins, n_channels // lanes)
        heights, widths = ([x.shape[axis] for x in sources] for axis in (1, 2))
        kernel(
            grid,
            block,
            (
                *_pad_to_max_levels(map(view, sources)),
                *_pad_to_max_levels(map(np.int32, heights)),
                *_pad_to_max_levels(map(np.int32, widths)),
                *_pad_to_max_levels(map(np.float32, regions.spatial_scales)),
                np.int32(len(features)),
                regions.rois,
                regions.roi_indices,
                regions.levels,
                *map(np.int32, (n_images, n_channels)),
                *regions.kernel_arguments,
                np.int32(n_rows),
                bias,
                *map(np.int32, (epilogue.bias is not None, epilogue.relu)),
                view(y),
            ),
        )
    return as_nchw(y)


def _forward_launch(n_rois: int, bins: tuple[int, int], n_groups: int) -> tuple[tuple[int, int], tuple[int], int]:
    """Return the grid and the block of a forward launch, and the number of rows of bins of a block.

    A warp pools a column of bins in 32 groups of channels.  It reads the fewest pixels if a block has all rows of a
    RoI.

    Args:
        n_rois: Number of RoIs.
        bins: Number of computed bins along each axis.
        n_groups: Number of threads that share the channels of a bin.
    """
    rows, columns = bins
    n_warps = -(-columns // -(-columns // _MAX_WARPS))
    blocks_per_row, slices = -(-columns // _MAX_COLUMNS), -(-n_groups // _WARP)
    n_rows = min(rows, _MAX_ROWS)
    while n_rows > 1 and n_rois * blocks_per_row * slices * n_warps * -(-rows // n_rows) < _MIN_WARPS:
        n_rows = -(-n_rows // 2)
    return (n_rois * -(-rows // n_rows) * blocks_per_row, slices), (_WARP * n_warps,), n_rows


def backward_gpu(gy: Array, regions: _Regions, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Return the gradients of the feature maps, with the given shapes and channels last in memory."""
    source = channels_last(gy)
    return tuple(as_nchw(_backward_level_gpu(source, regions, level, shape)) for level, shape in enumerate(shapes))


def _backward_level_gpu(gy: Array, regions: _Regions, level: int, shape: tuple[int, ...]) -> Array:
    """Return the gradient of one feature map (N, H, W, C) from ``gy`` (R, ..., C)."""
    xp = get_array_module(gy)
    n_images, n_channels, height, width = shape
    gx = xp.empty((n_images, height, width, n_channels), gy.dtype)
    if gx.size:
        kernel, view = _variant('backward', gx.dtype, _BACKWARD_LANES)
        lanes = vector_lanes(_BACKWARD_LANES, gy)
        n_groups = n_channels // lanes
        rows, columns = regions.bins
        tile_width = choose_tile_width(n_groups)
        while TILE_ROWS * rows + tile_width * columns > _TABLE_SIZE:
            tile_width //= 2
        kernel(
            tile_grid(shape, n_groups, tile_width),
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
                *regions.kernel_arguments,
                np.int32(tile_width),
                np.int32(lanes),
                view(gx),
            ),
        )
    return gx


def _variant(direction: str, dtype: np.dtype, lanes: int) -> tuple[Callable, Callable]:
    """Return the kernel for a dtype and a number of channels per thread, and the cast to its array types."""
    if dtype != np.float16:
        return cuda_kernels.kernel('roi/roi_align.cu', f'roi_align_{direction}_{lanes}', dtype), lambda array: array
    kernel = cuda_kernels.kernel('roi/roi_align.cu', f'roi_align_{direction}_half_{lanes}')
    return kernel, lambda array: array.view(np.uint16)


def _pad_to_max_levels(values: Iterable) -> list:
    """Repeat the first value so that there is one for each level of the kernel's signature."""
    values = list(values)
    return values + values[:1] * (_MAX_LEVELS - len(values))


# CPU


def forward_cpu(features: Sequence[np.ndarray], regions: _Regions) -> np.ndarray:
    """Return the pooled RoIs (R, C, ...), channels first in memory."""
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


def backward_cpu(gy: np.ndarray, regions: _Regions, shapes: Sequence[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    """Return the gradients of the feature maps, with the given shapes and channels first in memory."""
    source = channels_first(gy, compute_dtype(gy.dtype))
    return tuple(
        as_images(_backward_level_cpu(source, regions, level, shape)).astype(gy.dtype, copy=False)
        for level, shape in enumerate(shapes)
    )


def _forward_level_cpu(x: np.ndarray, regions: _Regions, level: int, members: np.ndarray, y: np.ndarray) -> None:
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


def _backward_level_cpu(gy: np.ndarray, regions: _Regions, level: int, shape: tuple[int, ...]) -> np.ndarray:
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


def _axis_weights(regions: _Regions, level: int, members: np.ndarray, axis: int, size: int) -> _AxisWeights:
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
