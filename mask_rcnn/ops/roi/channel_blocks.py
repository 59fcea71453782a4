"""Feature maps on the CPU, a block of channels at a time with the channels last.

Pooling RoIs does the same to every channel: with the channels of a block side by side in memory the
compiler vectorises over them, and a block of the map stays in the cache while all RoIs are pooled from it.
"""

from __future__ import annotations

from mask_rcnn.ops.runtime.parallel import jit

#: Channels of a block: what one RoI touches of them should fit into the first-level cache.
BLOCK = 64


def count_blocks(channels: int) -> int:
    """Return the number of blocks that hold so many channels."""
    return -(-channels // BLOCK)


@jit
def gather_maps(x, first, maps):
    """Copy channels ``first``, ... of ``x`` (C, N, H, W) to ``maps`` (N, H, W * BLOCK)."""
    n_channels = min(BLOCK, x.shape[0] - first)
    if n_channels < BLOCK:
        maps[:] = 0
    for n in range(x.shape[1]):
        for i in range(x.shape[2]):
            for c in range(n_channels):
                for j in range(x.shape[3]):
                    maps[n, i, j * BLOCK + c] = x[first + c, n, i, j]


@jit
def scatter_maps(maps, first, x):
    """Copy ``maps`` (N, H, W * BLOCK) to channels ``first``, ... of ``x`` (C, N, H, W)."""
    for n in range(x.shape[1]):
        for c in range(min(BLOCK, x.shape[0] - first)):
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    x[first + c, n, i, j] = maps[n, i, j * BLOCK + c]


@jit
def gather_bins(y, first, bins):
    """Copy channels of one RoI's ``y`` (C, rows, columns) to ``bins`` (rows * columns, BLOCK)."""
    columns = y.shape[2]
    for c in range(min(BLOCK, y.shape[0] - first)):
        for i in range(y.shape[1]):
            for j in range(columns):
                bins[i * columns + j, c] = y[first + c, i, j]


@jit
def scatter_bins(bins, first, y):
    """Copy ``bins`` (rows * columns, BLOCK) to channels of one RoI's ``y`` (C, rows, columns)."""
    columns = y.shape[2]
    for c in range(min(BLOCK, y.shape[0] - first)):
        for i in range(y.shape[1]):
            for j in range(columns):
                y[first + c, i, j] = bins[i * columns + j, c]
