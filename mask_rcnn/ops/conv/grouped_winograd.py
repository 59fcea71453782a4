"""The loops of the grouped convolution by Winograd's algorithm F(4, 3) along the columns, compiled.

Six transformed rows are multiplied for four output rows, which are half of the multiplications.  The vectors run along
the rows, so that the transforms need no rearrangement, unlike those of tiles of 4x4 pixels.  Source and polynomials are
those of :mod:`mask_rcnn.ops.conv.winograd`.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.conv.epilogue import store_row
from mask_rcnn.ops.conv.grouped_kernels import copy_rows, round_up
from mask_rcnn.ops.conv.register_tiles import VECTORS, multiply
from mask_rcnn.ops.conv.winograd_transforms import IN_TILE, OUT_TILE, transform_input, transform_output
from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import add, fill, load, maximum, store


@jit
def transform_weights(weights, matrix, points, start, stop):
    """Write the transform of the columns of the filters of the groups ``start`` to ``stop``.

    Args:
        weights: ``(groups, O, S, 3, kw)``.
        matrix: :data:`~mask_rcnn.ops.conv.winograd_transforms.COLUMN_TRANSFORM`, of the type of the weights.
        points: ``(groups, 6, O or more, S, kw)``, written.
        start: First group.
        stop: End of the groups.
    """
    for g in range(start, stop):
        for o in range(weights.shape[1]):
            for c in range(weights.shape[2]):
                for x in range(weights.shape[4]):
                    top, centre, bottom = weights[g, o, c, 0, x], weights[g, o, c, 1, x], weights[g, o, c, 2, x]
                    for p in range(len(matrix)):
                        points[g, p, o, c, x] = matrix[p, 0] * top + matrix[p, 1] * centre + matrix[p, 2] * bottom


@jit
def convolve_tiles(source, weights, taps, bias, residual, relu, windows, y, start, stop):
    """Convolve the tiles ``start`` to ``stop`` with a kernel of three rows and stride 1.

    ``weights`` is ``(groups, 6, channels, taps)``, and the taps are those of one row; see
    :func:`mask_rcnn.ops.conv.grouped_kernels.convolve_tiles` for the other arguments.
    """
    n_groups, n_images, out_height, out_width = len(weights), y.shape[1], y.shape[2], y.shape[3]
    tile_rows, lanes = windows.tile_rows, windows.lanes
    n_tile_rows = (out_height + OUT_TILE - 1) // OUT_TILE
    n_tiles = (n_tile_rows + tile_rows - 1) // tile_rows
    n_in, n_out = source.shape[0] // n_groups, y.shape[0] // n_groups
    pitch = out_width + windows.width - 1
    step = round_up(tile_rows * pitch, VECTORS * lanes)
    flat, height, width = source.reshape(-1), source.shape[2], source.shape[3]
    is_inside = windows.left >= 0 and windows.left + width <= pitch
    lines = np.zeros((IN_TILE, round_up(pitch, lanes)), y.dtype)
    points = np.zeros((IN_TILE, n_in * tile_rows * pitch + windows.width + 2 * VECTORS * lanes), y.dtype)
    sums = np.zeros((IN_TILE, weights.shape[2] * step + lanes), y.dtype)
    for tile in range(start, stop):
        first = tile % n_tiles * tile_rows
        n, g = tile // n_tiles % n_images, tile // n_tiles // n_images
        rows = min(tile_rows, n_tile_rows - first)
        for c in range(n_in):
            for row in range(rows):
                top = (first + row) * OUT_TILE - windows.top
                out = (c * tile_rows + row) * pitch
                begin = ((g * n_in + c) * n_images + n) * height * width + top * width
                if is_inside and top >= 0 and top + IN_TILE <= height and begin + IN_TILE * width + lanes <= flat.size:
                    transform_input(flat, begin, width, width, lanes, points, out + windows.left)
                    _clear_columns(points, out, out + windows.left)
                    _clear_columns(points, out + windows.left + width, out + pitch)
                else:
                    copy_rows(source[g * n_in + c, n], top, -windows.left, 1, lanes, lines)
                    transform_input(lines.reshape(-1), 0, lines.shape[1], pitch, lanes, points, out)
        for point in range(IN_TILE):
            multiply(points[point], weights[g, point], taps, rows * pitch, step, lanes, sums[point])
        for c in range(n_out):
            o = g * n_out + c
            for row in range(rows):
                begin, top = c * step + row * pitch, (first + row) * OUT_TILE
                _store_output(sums, begin, bias[o], residual[o, n], relu, lanes, lines, y[o, n], top)


@jit
def _clear_columns(points, first, last):
    for i in range(len(points)):
        for k in range(first, last):
            points[i, k] = 0


@jit
def _store_output(m, start, bias, residual, relu, lanes, lines, y, top):
    """Write ``A^T m`` with its epilogue to four rows of ``y``, or fewer at the end of the image.

    Args:
        m: ``(6, n)``; the rows begin at column ``start``.
        start: See ``m``.
        bias: The bias of the channel.
        residual: ``(oh, ow)``, or ``(oh, 0)``.
        relu: Whether to apply ReLU.
        lanes: Elements of a vector.
        lines: Memory for four rows or more of whole vectors.
        y: ``(oh, ow)``.
        top: First row.
    """
    width, rows = y.shape[1], min(OUT_TILE, y.shape[0] - top)
    if rows == OUT_TILE and width >= lanes:
        added, lowest = fill(bias), fill(y.dtype.type(0 if relu else -np.inf))
        for k in range(0, width, lanes):
            k = min(k, width - lanes)  # the last two vectors overlap
            v0, v1, v2, v3 = transform_output(m, start + k, m.shape[1])
            v0, v1, v2, v3 = add(v0, added), add(v1, added), add(v2, added), add(v3, added)
            i = top * width + k
            if residual.size > 0:
                v0, v1 = add(v0, load(residual, i)), add(v1, load(residual, i + width))
                v2, v3 = add(v2, load(residual, i + 2 * width)), add(v3, load(residual, i + 3 * width))
            store(y, i, maximum(v0, lowest))
            store(y, i + width, maximum(v1, lowest))
            store(y, i + 2 * width, maximum(v2, lowest))
            store(y, i + 3 * width, maximum(v3, lowest))
        return
    step = lines.shape[1]
    for k in range(0, width, lanes):
        v0, v1, v2, v3 = transform_output(m, start + k, m.shape[1])
        store(lines, k, v0)
        store(lines, k + step, v1)
        store(lines, k + 2 * step, v2)
        store(lines, k + 3 * step, v3)
    for i in range(rows):
        store_row(lines[i], 0, bias, residual[top + i], relu, lanes, y[top + i])
