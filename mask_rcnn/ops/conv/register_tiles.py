"""Sums over the taps of a convolution with a tile of the sums in registers, compiled.

The twelve vectors of sums of a tile depend on each other only through seven loads, so that the multiplications, not the
loads, limit the rate: 117 GFLOP/s on one CPU whose matrix multiplication reaches 101 (AMD EPYC 9004).  The sums leave
four of the 16 registers of AVX2, for three vectors of pixels and a weight.

Arrays are contiguous and have one dimension, unless stated otherwise.
"""

from __future__ import annotations

from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import fill, load, multiply_add, store, sum_lanes

#: Output channels per tile.
CHANNELS = 4
#: Vectors of pixels per tile, and taps per tile of :func:`correlate`.
VECTORS = TAPS = 3


@jit
def multiply(pixels, weights, taps, n, step, lanes, sums):
    """Write the sums over the taps of weight times pixel for ``n`` windows, of all output channels.

    Args:
        pixels: The windows begin at the elements 0 to ``n``; elements up to two tiles further are read.
        weights: ``(channels, taps)`` of the output channels, a multiple of four.
        taps: ``(taps,)`` offset of each tap in its window.
        n: Number of windows.
        step: Distance of the output channels in ``sums``, ``n`` rounded up to whole tiles or more.
        lanes: Elements of a vector.
        sums: Written; channel ``c`` begins at ``c * step``.
    """
    for channel in range(0, len(weights), CHANNELS):
        out, block_weights = channel * step, weights[channel : channel + CHANNELS].reshape(-1)
        start = 0
        while start < n:
            if n - start > lanes:
                _multiply_tile(pixels, start, block_weights, taps, lanes, sums, out + start, step)
                start += VECTORS * lanes
            else:
                _multiply_vector(pixels, start, block_weights, taps, sums, out + start, step)
                start += lanes


@jit
def _multiply_tile(pixels, start, weights, taps, lanes, sums, out, step):
    """Multiply for four channels and three vectors of windows."""
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = fill(pixels.dtype.type(0))
    n = len(taps)
    for k in range(n):
        first = start + taps[k]
        x0, x1, x2 = load(pixels, first), load(pixels, first + lanes), load(pixels, first + 2 * lanes)
        w = fill(weights[k])
        a0, a1, a2 = multiply_add(w, x0, a0), multiply_add(w, x1, a1), multiply_add(w, x2, a2)
        w = fill(weights[n + k])
        b0, b1, b2 = multiply_add(w, x0, b0), multiply_add(w, x1, b1), multiply_add(w, x2, b2)
        w = fill(weights[2 * n + k])
        c0, c1, c2 = multiply_add(w, x0, c0), multiply_add(w, x1, c1), multiply_add(w, x2, c2)
        w = fill(weights[3 * n + k])
        d0, d1, d2 = multiply_add(w, x0, d0), multiply_add(w, x1, d1), multiply_add(w, x2, d2)
    _store_vectors(sums, out, lanes, a0, a1, a2)
    _store_vectors(sums, out + step, lanes, b0, b1, b2)
    _store_vectors(sums, out + 2 * step, lanes, c0, c1, c2)
    _store_vectors(sums, out + 3 * step, lanes, d0, d1, d2)


@jit
def _store_vectors(sums, out, lanes, v0, v1, v2):
    store(sums, out, v0)
    store(sums, out + lanes, v1)
    store(sums, out + 2 * lanes, v2)


@jit
def _multiply_vector(pixels, start, weights, taps, sums, out, step):
    """Multiply for four channels and one vector of windows."""
    a = b = c = d = fill(pixels.dtype.type(0))
    n = len(taps)
    for k in range(n):
        x = load(pixels, start + taps[k])
        a = multiply_add(fill(weights[k]), x, a)
        b = multiply_add(fill(weights[n + k]), x, b)
        c = multiply_add(fill(weights[2 * n + k]), x, c)
        d = multiply_add(fill(weights[3 * n + k]), x, d)
    store(sums, out, a)
    store(sums, out + step, b)
    store(sums, out + 2 * step, c)
    store(sums, out + 3 * step, d)


@jit
def correlate(pixels, taps, gradients, n, step, lanes, sums):
    """Add the sums over ``n`` windows of gradient times pixel, for each tap and all output channels.

    Args:
        pixels: See :func:`multiply`.
        taps: ``(taps,)`` offset of each tap in its window; a multiple of three.
        gradients: Channel ``c`` begins at ``c * step`` and is zero from ``n`` to the end of its last vector.
        n: Number of windows.
        step: Distance of the channels in ``gradients``.
        lanes: Elements of a vector.
        sums: ``(blocks, taps, 4)`` of four output channels each, changed.
    """
    for block in range(len(sums)):
        for k in range(0, len(taps), TAPS):
            _correlate_tile(pixels, taps[k : k + TAPS], gradients, block * CHANNELS * step, n, step, lanes,
                            sums[block, k : k + TAPS])  # fmt: skip


@jit
def _correlate_tile(pixels, taps, gradients, first, n, step, lanes, sums):
    """Correlate four channels with three taps; ``sums`` is ``(3, 4)``."""
    a0 = a1 = a2 = b0 = b1 = b2 = c0 = c1 = c2 = d0 = d1 = d2 = fill(pixels.dtype.type(0))
    for start in range(0, n, lanes):
        x0, x1, x2 = load(pixels, start + taps[0]), load(pixels, start + taps[1]), load(pixels, start + taps[2])
        g = load(gradients, first + start)
        a0, a1, a2 = multiply_add(g, x0, a0), multiply_add(g, x1, a1), multiply_add(g, x2, a2)
        g = load(gradients, first + start + step)
        b0, b1, b2 = multiply_add(g, x0, b0), multiply_add(g, x1, b1), multiply_add(g, x2, b2)
        g = load(gradients, first + start + 2 * step)
        c0, c1, c2 = multiply_add(g, x0, c0), multiply_add(g, x1, c1), multiply_add(g, x2, c2)
        g = load(gradients, first + start + 3 * step)
        d0, d1, d2 = multiply_add(g, x0, d0), multiply_add(g, x1, d1), multiply_add(g, x2, d2)
    _add_lanes(sums[0], a0, b0, c0, d0)
    _add_lanes(sums[1], a1, b1, c1, d1)
    _add_lanes(sums[2], a2, b2, c2, d2)


@jit
def _add_lanes(sums, a, b, c, d):
    sums[0] += sum_lanes(a)
    sums[1] += sum_lanes(b)
    sums[2] += sum_lanes(c)
    sums[3] += sum_lanes(d)
