"""Matmul of packed weights and panels, with a tile of the sums in registers, compiled.

A panel holds ``PANEL`` columns of a matrix, row after row, and the weights are packed by blocks of ``CHANNELS`` output
channels, so that both are read in the order of memory.  With 32 registers a tile has eight channels and three vectors
of columns: eleven loads for 24 multiplications of vectors.  With 16 registers it has four channels.

Source: Van Zee and van de Geijn 2015, "BLIS: A Framework for Rapidly Instantiating BLAS Functionality", section 2.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.runtime.parallel import jit, parallel_for
from mask_rcnn.ops.runtime.vectors import VECTOR_BYTES, add_outer_product, add_to_rows, fill, lanes, repeat, store_rows

#: Output channels per block of weights.
CHANNELS = 8 if VECTOR_BYTES == 64 else 4
#: Vectors per row of a panel.
VECTORS = 3
#: Products per partial sum.  Partial sums of a few hundred products have a third less rounding error than a single sum
#: of 2304 products.
MAX_TERMS = 384
#: The number of weights whose packing justifies a thread.
_MIN_WEIGHTS = 1 << 16


def panel_width(dtype) -> int:
    """Return the number of columns of a panel for a floating-point type."""
    return VECTORS * lanes(dtype)


def pack_weights(weights: np.ndarray) -> np.ndarray:
    """Return weights ``(O, K)`` as ``(blocks, K, CHANNELS)``; the last block ends with channels of zeros."""
    packed = np.empty((-(-len(weights) // CHANNELS), weights.shape[1], CHANNELS), weights.dtype)
    min_blocks = _MIN_WEIGHTS // max(packed[:1].size, 1) + 1
    parallel_for(lambda start, stop: _pack(weights, packed, start, stop), len(packed), min_per_thread=min_blocks)
    return packed


@jit
def _pack(weights, packed, start, stop):
    """Pack the blocks ``start`` to ``stop``."""
    for block in range(start, stop):
        for c in range(packed.shape[2]):
            channel = block * packed.shape[2] + c
            for k in range(packed.shape[1]):
                packed[block, k, c] = weights[channel, k] if channel < len(weights) else 0


@jit
def multiply(weights, block, panels, first, n_vectors, width, sums, out, step):
    """Write the product of a block of weights and the first vectors of a panel.

    Args:
        weights: ``(blocks, K, CHANNELS)`` from :func:`pack_weights`.
        block: Index of the block.
        panels: Contiguous; ``K`` rows of ``width`` elements begin at the element ``first``.
        first: See ``panels``.
        n_vectors: Number of vectors per row to compute, 1 to ``VECTORS``.
        width: :func:`panel_width`.
        sums: Contiguous, written; those of the block's channel ``c`` begin at the element ``out + c * step``.
        out: See ``sums``.
        step: See ``sums``.
    """
    zero = fill(sums.dtype.type(0))
    if n_vectors == VECTORS:
        _multiply(weights, block, panels, first, width, sums, out, step, repeat(repeat(zero, VECTORS), CHANNELS))
    elif n_vectors == 2:
        _multiply(weights, block, panels, first, width, sums, out, step, repeat(repeat(zero, 2), CHANNELS))
    else:
        _multiply(weights, block, panels, first, width, sums, out, step, repeat(repeat(zero, 1), CHANNELS))


@jit
def _multiply(weights, block, panels, first, width, sums, out, step, zeros):
    """Multiply as many vectors as each of the tuples ``zeros`` contains."""
    n_rows = weights.shape[1]
    for start in range(0, max(n_rows, 1), MAX_TERMS):
        totals = zeros
        for k in range(start, min(start + MAX_TERMS, n_rows)):
            totals = add_outer_product(totals, weights, (block * n_rows + k) * CHANNELS, panels, first + k * width)
        if start == 0:
            store_rows(sums, out, step, totals)
        else:
            add_to_rows(sums, out, step, totals)
