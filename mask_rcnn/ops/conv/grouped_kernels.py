"""The loops of the grouped convolution with direct sums, compiled; see :mod:`mask_rcnn.ops.conv.grouped`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mask_rcnn.ops.conv.epilogue import store_row
from mask_rcnn.ops.conv.register_tiles import CHANNELS, VECTORS, correlate, multiply
from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import even_lanes, load, store


class Windows(NamedTuple):
    """The windows of a convolution.

    Args:
        height, width: Size of the kernel.
        stride: Step in both directions.
        top, left: Zeros above and on the left of the image; negative to begin inside of it.
        tile_rows: Output rows per tile; in Winograd's algorithm rows of four output rows.
        lanes: Elements of a vector.
    """

    height: int
    width: int
    stride: int
    top: int
    left: int
    tile_rows: int
    lanes: int


@jit
def convolve_tiles(source, weights, taps, bias, residual, relu, windows, y, start, stop):
    """Convolve the tiles ``start`` to ``stop``.

    Args:
        source: ``(S, N, H, W)``.
        weights: ``(groups, channels, taps)``, the output channels rounded up to a multiple of four.
        taps: ``(taps,)`` offset of each tap in the planes.
        bias: ``(O,)``.
        residual: ``(O, N, oh, ow)``; ``(O, N, oh, 0)`` if there is no residual.
        relu: Whether to apply ReLU.
        windows: The :class:`Windows`.
        y: ``(O, N, oh, ow)``, written.
        start: First tile; tiles are counted through the rows, the images and the groups.
        stop: End of the tiles.
    """
    n_groups, n_images, out_height, out_width = len(weights), y.shape[1], y.shape[2], y.shape[3]
    n_tiles = (out_height + windows.tile_rows - 1) // windows.tile_rows
    n_in, n_out = source.shape[0] // n_groups, y.shape[0] // n_groups
    planes = new_planes(source, n_in, out_width, windows)
    pitch = planes.shape[4]
    step = round_up(windows.tile_rows * pitch, VECTORS * windows.lanes)
    sums = np.empty(weights.shape[1] * step, y.dtype)
    for tile in range(start, stop):
        first = tile % n_tiles * windows.tile_rows
        n, g = tile // n_tiles % n_images, tile // n_tiles // n_images
        rows = min(windows.tile_rows, out_height - first)
        copy_to_planes(source, g * n_in, n_in, n, first, windows, planes)
        multiply(planes.reshape(-1), weights[g], taps, rows * pitch, step, windows.lanes, sums)
        for c in range(n_out):
            o = g * n_out + c
            for row in range(rows):
                begin = c * step + row * pitch
                added = residual[o, n, first + row]
                store_row(sums, begin, bias[o], added, relu, windows.lanes, y[o, n, first + row])


@jit
def correlate_groups(images, gradients, taps, windows, sums, start, stop):
    """Add the gradients of the weights of the groups ``start`` to ``stop``.

    Args:
        images: ``(C, N, H, W)``.
        gradients: ``(O, N, oh, ow)``, with respect to the output.
        taps: ``(taps,)`` offset of each tap in the planes; a multiple of three.
        windows: The :class:`Windows`.
        sums: ``(groups, blocks, taps, 4)`` of four output channels each, changed.
        start: First group.
        stop: End of the groups.
    """
    out_height, out_width = gradients.shape[2:]
    n_in, n_out, tile_rows = images.shape[0] // len(sums), gradients.shape[0] // len(sums), windows.tile_rows
    planes = new_planes(images, n_in, out_width, windows)
    pitch = planes.shape[4]
    step = round_up(tile_rows * pitch, windows.lanes)
    lines = np.zeros((sums.shape[1] * CHANNELS, step), images.dtype)
    for g in range(start, stop):
        for n in range(images.shape[1]):
            for first in range(0, out_height, tile_rows):
                copy_to_planes(images, g * n_in, n_in, n, first, windows, planes)
                for c in range(n_out):
                    target = lines[c, : tile_rows * pitch].reshape(tile_rows, pitch)
                    copy_rows(gradients[g * n_out + c, n], first, 0, 1, windows.lanes, target)
                correlate(planes.reshape(-1), taps, lines.reshape(-1), tile_rows * pitch, step, windows.lanes, sums[g])


@jit
def round_up(value, step):
    """Return the smallest multiple of ``step`` that is not less than ``value``."""
    return (value + step - 1) // step * step


@jit
def new_planes(source, n_channels, out_width, windows):
    """Return zeros ``(channels, phases, phases, rows, pitch)`` for a tile of the channels of a group.

    Element ``(r * stride, q * stride)`` of the zero-padded tile of a channel is at row ``r`` and column ``q`` of its
    phase.  More channels follow, which the vectors of the last windows may read.
    """
    height, width, stride = windows.height, windows.width, windows.stride
    rows, pitch = windows.tile_rows + (height - 1) // stride, out_width + (width - 1) // stride
    phases = min(stride, height), min(stride, width)
    size = phases[0] * phases[1] * rows * pitch
    n_margin = ((width - 1) // stride + 2 * VECTORS * windows.lanes + size - 1) // size
    return np.zeros((n_channels + n_margin, phases[0], phases[1], rows, pitch), source.dtype)


@jit
def copy_to_planes(source, channel, n_channels, image, first, windows, planes):
    """Copy the windows of the output rows that begin at ``first`` to planes from :func:`new_planes`.

    Args:
        source: ``(S, N, H, W)``.
        channel: First channel.
        n_channels: Number of channels.
        image: Index of the image.
        first: First output row.
        windows: The :class:`Windows`.
        planes: Written.
    """
    stride = windows.stride
    for c in range(n_channels):
        for i in range(planes.shape[1]):
            for j in range(planes.shape[2]):
                top, left = first * stride + i - windows.top, j - windows.left
                copy_rows(source[channel + c, image], top, left, stride, windows.lanes, planes[c, i, j])


@jit
def copy_rows(image, top, left, stride, lanes, target):
    """Copy every ``stride``-th row and column of an image, beginning at ``(top, left)``, with zeros outside of it."""
    height, width = image.shape
    begin = min(max((-left + stride - 1) // stride, 0), target.shape[1])
    end = max(min((width - left + stride - 1) // stride, target.shape[1]), begin)
    for i in range(target.shape[0]):
        y, row = top + i * stride, target[i]
        if y < 0 or y >= height:
            row[:] = 0
            continue
        row[:begin] = 0
        row[end:] = 0
        copy_strided(image[y, left + begin * stride :], stride, lanes, row[begin:end])


@jit
def _copy(source, target):
    for x in range(target.size):
        target[x] = source[x]


@jit
def copy_strided(source, stride, lanes, target):
    """Copy every ``stride``-th element of ``source``, beginning with the first one, until ``target`` is full."""
    if stride == 1:
        _copy(source, target)
        return
    done = 0
    if stride == 2:
        done = min(target.size, source.size // 2) // lanes * lanes
        for x in range(0, done, lanes):
            store(target, x, even_lanes(load(source, 2 * x), load(source, 2 * x + lanes)))
    rest, source = target[done:], source[done * stride :]
    for x in range(rest.size):
        rest[x] = source[stride * x]
