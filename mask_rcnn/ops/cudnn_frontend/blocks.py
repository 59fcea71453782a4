"""Convolutions of RGB images on the GPU.

cuDNN's fast kernels need a multiple of 8 channels for float16 and of 4 for float32.  With zeros as further channels,
or with the pixels of 2 x 2 blocks as channels (space to depth), the same convolution has such a number.  A 7 x 7
convolution of stride 2 over 3 channels becomes a 4 x 4 convolution of stride 1 over 12 channels, and zeros.
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

#: The side of the blocks whose pixels become channels, by the layout of the input.
BLOCK_SIDES = {'padded': 1, 'space_to_depth': 2}

_BLOCK_THREADS = 128


def convolve_few_channels(
    x: Array, W: Array, b: Array | None = None, *, stride: int, pad: int, layout: str = 'plain', **options: Any
) -> Array:
    """Return the result of :func:`mask_rcnn.ops.cudnn_frontend.convolve`, computed in another layout of the input.

    Args:
        x: ``(N, 3, H, W)``, float32 or float16.
        W: ``(O, 3, k, k)``.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows; with the layout ``'space_to_depth'`` it must be 2.
        pad: Number of zeros on all sides.
        layout: ``'plain'``: as it is; ``'padded'``: with zeros as further channels; or ``'space_to_depth'``.
        options: Further options of :func:`mask_rcnn.ops.cudnn_frontend.convolve`.
    """
    if layout == 'plain':
        return convolve(x, W, b, stride=stride, pad=pad, **options)
    side, is_half = BLOCK_SIDES[layout], current_precision().storage == np.float16
    multiple = 8 if current_precision().storage.itemsize == 2 else 4
    channels = -(-x.shape[1] * side**2 // multiple) * multiple
    blocks = make_blocks(x, side, channels, np.dtype(np.float16 if is_half else np.float32))
    weight = cached(weight_of_blocks, W, side, channels, pad)
    return convolve(
        blocks,
        weight,
        b,
        stride=stride // side,
        pad=pad_of_blocks(x.shape[2:], W.shape[2:], side, stride, pad),
        **options,
    )


def make_blocks(x: Array, side: int, channels: int, dtype: np.dtype) -> Array:
    """Return blocks of pixels as channels, and zeros as further channels.

    Args:
        x: CuPy array ``(N, 3, H, W)``, float32 or float16, in any memory layout.
        side: Side of a block in pixels, 1 or 2.
        channels: Channels of the result, ``3 * side**2`` rounded up to a multiple of 4 or 8.
        dtype: Type of the result, float32 or float16; float16 stays float16.

    Returns:
        array: ``(N, channels, ceil(H / side), ceil(W / side))``, channels innermost in memory.
    """
    xp = get_array_module(x)
    if not (x.flags.c_contiguous or x.transpose(0, 2, 3, 1).flags.c_contiguous):
        x = xp.ascontiguousarray(x)
    source = x if x.flags.c_contiguous else x.transpose(0, 2, 3, 1)
    n, _, height, width = x.shape
    rows, columns = -(-height // side), -(-width // side)
    out_dtype = x.dtype if x.dtype == np.float16 else dtype
    y = xp.empty((n, rows, columns, channels), out_dtype)
    views = [array.view(np.uint16) if array.dtype == np.float16 else array for array in (source, y)]
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
                *map(np.int32, (side, rows, columns, channels)),
                views[1],
            ),
        )
    return as_nchw(y)


def weight_of_blocks(W: Array, side: int, channels: int, pad: int) -> Array:
    """Return the weight ``(O, channels, ...)`` of the convolution of :func:`make_blocks` for ``W`` ``(O, C, k, k)``."""
    xp = get_array_module(W)
    n_out, n_channels, height, width = W.shape
    front = -pad % side  # the windows start at the first pixel of a block
    rows, columns = (-(-(length + front) // side) for length in (height, width))
    taps = xp.zeros((n_out, n_channels, rows * side, columns * side), W.dtype)
    taps[:, :, front : front + height, front : front + width] = W
    taps = taps.reshape(n_out, n_channels, rows, side, columns, side).transpose(0, 3, 5, 1, 2, 4)
    weight = xp.zeros((n_out, channels, rows, columns), W.dtype)
    weight[:, : n_channels * side**2] = taps.reshape(n_out, n_channels * side**2, rows, columns)
    return weight


def pad_of_blocks(size, ksize, side: int, stride: int, pad: int) -> list[tuple[int, int]]:
    """Return the zeros before and after the blocks, for both axes."""
    pads = []
    for length, window in zip(size, ksize, strict=True):
        n_out = (length + 2 * pad - window) // stride + 1
        before, taps = -(-pad // side), -(-(window + -pad % side) // side)
        pads.append((before, (n_out - 1) * (stride // side) + taps - before - -(-length // side)))
    return pads
