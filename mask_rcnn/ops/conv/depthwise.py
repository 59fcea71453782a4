"""Depthwise 3x3 convolution: each channel has its own filter (Howard et al. 2017, section 3.1).

On the CPU each thread processes whole channels.  It copies one channel of an image, zero-padded, into a buffer whose
columns are sorted by their remainder modulo the stride.  Each tap then reads adjacent values for any stride, and no
loop checks for the border of the image.  On a GPU the channels are innermost in memory, as for cuDNN.
"""

from __future__ import annotations

import chainer
import numpy as np
from chainer.utils import type_check

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.runtime import array_pool, cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_images, as_nchw, channels_first, channels_last, compute_dtype
from mask_rcnn.ops.runtime.parallel import jit, parallel_for

_KSIZE = 3
_BLOCK_THREADS = 256
#: The number of filters whose gradients a block sums.
_BLOCK_FILTERS = 32
#: Maximum number of partial sums per filter, which are added afterwards.
_MAX_PARTIAL_SUMS = 256

Pad = tuple[tuple[int, int], tuple[int, int]]


def same_padding(size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and after an axis for TensorFlow's ``'SAME'`` convolution.

    The output has ``ceil(size / stride)`` pixels; an odd zero goes to the end (TensorFlow
    ``core/framework/common_shape_fns.cc``, ``GetWindowedOutputSizeVerbose``).

    Args:
        size: Length of the axis in pixels.
        stride: Step of the windows, which are three pixels wide.
    """
    total = max((-(-size // stride) - 1) * stride + _KSIZE - size, 0)
    return total // 2, total - total // 2


def depthwise_convolution_2d(x: Array, W: Array, *, stride: int = 1, pad: Pad) -> chainer.Variable:
    """Convolve each channel with its filter; differentiable any number of times.

    The result has the same bits in every run and with any number of threads.

    Args:
        x: Images ``(N, C, H, W)``, floating point, array or variable.
        W: Filters ``(C, 1, 3, 3)`` of the same type, or float32 for float16 images; their gradient has their type.
        stride: Step of the windows in both directions.
        pad: Zeros ``((top, bottom), (left, right))`` around the images; see :func:`same_padding`.

    Returns:
        chainer.Variable: ``(N, C, (H + top + bottom - 3) // stride + 1, ...)``, with the channels outermost in memory,
        the fastest input of :mod:`mask_rcnn.ops.conv.convolution`; on a GPU innermost.

    Raises:
        chainer.utils.type_check.InvalidType: Shapes or types do not match.
    """
    return DepthwiseFunction(stride, pad).apply((x, W))[0]


def depthwise_convolve(x: Array, W: Array, bias: Array, *, stride: int, pad: Pad, clip_max: float) -> Array:
    """Return ``min(max(convolution + bias, 0), clip_max)``, computed in one pass and without a graph.

    Args:
        x: Images ``(N, C, H, W)``: a NumPy array, or a CuPy array that
            :func:`mask_rcnn.ops.cudnn_frontend.supports` accepts.
        W: Filters ``(C, 1, 3, 3)`` of the same type.
        bias: ``(C,)``.
        stride: Step of the windows in both directions.
        pad: Zeros ``((top, bottom), (left, right))`` around the images.
        clip_max: Maximum of the result.

    Returns:
        NumPy or CuPy array: Shape and memory layout are those of :func:`depthwise_convolution_2d`.
    """
    if get_array_module(x) is not np:
        return cudnn_frontend.convolve(x, W, bias, stride=stride, pad=pad, relu=True, clip_max=clip_max)
    return _forward_cpu(x, W, stride, pad, bias, 0.0, clip_max)


class DepthwiseFunction(chainer.FunctionNode):
    """The depthwise convolution."""

    def __init__(self, stride: int, pad: Pad):
        self.stride, self.pad = stride, pad

    def check_type_forward(self, in_types):
        expect, evaluate, x, W = type_check.expect, type_check.eval, in_types[0], in_types[1]
        expect(x.dtype.kind == 'f', x.ndim == 4, W.ndim == 4)
        if (evaluate(x.dtype), evaluate(W.dtype)) != (np.float16, np.float32):
            expect(W.dtype == x.dtype)
        expect(W.shape[0] == x.shape[1], W.shape[1] == 1, W.shape[2] == _KSIZE, W.shape[3] == _KSIZE)

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        x, W = inputs
        return (_forward_cpu(x, W, self.stride, self.pad),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        x, W = inputs
        return (_forward_gpu(x, W, self.stride, self.pad),)

    def backward(self, indexes, grad_outputs):
        x, W = self.get_retained_inputs()
        (gy,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(DepthwiseGradX(self.stride, self.pad, x.shape).apply((gy, W))[0])
        if 1 in indexes:
            gradients.append(DepthwiseGradW(self.stride, self.pad, W.dtype).apply((x, gy))[0])
        return gradients


class DepthwiseGradX(chainer.FunctionNode):
    """The gradient with respect to the images."""

    def __init__(self, stride: int, pad: Pad, shape):
        self.stride, self.pad, self.shape = stride, pad, shape

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        gy, W = inputs
        return (_grad_x_cpu(gy, W, self.stride, self.pad, self.shape),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        gy, W = inputs
        return (_grad_x_gpu(gy, W, self.stride, self.pad, self.shape),)

    def backward(self, indexes, grad_outputs):
        gy, W = self.get_retained_inputs()
        (ggx,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(depthwise_convolution_2d(ggx, W, stride=self.stride, pad=self.pad))
        if 1 in indexes:
            gradients.append(DepthwiseGradW(self.stride, self.pad, W.dtype).apply((ggx, gy))[0])
        return gradients


class DepthwiseGradW(chainer.FunctionNode):
    """The gradient with respect to the filters, of their type."""

    def __init__(self, stride: int, pad: Pad, dtype: np.dtype):
        self.stride, self.pad, self.dtype = stride, pad, dtype

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        x, gy = inputs
        return (_grad_w_cpu(x, gy, self.stride, self.pad, self.dtype),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        x, gy = inputs
        return (_grad_w_gpu(x, gy, self.stride, self.pad, self.dtype),)

    def backward(self, indexes, grad_outputs):
        x, gy = self.get_retained_inputs()
        (ggW,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(DepthwiseGradX(self.stride, self.pad, x.shape).apply((gy, ggW))[0])
        if 1 in indexes:
            gradients.append(depthwise_convolution_2d(x, ggW, stride=self.stride, pad=self.pad))
        return gradients


def _out_size(size, stride: int, pad: Pad) -> tuple[int, int]:
    """Return the height and width of the output for the height and width of the images."""
    height, width = ((n + sum(zeros) - _KSIZE) // stride + 1 for n, zeros in zip(size, pad, strict=True))
    return height, width


# GPU


def _forward_gpu(x, W, stride, pad):
    y_shape = (*x.shape[:2], *_out_size(x.shape[2:], stride, pad))
    return _map_gpu('depthwise_forward', x, W, y_shape, _geometry(x.shape, y_shape, stride, pad))


def _grad_x_gpu(gy, W, stride, pad, shape):
    return _map_gpu('depthwise_grad_x', gy, W, shape, _geometry(shape, gy.shape, stride, pad))


def _map_gpu(name, x, W, shape, geometry):
    """Launch a kernel that fills an array of a ``shape``, with one grid row per image row; return the array."""
    xp, dtype = get_array_module(x), compute_dtype(x.dtype)
    n_images, n_channels, height, width = shape
    y = xp.empty((n_images, height, width, n_channels), dtype)
    if y.size:
        grid = n_images * height, -(-width * n_channels // _BLOCK_THREADS)
        filters = xp.ascontiguousarray(W.reshape(n_channels, _KSIZE**2).T, dtype)
        cuda_kernels.kernel('conv/depthwise.cu', name, dtype)(
            grid, (_BLOCK_THREADS,), (channels_last(x, dtype), filters, *geometry, y)
        )
    return as_nchw(y).astype(x.dtype, order='K', copy=False)


def _grad_w_gpu(x, gy, stride, pad, w_dtype):
    xp, dtype = get_array_module(x), compute_dtype(x.dtype)
    n_images, n_channels, out_height = gy.shape[:3]
    grid = -(-n_channels // _BLOCK_FILTERS), max(min(n_images * out_height, _MAX_PARTIAL_SUMS), 1)
    partial_sums = xp.empty((grid[1], _KSIZE**2, n_channels), dtype)
    cuda_kernels.kernel('conv/depthwise.cu', 'depthwise_grad_w', dtype)(
        grid,
        (_BLOCK_THREADS,),
        (
            channels_last(x, dtype),
            channels_last(gy, dtype),
            np.int32(n_images),
            *_geometry(x.shape, gy.shape, stride, pad),
            partial_sums,
        ),
    )
    gw = xp.ascontiguousarray(partial_sums.sum(axis=0).T, w_dtype)
    return gw.reshape(n_channels, 1, _KSIZE, _KSIZE)


def _geometry(shape, out_shape, stride, pad):
    """Return the integer arguments that all kernels share, from ``channels`` to ``left``."""
    return tuple(map(np.int32, (*shape[1:], *out_shape[2:], stride, pad[0][0], pad[1][0])))


# CPU


def _forward_cpu(x, W, stride, pad, bias=None, low=-np.inf, high=np.inf):
    images, filters = channels_first(x, compute_dtype(x.dtype)), _contiguous(W)
    n_channels, n_images = images.shape[:2]
    y = array_pool.empty((n_channels, n_images, *_out_size(x.shape[2:], stride, pad)), images.dtype)
    bias = np.zeros(n_channels, y.dtype) if bias is None else _contiguous(bias)
    low, high = y.dtype.type(low), y.dtype.type(high)
    parallel_for(
        lambda start, stop: _forward_channels(images, filters, bias, stride, pad, low, high, y, start, stop), n_channels
    )
    return as_images(y).astype(x.dtype, copy=False)


def _grad_x_cpu(gy, W, stride, pad, shape):
    gradients, filters = channels_first(gy, compute_dtype(gy.dtype)), _contiguous(W)
    gx = np.empty((shape[1], shape[0], *shape[2:]), gradients.dtype)
    parallel_for(lambda start, stop: _grad_x_channels(gradients, filters, stride, pad, gx, start, stop), shape[1])
    return as_images(gx).astype(gy.dtype, copy=False)


def _grad_w_cpu(x, gy, stride, pad, w_dtype):
    images, gradients = (channels_first(array, compute_dtype(array.dtype)) for array in (x, gy))
    gw = np.empty((x.shape[1], 1, _KSIZE, _KSIZE), images.dtype)
    parallel_for(lambda start, stop: _grad_w_channels(images, gradients, stride, pad, gw, start, stop), x.shape[1])
    return gw.astype(w_dtype, copy=False)


def _contiguous(array):
    return np.ascontiguousarray(array, compute_dtype(array.dtype))


@jit
def _new_buffer(height, width, stride, pad, like):
    """Return zeros ``(rows, stride, columns)`` for one zero-padded channel of an image.

    Column ``q`` of the padded channel is at ``[:, q % stride, q // stride]``.
    """
    columns = pad[1][0] + width + pad[1][1]
    return np.zeros((pad[0][0] + height + pad[0][1], stride, (columns + stride - 1) // stride), like.dtype)


@jit
def _copy_to_buffer(buffer, image, pad):
    """Copy one channel of an image into a buffer."""
    stride, height, width = buffer.shape[1], image.shape[0], image.shape[1]
    for phase in range(stride):
        first, offset, n = _columns_of(phase, stride, pad[1][0], width)
        for i in range(height):
            row = buffer[pad[0][0] + i, phase]
            for j in range(n):
                row[offset + j] = image[i, first + j * stride]


@jit
def _copy_from_buffer(buffer, image, pad):
    """Copy a buffer to one channel of an image: the inverse of :func:`_copy_to_buffer`."""
    stride, height, width = buffer.shape[1], image.shape[0], image.shape[1]
    for phase in range(stride):
        first, offset, n = _columns_of(phase, stride, pad[1][0], width)
        for i in range(height):
            row = buffer[pad[0][0] + i, phase]
            for j in range(n):
                image[i, first + j * stride] = row[offset + j]


@jit
def _columns_of(phase, stride, left, width):
    """Return the first image column of a phase, its position in the buffer, and the number of columns."""
    first = (phase - left) % stride
    return first, (left + first) // stride, max((width - first + stride - 1) // stride, 0)


@jit
def _tap(buffer, row, tap, n):
    """Return the ``n`` values that one tap of the windows of a row reads."""
    stride = buffer.shape[1]
    return buffer[row, tap % stride, tap // stride : tap // stride + n]


@jit
def _forward_channels(x, W, bias, stride, pad, low, high, y, start, stop):
    """Convolve channels ``start`` to ``stop`` of ``x`` ``(C, N, H, W)``."""
    out_height, out_width = y.shape[2:]
    buffer = _new_buffer(x.shape[2], x.shape[3], stride, pad, x)
    for c in range(start, stop):
        w, b = W[c, 0], bias[c]
        for n in range(x.shape[1]):
            _copy_to_buffer(buffer, x[c, n], pad)
            for i in range(out_height):
                values = y[c, n, i]
                for k in range(3):
                    row = i * stride + k
                    a0, a1 = _tap(buffer, row, 0, out_width), _tap(buffer, row, 1, out_width)
                    a2 = _tap(buffer, row, 2, out_width)
                    w0, w1, w2 = w[k, 0], w[k, 1], w[k, 2]
                    if k == 0:
                        for j in range(out_width):
                            values[j] = b + a0[j] * w0 + a1[j] * w1 + a2[j] * w2
                    else:
                        for j in range(out_width):
                            values[j] += a0[j] * w0 + a1[j] * w1 + a2[j] * w2
                for j in range(out_width):
                    values[j] = min(max(values[j], low), high)


@jit
def _grad_x_channels(gy, W, stride, pad, gx, start, stop):
    """Add the gradients of channels ``start`` to ``stop`` to the pixels of their windows."""
    out_height, out_width = gy.shape[2:]
    buffer = _new_buffer(gx.shape[2], gx.shape[3], stride, pad, gy)
    for c in range(start, stop):
        for n in range(gy.shape[1]):
            buffer[:] = 0
            for i in range(out_height):
                values = gy[c, n, i]
                for k in range(3):
                    for t in range(3):
                        target, weight = _tap(buffer, i * stride + k, t, out_width), W[c, 0, k, t]
                        for j in range(out_width):
                            target[j] += values[j] * weight
            _copy_from_buffer(buffer, gx[c, n], pad)


@jit
def _grad_w_channels(x, gy, stride, pad, gw, start, stop):
    """Correlate channels ``start`` to ``stop`` with their gradients.

    First sum each column, so that the compiler can vectorise without a change of the order of additions; then sum the
    columns.
    """
    out_height, out_width = gy.shape[2:]
    buffer = _new_buffer(x.shape[2], x.shape[3], stride, pad, x)
    sums = np.empty((3, 3, out_width), x.dtype)
    for c in range(start, stop):
        sums[:] = 0
        for n in range(x.shape[1]):
            _copy_to_buffer(buffer, x[c, n], pad)
            for i in range(out_height):
                values = gy[c, n, i]
                for k in range(3):
                    for t in range(3):
                        source, total = _tap(buffer, i * stride + k, t, out_width), sums[k, t]
                        for j in range(out_width):
                            total[j] += source[j] * values[j]
        for k in range(3):
            for t in range(3):
                gw[c, 0, k, t] = sums[k, t].sum()
