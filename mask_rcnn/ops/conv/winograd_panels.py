"""The loops of Winograd convolution over panels of tiles, compiled; see :mod:`mask_rcnn.ops.conv.winograd`.

Tiles are counted from left to right through the rows of tiles of all images.  A panel holds the next ``PANEL`` tiles of
one channel at one of the 36 points, so that the tiles of a vector may lie in several rows of tiles.  The transforms
rearrange pixels in buffers that stay in the first-level cache, and read and write panels in whole vectors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mask_rcnn.ops.conv.epilogue import store_vector
from mask_rcnn.ops.conv.matmul_tiles import CHANNELS, VECTORS, multiply
from mask_rcnn.ops.conv.winograd_transforms import (
    IN_TILE,
    OUT_TILE,
    transform_filters,
    transform_gradient,
    transform_input,
    transform_output,
)
from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import (
    even_lanes,
    fill,
    interleave_lower,
    interleave_upper,
    load,
    odd_lanes,
    prefetch,
    store,
)

POINTS = IN_TILE * IN_TILE
#: Input channels whose transformed weights are written at once: the 36 places of one would share a set of the cache.
_CHUNK = 16


class Tiles(NamedTuple):
    """Some tiles and their places in memory ``(36, m)``.

    Args:
        rows, columns: Rows and columns of tiles per image.
        first, last: The range of tiles, counted through all images.
        panel_step: Distance of the panels, elements.
        channel_step: Distance of the channels, elements.
        lanes: Elements of a vector.
    """

    rows: int
    columns: int
    first: int
    last: int
    panel_step: int
    channel_step: int
    lanes: int


@jit
def transform_weights(weights, lanes, out, start, stop):
    """Write ``G g G^T`` of each filter of some blocks of output channels.

    Args:
        weights: ``(O, C, 9)``.
        lanes: Elements of a vector.
        out: ``(36, blocks, C, CHANNELS)``, written; zeros follow the last output channel.
        start: First block.
        stop: End of the blocks.
    """
    width = _CHUNK * CHANNELS
    filters, columns = np.zeros((3, 3 * width), out.dtype), np.empty((IN_TILE, 3 * width), out.dtype)
    points = np.empty((POINTS, width), out.dtype)
    for block in range(start, stop):
        n_outputs = min(CHANNELS, len(weights) - block * CHANNELS)
        if n_outputs < CHANNELS:
            filters[:] = 0
        for first in range(0, weights.shape[1], _CHUNK):
            n = min(_CHUNK, weights.shape[1] - first)
            for k in range(n_outputs):
                for c in range(n):
                    for x in range(9):
                        filters[x // 3, x % 3 * width + c * CHANNELS + k] = weights[block * CHANNELS + k, first + c, x]
            transform_filters(filters, 0, 3 * width, 3 * width, lanes, columns, 0)
            for row in range(IN_TILE):
                transform_filters(columns, row * 3 * width, width, width, lanes, points, row * IN_TILE * width)
            for point in range(POINTS):
                for c in range(n):
                    for k in range(CHANNELS):
                        out[point, block, first + c, k] = points[point, c * CHANNELS + k]


@jit
def multiply_panels(weights, tiles, values, sums, start, stop):
    """Sum over the channels at the points ``start`` to ``stop``.

    Args:
        weights: ``(36 * blocks, C, CHANNELS)`` from :func:`transform_weights`.
        tiles: The :class:`Tiles`; the channels of a panel follow each other.
        values: ``(36, m)`` transformed tiles.
        sums: ``(36, m)``, written for the output channels of all blocks of weights.
        start: First point.
        stop: End of the points.
    """
    width, n_blocks, n_channels = VECTORS * tiles.lanes, len(weights) // POINTS, weights.shape[1]
    for point in range(start, stop):
        for block in range(n_blocks):
            for first in range(tiles.first, tiles.last, width):
                panel = (first - tiles.first) // width
                n_vectors = min((tiles.last - first + tiles.lanes - 1) // tiles.lanes, VECTORS)
                value = point * values.shape[1] + panel * n_channels * width
                out = point * sums.shape[1] + (panel * n_blocks + block) * CHANNELS * width
                multiply(weights, point * n_blocks + block, values, value, n_vectors, width, sums, out, width)


@jit
def transform_images(images, pad, is_gradient, tiles, out, start, stop):
    """Transform tiles of images, ``B^T d B``, or of the gradient of the output, ``A g A^T``.

    Args:
        images: ``(C, N, H, W)``.
        pad: Zeros around the images.
        is_gradient: Whether ``images`` are the gradient of the output, whose tiles have 4x4 pixels.
        tiles: The :class:`Tiles`.
        out: ``(36, m)``, written for the channels ``start`` to ``stop``.
        start: First channel.
        stop: End of the channels.
    """
    lanes, width = tiles.lanes, VECTORS * tiles.lanes
    n_rows = OUT_TILE if is_gradient else IN_TILE
    step = width + lanes  # a run of tiles ends with a whole vector
    pixels, transformed = np.zeros((n_rows, IN_TILE * step), out.dtype), np.zeros((IN_TILE, IN_TILE * step), out.dtype)
    for c in range(start, stop):
        for first in range(tiles.first, tiles.last, width):
            n = min(width, tiles.last - first)
            place = c * tiles.channel_step + (first - tiles.first) // width * tiles.panel_step
            _prefetch(out, place, n, lanes)
            done, x, tile_row = 0, first % tiles.columns, first // tiles.columns
            while done < n:
                run = min(tiles.columns - x, n - done)
                plane, top = c * images.shape[1] + tile_row // tiles.rows, tile_row % tiles.rows * OUT_TILE - pad
                _split_tiles(images, plane, top, x * OUT_TILE - pad, run, lanes, pixels, done)
                done, x, tile_row = done + run, 0, tile_row + 1
            m = out.shape[1]
            if is_gradient:
                for x in range(0, OUT_TILE * step, step):
                    transform_gradient(pixels, x, IN_TILE * step, n, lanes, transformed, x)
                for row in range(IN_TILE):
                    transform_gradient(
                        transformed, row * IN_TILE * step, step, n, lanes, out, row * IN_TILE * m + place
                    )
            else:
                for x in range(0, IN_TILE * step, step):
                    transform_input(pixels, x, IN_TILE * step, n, lanes, transformed, x)
                for row in range(IN_TILE):
                    transform_input(transformed, row * IN_TILE * step, step, n, lanes, out, row * IN_TILE * m + place)


@jit
def _prefetch(values, place, n, lanes):
    """Begin to load ``n`` tiles at the 36 points of ``values``, whose distances the processor does not predict.

    256 channels of 184 x 336 pixels: the transforms take 70 instead of 92 ms.
    """
    for point in range(POINTS):
        for k in range(0, n, lanes):
            prefetch(values, point * values.shape[1] + place + k)


@jit
def _split_tiles(images, plane, top, left, n_tiles, lanes, pixels, start):
    """Copy the pixels of adjacent tiles, so that those at the same place in their tiles are adjacent.

    Args:
        images: ``(C, N, H, W)``.
        plane: Index of the image among all images of all channels.
        top: First row of the tiles, negative in the zero padding.
        left: First column, negative in the zero padding.
        n_tiles: Number of tiles.
        lanes: Elements of a vector.
        pixels: ``(rows, 6 * m)``, written: row by row of the tiles ``m`` values of each of six columns.
        start: Place of the first tile among the ``m`` values.
    """
    height, width = images.shape[2], images.shape[3]
    step = pixels.shape[1] // IN_TILE
    zero = fill(pixels.dtype.type(0))
    n_read = OUT_TILE * (lanes + 1)
    for k in range(0, n_tiles, lanes):
        for row in range(len(pixels)):
            begin, out = (plane * height + top + row) * width + left + OUT_TILE * k, row * IN_TILE * step + start + k
            if top + row < 0 or top + row >= height:
                for x in range(IN_TILE):
                    store(pixels, out + x * step, zero)
            elif begin >= 0 and begin + n_read <= images.size:
                _split_pixels(images, begin, lanes, pixels, out, step)
            else:  # vectors would reach past the first or the last image
                line = np.zeros(n_read, pixels.dtype)
                for x in range(max(-begin, 0), min(images.size - begin, n_read)):
                    line[x] = images.reshape(-1)[begin + x]
                _split_pixels(line, 0, lanes, pixels, out, step)
    for x in range(min(-left, OUT_TILE * n_tiles + 2)):
        _clear_column(pixels, x, n_tiles, start, step)
    for x in range(max(width - left, 0), OUT_TILE * n_tiles + 2):
        _clear_column(pixels, x, n_tiles, start, step)


@jit
def _split_pixels(line, i, lanes, pixels, out, step):
    """Write the six columns of a vector of tiles, whose pixels begin at ``line[i]``, from ``out`` and each ``step``."""
    v0, v1, v2, v3 = load(line, i), load(line, i + lanes), load(line, i + 2 * lanes), load(line, i + 3 * lanes)
    even0, even1, odd0, odd1 = even_lanes(v0, v1), even_lanes(v2, v3), odd_lanes(v0, v1), odd_lanes(v2, v3)
    store(pixels, out, even_lanes(even0, even1))
    store(pixels, out + step, even_lanes(odd0, odd1))
    store(pixels, out + 2 * step, odd_lanes(even0, even1))
    store(pixels, out + 3 * step, odd_lanes(odd0, odd1))
    i += OUT_TILE
    v0, v1, v2, v3 = load(line, i), load(line, i + lanes), load(line, i + 2 * lanes), load(line, i + 3 * lanes)
    even0, even1, odd0, odd1 = even_lanes(v0, v1), even_lanes(v2, v3), odd_lanes(v0, v1), odd_lanes(v2, v3)
    store(pixels, out + 4 * step, even_lanes(even0, even1))
    store(pixels, out + 5 * step, even_lanes(odd0, odd1))


@jit
def _clear_column(pixels, x, n_tiles, start, step):
    """Write zeros for one column of adjacent tiles, which may belong to two of them."""
    tile, column = x // OUT_TILE, x % OUT_TILE
    for row in range(len(pixels)):
        if tile < n_tiles:
            pixels[row, column * step + start + tile] = 0
        if tile > 0 and column < 2:
            pixels[row, (column + OUT_TILE) * step + start + tile - 1] = 0


@jit
def transform_sums(sums, bias, residual, relu, tiles, y, start, stop):
    """Transform sums to pixels, ``A^T m A``, and apply the epilogue.

    Args:
        sums: ``(36, m)``.
        bias: ``(O,)``.
        residual: ``(O, N, oh, ow)``, or empty.
        relu: Whether to apply ReLU.
        tiles: The :class:`Tiles`.
        y: ``(O, N, oh, ow)``, written for the channels ``start`` to ``stop``.
        start: First channel.
        stop: End of the channels.
    """
    lanes, width = tiles.lanes, VECTORS * tiles.lanes
    height, pitch = y.shape[2], OUT_TILE * width
    columns = np.empty((OUT_TILE * IN_TILE, lanes), y.dtype)
    lines = np.empty((OUT_TILE, pitch), y.dtype)
    lowest = fill(y.dtype.type(0 if relu else -np.inf))
    for c in range(start, stop):
        added = fill(bias[c])
        for first in range(tiles.first, tiles.last, width):
            n = min(width, tiles.last - first)
            place = c * tiles.channel_step + (first - tiles.first) // width * tiles.panel_step
            _prefetch(sums, place + tiles.channel_step, n, lanes)
            for k in range(0, n, lanes):
                _transform_to_lines(sums, place + k, lanes, columns, lines, OUT_TILE * k)
            done, x, tile_row = 0, first % tiles.columns, first // tiles.columns
            while done < n:
                run, top = min(tiles.columns - x, n - done), tile_row % tiles.rows * OUT_TILE
                begin = ((c * y.shape[1] + tile_row // tiles.rows) * height + top) * y.shape[3] + OUT_TILE * x
                n_pixels = min(OUT_TILE * run, y.shape[3] - OUT_TILE * x)
                for k in range(0, n_pixels, lanes):
                    for row in range(min(OUT_TILE, height - top)):
                        store_vector(lines, row * pitch + OUT_TILE * done + k, min(n_pixels - k, lanes), added,
                                      residual, lowest, lanes, y, begin + row * y.shape[3] + k)  # fmt: skip
                done, x, tile_row = done + run, 0, tile_row + 1


@jit
def _transform_to_lines(sums, place, lanes, columns, lines, start):
    """Transform a vector of tiles to pixels, and write them to column ``start`` of four lines."""
    step, pitch = sums.shape[1], lines.shape[1]
    for x in range(IN_TILE):
        v0, v1, v2, v3 = transform_output(sums, place + x * step, IN_TILE * step)
        store(columns, x * lanes, v0)
        store(columns, (IN_TILE + x) * lanes, v1)
        store(columns, (2 * IN_TILE + x) * lanes, v2)
        store(columns, (3 * IN_TILE + x) * lanes, v3)
    for row in range(OUT_TILE):
        v0, v1, v2, v3 = transform_output(columns, row * IN_TILE * lanes, lanes)
        o = row * pitch + start
        even, odd = interleave_lower(v0, v2), interleave_lower(v1, v3)
        store(lines, o, interleave_lower(even, odd))
        store(lines, o + lanes, interleave_upper(even, odd))
        even, odd = interleave_upper(v0, v2), interleave_upper(v1, v3)
        store(lines, o + 2 * lanes, interleave_lower(even, odd))
        store(lines, o + 3 * lanes, interleave_upper(even, odd))
