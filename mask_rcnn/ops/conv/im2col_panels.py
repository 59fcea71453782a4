"""The loops of the convolution with im2col, compiled; see :mod:`mask_rcnn.ops.conv.im2col`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mask_rcnn.ops.conv.epilogue import store_vector
from mask_rcnn.ops.conv.grouped_kernels import copy_strided
from mask_rcnn.ops.conv.matmul_tiles import CHANNELS, multiply
from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import fill, load, store


class Geometry(NamedTuple):
    """The windows of a convolution and their pixels.

    Args:
        height, width: Size of the kernel.
        stride: Step in both directions.
        pad: Zeros around the images.
        out_height, out_width: Number of windows of an image, vertically and horizontally.
        is_pointwise: Whether the images themselves are the im2col matrix.
    """

    height: int
    width: int
    stride: int
    pad: int
    out_height: int
    out_width: int
    is_pointwise: bool


@jit
def convolve_panels(images, weights, bias, residual, relu, geometry, n_parts, width, lanes, memory, y, start, stop):
    """Convolve the units ``start`` to ``stop``.

    Units are the panels of the first part of the output channels, then those of the second part, and so on.

    Args:
        images: ``(C, N, H, W)``.
        weights: ``(blocks, C * height * width, CHANNELS)`` from :func:`~mask_rcnn.ops.conv.matmul_tiles.pack_weights`.
        bias: ``(O,)``.
        residual: ``(O, columns)``, or ``(O, 0)``.
        relu: Whether to apply ReLU.
        geometry: The :class:`Geometry`.
        n_parts: Number of parts of the output channels.
        width: Columns of a panel.
        lanes: Elements of a vector.
        memory: 1-D, for the sums of a tile and one or more panels.
        y: ``(O, columns)``, written; may be ``residual``.
        start: First unit.
        stop: End of the units.
    """
    n_channels, n_columns, n_rows = len(y), y.shape[1], weights.shape[1]
    n_panels = (n_columns + width - 1) // width
    sums, panels = memory[: CHANNELS * width], memory[CHANNELS * width :]
    capacity = panels.size // (n_rows * width)
    line = np.empty(capacity * width, y.dtype)
    lowest = fill(y.dtype.type(0 if relu else -np.inf))
    while start < stop:
        part, first = start // n_panels, start % n_panels
        n = min(capacity, stop - start, n_panels - first)
        _gather(images, geometry, first * width, min((first + n) * width, n_columns), width, lanes, line, panels)
        for block in range(len(weights) * part // n_parts, len(weights) * (part + 1) // n_parts):
            for p in range(n):
                column = (first + p) * width
                n_values = min(width, n_columns - column)
                n_vectors = (n_values + lanes - 1) // lanes
                multiply(weights, block, panels, p * n_rows * width, n_vectors, width, sums, 0, width)
                for c in range(min(CHANNELS, n_channels - block * CHANNELS)):
                    o = block * CHANNELS + c
                    out, added = o * n_columns + column, fill(bias[o])
                    for k in range(0, n_values, lanes):
                        n_stored = min(n_values - k, lanes)
                        store_vector(sums, c * width + k, n_stored, added, residual, lowest, lanes, y, out + k)
        start += n


@jit
def _gather(images, geometry, start, stop, width, lanes, line, panels):
    """Write the columns ``start`` to ``stop`` of the im2col matrix to panels; ``line`` is memory for one row."""
    n_rows = images.shape[0] * geometry.height * geometry.width
    if geometry.is_pointwise:
        flat, n_columns = images.reshape(-1), images.size // n_rows
        for k in range(n_rows):
            _write_row(flat, k * n_columns + start, stop - start, width, lanes, panels, k, n_rows)
        return
    for c in range(images.shape[0]):
        for i in range(geometry.height):
            for j in range(geometry.width):
                gather_row(images[c], geometry, i, j, start, stop, lanes, line)
                k = (c * geometry.height + i) * geometry.width + j
                _write_row(line, 0, stop - start, width, lanes, panels, k, n_rows)


@jit
def _write_row(source, begin, n, width, lanes, panels, k, n_rows):
    """Write ``n`` elements, which begin at ``begin``, to row ``k`` of as many panels; the last row ends with zeros."""
    for done in range(0, n, width):
        out = done * n_rows + k * width
        if n - done >= width:
            for i in range(0, width, lanes):
                store(panels, out + i, load(source, begin + done + i))
        else:
            for i in range(width):
                panels[out + i] = source[begin + done + i] if i < n - done else 0


@jit
def gather_row(images, geometry, i, j, start, stop, lanes, line):
    """Write a part of a row of the im2col matrix: a pixel of each of the windows ``start`` to ``stop``.

    Args:
        images: ``(N, H, W)``, an input channel.
        geometry: The :class:`Geometry`.
        i: Row of the pixel in its window.
        j: Column of the pixel in its window.
        start: First window.
        stop: End of the windows.
        lanes: Elements of a vector.
        line: ``(stop - start,)`` or more, written.
    """
    height, width = images.shape[1:]
    column = start
    while column < stop:
        row, first = column // geometry.out_width, column % geometry.out_width
        n = min(geometry.out_width - first, stop - column)
        y = row % geometry.out_height * geometry.stride + i - geometry.pad
        left, right = valid_range(j - geometry.pad, geometry.stride, width, geometry.out_width)
        left, right = max(left, first), min(right, first + n)
        target = line[column - start : column - start + n]
        if y < 0 or y >= height or left >= right:
            target[:] = 0
        else:
            source = images[row // geometry.out_height, y, left * geometry.stride + j - geometry.pad :]
            target[: left - first] = 0
            copy_strided(source, geometry.stride, lanes, target[left - first : right - first])
            target[right - first :] = 0
        column += n


@jit
def valid_range(offset, stride, size, n_out):
    """Return the range of output positions whose input position is inside of an axis of ``size`` pixels.

    ``offset`` is the input position of output position 0 and may be negative.
    """
    first = 0 if offset >= 0 else (-offset + stride - 1) // stride
    last = (size - 1 - offset) // stride + 1 if size > offset else 0
    return min(first, n_out), max(min(last, n_out), 0)
