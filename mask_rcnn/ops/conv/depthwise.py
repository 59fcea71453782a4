"""Depthwise 3x3 convolution: every channel has a filter of its own (Howard et al. 2017, section 3.1).

On the CPU a thread takes whole channels.  It copies an image's channel into a buffer with its border of zeros,
columns sorted by their place in a stride: then every tap reads numbers that lie side by side, whatever the
stride, and no loop asks where the image ends.  On the GPU channels are innermost in memory, as for cuDNN.
"""

from __future__ import annotations

import chainer
import numpy as np

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.roi.regions import compute_dtype
from mask_rcnn.ops.runtime import cuda_kernels, parallel
from mask_rcnn.ops.runtime.memory_layout import as_images, channels_first

_TAPS = 3
#: Threads of a block on the GPU; filters of which one adds up the gradients, and shares that are added up afterwards.
_THREADS, _SUMMED_FILTERS, _MAX_SHARES = 256, 32, 256


def same_padding(size: int, stride: int) -> tuple[int, int]:
    """Return the zeros before and behind an axis with which TensorFlow's ``'SAME'`` convolves it.

    The output has ``ceil(size / stride)`` pixels; an odd zero goes behind (TensorFlow
    ``core/framework/common_shape_fns.cc``, ``GetWindowedOutputSizeVerbose``).

    Args:
        size: Pixels of the axis.
        stride: Step of the windows, which are three pixels wide.
    """
    total = max((-(-size // stride) - 1) * stride + _TAPS - size, 0)
    return total // 2, total - total // 2


def depthwise_convolution_2d(
    x, W, *, stride: int = 1, pad: tuple[tuple[int, int], tuple[int, int]]
) -> chainer.Variable:
    """Convolve every channel with its own filter; differentiable any number of times.

    The same bits in every run, on any number of threads.

    Args:
        x: Images ``(N, C, H, W)``, floating point, array or variable.
        W: Filters ``(C, 1, 3, 3)`` of the same type.
        stride: Step of the windows in both directions.
        pad: Zeros ``((above, below), (left, right))`` of the images; see :func:`same_padding`.

    Returns:
        chainer.Variable: ``(N, C, (H + above + below - 3) // stride + 1, ...)``, with the channels outermost in
        memory, as :mod:`mask_rcnn.ops.conv.convolution` wants its input; on a GPU innermost.

    Raises:
        chainer.utils.type_check.InvalidType: Shapes or types do not fit.
    """
    return _Depthwise(stride, pad).apply((x, W))[0]


def depthwise_convolve(x, W, bias, *, stride: int, pad, clip_max: float):
    """Convolve every channel, add a bias and cut the result off, in one pass and without a graph.

    Args:
        x, W, stride, pad: As for :func:`depthwise_convolution_2d`, arrays: NumPy's, or what
            :func:`mask_rcnn.ops.cudnn_frontend.supports`.
        bias: ``(C,)``.
        clip_max: The result is cut off below 0 and above this.

    Returns:
        NumPy or CuPy array: ``min(max(convolution + bias, 0), clip_max)``, of the shape and layout that
        :func:`depthwise_convolution_2d` gives.
    """
    if chainer.backend.get_array_module(x) is not np:
        return cudnn_frontend.convolve(x, W, bias, stride=stride, pad=pad, relu=True, clip_max=clip_max)
    return _forward_cpu(x, W, stride, pad, bias, 0.0, clip_max)


class _Depthwise(chainer.FunctionNode):
    def __init__(self, stride, pad):
        self.stride, self.pad = stride, pad

    def check_type_forward(self, in_types):
        expect, x, W = chainer.utils.type_check.expect, in_types[0], in_types[1]
        expect(x.dtype.kind == 'f', W.dtype == x.dtype, x.ndim == 4, W.ndim == 4)
        expect(W.shape[0] == x.shape[1], W.shape[1] == 1, W.shape[2] == _TAPS, W.shape[3] == _TAPS)

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_forward_cpu(*inputs, self.stride, self.pad),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_forward_gpu(*inputs, self.stride, self.pad),)

    def backward(self, indexes, grad_outputs):
        x, W = self.get_retained_inputs()
        (gy,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(_DepthwiseGradX(self.stride, self.pad, x.shape).apply((gy, W))[0])
        if 1 in indexes:
            gradients.append(_DepthwiseGradW(self.stride, self.pad).apply((x, gy))[0])
        return gradients


class _DepthwiseGradX(chainer.FunctionNode):
    """The gradient with respect to the images."""

    def __init__(self, stride, pad, shape):
        self.stride, self.pad, self.shape = stride, pad, shape

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_grad_x_cpu(*inputs, self.stride, self.pad, self.shape),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_grad_x_gpu(*inputs, self.stride, self.pad, self.shape),)

    def backward(self, indexes, grad_outputs):
        gy, W = self.get_retained_inputs()
        (ggx,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(depthwise_convolution_2d(ggx, W, stride=self.stride, pad=self.pad))
        if 1 in indexes:
            gradients.append(_DepthwiseGradW(self.stride, self.pad).apply((ggx, gy))[0])
        return gradients


class _DepthwiseGradW(chainer.FunctionNode):
    """The gradient with respect to the filters."""

    def __init__(self, stride, pad):
        self.stride, self.pad = stride, pad

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_grad_w_cpu(*inputs, self.stride, self.pad),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_grad_w_gpu(*inputs, self.stride, self.pad),)

    def backward(self, indexes, grad_outputs):
        x, gy = self.get_retained_inputs()
        (ggW,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(_DepthwiseGradX(self.stride, self.pad, x.shape).apply((gy, ggW))[0])
        if 1 in indexes:
            gradients.append(depthwise_convolution_2d(x, ggW, stride=self.stride, pad=self.pad))
        return gradients


def _out_size(size, stride, pad) -> tuple[int, int]:
    """Return height and width of the output for those of the images."""
    return tuple((n + sum(zeros) - _TAPS) // stride + 1 for n, zeros in zip(size, pad))


# On the GPU


def _forward_gpu(x, W, stride, pad):
    y_shape = (*x.shape[:2], *_out_size(x.shape[2:], stride, pad))
    return _map_gpu('depthwise_forward', x, W, y_shape, _geometry(x.shape, y_shape, stride, pad))


def _grad_x_gpu(gy, W, stride, pad, shape):
    return _map_gpu('depthwise_grad_x', gy, W, shape, _geometry(shape, gy.shape, stride, pad))


def _map_gpu(name, x, W, shape, geometry):
    """Launch a kernel whose threads fill an array of a ``shape``, row by row; return it."""
    xp, dtype = chainer.backend.get_array_module(x), compute_dtype(x.dtype)
    n_images, n_channels, height, width = shape
    y = xp.empty((n_images, height, width, n_channels), dtype)
    if y.size:
        grid = n_images * height, -(-width * n_channels // _THREADS)
        filters = xp.ascontiguousarray(W.reshape(n_channels, _TAPS**2).T, dtype)
        cuda_kernels.kernel('conv/depthwise.cu', name, dtype)(
            grid, (_THREADS,), (_channels_last(x, dtype), filters, *geometry, y)
        )
    return y.transpose(0, 3, 1, 2).astype(x.dtype, order='K', copy=False)


def _grad_w_gpu(x, gy, stride, pad):
    xp, dtype = chainer.backend.get_array_module(x), compute_dtype(x.dtype)
    n_images, n_channels, out_height = gy.shape[:3]
    grid = -(-n_channels // _SUMMED_FILTERS), max(min(n_images * out_height, _MAX_SHARES), 1)
    shares = xp.empty((grid[1], _TAPS**2, n_channels), dtype)
    cuda_kernels.kernel('conv/depthwise.cu', 'depthwise_grad_w', dtype)(
        grid,
        (_THREADS,),
        (
            _channels_last(x, dtype),
            _channels_last(gy, dtype),
            np.int32(n_images),
            *_geometry(x.shape, gy.shape, stride, pad),
            shares,
        ),
    )
    gw = xp.ascontiguousarray(shares.sum(axis=0).T, x.dtype)
    return gw.reshape(n_channels, 1, _TAPS, _TAPS)


def _channels_last(x, dtype):
    """Return ``(N, C, H, W)`` as a contiguous ``(N, H, W, C)``, copying only what is laid out otherwise."""
    return chainer.backend.get_array_module(x).ascontiguousarray(x.transpose(0, 2, 3, 1), dtype)


def _geometry(shape, out_shape, stride, pad):
    """Return the numbers that all kernels take, from ``channels`` to ``left``."""
    return tuple(map(np.int32, (*shape[1:], *out_shape[2:], stride, pad[0][0], pad[1][0])))


# On the CPU


def _forward_cpu(x, W, stride, pad, bias=None, low=-np.inf, high=np.inf):
    images, filters = channels_first(x, compute_dtype(x.dtype)), _plain(W)
    n_channels, n_images = images.shape[:2]
    y = np.empty((n_channels, n_images, *_out_size(x.shape[2:], stride, pad)), images.dtype)
    bias = np.zeros(n_channels, y.dtype) if bias is None else _plain(bias)
    low, high = y.dtype.type(low), y.dtype.type(high)
    parallel.parallel_for(
        lambda start, stop: _forward_channels(images, filters, bias, stride, pad, low, high, y, start, stop), n_channels
    )
    return as_images(y).astype(x.dtype, copy=False)


def _grad_x_cpu(gy, W, stride, pad, shape):
    gradients, filters = channels_first(gy, compute_dtype(gy.dtype)), _plain(W)
    gx = np.empty((shape[1], shape[0], *shape[2:]), gradients.dtype)
    parallel.parallel_for(
        lambda start, stop: _grad_x_channels(gradients, filters, stride, pad, gx, start, stop), shape[1]
    )
    return as_images(gx).astype(gy.dtype, copy=False)


def _grad_w_cpu(x, gy, stride, pad):
    images, gradients = (channels_first(array, compute_dtype(array.dtype)) for array in (x, gy))
    gw = np.empty((x.shape[1], 1, _TAPS, _TAPS), images.dtype)
    parallel.parallel_for(
        lambda start, stop: _grad_w_channels(images, gradients, stride, pad, gw, start, stop), x.shape[1]
    )
    return gw.astype(x.dtype, copy=False)


def _plain(array):
    return np.ascontiguousarray(array, compute_dtype(array.dtype))


@parallel.jit
def _new_buffer(height, width, stride, pad, like):
    """Return zeros ``(rows, stride, columns)`` that hold one channel of an image and its border.

    Column ``q`` of the padded channel is at ``[:, q % stride, q // stride]``.
    """
    columns = pad[1][0] + width + pad[1][1]
    return np.zeros((pad[0][0] + height + pad[0][1], stride, (columns + stride - 1) // stride), like.dtype)


@parallel.jit
def _fill(buffer, image, pad):
    """Copy a channel of an image into a buffer."""
    stride, height, width = buffer.shape[1], image.shape[0], image.shape[1]
    for phase in range(stride):
        first, place, count = _columns_of(phase, stride, pad[1][0], width)
        for i in range(height):
            line = buffer[pad[0][0] + i, phase]
            for j in range(count):
                line[place + j] = image[i, first + j * stride]


@parallel.jit
def _empty(buffer, image, pad):
    """Copy what :func:`_fill` would have filled back into an image."""
    stride, height, width = buffer.shape[1], image.shape[0], image.shape[1]
    for phase in range(stride):
        first, place, count = _columns_of(phase, stride, pad[1][0], width)
        for i in range(height):
            line = buffer[pad[0][0] + i, phase]
            for j in range(count):
                image[i, first + j * stride] = line[place + j]


@parallel.jit
def _columns_of(phase, stride, left, width):
    """Return the first of an image's columns in a phase, its place in the buffer, and how many there are."""
    first = (phase - left) % stride
    return first, (left + first) // stride, max((width - first + stride - 1) // stride, 0)


@parallel.jit
def _tap(buffer, row, tap, n):
    """Return what one tap of a row's windows sees, ``n`` numbers."""
    stride = buffer.shape[1]
    return buffer[row, tap % stride, tap // stride : tap // stride + n]


@parallel.jit
def _forward_channels(x, W, bias, stride, pad, low, high, y, start, stop):
    """Convolve channels ``start`` to ``stop`` of ``x`` (C, N, H, W)."""
    n_row, n_column = y.shape[2:]
    buffer = _new_buffer(x.shape[2], x.shape[3], stride, pad, x)
    for c in range(start, stop):
        w, b = W[c, 0], bias[c]
        for n in range(x.shape[1]):
            _fill(buffer, x[c, n], pad)
            for i in range(n_row):
                line = y[c, n, i]
                for k in range(3):
                    row = i * stride + k
                    a0, a1, a2 = (
                        _tap(buffer, row, 0, n_column),
                        _tap(buffer, row, 1, n_column),
                        _tap(buffer, row, 2, n_column),
                    )
                    w0, w1, w2 = w[k, 0], w[k, 1], w[k, 2]
                    if k == 0:
                        for j in range(n_column):
                            line[j] = b + a0[j] * w0 + a1[j] * w1 + a2[j] * w2
                    else:
                        for j in range(n_column):
                            line[j] += a0[j] * w0 + a1[j] * w1 + a2[j] * w2
                for j in range(n_column):
                    line[j] = min(max(line[j], low), high)


@parallel.jit
def _grad_x_channels(gy, W, stride, pad, gx, start, stop):
    """Send the gradients of channels ``start`` to ``stop`` back to the pixels that were seen."""
    n_row, n_column = gy.shape[2:]
    buffer = _new_buffer(gx.shape[2], gx.shape[3], stride, pad, gy)
    for c in range(start, stop):
        for n in range(gy.shape[1]):
            buffer[:] = 0
            for i in range(n_row):
                line = gy[c, n, i]
                for k in range(3):
                    for t in range(3):
                        seen, weight = _tap(buffer, i * stride + k, t, n_column), W[c, 0, k, t]
                        for j in range(n_column):
                            seen[j] += line[j] * weight
            _empty(buffer, gx[c, n], pad)


@parallel.jit
def _grad_w_channels(x, gy, stride, pad, gw, start, stop):
    """Correlate channels ``start`` to ``stop`` with their gradients.

    A sum for each column, so that the compiler can keep the order of the additions and vectorise; then over
    the columns.
    """
    n_row, n_column = gy.shape[2:]
    buffer = _new_buffer(x.shape[2], x.shape[3], stride, pad, x)
    sums = np.empty((3, 3, n_column), x.dtype)
    for c in range(start, stop):
        sums[:] = 0
        for n in range(x.shape[1]):
            _fill(buffer, x[c, n], pad)
            for i in range(n_row):
                line = gy[c, n, i]
                for k in range(3):
                    for t in range(3):
                        seen, total = _tap(buffer, i * stride + k, t, n_column), sums[k, t]
                        for j in range(n_column):
                            total[j] += seen[j] * line[j]
        for k in range(3):
            for t in range(3):
                gw[c, 0, k, t] = sums[k, t].sum()
