"""Crop and resize: one bilinear sample per bin, the outermost on the RoI's borders; forward and backward.

Source: TensorFlow's operation of that name (``tensorflow/core/kernels/crop_and_resize_op.cc``), in its order
of operations.  On an axis of ``n`` pixels, bin ``i`` of ``P`` reads at

    y_min * (n - 1) + i * (y_max - y_min) * (n - 1) / (P - 1),

in coordinates in which the centres of the first and the last pixel are 0 and 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import chainer
import numpy as np

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
from mask_rcnn.ops.runtime.memory_layout import as_images, channels_last, compute_dtype

_ONE = np.float32(1)
#: The most channels that a thread of a kernel takes at once.
_LANES = 4


def crop_and_resize(x, rois, roi_indices, *, output_size, last=(1.0, 1.0)) -> chainer.Variable:
    """Sample every RoI at the points of a grid that reaches from border to border.

    Differentiable with respect to ``x`` (twice).  Forward and backward write every number from one thread,
    in a fixed order, without atomic additions of numbers: on one machine, CPU or GPU, the same arguments give the
    same bits in every run.  What is float16 is calculated in float32.

    Args:
        x: Feature maps (N, C, H, W), float16, float32 or float64, array or variable.  On the GPU those whose
            channels are innermost in memory are not copied, on the CPU none but those in float16.
        rois: (R, 4) float32 ``(y_min, x_min, y_max, x_max)``.
        roi_indices: (R,) int32, the map of each RoI.  An index outside the batch raises an error on the CPU;
            on the GPU, where looking would cost a synchronisation, such a RoI is zero.
        output_size: Points of the grid, one int or ``(height, width)``.  A single point is in the middle.
        last: The RoIs' coordinates of the centres of the maps' last row and column; those of the first are 0.

    Returns:
        Variable (R, C, height, width) of ``x``'s type.  Points outside of the map's outermost centres are
        zero, and so is a RoI that is not finite.

    Raises:
        ValueError: If a shape or a parameter is wrong.
    """
    rois, roi_indices = check_arguments(x, rois, roi_indices, 1)
    if not min(last) > 0:
        raise ValueError(f'last must be two positive numbers, not {last!r}')
    xp = chainer.backend.get_array_module(rois)
    rois = rois / xp.asarray([last[0], last[1]] * 2, np.float32)
    rows, columns = (
        _sample_points(rois[:, axis], rois[:, axis + 2], x.shape[2 + axis], bins)
        for axis, bins in enumerate(as_pair(output_size))
    )
    return _CropAndResize(roi_indices, rows, columns).apply((x,))[0]


@dataclass(frozen=True)
class _Points:
    """Where the bins of every RoI read one axis of the map.

    Args:
        first: The pixel at or before each point (R, P) int32; -1 outside of the map.
        fraction: Weight of the pixel behind it (R, P) float32.
    """

    first: np.ndarray
    fraction: np.ndarray

    def range(self, size: int):
        """Pixels that the whole RoI reads, ``[begin, end)``, two int32 arrays (R,)."""
        xp = chainer.backend.get_array_module(self.first)
        return pixel_range(xp, self.first, xp.where(self.first < 0, 0, 2).astype(np.int32), size)


def _sample_points(low, high, size: int, bins: int) -> _Points:
    xp = chainer.backend.get_array_module(low)
    last = np.float32(size - 1)
    with np.errstate(invalid='ignore'):  # a RoI that is not finite is nowhere inside
        if bins == 1:
            position = (np.float32(0.5) * (low + high) * last)[:, None]
        else:
            step = (high - low) * last / np.float32(bins - 1)
            position = (low * last)[:, None] + xp.arange(bins, dtype=np.float32) * step[:, None]
    inside = (position >= 0) & (position <= last)
    position = xp.where(inside, position, np.float32(-1))
    first = xp.floor(position)
    return _Points(first.astype(np.int32), position - first)


class _CropAndResize(chainer.FunctionNode):
    """Maps to samples."""

    def __init__(self, roi_indices, rows: _Points, columns: _Points):
        self._roi_indices, self._rows, self._columns = roi_indices, rows, columns

    def forward_cpu(self, inputs):
        return (forward_cpu(inputs[0], self._roi_indices, self._rows, self._columns),)

    def forward_gpu(self, inputs):
        return (forward_gpu(inputs[0], self._roi_indices, self._rows, self._columns),)

    def backward(self, indexes, grad_outputs):
        shape = self.inputs[0].shape
        return _CropAndResizeGrad(self._roi_indices, self._rows, self._columns, shape).apply(grad_outputs)


class _CropAndResizeGrad(chainer.FunctionNode):
    """The transposed map: gradients of samples to gradients of the maps."""

    def __init__(self, roi_indices, rows: _Points, columns: _Points, shape):
        self._roi_indices, self._rows, self._columns, self._shape = roi_indices, rows, columns, shape

    def forward_cpu(self, inputs):
        return (backward_cpu(inputs[0], self._roi_indices, self._rows, self._columns, self._shape),)

    def forward_gpu(self, inputs):
        return (backward_gpu(inputs[0], self._roi_indices, self._rows, self._columns, self._shape),)

    def backward(self, indexes, grad_outputs):
        return _CropAndResize(self._roi_indices, self._rows, self._columns).apply(grad_outputs)


# On the GPU


def forward_gpu(x, roi_indices, rows: _Points, columns: _Points):
    """Return the samples (R, C, ...), channels innermost in memory; CuPy arrays in and out."""
    xp = chainer.backend.get_array_module(x)
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
                rows.first,
                rows.fraction,
                columns.first,
                columns.fraction,
                *map(np.int32, (*x.shape, *shape[1:3], common_lanes(_LANES, source))),
                view(y),
            ),
        )
    return y.transpose(0, 3, 1, 2)


def backward_gpu(gy, roi_indices, rows: _Points, columns: _Points, shape):
    """Return the gradient of the maps, of the given shape; CuPy arrays in and out, as in the forward pass."""
    xp = chainer.backend.get_array_module(gy)
    source = channels_last(gy)
    n_images, channels, height, width = shape
    gx = xp.empty((n_images, height, width, channels), gy.dtype)
    if gx.size:
        kernel, view = _variant('backward', gy.dtype)
        lanes = common_lanes(_LANES, source)
        tile_width = tile_columns(channels // lanes)
        kernel(
            tile_grid(shape, channels // lanes, tile_width),
            (TILE_THREADS,),
            (
                view(source),
                roi_indices,
                rows.first,
                rows.fraction,
                *rows.range(height),
                columns.first,
                columns.fraction,
                *columns.range(width),
                *map(np.int32, (len(roi_indices), *shape[1:], *gy.shape[2:], tile_width, lanes)),
                view(gx),
            ),
        )
    return gx.transpose(0, 3, 1, 2)


def _variant(direction: str, dtype):
    """Return the kernel for a type of maps and how it wants to see them."""
    name = f'crop_and_resize_{direction}'
    if dtype == np.float16:
        return cuda_kernels.kernel('roi/crop_and_resize.cu', f'{name}_half'), lambda array: array.view(np.uint16)
    return cuda_kernels.kernel('roi/crop_and_resize.cu', name, dtype), lambda array: array


# On the CPU


def forward_cpu(x, roi_indices, rows: _Points, columns: _Points):
    """Return the samples (R, C, ...), in memory as convolutions want them; NumPy arrays in and out."""
    dtype = compute_dtype(x.dtype)
    maps = x.astype(dtype, copy=False)
    y = as_images(np.empty((x.shape[1], len(roi_indices), rows.first.shape[1], columns.first.shape[1]), dtype))
    parallel.parallel_for(
        lambda start, stop: _forward_channels(
            maps, roi_indices, rows.first, rows.fraction, columns.first, columns.fraction, start, stop, y
        ),
        x.shape[1],
    )
    return y.astype(x.dtype, copy=False)


def backward_cpu(gy, roi_indices, rows: _Points, columns: _Points, shape):
    """Return the gradient of the maps, of the given shape; NumPy arrays in and out."""
    dtype = compute_dtype(gy.dtype)
    gradients = gy.astype(dtype, copy=False)
    gx = as_images(np.zeros((shape[1], shape[0], *shape[2:]), dtype))
    parallel.parallel_for(
        lambda start, stop: _backward_channels(
            gradients, roi_indices, rows.first, rows.fraction, columns.first, columns.fraction, start, stop, gx
        ),
        shape[1],
    )
    return gx.astype(gy.dtype, copy=False)


@parallel.jit
def _forward_channels(x, roi_indices, y_first, y_fraction, x_first, x_fraction, start, stop, y):
    """Sample channels ``start`` to ``stop`` at the points of all RoIs."""
    height, width = x.shape[2:]
    for c in range(start, stop):
        for r in range(y.shape[0]):
            channel = x[roi_indices[r], c]
            for i in range(y.shape[2]):
                top, fy = y_first[r, i], y_fraction[r, i]
                bottom = min(top + 1, height - 1)
                for j in range(y.shape[3]):
                    left, fx = x_first[r, j], x_fraction[r, j]
                    if top < 0 or left < 0:
                        y[r, c, i, j] = 0
                        continue
                    right = min(left + 1, width - 1)
                    upper = channel[top, left] + (channel[top, right] - channel[top, left]) * fx
                    lower = channel[bottom, left] + (channel[bottom, right] - channel[bottom, left]) * fx
                    y[r, c, i, j] = upper + (lower - upper) * fy


@parallel.jit
def _backward_channels(gy, roi_indices, y_first, y_fraction, x_first, x_fraction, start, stop, gx):
    """Add up the gradient of channels ``start`` to ``stop``."""
    height, width = gx.shape[2:]
    for c in range(start, stop):
        for r in range(gy.shape[0]):
            channel = gx[roi_indices[r], c]
            for i in range(gy.shape[2]):
                top, fy = y_first[r, i], y_fraction[r, i]
                bottom = min(top + 1, height - 1)
                for j in range(gy.shape[3]):
                    left, fx = x_first[r, j], x_fraction[r, j]
                    if top < 0 or left < 0:
                        continue
                    right = min(left + 1, width - 1)
                    upper, lower = gy[r, c, i, j] * (_ONE - fy), gy[r, c, i, j] * fy
                    channel[top, left] += upper * (_ONE - fx)
                    channel[top, right] += upper * fx
                    channel[bottom, left] += lower * (_ONE - fx)
                    channel[bottom, right] += lower * fx
