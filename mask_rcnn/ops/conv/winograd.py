"""3x3 convolution of stride 1 by Winograd's algorithm F(4x4, 3x3) on the CPU: a quarter of the multiplications.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", sections 2 and 4.  A tile of 6x6 input
pixels and the 3x3 weights are each transformed to 36 values.  36 matmuls multiply them and sum over the channels.
Another transform turns the sums into 4x4 output pixels.

    Y = A^T [sum_c (G g_c G^T) * (B^T d_c B)] A

:mod:`mask_rcnn.ops.conv.winograd_transforms` has the matrices A, B and G and measures of their accuracy.

CPU time relative to the bare matmul of the direct convolution: with 64 channels, a batch of 8 and 48 x 48 pixels,
forward and each gradient take 0.75 to 0.95 of it, a fifth of the time with im2col in memory; with the 512 channels and
7 x 7 pixels of res5, where the tiles reach one pixel past the image, forward takes half of it.

Images are contiguous and channels first here, ``(C, N, H, W)``.  Tile rows are counted through all images, one after
the other.  The tiles of a block of tile rows are the columns of the matmuls.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from mask_rcnn.ops.conv.tuning import ConvTuning, current_tuning
from mask_rcnn.ops.conv.winograd_transforms import (
    IN_TILE,
    OUT_TILE,
    TILES_PER_BUFFER,
    WEIGHT_TRANSFORM,
    transform_input_by_image,
    transform_input_by_row,
    transform_output_by_image,
    transform_output_by_row,
)
from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.parallel import cpu_count, parallel_for, sum_in_order

_POINTS = IN_TILE * IN_TILE
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
    plan = TilePlan(images.shape, len(W), pad, images.itemsize, may_tile_by_image=True)
    transform_input = transform_input_by_image if plan.by_image else transform_input_by_row
    transform_output = transform_output_by_image if plan.by_image else transform_output_by_row
    weights = _transform_weights(W)
    empty = array_pool.allocator()
    y = empty((len(W), *plan.out_shape), images.dtype)
    epilogue = (
        np.zeros(len(W), images.dtype) if bias is None else bias,
        np.empty((*y.shape[:3], 0), images.dtype) if residual is None else residual,
        relu,
    )

    def convolve_blocks(first, last):
        tile_memory, sum_memory = (empty(plan.workspace_shape(n), images.dtype) for n in (len(images), len(W)))
        for start, stop in plan.blocks(first, last):
            n_tiles = (stop - start) * plan.tiles_per_unit
            tiles, sums = tile_memory[:, :, :n_tiles], sum_memory[:, :, :n_tiles]
            block = plan.tile_grid, start, stop
            plan.inner_loop(functools.partial(transform_input, images, pad, *block, tiles), len(images))
            plan.inner_loop(functools.partial(_multiply, weights, tiles, sums), _POINTS)
            plan.inner_loop(functools.partial(transform_output, sums, *epilogue, *block, y), len(W))

    parallel_for(convolve_blocks, plan.n_blocks, uses_blas=True)
    return y


def _multiply(weights: np.ndarray, tiles: np.ndarray, sums: np.ndarray, start: int, stop: int) -> None:
    """Sum over the channels: one matmul for each of the 36 points ``start`` to ``stop``."""
    np.matmul(weights[start:stop], tiles[start:stop], out=sums[start:stop])


def correlate(images: np.ndarray, gradients: np.ndarray, pad: int) -> np.ndarray:
    """Return the gradient with respect to the weights, ``(O, C, 3, 3)``.

    Args:
        images: ``(C, N, H, W)`` contiguous.
        gradients: ``(O, N, oh, ow)`` contiguous, with respect to the output.
        pad: Zeros around the images.
    """
    plan = TilePlan(images.shape, len(gradients), pad, images.itemsize)
    shape = _POINTS, len(gradients), len(images)
    partial_sums = {}

    def correlate_block(start, stop, tiles, gradient_tiles, product, total):
        block = plan.tile_grid, start, stop

        def add_product(a, b):
            np.matmul(gradient_tiles[a:b], tiles[a:b].transpose(0, 2, 1), out=product[a:b])
            total[a:b] += product[a:b]

        plan.inner_loop(lambda a, b: transform_input_by_row(images, pad, *block, tiles, a, b), len(images))
        plan.inner_loop(
            lambda a, b: transform_input_by_row(gradients, 0, *block, gradient_tiles, a, b, True), len(gradients)
        )
        plan.inner_loop(add_product, _POINTS)

    def correlate_blocks(first, last):
        partial_sums[first] = total = np.zeros(shape, images.dtype)
        product = np.empty(shape, images.dtype)
        tile_memory, gradient_memory = (
            np.empty(plan.workspace_shape(n), images.dtype) for n in (len(images), len(gradients))
        )
        for start, stop in plan.blocks(first, last):
            n_tiles = (stop - start) * plan.tiles_per_unit
            correlate_block(start, stop, tile_memory[:, :, :n_tiles], gradient_memory[:, :, :n_tiles], product, total)

    parallel_for(correlate_blocks, plan.n_blocks, uses_blas=True)
    return _transform_weight_gradient(sum_in_order(partial_sums, shape, images.dtype))


def _transform_weights(W: np.ndarray) -> np.ndarray:
    """Return ``G g G^T`` of each filter, ``(36, O, C)``."""
    filters = W.reshape(-1, 9).T
    out = np.empty((_POINTS, filters.shape[1]), W.dtype)
    matrix = WEIGHT_TRANSFORM.astype(W.dtype)
    parallel_for(
        lambda a, b: np.matmul(matrix, filters[:, a:b], out=out[:, a:b]),
        filters.shape[1],
        min_per_thread=_MIN_FILTERS,
        uses_blas=True,
    )
    return out.reshape(_POINTS, *W.shape[:2])


def _transform_weight_gradient(gradient: np.ndarray) -> np.ndarray:
    """Return the gradient of the weights, ``(O, C, 3, 3)``, from that of the transformed weights ``(36, O, C)``."""
    filters = gradient.reshape(_POINTS, -1).T
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

    A block is a range of units.  A unit is a row of tiles; if ``by_image``, it is all tiles of an image.

    Args:
        shape: Shape of the images, ``(C, N, H, W)``.
        out_channels: Number of output channels.
        pad: Zeros around the images.
        itemsize: Bytes per element.
        may_tile_by_image: Whether tiles may be ordered by image, which is faster for many small images: each pixel is
            copied only once (7 x 7 pixels: the transforms take half of the time).
        tuning: Block sizes; by default those in use.
    """

    def __init__(
        self,
        shape,
        out_channels: int,
        pad: int,
        itemsize: int,
        *,
        may_tile_by_image: bool = False,
        tuning: ConvTuning | None = None,
    ):
        tuning = current_tuning() if tuning is None else tuning
        channels, n_images, height, width = shape
        self.out_shape = n_images, height + 2 * pad - 2, width + 2 * pad - 2
        self.tile_grid = rows, columns = _tile_grid(shape, pad)
        self.by_image = (
            may_tile_by_image and n_images >= tuning.min_images_by_image and rows * columns <= tuning.max_tiles_by_image
        )
        self._n_units = n_images if self.by_image else n_images * rows
        self.tiles_per_unit = rows * columns if self.by_image else columns
        self._units_per_block = self._choose_block_size(channels + out_channels, itemsize, tuning)
        self.n_blocks = -(-self._n_units // self._units_per_block)
        #: Runs the loops over channels and over matrices in a block: in parallel if there is only one block.
        self.inner_loop: Callable[[Callable[[int, int], object], int], None] = _run_serially
        if self.n_blocks == 1 and channels * out_channels * self.n_tiles >= tuning.min_winograd_work:
            self.inner_loop = functools.partial(parallel_for, uses_blas=True)

    @property
    def n_tiles(self) -> int:
        """The number of tiles of all images."""
        return self._n_units * self.tiles_per_unit

    def _choose_block_size(self, channels: int, itemsize: int, tuning: ConvTuning) -> int:
        """Return the number of units per block for the sum of input and output channels."""
        n_tiles = max(tuning.winograd_block_bytes // (_POINTS * channels * itemsize), tuning.min_winograd_block_tiles)
        n_blocks = -(-self._n_units // max(n_tiles // self.tiles_per_unit, 1))
        # Each thread gets the same number of blocks.  With fewer blocks than threads, threads share the channels of one
        # block.
        n_blocks = 1 if n_blocks < cpu_count() else -(-n_blocks // cpu_count()) * cpu_count()
        n_units = -(-self._n_units // n_blocks)
        # A block that fills its last buffer is faster: 252 tiles take a tenth longer than 256.
        full_buffers = TILES_PER_BUFFER // math.gcd(TILES_PER_BUFFER, self.tiles_per_unit)
        return -(-n_units // full_buffers) * full_buffers if n_units > full_buffers else n_units

    def blocks(self, first: int, last: int) -> list[tuple[int, int]]:
        """Return the ranges of units of blocks ``first`` to ``last``."""
        ranges = []
        for start in range(
            first * self._units_per_block, min(last * self._units_per_block, self._n_units), self._units_per_block
        ):
            ranges.append((start, min(start + self._units_per_block, self._n_units)))
        return ranges

    def workspace_shape(self, channels: int) -> tuple[int, int, int]:
        """Return the shape of the memory for the transformed tiles of a block, ``(36, channels, tiles)``."""
        return _POINTS, channels, self._units_per_block * self.tiles_per_unit


def _run_serially(function: Callable[[int, int], object], n: int) -> None:
    function(0, n)
