"""Tile sizes and thresholds of the convolutions on the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ConvTuning:
    """Tile sizes and thresholds; results differ only in their rounding.

    Args:
        tile_bytes: Size of a tile of the im2col matrix, so that it stays in the second-level cache.
        min_tile_columns: Minimum number of columns of such a tile, because each matmul reads all weights.
        panel_bytes: Size of the panels that are gathered at once, so that they stay in the second-level cache.  With
            more columns, longer parts of a row of the images are read at once (256 channels of 184 x 336 pixels: 5.4 ms
            with 512 KB, 7.5 ms with 256 KB, 11.7 ms with 64 KB).
        pointwise_tile_columns: The number of columns of a tile of a pointwise convolution.
        col2im_bytes: Size of the columns that are added to images at once in the gradient of strided convolutions.
        min_multiplications: The number of multiplications that justifies a thread.
        winograd_block_bytes: Size of the transformed tiles that a thread holds at once, before and after the matmul.
        min_winograd_block_tiles: Minimum number of tiles of such a block, because each block reads all transformed
            weights (CPU time with 48 and with 96 tiles: 256 channels of 184 x 336 pixels 270 and 284 ms, 1024 channels
            of 50 x 84 pixels 290 and 281 ms).
        min_winograd_correlated_tiles: Minimum number of tiles of a block in the gradient of the weights, because each
            block adds to all of them.
        min_winograd_work: Tiles times input and output channels that justify several threads.
        min_winograd_tiles: Minimum number of tiles per convolution.  With fewer, the transform of the weights costs
            more than the matmuls save (40 tiles, 1024 channels: 0.10 instead of 0.15 s; 24 tiles, 512 channels: no
            gain).
        min_winograd_channels: Minimum number of input and of output channels.  With fewer, the transforms cost more
            than the matmuls.
        grouped_tile_bytes: Size of the pixels and sums of a tile of a group of a grouped convolution.
        min_grouped_winograd_channels: Minimum number of input channels per group.  With fewer, the transforms cost more
            than the multiplications that they save (4 channels: 44 instead of 42 GFLOP/s of one CPU; 8 channels: 57
            instead of 67; 32 channels: 86 instead of 110).
    """

    tile_bytes: int = 1 << 20
    panel_bytes: int = 512 << 10
    min_tile_columns: int = 256
    pointwise_tile_columns: int = 2048
    col2im_bytes: int = 32 << 20
    min_multiplications: int = 1 << 21

    winograd_block_bytes: int = 1 << 20
    min_winograd_block_tiles: int = 48
    min_winograd_correlated_tiles: int = 256
    min_winograd_work: int = 1 << 17
    min_winograd_tiles: int = 32
    min_winograd_channels: int = 16

    grouped_tile_bytes: int = 512 << 10
    min_grouped_winograd_channels: int = 8


_current = ConvTuning()


def current_tuning() -> ConvTuning:
    """Return the tuning in use."""
    return _current


@contextlib.contextmanager
def using_tuning(tuning: ConvTuning) -> Iterator[None]:
    """Use another tuning, in all threads, inside a ``with`` block."""
    global _current
    previous, _current = _current, tuning
    try:
        yield
    finally:
        _current = previous
