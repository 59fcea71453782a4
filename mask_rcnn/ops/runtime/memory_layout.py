"""Memory layouts and compute types of activations, whose shape is always ``(N, C, H, W)``.

On the CPU the channels are outermost in memory, ``(C, N, H, W)``; on a GPU they are innermost, ``(N, H, W, C)``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.parallel import parallel_for

#: The number of bytes to copy that justifies a thread.
_MIN_BYTES = 1 << 18


def channels_first(x: np.ndarray, dtype: Any = None) -> np.ndarray:
    """Return ``(N, C, H, W)`` as a contiguous ``(C, N, H, W)``; copy only if the memory layout differs.

    Args:
        x: NumPy array.
        dtype: Type of the result; by default that of ``x``.
    """
    return np.ascontiguousarray(x.transpose(1, 0, 2, 3), dtype)


def flatten_rows(x: np.ndarray) -> np.ndarray:
    """Return ``(N, ...)`` as a contiguous ``(N, C)``; copy on all CPUs, and only if the memory layout differs."""
    if x.flags.c_contiguous:
        return x.reshape(len(x), math.prod(x.shape[1:]))
    rows = array_pool.empty(x.shape, x.dtype)
    parallel_for(
        lambda start, stop: np.copyto(rows[start:stop], x[start:stop]),
        len(x),
        min_per_thread=_MIN_BYTES // max(x[:1].nbytes, 1),
    )
    return rows.reshape(len(x), -1)


def as_images(channels: Array) -> Array:
    """Return ``(C, N, H, W)`` as ``(N, C, H, W)`` without a copy."""
    return channels.transpose(1, 0, 2, 3)


def channels_last(x: Array, dtype: Any = None) -> Array:
    """Return ``(N, C, H, W)`` as a contiguous ``(N, H, W, C)``; copy only if the memory layout differs.

    Args:
        x: NumPy or CuPy array.
        dtype: Type of the result; by default that of ``x``.
    """
    return get_array_module(x).ascontiguousarray(as_nhwc(x), dtype)


def as_nhwc(x: Array) -> Array:
    """Return ``(N, C, H, W)`` as ``(N, H, W, C)`` without a copy.

    CuPy's element-wise kernels iterate over the axes in order, whatever the strides.  Without this view, neighbouring
    threads would access elements ``C`` apart, and results would have the channels outermost.
    """
    return x.transpose(0, 2, 3, 1)


def as_nchw(x: Array) -> Array:
    """Return ``(N, H, W, C)`` as ``(N, C, H, W)`` without a copy."""
    return x.transpose(0, 3, 1, 2)


def cast_nchw(x: Array, dtype: Any) -> Array:
    """Return ``(N, C, H, W)`` with the channels innermost in another type; ``x`` itself if it has the type."""
    return x if x.dtype == dtype else as_nchw(as_nhwc(x).astype(dtype))


def memory_axis_order(x: Array) -> list[int]:
    """Return the axes of an array in the order of its memory, the longest stride first.

    CuPy's element-wise kernels iterate over the axes in order: with the axes transposed this way they access
    neighbouring elements, and their results have the same memory layout.
    """
    return sorted(range(x.ndim), key=lambda axis: -x.strides[axis])


def compute_dtype(dtype: Any) -> np.dtype:
    """Return the type to compute in: float64 for float64, otherwise float32 (float16 is only a storage type)."""
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def vector_lanes(max_lanes: int, *arrays: Array) -> int:
    """Return the number of channels that a thread can load at once: ``max_lanes`` or 1.

    Args:
        max_lanes: A power of two.
        arrays: The arrays to load from, channels last.  Their channels must be a multiple of ``max_lanes``, and their
            memory must be aligned to it (at most to 16 bytes).
    """
    alignment = min(max_lanes * arrays[0].itemsize, 16)
    fits = all(array.shape[-1] % max_lanes == 0 and _address(array) % alignment == 0 for array in arrays)
    return max_lanes if fits else 1


def _address(array: Array) -> int:
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr
