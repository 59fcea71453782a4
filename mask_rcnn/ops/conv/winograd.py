"""3x3 convolution of stride 1 by Winograd's algorithm, on the CPU: a quarter of the multiplications.

Source: Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks", sections 2 and 4:
F(4x4, 3x3).  A tile of 6x6 input pixels and the filter are each transformed to 36 numbers; their products,
summed over the channels by 36 matrix products, are transformed back to 4x4 output pixels.

    Y = A^T [sum_c (G g_c G^T) * (B^T d_c B)] A

The polynomials of the scheme are evaluated at 0, 5/8, -5/8, 3/2, -3/2 and infinity instead of 0, 1, -1, 2,
-2 and infinity: half the error (measured in float32, 512 channels of half-normal numbers: 1.2e-6 of the
output's deviation against 2.6e-6; sums without a transform 2e-7), and the factors of B and A are exact.
Boxes of the reference outputs are met within 0.02 px so, as they are by plain sums.

Measured in CPU time against the bare matrix product of the plain convolution: with 64 channels, a batch of 8
and 48 x 48 pixels, forward and each gradient take 0.75 to 0.95 of it, a fifth of what columns in memory took;
with the 512 channels and 7 x 7 pixels of res5, whose tiles reach one pixel too far, forward takes half.

Images are ``(C, N, H, W)`` here.  Tile rows are counted through all images, one below the other; the tiles of
a block of them are the columns of the matrix products.
"""

from __future__ import annotations

import math

import numpy as np

from mask_rcnn.ops.conv.epilogue import bias_residual_relu
from mask_rcnn.ops.runtime.blas import parallel_matmul, sum_in_order
from mask_rcnn.ops.runtime.parallel import cpu_count, jit

_OUT = 4  # side of an output tile
_IN = 6  # side of an input tile
_TILES = 64  # tiles that are transformed at a time: their 36 numbers stay in the first-level cache
_ROW = _IN * _TILES

#: Bytes of transformed tiles, before and after the products, that a thread makes at a time.
_BLOCK_BYTES = 4 << 20
#: ... but at least so many tiles: each product reads its part of the transformed filters.
_MIN_BLOCK_TILES = 256
#: Tiles times channels in and out below which waking the other threads costs more than it gains.
_MIN_WORK = 1 << 17
#: Filters whose transform is worth a thread.
_MIN_FILTERS = 1 << 14
#: Tiles that a product must have, or transforming the filters costs more than it saves (40 tiles, 1024 channels: 0.10
#: instead of 0.15 s; 24 tiles, 512 channels: no gain).
_MIN_TILES = 32
#: Images from which on, and tiles of an image up to which, tiles go by image (14 x 14 pixels, which have 16 tiles,
#: take 0.17 s in this way and 0.13 s row by row).
_MIN_IMAGES_BY_IMAGE, _MAX_TILES_BY_IMAGE = 32, 9
#: Channels, in and out, from which on the products outweigh the transforms.
_MIN_CHANNELS = 16

_A, _B = 5 / 8, 3 / 2  # the points, besides their negatives, 0 and infinity
_A2, _B2 = _A**2, _B**2
_G = np.array(
    [
        [1 / (_A2 * _B2), 0, 0],
        *(np.array([1, point, point**2]) / (2 * _A2 * (_A2 - _B2)) for point in (_A, -_A)),
        *(np.array([1, point, point**2]) / (2 * _B2 * (_B2 - _A2)) for point in (_B, -_B)),
        [0, 0, 1],
    ]
)
#: Of the 9 numbers of a filter to the 36 of its transform.
_FILTER_TRANSFORM = np.kron(_G, _G)

#: The factors of the other transforms, in float32 so that they leave the type of what they multiply.
_F_A, _F_A2, _F_A3, _F_B, _F_B2, _F_B3, _F_PRODUCT, _F_SUM = map(
    np.float32, (_A, _A2, _A**3, _B, _B2, _B**3, _A2 * _B2, _A2 + _B2)
)


def should_use(x_shape, w_shape, stride: int, pad: int) -> bool:
    """Whether a convolution is one of those that are faster in this way."""
    if w_shape[2:] != (3, 3) or stride != 1 or min(w_shape[:2]) < _MIN_CHANNELS:
        return False
    n_images, height, width = x_shape[0], x_shape[2] + 2 * pad - 2, x_shape[3] + 2 * pad - 2
    return n_images * _count_tiles(height) * _count_tiles(width) >= _MIN_TILES


def _tile_by_image(x_shape, pad: int) -> bool:
    """Whether tiles are taken image by image instead of row by row.

    The pixels of small images need be moved one by one only once then (7 x 7 pixels: the transforms take half
    as long).
    """
    n_images, height, width = x_shape[1], x_shape[2] + 2 * pad - 2, x_shape[3] + 2 * pad - 2
    return n_images >= _MIN_IMAGES_BY_IMAGE and _count_tiles(height) * _count_tiles(width) <= _MAX_TILES_BY_IMAGE


def _count_tiles(size: int) -> int:
    """Return the number of tiles that cover so many output pixels."""
    return -(-size // _OUT)


def convolve(images, filters, pad: int, bias, residual, relu: bool):
    """Convolve, and finish the result in the same pass.

    Args:
        images: ``(C, N, H, W)`` contiguous, float32 or float64.
        filters: ``(O, C, 3, 3)``.
        pad: Zeros around the images.
        bias: ``(O,)`` to add.
        residual: ``(O, N, oh, ow)`` to add, contiguous; for none ``(O, N, oh, 0)``.
        relu: Whether to replace negative numbers by zero.

    Returns:
        numpy.ndarray: ``(O, N, oh, ow)``.
    """
    by_image = _tile_by_image(images.shape, pad)
    transform_input = _transform_small_input if by_image else _transform_input
    transform_output = _transform_small_output if by_image else _transform_output
    plan = _TilePlan(images.shape, len(filters), pad, images.itemsize, by_image=by_image)
    transformed = _transform_filters(filters)
    y = np.empty((len(filters), *plan.out_shape), images.dtype)

    def work(first, last):
        data, result = plan.workspace(len(images), images.dtype), plan.workspace(len(y), images.dtype)
        for part, n_tiles in plan.blocks(first, last):
            tiles, sums = data[:, :, :n_tiles], result[:, :, :n_tiles]
            plan.each(len(images), lambda a, b: transform_input(images, pad, plan.tile_grid, *part, tiles, a, b))
            plan.each(_IN * _IN, lambda a, b: np.matmul(transformed[a:b], tiles[a:b], out=sums[a:b]))
            plan.each(len(y), lambda a, b: transform_output(sums, bias, residual, relu, plan.tile_grid, *part, y, a, b))

    plan.run_parallel(work)
    return y


def correlate(images, gradients, pad: int):
    """Return the gradient of the filters ``(O, C, 3, 3)``: :func:`convolve` transposed.

    Args:
        images: ``(C, N, H, W)`` contiguous, what was convolved.
        gradients: ``(O, N, oh, ow)`` contiguous, of the result.
        pad: Zeros around the images.
    """
    plan = _TilePlan(images.shape, len(gradients), pad, images.itemsize)
    shape = _IN * _IN, len(gradients), len(images)
    parts = {}

    def work(first, last):
        data, others = plan.workspace(len(images), images.dtype), plan.workspace(shape[1], images.dtype)
        parts[first] = total = np.zeros(shape, images.dtype)
        product = np.empty(shape, images.dtype)
        for rows, n_tiles in plan.blocks(first, last):
            tiles, errors = data[:, :, :n_tiles], others[:, :, :n_tiles]
            plan.each(len(images), lambda a, b: _transform_input(images, pad, plan.tile_grid, *rows, tiles, a, b))
            plan.each(shape[1], lambda a, b: _transform_gradient(gradients, plan.tile_grid, *rows, errors, a, b))
            plan.each(_IN * _IN, lambda a, b: _add_matmul(errors, tiles, product, total, a, b))

    plan.run_parallel(work)
    return _transform_filters_back(sum_in_order(parts, shape, images.dtype))


def _add_matmul(errors, tiles, product, total, start, stop):
    np.matmul(errors[start:stop], tiles[start:stop].transpose(0, 2, 1), out=product[start:stop])
    total[start:stop] += product[start:stop]


def _transform_filters(filters):
    """Return ``G g G^T`` of every filter, ``(36, O, C)``."""
    numbers = filters.reshape(-1, 9).T
    out = np.empty((_IN * _IN, numbers.shape[1]), filters.dtype)
    matrix = _FILTER_TRANSFORM.astype(filters.dtype)
    parallel_matmul(
        lambda a, b: np.matmul(matrix, numbers[:, a:b], out=out[:, a:b]), numbers.shape[1], min_per_thread=_MIN_FILTERS
    )
    return out.reshape(_IN * _IN, *filters.shape[:2])


def _transform_filters_back(total):
    """Return the gradient of the filters, ``(O, C, 3, 3)``, for that of their transforms ``(36, O, C)``."""
    numbers = total.reshape(_IN * _IN, -1).T
    out = np.empty((len(numbers), 9), total.dtype)
    matrix = _FILTER_TRANSFORM.astype(total.dtype)
    parallel_matmul(
        lambda a, b: np.matmul(numbers[a:b], matrix, out=out[a:b]), len(numbers), min_per_thread=_MIN_FILTERS
    )
    return out.reshape(*total.shape[1:], 3, 3)


class _TilePlan:
    """The tiles of images, cut into blocks of tile rows or of whole images that threads work on."""

    def __init__(self, shape, out_channels: int, pad: int, itemsize: int, *, by_image: bool = False):
        channels, n_images, height, width = shape
        self.out_shape = n_images, height + 2 * pad - 2, width + 2 * pad - 2
        self.tile_grid = tuple(map(_count_tiles, self.out_shape[1:]))
        self._n_unit, self._unit_tiles = n_images * self.tile_grid[0], self.tile_grid[1]
        if by_image:
            self._n_unit, self._unit_tiles = n_images, self.tile_grid[0] * self.tile_grid[1]
        bytes_per_tile = _IN * _IN * (channels + out_channels) * itemsize
        n_tiles = max(_BLOCK_BYTES // bytes_per_tile, _MIN_BLOCK_TILES)
        n_block = -(-self._n_unit // max(n_tiles // self._unit_tiles, 1))
        # As many for every thread; where they are too few for that, one block, in which channels are shared.
        n_block = 1 if n_block < cpu_count() else -(-n_block // cpu_count()) * cpu_count()
        self._step = -(-self._n_unit // n_block)
        whole = _TILES // math.gcd(_TILES, self._unit_tiles)  # units: 252 tiles take a tenth longer than 256
        if self._step > whole:
            self._step = -(-self._step // whole) * whole
        self._n_block = -(-self._n_unit // self._step)
        work = channels * out_channels * self._n_unit * self._unit_tiles
        self._is_small = work < _MIN_WORK

    def blocks(self, first: int, last: int):
        """Yield blocks ``first`` to ``last``: their range of tile rows or images, and their number of tiles."""
        for start in range(first * self._step, min(last * self._step, self._n_unit), self._step):
            stop = min(start + self._step, self._n_unit)
            yield (start, stop), (stop - start) * self._unit_tiles

    def workspace(self, channels: int, dtype):
        """Return room for a block's transformed tiles, ``(36, channels, tiles)``."""
        return np.empty((_IN * _IN, channels, self._step * self._unit_tiles), dtype)

    def run_parallel(self, work):
        """Call ``work(first, last)`` for ranges of blocks."""
        parallel_matmul(work, self._n_block)

    def each(self, n: int, work):
        """Call ``work(start, stop)`` for ranges of ``range(n)``: inside of :meth:`run_parallel` for one block."""
        if self._is_small or self._n_block > 1:
            work(0, n)
        else:
            parallel_matmul(work, n)


# The transforms.  A buffer holds the 6x6 numbers of ``_TILES`` tiles, a tile beside the other: its loops are
# over tiles, at distances that the compiler knows, so that it vectorises them.


@jit
def _points_of_input(d0, d1, d2, d3, d4, d5):
    """Return ``B^T d``."""
    even_a, odd_a = d4 - _F_B2 * d2, _F_A * (d3 - _F_B2 * d1)
    even_b, odd_b = d4 - _F_A2 * d2, _F_B * (d3 - _F_A2 * d1)
    return (
        _F_PRODUCT * d0 - _F_SUM * d2 + d4,
        even_a + odd_a,
        even_a - odd_a,
        even_b + odd_b,
        even_b - odd_b,
        _F_PRODUCT * d1 - _F_SUM * d3 + d5,
    )


@jit
def _output_of_points(m0, m1, m2, m3, m4, m5):
    """Return ``A^T m``."""
    even_a, odd_a, even_b, odd_b = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (
        m0 + even_a + even_b,
        _F_A * odd_a + _F_B * odd_b,
        _F_A2 * even_a + _F_B2 * even_b,
        _F_A3 * odd_a + _F_B3 * odd_b + m5,
    )


@jit
def _points_of_gradient(g0, g1, g2, g3):
    """Return ``A g``."""
    even_a, odd_a = g0 + _F_A2 * g2, _F_A * g1 + _F_A3 * g3
    even_b, odd_b = g0 + _F_B2 * g2, _F_B * g1 + _F_B3 * g3
    return g0, even_a + odd_a, even_a - odd_a, even_b + odd_b, even_b - odd_b, g3


@jit
def _transform_input_tiles(d):
    """Replace input tiles ``d`` by ``B^T d B``."""
    for j in range(_IN):
        for k in range(_TILES):
            p = j * _TILES + k
            (d[p], d[p + _ROW], d[p + 2 * _ROW], d[p + 3 * _ROW], d[p + 4 * _ROW], d[p + 5 * _ROW]) = _points_of_input(
                d[p], d[p + _ROW], d[p + 2 * _ROW], d[p + 3 * _ROW], d[p + 4 * _ROW], d[p + 5 * _ROW]
            )
    for i in range(_IN):
        for k in range(_TILES):
            p = i * _ROW + k
            (d[p], d[p + _TILES], d[p + 2 * _TILES], d[p + 3 * _TILES], d[p + 4 * _TILES], d[p + 5 * _TILES]) = (
                _points_of_input(
                    d[p], d[p + _TILES], d[p + 2 * _TILES], d[p + 3 * _TILES], d[p + 4 * _TILES], d[p + 5 * _TILES]
                )
            )


@jit
def _transform_output_tiles(m):
    """Replace sums of products ``m`` by ``A^T m A``, in the first four rows and columns."""
    for j in range(_IN):
        for k in range(_TILES):
            p = j * _TILES + k
            m[p], m[p + _ROW], m[p + 2 * _ROW], m[p + 3 * _ROW] = _output_of_points(
                m[p], m[p + _ROW], m[p + 2 * _ROW], m[p + 3 * _ROW], m[p + 4 * _ROW], m[p + 5 * _ROW]
            )
    for i in range(_OUT):
        for k in range(_TILES):
            p = i * _ROW + k
            m[p], m[p + _TILES], m[p + 2 * _TILES], m[p + 3 * _TILES] = _output_of_points(
                m[p], m[p + _TILES], m[p + 2 * _TILES], m[p + 3 * _TILES], m[p + 4 * _TILES], m[p + 5 * _TILES]
            )


@jit
def _transform_gradient_tiles(g):
    """Replace gradients ``g`` in the first four rows and columns by ``A g A^T``."""
    for j in range(_OUT):
        for k in range(_TILES):
            p = j * _TILES + k
            (g[p], g[p + _ROW], g[p + 2 * _ROW], g[p + 3 * _ROW], g[p + 4 * _ROW], g[p + 5 * _ROW]) = (
                _points_of_gradient(g[p], g[p + _ROW], g[p + 2 * _ROW], g[p + 3 * _ROW])
            )
    for i in range(_IN):
        for k in range(_TILES):
            p = i * _ROW + k
            (g[p], g[p + _TILES], g[p + 2 * _TILES], g[p + 3 * _TILES], g[p + 4 * _TILES], g[p + 5 * _TILES]) = (
                _points_of_gradient(g[p], g[p + _TILES], g[p + 2 * _TILES], g[p + 3 * _TILES])
            )


@jit
def _transform_input(images, pad, tile_grid, first, last, out, start, stop):
    """Transform tile rows ``first`` to ``last`` of channels ``start`` to ``stop`` to ``out`` (36, C, tiles)."""
    buffer = np.empty(_IN * _ROW, out.dtype)
    numbers = buffer.reshape(_IN * _IN, _TILES)
    rows = np.empty((_IN, _OUT * tile_grid[1] + 2), images.dtype)
    for c in range(start, stop):
        slot = done = 0
        for tile_row in range(first, last):
            _read_rows(images[c, tile_row // tile_grid[0]], tile_row % tile_grid[0] * _OUT - pad, -pad, rows)
            for x in range(tile_grid[1]):
                _load_tile(rows[:, x * _OUT : x * _OUT + _IN], _IN, numbers[:, slot])
                slot += 1
                if slot == _TILES or (x == tile_grid[1] - 1 and tile_row == last - 1):
                    _transform_input_tiles(buffer)
                    _write_tiles(buffer, slot, out, c, done)
                    done += slot
                    slot = 0


@jit
def _transform_gradient(gradients, tile_grid, first, last, out, start, stop):
    """Transform tile rows of the output's gradients as :func:`_transform_input` does those of the input."""
    buffer = np.empty(_IN * _ROW, gradients.dtype)
    numbers = buffer.reshape(_IN * _IN, _TILES)
    rows = np.empty((_OUT, _OUT * tile_grid[1]), gradients.dtype)
    for c in range(start, stop):
        slot = done = 0
        for tile_row in range(first, last):
            _read_rows(gradients[c, tile_row // tile_grid[0]], tile_row % tile_grid[0] * _OUT, 0, rows)
            for x in range(tile_grid[1]):
                _load_tile(rows[:, x * _OUT : x * _OUT + _OUT], _OUT, numbers[:, slot])
                slot += 1
                if slot == _TILES or (x == tile_grid[1] - 1 and tile_row == last - 1):
                    _transform_gradient_tiles(buffer)
                    _write_tiles(buffer, slot, out, c, done)
                    done += slot
                    slot = 0


@jit
def _transform_small_input(images, pad, tile_grid, first, last, out, start, stop):
    """Transform all tiles of images ``first`` to ``last`` to ``out`` (36, C, tiles), equal tiles side by side."""
    height, width = images.shape[2:]
    buffer = np.empty(_IN * _ROW, out.dtype)
    numbers = buffer.reshape(_IN * _IN, _TILES)
    plane = np.empty((height * width, _TILES), images.dtype)
    for c in range(start, stop):
        for n in range(first, last, _TILES):
            n_tiles = min(_TILES, last - n)
            _load_images(images[c, n : n + n_tiles], plane)
            for tile in range(tile_grid[0] * tile_grid[1]):
                top, left = tile // tile_grid[1] * _OUT - pad, tile % tile_grid[1] * _OUT - pad
                for i in range(_IN):
                    for j in range(_IN):
                        y, x = top + i, left + j
                        if 0 <= y < height and 0 <= x < width:
                            numbers[i * _IN + j] = plane[y * width + x]
                        else:
                            numbers[i * _IN + j] = 0
                _transform_input_tiles(buffer)
                _write_tiles(buffer, n_tiles, out, c, tile * (last - first) + n - first)


@jit
def _transform_small_output(sums, bias, residual, relu, tile_grid, first, last, y, start, stop):
    """Transform ``sums`` (36, O, tiles) to the pixels of images ``first`` to ``last``, and finish them."""
    height, width = y.shape[2:]
    buffer = np.empty(_IN * _ROW, sums.dtype)
    numbers = buffer.reshape(_IN * _IN, _TILES)
    plane = np.empty((height * width, _TILES), y.dtype)
    for c in range(start, stop):
        for n in range(first, last, _TILES):
            n_tiles = min(_TILES, last - n)
            for tile in range(tile_grid[0] * tile_grid[1]):
                _read_tiles(sums, c, tile * (last - first) + n - first, n_tiles, buffer)
                _transform_output_tiles(buffer)
                top, left = tile // tile_grid[1] * _OUT, tile % tile_grid[1] * _OUT
                for i in range(min(_OUT, height - top)):
                    for j in range(min(_OUT, width - left)):
                        plane[(top + i) * width + left + j] = numbers[i * _IN + j]
            pixels = y[c, n : n + n_tiles]
            _store_images(plane, pixels)
            bias_residual_relu(pixels.reshape(-1), bias[c], residual[c, n : n + n_tiles].reshape(-1), relu)


@jit
def _load_images(images, plane):
    """Copy images (n, H, W) to ``plane`` ``(H * W, _TILES)``, one a column."""
    for n in range(images.shape[0]):
        pixels = images[n].reshape(-1)
        for p in range(pixels.size):
            plane[p, n] = pixels[p]


@jit
def _store_images(plane, images):
    """Copy columns of ``plane`` ``(H * W, _TILES)`` to images (n, H, W)."""
    for n in range(images.shape[0]):
        pixels = images[n].reshape(-1)
        for p in range(pixels.size):
            pixels[p] = plane[p, n]


@jit
def _load_tile(tile, side, slot):
    """Copy a square of pixels to one slot of a buffer, (36,)."""
    for i in range(side):
        for j in range(side):
            slot[i * _IN + j] = tile[i, j]


@jit
def _read_rows(image, top, left, rows):
    """Copy the window of an image that begins at ``(top, left)``; zeros where it is outside."""
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
def _write_tiles(buffer, n_tiles, out, c, first):
    """Copy transformed tiles to columns ``first``, ... of channel ``c`` in ``out`` (36, C, tiles)."""
    for k in range(_IN * _IN):
        row = out[k, c, first : first + n_tiles]
        for slot in range(n_tiles):
            row[slot] = buffer[k * _TILES + slot]


@jit
def _transform_output(sums, bias, residual, relu, tile_grid, first, last, y, start, stop):
    """Transform ``sums`` (36, O, tiles) to the pixels of tile rows ``first`` to ``last``, and finish them."""
    buffer = np.empty(_IN * _ROW, sums.dtype)
    numbers = buffer.reshape(_IN * _IN, _TILES)
    for c in range(start, stop):
        slot = _TILES
        done = 0
        for tile_row in range(first, last):
            image, top = tile_row // tile_grid[0], tile_row % tile_grid[0] * _OUT
            pixels = y[c, image, top : top + _OUT]
            for x in range(tile_grid[1]):
                if slot == _TILES:
                    _read_tiles(sums, c, done, min(_TILES, sums.shape[2] - done), buffer)
                    _transform_output_tiles(buffer)
                    done += _TILES
                    slot = 0
                _store_tile(numbers[:, slot], pixels[:, x * _OUT : x * _OUT + _OUT])
                slot += 1
            bias_residual_relu(pixels.reshape(-1), bias[c], residual[c, image, top : top + _OUT].reshape(-1), relu)


@jit
def _read_tiles(sums, c, first, n_tiles, buffer):
    """Copy columns ``first``, ... of channel ``c`` of ``sums`` (36, O, tiles)."""
    for k in range(_IN * _IN):
        row = sums[k, c, first : first + n_tiles]
        for slot in range(n_tiles):
            buffer[k * _TILES + slot] = row[slot]


@jit
def _store_tile(slot, tile):
    """Copy one slot of a buffer, (36,), to its pixels, 4x4 of them or less at the border."""
    if tile.shape[0] == _OUT and tile.shape[1] == _OUT:
        for i in range(_OUT):
            for j in range(_OUT):
                tile[i, j] = slot[i * _IN + j]
    else:
        for i in range(tile.shape[0]):
            for j in range(tile.shape[1]):
                tile[i, j] = slot[i * _IN + j]
