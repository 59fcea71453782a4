"""Launch geometry of the CUDA kernels of RoI pooling.

A block of a forward kernel computes a row of the bins of one RoI.  A block of a backward kernel computes a tile of
pixels of one feature map (``tiles.cuh``).  Each thread processes several channels of a bin or pixel, its lanes.
"""

from __future__ import annotations

from collections.abc import Sequence

#: Threads of a block of a forward kernel.
BIN_THREADS = 128
#: Height of a tile and threads of a block of a backward kernel; tiles.cuh defines the same values.
TILE_ROWS, TILE_THREADS = 4, 256


def choose_tile_width(n_groups: int) -> int:
    """Return the width of the tiles of a backward kernel with which few threads of a block are idle.

    Args:
        n_groups: Number of threads that share the channels of a pixel.
    """
    return 4 if n_groups > 32 else 8 if n_groups > 16 else 16


def tile_grid(shape: Sequence[int], n_groups: int, tile_width: int) -> tuple[int, int]:
    """Return the grid of a backward kernel: the tiles of all feature maps, and the blocks that share the channels.

    Args:
        shape: Shape of the feature maps (N, C, H, W).
        n_groups: Number of threads that share the channels of a pixel.
        tile_width: A power of two.
    """
    n_images, _, height, width = shape
    n_tiles = n_images * -(-height // TILE_ROWS) * -(-width // tile_width)
    return n_tiles, -(-n_groups // (TILE_THREADS // tile_width))
