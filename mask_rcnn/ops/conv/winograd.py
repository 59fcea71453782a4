"""3x3 convolution of stride 1 by Winograd's algorithm F(4x4, 3x3) on the CPU: a quarter of the multiplications.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", sections 2 and 4.  A tile of 6x6 input
pixels and the 3x3 weights are each transformed to 36 values.  36 matmuls multiply them and sum over the channels.
Another transform turns the sums into 4x4 output pixels.

    Y = A^T [sum_c (G g_c G^T) * (B^T d_c B)] A

:mod:`mask_rcnn.ops.conv.winograd_transforms` has the matrices A, B and G and measures of their accuracy.

Images are contiguous and channels first here, ``(C, N, H, W)``.  Tiles are counted through the rows of all images.  The
transformed tiles of a block are panels for :mod:`mask_rcnn.ops.conv.matmul_tiles`: each of the 36 points has
``PANEL`` tiles of all channels after each other.  A panel and its sums are small enough for the caches, and the loops
of :mod:`mask_rcnn.ops.conv.winograd_panels` read and write them in whole vectors.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mask_rcnn.ops.conv.matmul_tiles import CHANNELS, VECTORS, panel_width
from mask_rcnn.ops.conv.tuning import ConvTuning, current_tuning
from mask_rcnn.ops.conv.winograd_panels import (
    POINTS,
    Tiles,
    multiply_panels,
    transform_images,
    transform_sums,
    transform_weights,
)
from mask_rcnn.ops.conv.winograd_transforms import OUT_TILE, WEIGHT_TRANSFORM
from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.parallel import cpu_count, parallel_for, sum_in_order
from mask_rcnn.ops.runtime.vectors import VECTOR_BYTES, lanes

#: The number of 3x3 filters whose transform justifies a thread.
_MIN_FILTERS = 1 << 14


def should_use(shape, w_shape, stride: int, pad: int) -> bool:
    """Return whether Winograd's algorithm applies to a convolution and is faster than im2col.

    Args:
        shape: Shape of the images, ``(C, N, H, W)``.
        w_shape: ``(O, C, kh, kw)``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
    """
    tuning = current_tuning()
    if w_shape[2:] != (3, 3) or stride != 1 or min(w_shape[:2]) < tuning.min_winograd_channels:
        return False
    rows, columns = _tile_grid(shape, pad)
    return shape[1] * rows * columns >= tuning.min_winograd_tiles


def _tile_grid(shape, pad: int) -> tuple[int, int]:
    """Return the number of rows and columns of tiles that cover the output of an image."""
    return -(-(shape[2] + 2 * pad - 2) // OUT_TILE), -(-(shape[3] + 2 * pad - 2) // OUT_TILE)


def convolve(
    images: np.ndarray, W: np.ndarray, pad: int, bias: np.ndarray | None, residual: np.ndarray | None, relu: bool
) -> np.ndarray:
    """Return ``relu(convolution + bias + residual)``, ``(O, N, oh, ow)``.

    Args:
        images: ``(C, N, H, W)`` contiguous, float32 or float64.
        W: ``(O, C, 3, 3)``.
        pad: Zeros around the images.
        bias: ``(O,)``, or ``None``.
        residual: ``(O, N, oh, ow)`` contiguous, or ``None``.
        relu: Whether to apply ReLU.
    """
    plan = TilePlan(images.shape, len(W), pad, images.dtype, current_tuning().min_winograd_block_tiles)
    weights = _transform_weights(W)
    n_sums = len(weights) // POINTS * CHANNELS
    empty = array_pool.allocator()
    y = empty((len(W), *plan.out_shape), images.dtype)
    bias = np.zeros(len(W), images.dtype) if bias is None else bias
    residual = np.empty((0, 0, 0, 0), images.dtype) if residual is None else residual

    def convolve_block(start, stop, values, sums):
        tiles, sum_tiles = plan.panels(start, stop, len(images)), plan.panels(start, stop, n_sums)
        plan.inner_loop(lambda a, b: transform_images(images, pad, False, tiles, values, a, b), len(images))
        plan.inner_loop(lambda a, b: multiply_panels(weights, tiles, values, sums, a, b), POINTS)
        plan.inner_loop(lambda a, b: transform_sums(sums, bias, residual, relu, sum_tiles, y, a, b), len(W))

    def convolve_blocks(first, last):
        values, sums = (empty(plan.workspace_shape(n), images.dtype) for n in (len(images), n_sums))
        for start, stop in plan.blocks(first, last):
            convolve_block(start, stop, values, sums)

    parallel_for(convolve_blocks, plan.n_blocks)
    return y


def correlate(images: np.ndarray, gradients: np.ndarray, pad: int) -> np.ndarray:
    """Return the gradient with respect to the weights, ``(O, C, 3, 3)``.

    Args:
        images: ``(C, N, H, W)`` contiguous.
        gradients: ``(O, N, oh, ow)`` contiguous, with respect to the output.
        pad: Zeros around the images.
    """
    plan = TilePlan(images.shape, len(gradients), pad, images.dtype, current_tuning().min_winograd_correlated_tiles)
    shape = POINTS, len(gradients), len(images)
    partial_sums = {}

    def correlate_block(start, stop, values, gradient_values, product, total):
        tiles = plan.channels(start, stop)
        columns, gradient_columns = (
            memory[:, : n * tiles.channel_step].reshape(POINTS, n, -1)[:, :, : stop - start]
            for memory, n in ((values, len(images)), (gradient_values, len(gradients)))
        )

        def add_product(a, b):
            np.matmul(gradient_columns[a:b], columns[a:b].transpose(0, 2, 1), out=product[a:b])
            total[a:b] += product[a:b]

        plan.inner_loop(lambda a, b: transform_images(images, pad, False, tiles, values, a, b), len(images))
        plan.inner_loop(lambda a, b: transform_images(gradients, 0, True, tiles, gradient_values, a, b), len(gradients))
        plan.inner_loop(add_product, POINTS, uses_blas=True)

    def correlate_blocks(first, last):
        partial_sums[first] = total = np.zeros(shape, images.dtype)
        product = np.empty(shape, images.dtype)
        values, gradient_values = (array_pool.empty(plan.workspace_shape(n), images.dtype) for n in shape[:0:-1])
        for start, stop in plan.blocks(first, last):
            correlate_block(start, stop, values, gradient_values, product, total)

    parallel_for(correlate_blocks, plan.n_blocks, uses_blas=True)
    return _transform_weight_gradient(sum_in_order(partial_sums, shape, images.dtype))


def _transform_weights(W: np.ndarray) -> np.ndarray:
    """Return ``G g G^T`` of each filter, ``(36 * blocks, C, CHANNELS)``."""
    n_blocks, n_channels = -(-len(W) // CHANNELS), W.shape[1]
    out = array_pool.empty((POINTS, n_blocks, n_channels, CHANNELS), W.dtype)
    filters, n_lanes = np.ascontiguousarray(W).reshape(len(W), n_channels, 9), lanes(W.dtype)
    parallel_for(
        lambda a, b: transform_weights(filters, n_lanes, out, a, b),
        n_blocks,
        min_per_thread=-(-_MIN_FILTERS // (n_channels * CHANNELS)),
    )
    return out.reshape(-1, n_channels, CHANNELS)


def _transform_weight_gradient(gradient: np.ndarray) -> np.ndarray:
    """Return the gradient of the weights, ``(O, C, 3, 3)``, from that of the transformed weights ``(36, O, C)``."""
    filters = gradient.reshape(POINTS, -1).T
    out = np.empty((len(filters), 9), gradient.dtype)
    matrix = WEIGHT_TRANSFORM.astype(gradient.dtype)
    parallel_for(
        lambda a, b: np.matmul(filters[a:b], matrix, out=out[a:b]),
        len(filters),
        min_per_thread=_MIN_FILTERS,
        uses_blas=True,
    )
    return out.reshape(*gradient.shape[1:], 3, 3)


class TilePlan:
    """The tiles of an image batch and their division into blocks, the work of threads.

    A block is a range of tiles that fill whole vectors, except for the last block.

    Args:
        shape: Shape of the images, ``(C, N, H, W)``.
        out_channels: Number of output channels.
        pad: Zeros around the images.
        dtype: Type of the images.
        min_tiles: Minimum number of tiles of a block.
        tuning: Block sizes; by default those in use.
    """

    def __init__(self, shape, out_channels: int, pad: int, dtype, min_tiles: int, tuning: ConvTuning | None = None):
        tuning = current_tuning() if tuning is None else tuning
        channels, n_images, height, width = shape
        self.out_shape = n_images, height + 2 * pad - 2, width + 2 * pad - 2
        self._grid = rows, columns = _tile_grid(shape, pad)
        self._dtype, self._lanes, self._n_tiles = np.dtype(dtype), lanes(dtype), n_images * rows * columns
        vector_bytes = POINTS * (channels + out_channels) * VECTOR_BYTES
        self._block_tiles = self._lanes * self._choose_block_size(
            max(tuning.winograd_block_bytes // vector_bytes, -(-min_tiles // self._lanes))
        )
        self.n_blocks = -(-self._n_tiles // self._block_tiles)
        self._shares_blocks = self.n_blocks == 1 and channels * out_channels * self._n_tiles >= tuning.min_winograd_work

    def _choose_block_size(self, max_vectors: int) -> int:
        """Return the number of vectors per block."""
        n_vectors = -(-self._n_tiles // self._lanes)
        n_blocks = -(-n_vectors // max_vectors)
        # Each thread gets the same number of blocks.  With fewer blocks than threads, threads share the channels of one
        # block.
        n_blocks = 1 if n_blocks < cpu_count() else -(-n_blocks // cpu_count()) * cpu_count()
        return max(-(-n_vectors // n_blocks), 1)

    def blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the ranges of tiles of blocks ``first`` to ``last``."""
        starts = range(first * self._block_tiles, min(last * self._block_tiles, self._n_tiles), self._block_tiles)
        return [(start, min(start + self._block_tiles, self._n_tiles)) for start in starts]

    def inner_loop(self, function: Callable[[int, int], object], n: int, *, uses_blas: bool = False) -> None:
        """Run a loop over the channels or points of a block: in parallel if there is only one block."""
        if self._shares_blocks:
            parallel_for(function, n, uses_blas=uses_blas)
        else:
            function(0, n)

    def panels(self, start: int, stop: int, channels: int) -> Tiles:
        """Return some tiles of ``channels`` channels, as panels in which the channels follow each other."""
        width = panel_width(self._dtype)
        return Tiles(*self._grid, start, stop, channels * width, width, self._lanes)

    def channels(self, start: int, stop: int) -> Tiles:
        """Return some tiles, as channels in which all tiles follow each other."""
        return Tiles(*self._grid, start, stop, panel_width(self._dtype), self._block_tiles, self._lanes)

    def workspace_shape(self, channels: int) -> tuple[int, int]:
        """Return the shape of the memory for the transformed tiles of a block, ``(36, m)``."""
        n_panels = -(-self._block_tiles // (VECTORS * self._lanes))
        # With the vector at the end of a row the 36 values of a tile lie in different sets of the first-level cache.
        return POINTS, n_panels * channels * VECTORS * self._lanes + self._lanes
