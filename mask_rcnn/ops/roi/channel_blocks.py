"""Feature maps on the CPU in blocks of channels, with the channels of a block last.

RoI pooling treats all channels alike.  If the channels of a block are adjacent in memory, the compiler vectorises over
them, and the block stays in the cache while all RoIs are pooled from it.
"""

from __future__ import annotations

from mask_rcnn.ops.runtime.parallel import jit

#: Channels per block: the part of them that one RoI reads should fit into the first-level cache.
BLOCK = 64


def count_blocks(n_channels: int) -> int:
    """Return the number of blocks that ``n_channels`` channels need."""
    return -(-n_channels // BLOCK)


@jit
def gather_features(x, first, features):
    """Copy channels ``first``, ... of ``x`` (C, N, H, W) to ``features`` (N, H, W * BLOCK)."""
    n_channels = min(BLOCK, x.shape[0] - first)
    if n_channels < BLOCK:
        features[:] = 0
    for n in range(x.shape[1]):
        for i in range(x.shape[2]):
            for c in range(n_channels):
                for j in range(x.shape[3]):
                    features[n, i, j * BLOCK + c] = x[first + c, n, i, j]


@jit
def scatter_features(features, first, x):
    """Copy ``features`` (N, H, W * BLOCK) to channels ``first``, ... of ``x`` (C, N, H, W)."""
    for n in range(x.shape[1]):
        for c in range(min(BLOCK, x.shape[0] - first)):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    x[first + c, n, i, j] = features[n, i, j * BLOCK + c]


@jit
def gather_bins(y, first, bins):
    """Copy channels ``first``, ... of one RoI's ``y`` (C, rows, columns) to ``bins`` (rows * columns, BLOCK)."""
    columns = y.shape[2]
    for c in range(min(BLOCK, y.shape[0] - first)):
        for i in range(y.shape[1]):
            for j in range(columns):
                bins[i * columns + j, c] = y[first + c, i, j]


@jit
def scatter_bins(bins, first, y):
    """Copy ``bins`` (rows * columns, BLOCK) to channels ``first``, ... of one RoI's ``y`` (C, rows, columns)."""
    columns = y.shape[2]
    for c in range(min(BLOCK, y.shape[0] - first)):
        for i in range(y.shape[1]):
            for j in range(columns):
                y[first + c, i, j] = bins[i * columns + j, c]
