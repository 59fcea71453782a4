"""Convolution on the CPU as a matmul of the weights and the im2col matrix, some columns at a time.

The im2col matrix has one row for each input channel and kernel element, and one column for each output pixel: the
output rows of all images, one after the other.  It never exists as a whole.  Each thread gathers columns that fit in
its cache, multiplies them and applies the epilogue.

The forward pass multiplies panels (:mod:`mask_rcnn.ops.conv.matmul_tiles`) and applies the epilogue to each tile of
sums.  The gradients multiply tiles of the matrix with NumPy's BLAS.

Images are contiguous and channels first here, ``(C, N, H, W)``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mask_rcnn.ops.conv.im2col_panels import Geometry, convolve_panels, gather_row, valid_range
from mask_rcnn.ops.conv.matmul_tiles import CHANNELS, pack_weights, panel_width
from mask_rcnn.ops.conv.tuning import ConvTuning, current_tuning
from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.parallel import cpu_count, jit, parallel_for, sum_in_order
from mask_rcnn.ops.runtime.vectors import lanes

#: Units of a convolution per thread, so that the threads end at nearly the same time.
_UNITS_PER_THREAD = 8


class Tile(NamedTuple):
    """Some columns of the im2col matrix.

    Args:
        start, stop: Range of units.
        columns: The columns of these units.
    """

    start: int
    stop: int
    columns: slice


class Im2colPlan:
    """The im2col matrix of a convolution and its division into units, the work of threads, and tiles.

    A unit is one output row, or one output pixel of a pointwise convolution.

    Args:
        shape: Shape of the images, ``(C, N, H, W)``.
        w_shape: ``(O, C, kh, kw)``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        tuning: Tile sizes; by default those in use.
    """

    def __init__(self, shape, w_shape, stride: int, pad: int, tuning: ConvTuning | None = None):
        self.tuning = current_tuning() if tuning is None else tuning
        self.n_channels, self.n_images, height, width = shape
        self.out_channels, self.kernel = w_shape[0], w_shape[2:]
        self.stride, self.pad = stride, pad
        self.out_height = (height + 2 * pad - self.kernel[0]) // stride + 1
        self.out_width = (width + 2 * pad - self.kernel[1]) // stride + 1
        self.n_rows = self.n_images * self.out_height
        self.n_columns = self.n_rows * self.out_width
        self.patch_size = self.n_channels * self.kernel[0] * self.kernel[1]
        #: Whether the image batch itself is the im2col matrix.
        self.is_pointwise = self.kernel == (1, 1) and pad == 0 and stride == 1
        self.geometry = Geometry(
            self.kernel[0], self.kernel[1], stride, pad, self.out_height, self.out_width, self.is_pointwise
        )
        #: Whether the windows cover the images without overlap.
        self.is_non_overlapping = (
            self.kernel == (stride, stride)
            and pad == 0
            and (height, width) == (stride * self.out_height, stride * self.out_width)
        )
        self.columns_per_unit = 1 if self.is_pointwise else self.out_width
        self.n_units = self.n_columns // max(self.columns_per_unit, 1)
        multiplications = self.columns_per_unit * self.patch_size * self.out_channels
        #: The number of units that justify a thread.
        self.min_units = self.tuning.min_multiplications // max(multiplications, 1) + 1

    @property
    def out_shape(self) -> tuple[int, int, int, int]:
        """``(O, N, oh, ow)``."""
        return self.out_channels, self.n_images, self.out_height, self.out_width

    def tiles(self, first: int, last: int, itemsize: int) -> list[Tile]:
        """Divide units ``first`` to ``last`` into tiles of nearly equal size for elements of ``itemsize`` bytes."""
        columns = max(self.tuning.tile_bytes // (self.patch_size * itemsize), self.tuning.min_tile_columns)
        if self.is_pointwise:
            columns = self.tuning.pointwise_tile_columns
        n_tiles = -(-(last - first) // max(columns // self.columns_per_unit, 1))
        tiles = []
        for i in range(n_tiles):
            start, stop = first + (last - first) * i // n_tiles, first + (last - first) * (i + 1) // n_tiles
            tiles.append(Tile(start, stop, slice(start * self.columns_per_unit, stop * self.columns_per_unit)))
        return tiles

    def col2im_tiles(self, itemsize: int) -> list[Tile]:
        """Divide all output rows into tiles for :meth:`add_col2im`, so large that matmul uses BLAS's own threads."""
        n_rows = max(self.tuning.col2im_bytes // max(self.patch_size * self.out_width * itemsize, 1), 1)
        tiles = []
        for start in range(0, self.n_rows, n_rows):
            stop = min(start + n_rows, self.n_rows)
            tiles.append(Tile(start, stop, slice(start * self.out_width, stop * self.out_width)))
        return tiles

    def new_buffer(self, tiles: list[Tile], n_rows: int, dtype) -> np.ndarray:
        """Return memory for ``n_rows`` rows of the largest of some tiles, 1-D."""
        n_units = max((tile.stop - tile.start for tile in tiles), default=0)
        return np.empty(n_rows * n_units * self.columns_per_unit, dtype)

    def im2col(self, images: np.ndarray, tile: Tile, buffer: np.ndarray) -> np.ndarray:
        """Return a tile of the im2col matrix, ``(patch_size, columns)``: gathered in ``buffer``, or a view of images.

        Args:
            images: ``(C, N, H, W)``.
            tile: One of :meth:`tiles`.
            buffer: From :meth:`new_buffer`, for ``patch_size`` rows.
        """
        if self.is_pointwise:
            return images.reshape(self.n_channels, -1)[:, tile.columns]
        n_columns = tile.columns.stop - tile.columns.start
        columns = buffer[: self.patch_size * n_columns].reshape(self.patch_size, n_columns)
        _gather(images, self.geometry, tile.columns.start, tile.columns.stop, lanes(images.dtype), columns)
        return columns

    def add_col2im(self, columns: np.ndarray, images: np.ndarray, tile: Tile) -> None:
        """Add the columns of a tile to the pixels of ``images`` that they came from."""
        windows = self.kernel, self.stride, self.pad, self.out_height, self.out_width
        parallel_for(
            lambda first, last: _scatter_add(columns, images, *windows, *tile[:2], first, last), self.n_channels
        )


def convolve(
    images: np.ndarray,
    W: np.ndarray,
    stride: int,
    pad: int,
    bias: np.ndarray | None,
    residual: np.ndarray | None,
    relu: bool,
    overwrite_residual: bool,
) -> np.ndarray:
    """Return ``relu(convolution + bias + residual)``, ``(O, N, oh, ow)``.

    Args:
        images: ``(C, N, H, W)`` contiguous, float32 or float64.
        W: ``(O, C, kh, kw)``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        bias: ``(O,)``, or ``None``.
        residual: ``(O, N, oh, ow)`` contiguous, or ``None``.
        relu: Whether to apply ReLU.
        overwrite_residual: Whether the result may overwrite ``residual``.
    """
    plan = Im2colPlan(images.shape, W.shape, stride, pad)
    weights = pack_weights(W.reshape(len(W), -1))
    bias = np.zeros(len(W), images.dtype) if bias is None else np.ascontiguousarray(bias, images.dtype)
    residual = np.empty((len(W), 0), images.dtype) if residual is None else residual.reshape(len(W), -1)
    empty = array_pool.allocator()
    y = residual if overwrite_residual and residual.size > 0 else empty((len(W), plan.n_columns), images.dtype)
    width = panel_width(images.dtype)
    n_panels = -(-plan.n_columns // width)
    n_parts = max(min(_UNITS_PER_THREAD * cpu_count() // max(n_panels, 1), len(weights)), 1)
    panel_size = plan.patch_size * width
    n_gathered = max(plan.tuning.panel_bytes // max(panel_size * images.itemsize, 1), 1)
    epilogue = bias, residual, relu

    def convolve_units(first, last):
        memory = empty(CHANNELS * width + min(n_gathered, last - first) * panel_size, images.dtype)
        convolve_panels(
            images, weights, *epilogue, plan.geometry, n_parts, width, lanes(images.dtype), memory, y, first, last
        )

    min_units = plan.tuning.min_multiplications * n_parts // max(panel_size * len(W), 1) + 1
    parallel_for(convolve_units, n_parts * n_panels, min_per_thread=min_units)
    return y.reshape(plan.out_shape)


def convolve_transposed(gradients: np.ndarray, W: np.ndarray, stride: int, pad: int, shape) -> np.ndarray:
    """Return the gradient with respect to the images, ``(C, N, H, W)``.

    Args:
        gradients: ``(O, N, oh, ow)`` contiguous, with respect to the output.
        W: ``(O, C, kh, kw)``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        shape: Shape of the images, ``(C, N, H, W)``.
    """
    plan = Im2colPlan(shape, W.shape, stride, pad)
    matrix, weights = gradients.reshape(len(W), -1), W.reshape(len(W), -1).T
    if not plan.is_non_overlapping:
        images = np.zeros(shape, gradients.dtype)
        for tile in plan.col2im_tiles(gradients.itemsize):
            plan.add_col2im(weights @ matrix[:, tile.columns], images, tile)
        return images
    images = np.empty(shape, gradients.dtype)

    def convolve_tiles(first, last):
        for tile in plan.tiles(first, last, gradients.itemsize):
            _interleave(weights @ matrix[:, tile.columns], images, stride, plan.out_height, *tile[:2])

    parallel_for(convolve_tiles, plan.n_units, min_per_thread=plan.min_units, uses_blas=True)
    return images


def correlate(images: np.ndarray, gradients: np.ndarray, stride: int, pad: int, w_shape) -> np.ndarray:
    """Return the gradient with respect to the weights, ``(O, C, kh, kw)``.

    Args:
        images: ``(C, N, H, W)`` contiguous.
        gradients: ``(O, N, oh, ow)`` contiguous, with respect to the output.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        w_shape: Shape of the weights.
    """
    plan = Im2colPlan(images.shape, w_shape, stride, pad)
    matrix = gradients.reshape(w_shape[0], -1)
    partial_sums = {}

    def correlate_tiles(first, last):
        partial_sums[first] = total = np.zeros((w_shape[0], plan.patch_size), images.dtype)
        tiles = plan.tiles(first, last, images.itemsize)
        buffer = plan.new_buffer(tiles, 0 if plan.is_pointwise else plan.patch_size, images.dtype)
        for tile in tiles:
            total += matrix[:, tile.columns] @ plan.im2col(images, tile, buffer).T

    parallel_for(correlate_tiles, plan.n_units, min_per_thread=plan.min_units, uses_blas=True)
    return sum_in_order(partial_sums, w_shape, images.dtype)


@jit
def _gather(images, geometry, start, stop, lanes, columns):
    """Write the columns ``start`` to ``stop`` of the im2col matrix to ``columns``."""
    for c in range(images.shape[0]):
        for i in range(geometry.height):
            for j in range(geometry.width):
                k = (c * geometry.height + i) * geometry.width + j
                gather_row(images[c], geometry, i, j, start, stop, lanes, columns[k])


@jit
def _scatter_add(columns, images, kernel, stride, pad, out_height, out_width, start, stop, first, last):
    """Add columns to channels ``first`` to ``last`` (col2im), the adjoint of :func:`_gather`."""
    height, width = images.shape[2:]
    for c in range(first, last):
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                tap = (c * kernel[0] + i) * kernel[1] + j
                left, right = valid_range(j - pad, stride, width, out_width)
                for row in range(start, stop):
                    y = row % out_height * stride + i - pad
                    if y < 0 or y >= height:
                        continue
                    values = columns[tap, (row - start) * out_width : (row - start + 1) * out_width]
                    target = images[c, row // out_height, y]
                    for x in range(left, right):
                        target[x * stride + j - pad] += values[x]


@jit
def _interleave(columns, images, stride, out_height, start, stop):
    """Write the windows of output rows ``start`` to ``stop``, which do not overlap, to ``images``."""
    out_width = columns.shape[1] // (stop - start)
    for tap in range(len(columns)):
        c, i, j = tap // stride**2, tap // stride % stride, tap % stride
        for row in range(start, stop):
            values = columns[tap, (row - start) * out_width : (row - start + 1) * out_width]
            target = images[c, row // out_height, row % out_height * stride + i]
            for x in range(out_width):
                target[x * stride + j] = values[x]
