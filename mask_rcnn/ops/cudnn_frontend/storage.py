"""The types and the memory layout of the arrays that cuDNN reads and writes."""

from __future__ import annotations

from typing import Any

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, as_nhwc


def to_storage(x: Array, storage: np.dtype) -> Array:
    """Return ``(N, C, H, W)`` in a storage type with the channels innermost; copy only if necessary.

    Args:
        x: ``(N, C, H, W)``, float32, float16 or already of the storage type.
        storage: Type of :attr:`~mask_rcnn.ops.cudnn_frontend.precision.Precision.storage`.
    """
    if x.dtype == storage:
        _, channels, height, width = x.shape
        size = x.itemsize
        if x.strides == (height * width * channels * size, size, width * channels * size, channels * size):
            return x  # the result of another convolution, usually
    return as_nchw(narrow(as_nhwc(x), storage))


def narrow(x: Array, storage: np.dtype) -> Array:
    """Return ``x``, float32, float16 or already of the storage type, contiguous and in it; copy only if necessary."""
    xp = get_array_module(x)
    if storage != np.uint16 or x.dtype == storage:
        return xp.ascontiguousarray(x, dtype=storage)
    x = xp.ascontiguousarray(x, dtype=np.float32)
    bits = xp.empty(x.shape, np.uint16)
    cuda_kernels.launch(
        cuda_kernels.kernel('cudnn_frontend/bfloat16.cu', 'float_to_bfloat16'), x.size, (x, np.int64(x.size), bits)
    )
    return bits


def widen(y: Array) -> Array:
    """Return ``(N, C, H, W)``: the bits of bfloat16 as float32, and other types unchanged."""
    if y.dtype != np.uint16:
        return y
    bits = as_nhwc(y)
    out = get_array_module(y).empty(bits.shape, np.float32)
    cuda_kernels.launch(
        cuda_kernels.kernel('cudnn_frontend/bfloat16.cu', 'bfloat16_to_float'),
        out.size,
        (bits, np.int64(out.size), out),
    )
    return as_nchw(out)


def scale_weight(W: Array, scale: Array | None, dtype: Any, *, channels_last: bool) -> Array:
    """Return ``W * scale``, rounded once to a type, in one launch.

    Args:
        W: ``(O, C, kh, kw)``, float32 or float16, in any memory layout.
        scale: ``(O, 1, 1, 1)`` float32, or ``None`` for 1.
        dtype: Type of the result, float32 or float16.
        channels_last: Whether the channels of the result are innermost in memory; otherwise it is contiguous.
    """
    xp = get_array_module(W)
    source = as_nhwc(W) if channels_last else W
    if scale is None:
        out = xp.ascontiguousarray(source, dtype)
    else:
        out = xp.empty(source.shape, dtype)
        xp.multiply(source, as_nhwc(scale) if channels_last else scale, out=out)
    return as_nchw(out) if channels_last else out
