"""Shared parts of the RoI pooling operations: validation of arguments, the pixels that a RoI reads, channel blocks.

On the CPU, feature maps are pooled in blocks of channels, with the channels of a block last.  RoI pooling treats all
channels alike.  If the channels of a block are adjacent in memory, the compiler vectorises over them, and the block
stays in the cache while all RoIs are pooled from it.
"""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.parallel import jit

#: Channels per block: the part of them that one RoI reads should fit into the first-level cache.
BLOCK = 64


def as_pair(size: int | tuple[int, int], name: str = 'output_size') -> tuple[int, int]:
    """Return ``size`` as ``(height, width)``; an int is both.

    Args:
        size: An int or a pair of ints.
        name: The name of the argument, for the error message.

    Raises:
        ValueError: A size is less than 1.
    """
    height, width = (size, size) if isinstance(size, (int, np.integer)) else size
    if height < 1 or width < 1:
        raise ValueError(f'{name} must be at least 1, not {size!r}')
    return int(height), int(width)


def check_arguments(x: Any, rois: Any, roi_indices: Array, bin_step: int) -> tuple[Array, Array]:
    """Validate the arguments that all kinds of RoI pooling have in common.

    Args:
        x: Feature maps (N, C, H, W), floating point, variable or array.
        rois: (R, 4), variable or array.
        roi_indices: (R,).  Their values are validated on the CPU only: reading them would synchronise a GPU.
        bin_step: At least 1.

    Returns:
        ``rois`` float32 and ``roi_indices`` int32, contiguous arrays.

    Raises:
        ValueError: If a shape, a type or an index is wrong.
    """
    if x.ndim != 4 or x.dtype.kind != 'f' or 0 in x.shape[1:]:
        raise ValueError(f'x must be floating-point feature maps (N, C, H, W), not {x.dtype} {x.shape}')
    if bin_step < 1:
        raise ValueError(f'bin_step must be at least 1, not {bin_step!r}')
    rois = rois.array if isinstance(rois, chainer.Variable) else rois
    if rois.ndim != 2 or rois.shape[1] != 4:
        raise ValueError(f'rois must have the shape (R, 4), not {rois.shape}')
    if roi_indices.shape != rois.shape[:1]:
        raise ValueError(f'roi_indices must have the shape ({len(rois)},), not {roi_indices.shape}')
    xp = get_array_module(rois)
    if xp is np and len(rois) and not (roi_indices.min() >= 0 and roi_indices.max() < x.shape[0]):
        raise ValueError(f'roi_indices must be in [0, {x.shape[0]}), got {roi_indices.min()} to {roi_indices.max()}')
    return (xp.ascontiguousarray(rois, dtype=np.float32), xp.ascontiguousarray(roi_indices, dtype=np.int32))


def pixel_range(first: Array, count: Array, size: int) -> tuple[Array, Array]:
    """Return the range of pixels that the bins of each RoI read along one axis.

    Args:
        first: First pixel of each bin (R, P) int32.
        count: Number of pixels of each bin (R, P) int32; 0 for an empty bin.
        size: Length of the axis.

    Returns:
        ``begin`` and ``end`` of the half-open range, both (R,) int32.
    """
    xp = get_array_module(first)
    if len(first) == 0:  # CuPy does not reduce empty arrays
        return xp.empty((0,), np.int32), xp.empty((0,), np.int32)
    begin = xp.where(count > 0, first, size).min(axis=1).astype(np.int32)
    end = xp.where(count > 0, first + count, 0).max(axis=1).astype(np.int32)
    return begin, end


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
