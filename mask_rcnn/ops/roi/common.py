"""What the functions that pool regions of interest share: their arguments, checked, memory layouts, bin ranges."""

from __future__ import annotations

import chainer
import numpy as np

#: Threads of a block that computes a row of a RoI's bins.
BIN_THREADS = 128
#: Height of the tile of pixels that a block of a backward kernel owns, and its threads; the sources have them, too.
TILE_ROWS, TILE_THREADS = 4, 256


def as_pair(size: int | tuple[int, int], name: str = 'output_size') -> tuple[int, int]:
    """Return ``size`` as ``(height, width)``; an int stands for both."""
    height, width = (size, size) if np.ndim(size) == 0 else size
    if height < 1 or width < 1:
        raise ValueError(f'{name} must be at least 1, not {size!r}')
    return int(height), int(width)


def check_arguments(x, rois, roi_indices, bin_step: int):
    """Check what every RoI pooling takes and return ``rois`` and ``roi_indices`` as plain arrays.

    Args:
        x: Feature maps (N, C, H, W), floating point, variable or array.
        rois: (R, 4).
        roi_indices: (R,).  Looking at their values would make the GPU wait for them: only on the CPU do
            indices outside the batch raise an error.
        bin_step: At least 1.

    Returns:
        ``rois`` float32 and ``roi_indices`` int32, both contiguous.

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
    xp = chainer.backend.get_array_module(rois)
    if xp is np and len(rois) and not (roi_indices.min() >= 0 and roi_indices.max() < x.shape[0]):
        raise ValueError(f'roi_indices must be in [0, {x.shape[0]}), got {roi_indices.min()} to {roi_indices.max()}')
    return (xp.ascontiguousarray(rois, dtype=np.float32), xp.ascontiguousarray(roi_indices, dtype=np.int32))


def pixel_range(xp, first, count, size: int):
    """Return the pixels of one axis that any bin of a RoI reads, ``[begin, end)``, both int32 (R,).

    Args:
        xp: NumPy or CuPy.
        first: First pixel of each bin (R, P) int32.
        count: Number of pixels of each bin (R, P) int32; 0 for an empty bin.
        size: Length of the axis.
    """
    if len(first) == 0:  # CuPy refuses to reduce an empty array
        return xp.empty((0,), np.int32), xp.empty((0,), np.int32)
    begin = xp.where(count > 0, first, size).min(axis=1).astype(np.int32)
    end = xp.where(count > 0, first + count, 0).max(axis=1).astype(np.int32)
    return begin, end


# For the kernels, which take several channels of a pixel or bin at once


def common_lanes(max_lanes: int, *arrays) -> int:
    """Return how many channels a thread can load at once: ``max_lanes`` or 1.

    Args:
        max_lanes: A power of two.
        arrays: What is loaded, channels last.
    """
    size = min(max_lanes * arrays[0].itemsize, 16)
    fits = all(array.shape[-1] % max_lanes == 0 and _address(array) % size == 0 for array in arrays)
    return max_lanes if fits else 1


def tile_columns(groups: int) -> int:
    """Return how wide a backward kernel's tiles of pixels are, so that few of its threads have no channels.

    Args:
        groups: Number of threads that share a pixel's channels.
    """
    return 4 if groups > 32 else 8 if groups > 16 else 16


def tile_grid(shape, groups: int, columns: int) -> tuple[int, int]:
    """Return a backward kernel's grid: a block for every tile of every map, and for as many channels as it can.

    Args:
        shape: Of the maps (N, C, H, W).
        groups: Number of threads that share a pixel's channels.
        columns: What :func:`tile_columns` says, or less.
    """
    n_images, _, height, width = shape
    return (n_images * -(-height // TILE_ROWS) * -(-width // columns), -(-groups // (TILE_THREADS // columns)))


def _address(array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
