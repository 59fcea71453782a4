"""The transforms of Winograd's algorithm F(4x4, 3x3), compiled.

The polynomials of the algorithm are evaluated at 0, 5/8, -5/8, 3/2, -3/2 and infinity instead of 0, 1, -1, 2, -2 and
infinity.  This halves the error (float32, 512 channels of half-normal values: 1.2e-6 of the standard deviation of the
output instead of 2.6e-6; direct sums 2e-7), and the elements of A and B are exact.  With these points the boxes of the
reference outputs agree within 0.02 px, as they do with direct sums.

A buffer holds the 6x6 values of ``TILES_PER_BUFFER`` tiles, the tiles adjacent.  The loops run over tiles with strides
that are known at compile time, so that the compiler vectorises them.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.conv.im2col import bias_residual_relu
from mask_rcnn.ops.runtime.parallel import jit

#: Side of an output tile and of an input tile.
OUT_TILE, IN_TILE = 4, 6
#: Tiles that are transformed at once: their 36 values stay in the first-level cache.
TILES_PER_BUFFER = 64
_ROW = IN_TILE * TILES_PER_BUFFER

#: The points; the others are their negatives, 0 and infinity.
POINT_A, POINT_B = 5 / 8, 3 / 2
_A, _B = POINT_A, POINT_B
_A2, _B2 = _A**2, _B**2
#: Maps the 3 weights of a column of a filter to the 6 values of its transform.
COLUMN_TRANSFORM = np.array(
    [
        [1 / (_A2 * _B2), 0, 0],
        *(np.array([1, point, point**2]) / (2 * _A2 * (_A2 - _B2)) for point in (_A, -_A)),
        *(np.array([1, point, point**2]) / (2 * _B2 * (_B2 - _A2)) for point in (_B, -_B)),
        [0, 0, 1],
    ]
)
#: Maps the 9 weights of a filter to the 36 values of its transform.
WEIGHT_TRANSFORM = np.kron(COLUMN_TRANSFORM, COLUMN_TRANSFORM)

#: The elements of A and B, in float32 so that products keep the type of the other factor.
_F_A, _F_A2, _F_A3, _F_B, _F_B2, _F_B3, _F_PRODUCT, _F_SUM = map(
    np.float32, (_A, _A2, _A**3, _B, _B2, _B**3, _A2 * _B2, _A2 + _B2)
)


@jit
def transform_input_by_row(images, pad, tile_grid, first, last, out, start, stop, is_gradient=False):
    """Transform the tiles of some rows of tiles.

    Args:
        images: ``(C, N, H, W)``; if ``is_gradient``, the gradient of the output, whose tiles are 4x4 and not padded.
        pad: Zeros around the images.
        tile_grid: Rows and columns of tiles per image.
        first: First row of tiles; rows are counted through all images.
        last: End of the rows.
        out: ``(36, C, tiles)``, written for the channels ``start`` to ``stop``.
        start: First channel.
        stop: End of the channels.
        is_gradient: Whether to compute ``A g A^T`` instead of ``B^T d B``.
    """
    size = OUT_TILE if is_gradient else IN_TILE
    buffer = np.empty(IN_TILE * _ROW, out.dtype)
    values = buffer.reshape(IN_TILE * IN_TILE, TILES_PER_BUFFER)
    rows = np.empty((size, OUT_TILE * (tile_grid[1] - 1) + size), images.dtype)
    for c in range(start, stop):
        slot = done = 0
        for tile_row in range(first, last):
            _read_rows(images[c, tile_row // tile_grid[0]], tile_row % tile_grid[0] * OUT_TILE - pad, -pad, rows)
            for x in range(tile_grid[1]):
                left = x * OUT_TILE
                if is_gradient:
                    _load_tile(rows[:, left : left + OUT_TILE], OUT_TILE, values[:, slot])
                else:
                    _load_tile(rows[:, left : left + IN_TILE], IN_TILE, values[:, slot])
                slot += 1
                if slot == TILES_PER_BUFFER or (x == tile_grid[1] - 1 and tile_row == last - 1):
                    if is_gradient:
                        _transform_gradient_tiles(buffer)
                    else:
                        _transform_input_tiles(buffer)
                    _write_tiles(buffer, slot, out, c, done)
                    done += slot
                    slot = 0


@jit
def transform_input_by_image(images, pad, tile_grid, first, last, out, start, stop):
    """Transform all tiles of images ``first`` to ``last``; tiles at the same position are adjacent in ``out``.

    See :func:`transform_input_by_row` for the arguments.
    """
    buffer = np.empty(IN_TILE * _ROW, out.dtype)
    values = buffer.reshape(IN_TILE * IN_TILE, TILES_PER_BUFFER)
    height, width = images.shape[2:]
    interleaved = np.empty((height, width, TILES_PER_BUFFER), images.dtype)
    for c in range(start, stop):
        for n in range(first, last, TILES_PER_BUFFER):
            n_tiles = min(TILES_PER_BUFFER, last - n)
            _interleave_images(images[c, n : n + n_tiles], interleaved)
            for tile in range(tile_grid[0] * tile_grid[1]):
                top, left = tile // tile_grid[1] * OUT_TILE - pad, tile % tile_grid[1] * OUT_TILE - pad
                for i in range(IN_TILE):
                    for j in range(IN_TILE):
                        y, x = top + i, left + j
                        if 0 <= y < height and 0 <= x < width:
                            values[i * IN_TILE + j] = interleaved[y, x]
                        else:
                            values[i * IN_TILE + j] = 0
                _transform_input_tiles(buffer)
                _write_tiles(buffer, n_tiles, out, c, tile * (last - first) + n - first)


@jit
def transform_output_by_row(sums, bias, residual, relu, tile_grid, first, last, y, start, stop):
    """Transform sums to pixels, ``A^T m A``, and apply the epilogue.

    Args:
        sums: ``(36, O, tiles)`` for the rows of tiles ``first`` to ``last``.
        bias: ``(O,)``.
        residual: ``(O, N, oh, ow)``; ``(O, N, oh, 0)`` if there is no residual.
        relu: Whether to apply ReLU.
        tile_grid: Rows and columns of tiles per image.
        first: First row of tiles; rows are counted through all images.
        last: End of the rows.
        y: ``(O, N, oh, ow)``, written for the channels ``start`` to ``stop``.
        start: First channel.
        stop: End of the channels.
    """
    buffer = np.empty(IN_TILE * _ROW, sums.dtype)
    values = buffer.reshape(IN_TILE * IN_TILE, TILES_PER_BUFFER)
    for c in range(start, stop):
        slot = TILES_PER_BUFFER
        done = 0
        for tile_row in range(first, last):
            image, top = tile_row // tile_grid[0], tile_row % tile_grid[0] * OUT_TILE
            pixels = y[c, image, top : top + OUT_TILE]
            for x in range(tile_grid[1]):
                if slot == TILES_PER_BUFFER:
                    _read_tiles(sums, c, done, min(TILES_PER_BUFFER, sums.shape[2] - done), buffer)
                    _transform_output_tiles(buffer)
                    done += TILES_PER_BUFFER
                    slot = 0
                _store_tile(values[:, slot], pixels[:, x * OUT_TILE : x * OUT_TILE + OUT_TILE])
                slot += 1
            bias_residual_relu(pixels.reshape(-1), bias[c], residual[c, image, top : top + OUT_TILE].reshape(-1), relu)


@jit
def transform_output_by_image(sums, bias, residual, relu, tile_grid, first, last, y, start, stop):
    """Transform sums, ordered as by :func:`transform_input_by_image`, to the pixels of images ``first`` to ``last``.

    See :func:`transform_output_by_row` for the arguments.
    """
    buffer = np.empty(IN_TILE * _ROW, sums.dtype)
    values = buffer.reshape(IN_TILE * IN_TILE, TILES_PER_BUFFER)
    height, width = y.shape[2:]
    interleaved = np.empty((height, width, TILES_PER_BUFFER), y.dtype)
    for c in range(start, stop):
        for n in range(first, last, TILES_PER_BUFFER):
            n_tiles = min(TILES_PER_BUFFER, last - n)
            for tile in range(tile_grid[0] * tile_grid[1]):
                _read_tiles(sums, c, tile * (last - first) + n - first, n_tiles, buffer)
                _transform_output_tiles(buffer)
                top, left = tile // tile_grid[1] * OUT_TILE, tile % tile_grid[1] * OUT_TILE
                for i in range(min(OUT_TILE, height - top)):
                    for j in range(min(OUT_TILE, width - left)):
                        interleaved[top + i, left + j] = values[i * IN_TILE + j]
            pixels = y[c, n : n + n_tiles]
            _separate_images(interleaved, pixels)
            bias_residual_relu(pixels.reshape(-1), bias[c], residual[c, n : n + n_tiles].reshape(-1), relu)


@jit
def _transform_input_tiles(d):
    """Replace input tiles ``d`` by ``B^T d B``."""
    for p in range(_ROW):
        _multiply_input(d, p, _ROW)
    for i in range(IN_TILE):
        for k in range(TILES_PER_BUFFER):
            _multiply_input(d, i * _ROW + k, TILES_PER_BUFFER)


@jit
def _transform_output_tiles(m):
    """Replace sums ``m`` by ``A^T m A``, in the first four rows and columns."""
    for p in range(_ROW):
        _multiply_output(m, p, _ROW)
    for i in range(OUT_TILE):
        for k in range(TILES_PER_BUFFER):
            _multiply_output(m, i * _ROW + k, TILES_PER_BUFFER)


@jit
def _transform_gradient_tiles(g):
    """Replace gradients ``g``, in the first four rows and columns, by ``A g A^T``."""
    for p in range(OUT_TILE * TILES_PER_BUFFER):
        _multiply_gradient(g, p, _ROW)
    for i in range(IN_TILE):
        for k in range(TILES_PER_BUFFER):
            _multiply_gradient(g, i * _ROW + k, TILES_PER_BUFFER)


@jit
def _multiply_input(d, p, step):
    """Replace the vector ``d[p]``, ``d[p + step]``, ... of six values by ``B^T d``."""
    d0, d1, d2, d3, d4, d5 = d[p], d[p + step], d[p + 2 * step], d[p + 3 * step], d[p + 4 * step], d[p + 5 * step]
    even_a, odd_a = d4 - _F_B2 * d2, _F_A * (d3 - _F_B2 * d1)
    even_b, odd_b = d4 - _F_A2 * d2, _F_B * (d3 - _F_A2 * d1)
    d[p] = _F_PRODUCT * d0 - _F_SUM * d2 + d4
    d[p + step], d[p + 2 * step] = even_a + odd_a, even_a - odd_a
    d[p + 3 * step], d[p + 4 * step] = even_b + odd_b, even_b - odd_b
    d[p + 5 * step] = _F_PRODUCT * d1 - _F_SUM * d3 + d5


@jit
def _multiply_output(m, p, step):
    """Replace the first four values of the vector ``m[p]``, ``m[p + step]``, ... of six values by ``A^T m``."""
    m0, m1, m2, m3, m4, m5 = m[p], m[p + step], m[p + 2 * step], m[p + 3 * step], m[p + 4 * step], m[p + 5 * step]
    even_a, odd_a, even_b, odd_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    m[p] = m0 + even_a + even_b
    m[p + step] = _F_A * odd_a + _F_B * odd_b
    m[p + 2 * step] = _F_A2 * even_a + _F_B2 * even_b
    m[p + 3 * step] = _F_A3 * odd_a + _F_B3 * odd_b + m5


@jit
def _multiply_gradient(g, p, step):
    """Replace the vector ``g[p]``, ``g[p + step]``, ..., of which four values are read, by the six of ``A g``."""
    g0, g1, g2, g3 = g[p], g[p + step], g[p + 2 * step], g[p + 3 * step]
    even_a, odd_a = g0 + _F_A2 * g2, _F_A * g1 + _F_A3 * g3
    even_b, odd_b = g0 + _F_B2 * g2, _F_B * g1 + _F_B3 * g3
    g[p + step], g[p + 2 * step] = even_a + odd_a, even_a - odd_a
    g[p + 3 * step], g[p + 4 * step] = even_b + odd_b, even_b - odd_b
    g[p + 5 * step] = g3


@jit
def _read_rows(image, top, left, rows):
    """Copy the window of an image that begins at ``(top, left)`` to ``rows``, with zeros outside of the image."""
    height, width = image.shape
    begin, end = min(max(-left, 0), rows.shape[1]), max(min(width - left, rows.shape[1]), 0)
    for i in range(rows.shape[0]):
        y = top + i
        if y < 0 or y >= height or begin >= end:
            rows[i] = 0
            continue
        rows[i, :begin] = 0
        rows[i, begin:end] = image[y, begin + left : end + left]
        rows[i, end:] = 0


@jit
def _load_tile(tile, side, slot):
    """Copy a square of ``side`` x ``side`` pixels to one slot of a buffer, ``(36,)``."""
    for i in range(side):
        for j in range(side):
            slot[i * IN_TILE + j] = tile[i, j]


@jit
def _store_tile(slot, tile):
    """Copy one slot of a buffer, ``(36,)``, to its pixels: 4x4, or fewer at the border."""
    if tile.shape[0] == OUT_TILE and tile.shape[1] == OUT_TILE:
        for i in range(OUT_TILE):
            for j in range(OUT_TILE):
                tile[i, j] = slot[i * IN_TILE + j]
    else:
        for i in range(tile.shape[0]):
            for j in range(tile.shape[1]):
                tile[i, j] = slot[i * IN_TILE + j]


@jit
def _read_tiles(sums, c, first, n_tiles, buffer):
    """Copy ``n_tiles`` tiles, starting at tile ``first``, of channel ``c`` of ``sums`` ``(36, O, tiles)``."""
    for k in range(IN_TILE * IN_TILE):
        row = sums[k, c, first : first + n_tiles]
        for slot in range(n_tiles):
            buffer[k * TILES_PER_BUFFER + slot] = row[slot]


@jit
def _write_tiles(buffer, n_tiles, out, c, first):
    """Copy ``n_tiles`` tiles of a buffer to channel ``c`` of ``out`` ``(36, C, tiles)``, starting at tile ``first``."""
    for k in range(IN_TILE * IN_TILE):
        row = out[k, c, first : first + n_tiles]
        for slot in range(n_tiles):
            row[slot] = buffer[k * TILES_PER_BUFFER + slot]


@jit
def _interleave_images(images, interleaved):
    """Copy images ``(n, H, W)`` to ``interleaved`` ``(H, W, TILES_PER_BUFFER)``."""
    for n in range(images.shape[0]):
        for y in range(images.shape[1]):
            for x in range(images.shape[2]):
                interleaved[y, x, n] = images[n, y, x]


@jit
def _separate_images(interleaved, images):
    """Copy ``interleaved`` ``(H, W, TILES_PER_BUFFER)`` to images ``(n, H, W)``."""
    for n in range(images.shape[0]):
        for y in range(images.shape[1]):
            for x in range(images.shape[2]):
                images[n, y, x] = interleaved[y, x, n]
