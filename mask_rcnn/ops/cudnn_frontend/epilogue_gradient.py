"""The gradient of a convolution's epilogue on the GPU: the derivative of ReLU and the gradient of the bias.

The gradient of the bias is a sum over all pixels.  CuPy (14) sums over the outer axes of an array slowly: on an H200,
the 33 biases of a Mask R-CNN with a ResNet-50 FPN take 8.6 ms per iteration.  Here blocks sum parts of the pixels, and
a second launch adds up these sums.  The order of the additions depends only on shape and alignment, without atomic
operations: the same arrays give the same bits in every run.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, channels_last, vector_lanes

_SOURCE = 'cudnn_frontend/epilogue_gradient.cu'
#: Threads of a block that sums (epilogue_gradient.cu), and the maximum number of those that share a pixel.
_THREADS, _MAX_COLUMNS = 256, 32
#: Pixels that a thread sums at least, and the maximum number of blocks: an H200 has 132 multiprocessors.
_MIN_PIXELS, _MAX_BLOCKS = 8, 512
#: Bytes of the smallest access to memory.
_SECTOR_BYTES = 32


def epilogue_gradient(gy: Array, y: Array | None = None, *, has_bias: bool = False) -> tuple[Array, Array | None]:
    """Return the gradients with respect to a convolution before its epilogue and to the bias, in one pass over ``gy``.

    An infinite gradient is NaN where ReLU is 0, so that the loss scaling of float16 detects it.

    Args:
        gy: ``(N, C, H, W)`` CuPy array, float32 or float16: the gradient of the result.
        y: ``(N, C, H, W)``, the result of ReLU; ``None`` without ReLU.
        has_bias: Whether to compute the gradient of the bias.

    Returns:
        The gradient before ReLU, ``(N, C, H, W)`` of the type of ``gy``, which may be ``gy``; the gradient of the bias,
        ``(C,)`` float32, summed in float32, or ``None``.
    """
    if y is None and not has_bias:
        return gy, None
    source = channels_last(gy)
    # Another type than that of the gradient must not round a small result to 0.
    output = None if y is None else channels_last(y if y.dtype == gy.dtype else y > 0, gy.dtype)
    g = source if output is None else get_array_module(gy).empty_like(source)
    if not has_bias:
        _multiply_by_derivative(source, output, g)
        return as_nchw(g), None
    return as_nchw(g), _sum_pixels(source, output, g)


def _multiply_by_derivative(gy: Array, y: Array, g: Array) -> None:
    """Write the gradient before ReLU to ``g``; contiguous arrays of one shape and type."""
    gy, y, g = (cuda_kernels.as_argument(array).ravel() for array in (gy, y, g))
    kernel, lanes = _variant('relu_gradient', gy, y, g)
    cuda_kernels.launch(kernel, g.size // lanes, (gy, y, np.int64(g.size), g))


def _sum_pixels(gy: Array, y: Array | None, g: Array) -> Array:
    """Return the sums over pixels ``(C,)`` of ``(N, H, W, C)``; with ReLU, of the gradient before it, written to ``g``.

    The arrays are contiguous.
    """
    channels = gy.shape[-1]
    if gy.size == 0:
        return get_array_module(gy).zeros(channels, np.float32)
    sums = _sum_parts(*(None if array is None else array.reshape(-1, channels) for array in (gy, y, g)))
    return sums[0] if len(sums) == 1 else _sum_parts(sums, None, sums, n_parts=1)[0]


def _sum_parts(gy: Array, y: Array | None, g: Array, n_parts: int | None = None) -> Array:
    """Return the sums over parts of the pixels, ``(number of parts, C)`` float32, of contiguous ``(pixels, C)``.

    Args:
        gy: The gradient of the result.
        y: The result of ReLU, or ``None``.
        g: Receives the gradient before ReLU if ``y`` is given.
        n_parts: The number of parts, by default as many as keep a GPU busy.
    """
    n_pixels, channels = gy.shape
    arrays = [cuda_kernels.as_argument(array) for array in (gy, gy if y is None else y, g)]
    kernel, lanes = _variant('sum_pixels', *arrays)
    n_groups = channels // lanes
    # With a single part, blocks are as narrow and as many as possible.
    max_columns = _MAX_COLUMNS if n_parts is None else max(_SECTOR_BYTES // (lanes * gy.itemsize), 1)
    columns = min(1 << (n_groups - 1).bit_length(), max_columns)
    n_blocks = -(-n_groups // columns)
    if n_parts is None:
        n_parts = min(-(-n_pixels // (_THREADS // columns * _MIN_PIXELS)), max(_MAX_BLOCKS // n_blocks, 1))
    sums = get_array_module(gy).empty((n_parts, channels), np.float32)
    kernel(
        (n_blocks, n_parts),
        (_THREADS,),
        (
            *arrays[:2],
            np.int32(y is not None),
            np.int64(n_pixels),
            np.int32(channels),
            np.int32(columns),
            arrays[2],
            sums,
        ),
    )
    return sums


def _variant(name: str, *arrays: Array):
    """Return the kernel for arrays as its arguments, and the number of its lanes."""
    is_half = arrays[0].dtype == np.uint16
    lanes = vector_lanes(8 if is_half else 4, *arrays)
    return cuda_kernels.kernel(_SOURCE, f'{name}_{"half_" if is_half else ""}{lanes}'), lanes
