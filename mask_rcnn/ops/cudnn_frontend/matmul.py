"""Float32 convolutions without overlapping windows as one matrix multiplication by cuBLAS.

With the channels innermost, the pixels of a 1x1 convolution are the rows of a matrix.  The same holds for windows of
any size without padding whose stride is their size, as in the transposed convolution of the mask head, after a copy
that makes each window adjacent in memory.  A 1x1 convolution with a larger stride reads only some of the pixels.

cuDNN computes 1x1 convolutions with float32 factors at a third of the rate of a matrix multiplication (cuDNN 9.19,
H200: 19 of about 60 TFLOP/s for 512 to 2048 channels on 49000 pixels, 5.45 ms), or converts its arrays to and from
channels outermost.

Arrays are ``(N, C, H, W)`` with the channels innermost in memory, as in
:mod:`mask_rcnn.ops.cudnn_frontend.convolution`.
"""

from __future__ import annotations

import math

from mask_rcnn.ops.cudnn_frontend import cublas, graphs
from mask_rcnn.ops.cudnn_frontend.graphs import ConvProblem
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, as_nhwc


def should_use(problem: ConvProblem) -> bool:
    """Return whether a problem of true float32 is computed here; it depends on nothing but the problem."""
    return (
        problem.dtype == 'float32'
        and not problem.tensor_cores
        and problem.groups == 1
        and problem.pad == ((0, 0), (0, 0))
        and problem.w[2:] in ((1, 1), problem.stride)
        and 0 not in (*problem.x, *problem.y)
    )


def compute(problem: ConvProblem, inputs: dict[int, Array]) -> Array:
    """Compute a problem without its epilogue.

    Args:
        problem: A problem for which :func:`should_use` is true.
        inputs: Uid of :mod:`~mask_rcnn.ops.cudnn_frontend.graphs` -> contiguous channels-last float32 array.

    Returns:
        CuPy array: ``problem.out`` with the channels innermost.
    """
    operation = {'forward': _forward, 'data': _data, 'filter': _filter}[problem.kind]
    return operation(problem, {uid: as_nhwc(array) for uid, array in inputs.items()})


def _forward(problem, inputs):
    windows = _window_rows(problem, inputs[graphs.X])
    w = inputs[graphs.W].reshape(problem.w[0], -1)
    y = _product(windows, w, transpose_b=True)
    return as_nchw(y.reshape(_nhwc(problem.y)))


def _data(problem, inputs):
    y = inputs[graphs.Y].reshape(-1, problem.w[0])
    windows = _product(y, inputs[graphs.W].reshape(problem.w[0], -1))
    if problem.stride == (1, 1):
        return as_nchw(windows.reshape(_nhwc(problem.x)))
    xp = get_array_module(y)
    x = (xp.empty if windows.size == math.prod(problem.x) else xp.zeros)(_nhwc(problem.x), y.dtype)
    view = _window_view(problem, x)
    view[...] = windows.reshape(view.shape)
    return as_nchw(x)


def _filter(problem, inputs):
    windows = _window_rows(problem, inputs[graphs.X])
    y = inputs[graphs.Y].reshape(-1, problem.w[0])
    w = _product(y, windows, transpose_a=True)
    return as_nchw(w.reshape(_nhwc(problem.w)))


def _window_rows(problem, x):
    """Return the windows of ``x`` ``(N, H, W, C)`` as the rows of a matrix, ``(N * oh * ow, kh * kw * C)``."""
    if problem.stride == (1, 1):
        return x.reshape(-1, problem.x[1])
    windows = _window_view(problem, x)
    return get_array_module(x).ascontiguousarray(windows).reshape(-1, math.prod(windows.shape[3:]))


def _window_view(problem, x):
    """Return a view of the windows of ``x`` ``(N, H, W, C)`` as ``(N, oh, ow, kh, kw, C)``."""
    n, _, rows, columns = problem.y
    shape = n, rows, columns, *problem.w[2:], problem.x[1]
    image, row, pixel, element = x.strides
    strides = image, problem.stride[0] * row, problem.stride[1] * pixel, row, pixel, element
    return get_array_module(x).lib.stride_tricks.as_strided(x, shape, strides)


def _nhwc(shape):
    n, channels, height, width = shape
    return n, height, width, channels


def _product(a, b, **transpose):
    """Return the product of two contiguous matrices; see :func:`mask_rcnn.ops.cudnn_frontend.cublas.matmul`."""
    rows = a.shape[1 if transpose.get('transpose_a') else 0]
    columns = b.shape[0 if transpose.get('transpose_b') else 1]
    out = get_array_module(a).empty((rows, columns), a.dtype)
    cublas.matmul(a, b, out, **transpose)
    return out
