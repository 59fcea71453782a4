"""Crop and resize: one bilinear sample per bin, the outermost on the RoI's borders; forward and backward.

Source: TensorFlow's operation of that name (``tensorflow/core/kernels/crop_and_resize_op.cc``), with the same order of
operations.  On an axis of ``n`` pixels, bin ``i`` of ``P`` samples the position

    y_min * (n - 1) + i * (y_max - y_min) * (n - 1) / (P - 1),

in coordinates in which the centres of the first and the last pixel are 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chainer
import numpy as np

from mask_rcnn.ops.roi.common import as_pair, check_arguments, pixel_range
from mask_rcnn.ops.roi.tiles import BIN_THREADS, TILE_THREADS, choose_tile_width, tile_grid
from mask_rcnn.ops.runtime import array_pool, cuda_kernels, parallel
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_images, as_nchw, channels_last, compute_dtype, vector_lanes

_ONE = np.float32(1)
#: Maximum number of channels that a thread of a kernel processes at once.
_LANES = 4


def crop_and_resize(
    x: chainer.Variable | Array,
    rois: Array,
    roi_indices: Array,
    *,
    output_size: int | tuple[int, int],
    last: Sequence[float] = (1.0, 1.0),
) -> chainer.Variable:
    """Sample every RoI at the points of a grid that reaches from border to border.

    Differentiable with respect to ``x`` (twice).  Forward and backward compute each element in one thread and in a
    fixed order, without floating-point atomics: on one machine, CPU or GPU, the same arguments give the same bits in
    every run.  float16 is a storage type; the arithmetic is float32.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU, maps whose channels
            are last in memory are not copied; on the CPU, only float16 maps are copied.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)``.
        roi_indices: (R,) int32, the image of each RoI.  An index outside the batch raises an error on the CPU.  On the
            GPU, where validation would cost a synchronisation, such a RoI is zero.
        output_size: Height and width of the grid, or one int for both.  A single point is in the middle.
        last: The RoIs' coordinates of the centres of the last row and column of the maps; those of the first are 0.

    Returns:
        Variable (R, C, height, width) of the dtype of ``x``.  Points outside the outermost pixel centres are zero, and
        so is a RoI that is not finite.

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    rois, roi_indices = check_arguments(x, rois, roi_indices, 1)
    if not min(last) > 0:
        raise ValueError(f'last must be two positive numbers, not {last!r}')
    rows, columns = (
        _sample_points(rois[:, axis] / side, rois[:, axis + 2] / side, x.shape[2 + axis], n_bins)
        for axis, (n_bins, side) in enumerate(zip(as_pair(output_size), map(np.float32, last), strict=True))
    )
    return _CropAndResize(roi_indices, rows, columns, x.shape).apply((x,))[0]


class _Points(NamedTuple):
    """The sample points of every RoI along one axis of the map.

    Args:
        first: The pixel at or before each point (R, P) int32; -1 outside of the map.
        fraction: Weight of the pixel after it (R, P) float32.
    """

    first: Array
    fraction: Array

    def range(self, size: int) -> tuple[Array, Array]:
        """Return the range of pixels that each RoI reads, ``begin`` and ``end``, both (R,) int32."""
        xp = get_array_module(self.first)
        return pixel_range(self.first, xp.where(self.first < 0, 0, 2).astype(np.int32), size)


def _sample_points(low: Array, high: Array, size: int, n_bins: int) -> _Points:
    """Return the sample points of RoIs from ``low`` to ``high`` (R,) float32 along an axis of ``size`` pixels."""
    xp = get_array_module(low)
    last = np.float32(size - 1)
    with np.errstate(invalid='ignore'):  # a RoI that is not finite has no point inside
        if n_bins == 1:
            position = (np.float32(0.5) * (low + high) * last)[:, None]
        else:
            step = (high - low) * last / np.float32(n_bins - 1)
            position = (low * last)[:, None] + xp.arange(n_bins, dtype=np.float32) * step[:, None]
    is_inside = (position >= 0) & (position <= last)
    position = xp.where(is_inside, position, np.float32(-1))
    first = xp.floor(position)
    return _Points(first.astype(np.int32), position - first)


class _CropAndResize(chainer.FunctionNode):
    """Feature maps to samples."""

    def __init__(self, roi_indices: Array, rows: _Points, columns: _Points, shape: Sequence[int]):
        self._roi_indices, self._rows, self._columns, self._shape = roi_indices, rows, columns, shape

    def forward_cpu(self, inputs):
        return (forward_cpu(inputs[0], self._roi_indices, self._rows, self._columns),)

    def forward_gpu(self, inputs):
        return (forward_gpu(inputs[0], self._roi_indices, self._rows, self._columns),)

    def backward(self, indexes, grad_outputs):
        return _CropAndResizeGrad(self._roi_indices, self._rows, self._columns, self._shape).apply(grad_outputs)


class _CropAndResizeGrad(chainer.FunctionNode):
    """The transposed linear map: gradients of samples to gradients of feature maps."""

    def __init__(self, roi_indices: Array, rows: _Points, columns: _Points, shape: Sequence[int]):
        self._roi_indices, self._rows, self._columns, self._shape = roi_indices, rows, columns, shape

    def forward_cpu(self, inputs):
        return (backward_cpu(inputs[0], self._roi_indices, self._rows, self._columns, self._shape),)

    def forward_gpu(self, inputs):
        return (backward_gpu(inputs[0], self._roi_indices, self._rows, self._columns, self._shape),)

    def backward(self, indexes, grad_outputs):
        return _CropAndResize(self._roi_indices, self._rows, self._columns, self._shape).apply(grad_outputs)


# GPU


def forward_gpu(x: Array, roi_indices: Array, rows: _Points, columns: _Points) -> Array:
    """Return the samples (R, C, ...) of CuPy feature maps, channels last in memory."""
    xp = get_array_module(x)
    source = channels_last(x)
    shape = (len(roi_indices), rows.first.shape[1], columns.first.shape[1], x.shape[1])
    y = xp.empty(shape, x.dtype)
    if y.size:
        kernel, view = _variant('forward', x.dtype)
        kernel(
            (shape[0] * shape[1],),
            (BIN_THREADS,),
            (
                view(source),
                roi_indices,
                *rows,
                *columns,
                *map(np.int32, (*x.shape, *shape[1:3], vector_lanes(_LANES, source))),
                view(y),
            ),
        )
    return as_nchw(y)


def backward_gpu(gy: Array, roi_indices: Array, rows: _Points, columns: _Points, shape: Sequence[int]) -> Array:
    """Return the gradient of the feature maps, with the given shape and channels last in memory."""
    xp = get_array_module(gy)
    source = channels_last(gy)
    n_images, n_channels, height, width = shape
    gx = xp.empty((n_images, height, width, n_channels), gy.dtype)
    if gx.size:
        kernel, view = _variant('backward', gy.dtype)
        lanes = vector_lanes(_LANES, source)
        tile_width = choose_tile_width(n_channels // lanes)
        kernel(
            tile_grid(shape, n_channels // lanes, tile_width),
            (TILE_THREADS,),
            (
                view(source),
                roi_indices,
                *rows,
                *rows.range(height),
                *columns,
                *columns.range(width),
                *map(np.int32, (len(roi_indices), *shape[1:], *gy.shape[2:], tile_width, lanes)),
                view(gx),
            ),
        )
    return as_nchw(gx)


def _variant(direction: str, dtype: np.dtype) -> tuple[Callable, Callable]:
    """Return the kernel for a dtype of feature maps, and the function that casts arrays to the kernel's types."""
    name = f'crop_and_resize_{direction}'
    if dtype == np.float16:
        return cuda_kernels.kernel('roi/crop_and_resize.cu', f'{name}_half'), lambda array: array.view(np.uint16)
    return cuda_kernels.kernel('roi/crop_and_resize.cu', name, dtype), lambda array: array


# CPU


def forward_cpu(x: np.ndarray, roi_indices: np.ndarray, rows: _Points, columns: _Points) -> np.ndarray:
    """Return the samples (R, C, ...), channels first in memory."""
    dtype = compute_dtype(x.dtype)
    source = x.astype(dtype, copy=False)
    y = as_images(array_pool.empty((x.shape[1], len(roi_indices), rows.first.shape[1], columns.first.shape[1]), dtype))
    parallel.parallel_for(
        lambda start, stop: _forward_channels(source, roi_indices, rows, columns, start, stop, y), x.shape[1]
    )
    return y.astype(x.dtype, copy=False)


def backward_cpu(
    gy: np.ndarray, roi_indices: np.ndarray, rows: _Points, columns: _Points, shape: Sequence[int]
) -> np.ndarray:
    """Return the gradient of the feature maps, with the given shape and channels first in memory."""
    dtype = compute_dtype(gy.dtype)
    source = gy.astype(dtype, copy=False)
    gx = as_images(np.zeros((shape[1], shape[0], *shape[2:]), dtype))
    parallel.parallel_for(
        lambda start, stop: _backward_channels(source, roi_indices, rows, columns, start, stop, gx), shape[1]
    )
    return gx.astype(gy.dtype, copy=False)


@parallel.jit
def _forward_channels(x, roi_indices, rows, columns, start, stop, y):
    """Sample channels ``start`` to ``stop`` at the points of all RoIs."""
    height, width = x.shape[2:]
    for c in range(start, stop):
        for r in range(y.shape[0]):
            channel = x[roi_indices[r], c]
            for i in range(y.shape[2]):
                top, fy = rows.first[r, i], rows.fraction[r, i]
                bottom = min(top + 1, height - 1)
                for j in range(y.shape[3]):
                    left, fx = columns.first[r, j], columns.fraction[r, j]
                    if top < 0 or left < 0:
                        y[r, c, i, j] = 0
                        continue
                    right = min(left + 1, width - 1)
                    upper = channel[top, left] + (channel[top, right] - channel[top, left]) * fx
                    lower = channel[bottom, left] + (channel[bottom, right] - channel[bottom, left]) * fx
                    y[r, c, i, j] = upper + (lower - upper) * fy


@parallel.jit
def _backward_channels(gy, roi_indices, rows, columns, start, stop, gx):
    """Add up the gradient of channels ``start`` to ``stop``, RoI by RoI."""
    height, width = gx.shape[2:]
    for c in range(start, stop):
        for r in range(gy.shape[0]):
            channel = gx[roi_indices[r], c]
            for i in range(gy.shape[2]):
                top, fy = rows.first[r, i], rows.fraction[r, i]
                bottom = min(top + 1, height - 1)
                for j in range(gy.shape[3]):
                    left, fx = columns.first[r, j], columns.fraction[r, j]
                    if top < 0 or left < 0:
                        continue
                    right = min(left + 1, width - 1)
                    upper, lower = gy[r, c, i, j] * (_ONE - fy), gy[r, c, i, j] * fy
                    channel[top, left] += upper * (_ONE - fx)
                    channel[top, right] += upper * fx
                    channel[bottom, left] += lower * (_ONE - fx)
                    channel[bottom, right] += lower * fx
