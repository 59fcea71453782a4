"""Float32 3x3 convolution of stride 1 by Winograd's algorithm F(4x4, 3x3) on the GPU.

The algorithm, its polynomials and therefore its errors are those of the CPU (:mod:`mask_rcnn.ops.conv.winograd`).
A kernel transforms tiles of 6x6 input pixels; 36 matrix multiplications by cuBLAS sum over the channels; another kernel
transforms the sums to 4x4 output pixels and applies the epilogue.  The channels are innermost in all arrays, so that
neighbouring threads access neighbouring elements.

On 1000 RoIs of 7x7 pixels and 512 channels (res5), cuDNN's engine for true float32 takes 10.9 ms (cuDNN 9.19, H200: 21
of about 60 TFLOP/s, 231 GFLOP).  The tiles need 75 GFLOP and 1.3 GB of memory traffic.
"""

from __future__ import annotations

import math

import numpy as np

from mask_rcnn.ops.cudnn_frontend import cublas
from mask_rcnn.ops.cudnn_frontend.graphs import ConvProblem
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, as_nhwc

#: Minimum number of input and of output channels.  With fewer, the transforms move more memory than the matrix
#: multiplications save.
_MIN_CHANNELS = 64
#: Minimum number of tiles per convolution; as on the CPU, so that both use the algorithm for the same large layers.
_MIN_TILES = 32
#: Maximum size of the transformed tiles and of their sums together.
_MAX_WORKSPACE = 512 << 20
#: The number of tiles at once is a multiple of the height of cuBLAS's blocks.
_TILE_MULTIPLE = 128

_OUT_TILE, _POINTS = 4, 36
_SOURCE = 'cudnn_frontend/winograd.cu'


def should_use(problem: ConvProblem) -> bool:
    """Return whether a problem of true float32 is computed here; it depends on nothing but the problem."""
    return (
        problem.kind in ('forward', 'data')
        and problem.dtype == 'float32'
        and not problem.tensor_cores
        and problem.groups == 1
        and problem.w[2:] == (3, 3)
        and problem.stride == (1, 1)
        and max(max(pad) for pad in problem.pad) <= 2
        and min(problem.w[:2]) >= _MIN_CHANNELS
        and _count_tiles(problem.out) >= _MIN_TILES
    )


def transform_weights(w: Array, transposed: bool) -> Array:
    """Return the transformed weights, ``(36, C, O)``; four times the size of ``w``.

    Args:
        w: ``(O, C, 3, 3)`` float32 with the channels innermost.
        transposed: Whether to return the weights of the transposed convolution instead, ``(36, O, C)``.
    """
    filters = as_nhwc(w)
    out_channels, channels = w.shape[:2]
    shape = (out_channels, channels) if transposed else (channels, out_channels)
    out = get_array_module(w).empty((_POINTS, *shape), np.float32)
    arguments = filters, np.int32(out_channels), np.int32(channels), np.int32(transposed), out
    cuda_kernels.launch(cuda_kernels.kernel(_SOURCE, 'winograd_weights'), out_channels * channels, arguments)
    return out


def convolve(
    problem: ConvProblem,
    images: Array,
    weights: Array,
    b: Array | None = None,
    residual: Array | None = None,
    relu: bool = False,
    clip_max: float = math.inf,
) -> Array:
    """Return ``relu(convolution + residual + b)`` for a problem of kind ``'forward'``, otherwise the gradient.

    Args:
        problem: A problem for which :func:`should_use` is true.
        images: ``problem.x``, or ``problem.y`` for the gradient; float32 with the channels innermost.
        weights: The result of :func:`transform_weights`, transposed for the gradient.
        b: ``(O,)`` float32, or ``None``.
        residual: ``problem.y`` float32 with the channels innermost, to add, or ``None``.
        relu: Whether to apply ReLU.
        clip_max: Maximum of the result.

    Returns:
        CuPy array: ``problem.out`` with the channels innermost.
    """
    xp = get_array_module(images)
    n, channels, height, width = problem.out
    pad_top, pad_left = (pad[0] if problem.kind == 'forward' else 2 - pad[0] for pad in problem.pad)
    grid = np.int32(-(-height // _OUT_TILE)), np.int32(-(-width // _OUT_TILE))
    y = xp.empty((n, height, width, channels), np.float32)
    x = as_nhwc(images)
    epilogue = (
        np.int32(b is not None),
        y if b is None else b,
        np.int32(residual is not None),
        y if residual is None else as_nhwc(residual),
        np.float32(0 if relu else -math.inf),
        np.float32(clip_max),
    )
    in_shape = tuple(map(np.int32, (x.shape[3], x.shape[1], x.shape[2], pad_top, pad_left)))
    out_shape = tuple(map(np.int32, (channels, height, width)))
    transform_input, transform_output = (
        cuda_kernels.kernel(_SOURCE, name) for name in ('winograd_input', 'winograd_output')
    )
    n_tiles = _count_tiles(problem.out)
    chunk_size = _choose_chunk_size(n_tiles, x.shape[3] + channels)
    tile_memory, sum_memory = (xp.empty(_POINTS * chunk_size * c, np.float32) for c in (x.shape[3], channels))
    for first in range(0, n_tiles, chunk_size):
        size = min(chunk_size, n_tiles - first)
        tiles, sums = (
            memory[: _POINTS * size * c].reshape(_POINTS, size, c)
            for memory, c in ((tile_memory, x.shape[3]), (sum_memory, channels))
        )
        block = *grid, np.int64(first), np.int32(size)
        cuda_kernels.launch(transform_input, size * x.shape[3], (x, *in_shape, *block, tiles))
        cublas.matmul(tiles, weights, sums)
        cuda_kernels.launch(transform_output, size * channels, (sums, *out_shape, *block, *epilogue, y))
    return as_nchw(y)


def _count_tiles(shape) -> int:
    """Return the number of tiles of an output ``(N, O, oh, ow)``."""
    return shape[0] * -(-shape[2] // _OUT_TILE) * -(-shape[3] // _OUT_TILE)


def _choose_chunk_size(n_tiles: int, channels: int) -> int:
    """Return the number of tiles at once for the sum of input and output channels."""
    max_tiles = max(_MAX_WORKSPACE // (_POINTS * channels * 4), 1)
    size = -(-n_tiles // -(-n_tiles // max_tiles))
    return min(-(-size // _TILE_MULTIPLE) * _TILE_MULTIPLE, max_tiles, n_tiles)
