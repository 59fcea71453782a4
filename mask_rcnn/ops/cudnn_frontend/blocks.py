"""Convolutions of RGB images on the GPU.

The kernels of cuDNN for tensor cores need a multiple of 8 channels for float16 and of 4 for float32.  With the pixels
of 2 x 2 blocks as channels (space to depth) and zeros as further channels, the same convolution has such a number: a
7 x 7 convolution of stride 2 over 3 channels becomes a 4 x 4 convolution of stride 1 over 12 channels.  For an input of
800 x 1344 on an H200 it takes 71 instead of 149 microseconds in float16 and 113 instead of 159 in TF32, the blocks
included; without tensor cores, 502 instead of 278.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mask_rcnn.ops.cudnn_frontend.convolution import convolve
from mask_rcnn.ops.cudnn_frontend.precision import current_precision
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.cache import cached
from mask_rcnn.ops.runtime.memory_layout import as_nchw

#: The side of a block in pixels.
_SIDE = 2
_BLOCK_THREADS = 128


def convolve_few_channels(x: Array, W: Array, b: Array | None = None, *, pad: int, **options: Any) -> Array:
    """Return the result of :func:`mask_rcnn.ops.cudnn_frontend.convolve` with a stride of 2.

    Args:
        x: ``(N, 3, H, W)``, float32 or float16.
        W: ``(O, 3, k, k)``.
        b: ``(O,)``, or ``None``.
        pad: Number of zeros on all sides.
        options: Further options of :func:`mask_rcnn.ops.cudnn_frontend.convolve`.
    """
    precision = current_precision()
    if not precision.tensor_cores:
        return convolve(x, W, b, stride=2, pad=pad, **options)
    multiple = 8 if precision.storage.itemsize == 2 else 4
    channels = -(-x.shape[1] * _SIDE**2 // multiple) * multiple
    blocks = make_blocks(x, channels, np.dtype(np.float16 if precision.storage == np.float16 else np.float32))
    weight = cached(weight_of_blocks, W, channels, pad)
    return convolve(blocks, weight, b, pad=pad_of_blocks(x.shape[2:], W.shape[2:], pad), **options)


def make_blocks(x: Array, channels: int, dtype: np.dtype) -> Array:
    """Return blocks of pixels as channels, and zeros as further channels.

    Args:
        x: CuPy array ``(N, 3, H, W)``, float32 or float16, in any memory layout.
        channels: Channels of the result: 12, or 16 with 4 channels of zeros.
        dtype: Type of the result, float32 or float16; float16 stays float16.

    Returns:
        array: ``(N, channels, ceil(H / 2), ceil(W / 2))``, channels innermost in memory.
    """
    xp = get_array_module(x)
    if not (x.flags.c_contiguous or x.transpose(0, 2, 3, 1).flags.c_contiguous):
        x = xp.ascontiguousarray(x)
    source = x if x.flags.c_contiguous else x.transpose(0, 2, 3, 1)
    n, _, height, width = x.shape
    rows, columns = -(-height // _SIDE), -(-width // _SIDE)
    out_dtype = x.dtype if x.dtype == np.float16 else dtype
    y = xp.empty((n, rows, columns, channels), out_dtype)
    views = [cuda_kernels.as_argument(array) for array in (source, y)]
    names = ['half' if array.dtype == np.float16 else 'float' for array in (source, y)]
    steps = [np.int64(step // x.itemsize) for step in x.strides]
    if y.size:
        cuda_kernels.kernel('cudnn_frontend/blocks.cu', 'blocks_' + '_'.join(names))(
            (n * rows, -(-columns // _BLOCK_THREADS)),
            (_BLOCK_THREADS,),
            (
                views[0],
                *map(np.int32, (height, width)),
                *steps,
                *map(np.int32, (rows, columns, channels)),
                views[1],
            ),
        )
    return as_nchw(y)


def weight_of_blocks(W: Array, channels: int, pad: int) -> Array:
    """Return the weight ``(O, channels, ...)`` of the convolution of :func:`make_blocks` for ``W`` ``(O, C, k, k)``."""
    xp = get_array_module(W)
    n_out, n_channels, height, width = W.shape
    front = -pad % _SIDE  # the windows start at the first pixel of a block
    rows, columns = (-(-(length + front) // _SIDE) for length in (height, width))
    taps = xp.zeros((n_out, n_channels, rows * _SIDE, columns * _SIDE), W.dtype)
    taps[:, :, front : front + height, front : front + width] = W
    taps = taps.reshape(n_out, n_channels, rows, _SIDE, columns, _SIDE).transpose(0, 3, 5, 1, 2, 4)
    weight = xp.zeros((n_out, channels, rows, columns), W.dtype)
    weight[:, : n_channels * _SIDE**2] = taps.reshape(n_out, n_channels * _SIDE**2, rows, columns)
    return weight


def pad_of_blocks(size, ksize, pad: int) -> list[tuple[int, int]]:
    """Return the zeros before and after the blocks, for both axes."""
    pads = []
    for length, window in zip(size, ksize, strict=True):
        n_out = (length + 2 * pad - window) // _SIDE + 1
        before, taps = -(-pad // _SIDE), -(-(window + -pad % _SIDE) // _SIDE)
        pads.append((before, n_out - 1 + taps - before - -(-length // _SIDE)))
    return pads
