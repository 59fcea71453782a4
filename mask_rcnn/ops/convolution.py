"""Two-dimensional convolution on the CPU, as one matrix product without transposes.

A convolution is ``W @ columns``: the filters as rows of a matrix, times a matrix whose columns are the
input windows.  Chainer lays the columns out image by image and moves the result's axes afterwards, which
costs as much as the product where channels are few or maps are small.  Here activations keep their
channels outermost in memory, ``(C, N, H, W)``, behind the usual shape ``(N, C, H, W)``: then the columns of all
images stand side by side, the product already has the layout of the result, and a 1x1 convolution needs
no columns at all.  On the GPU the convolution is Chainer's.
"""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.ops._parallel import jit, parallel_for

#: Bytes of columns that are made and multiplied at a time.  Smaller tiles would stay in the caches, but each
#: change between our threads and those of the matrix product costs more than that gains (measured: 3x3
#: convolutions of a C4 network run at 145 of 210 GFLOP/s with 32 MB, at 60 with 4 MB).
_TILE_BYTES = 32 << 20


def convolution_2d(x, W, b=None, *, stride: int = 1, pad: int = 0) -> chainer.Variable:
    """Convolve images; differentiable with respect to all arrays.

    Args:
        x: ``(N, C, H, W)`` floats.
        W: ``(O, C, kh, kw)`` filters.
        b: ``(O,)`` bias, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.

    Returns:
        chainer.Variable: ``(N, O, (H + 2 pad - kh) // stride + 1, ...)``.

    Raises:
        chainer.utils.type_check.InvalidType: Shapes or types do not fit.
    """
    arrays = [array for array in (x, W, b) if array is not None]
    if not _is_ours(arrays):
        return F.convolution_2d(x, W, b, stride, pad)
    return _Convolution2D(stride, pad).apply(arrays)[0]


def _is_ours(arrays) -> bool:
    """Whether all arrays are NumPy's and of one type that the matrix product knows."""
    dtypes = {array.dtype for array in arrays}
    return (len(dtypes) == 1 and dtypes <= {np.dtype('f4'), np.dtype('f8')}
            and chainer.backend.get_array_module(*arrays) is np)


class _Convolution2D(chainer.FunctionNode):

    def __init__(self, stride, pad):
        self.stride, self.pad = stride, pad

    def check_type_forward(self, in_types):
        expect, x, W = chainer.utils.type_check.expect, in_types[0], in_types[1]
        expect(x.ndim == 4, W.ndim == 4, x.shape[1] == W.shape[1])
        if len(in_types) == 3:
            expect(in_types[2].ndim == 1, in_types[2].shape[0] == W.shape[0])

    def forward(self, inputs):
        self.retain_inputs((0, 1))
        return convolve(*inputs, stride=self.stride, pad=self.pad),

    def backward(self, indexes, grad_outputs):
        x, W = self.get_retained_inputs()
        gy, = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(_ConvolutionGradX(self.stride, self.pad, x.shape).apply((gy, W))[0])
        if 1 in indexes:
            gradients.append(_ConvolutionGradW(self.stride, self.pad, W.shape).apply((x, gy))[0])
        if 2 in indexes:
            gradients.append(F.sum(gy, axis=(0, 2, 3)))
        return gradients


class _ConvolutionGradX(chainer.FunctionNode):
    """The gradient with respect to the images: the transposed convolution of the output's gradient."""

    def __init__(self, stride, pad, shape):
        self.stride, self.pad, self.shape = stride, pad, shape

    def forward(self, inputs):
        self.retain_inputs((0, 1))
        return _convolve_transposed(*inputs, self.stride, self.pad, self.shape),

    def backward(self, indexes, grad_outputs):
        gy, W = self.get_retained_inputs()
        ggx, = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(convolution_2d(ggx, W, stride=self.stride, pad=self.pad))
        if 1 in indexes:
            gradients.append(_ConvolutionGradW(self.stride, self.pad, W.shape).apply((ggx, gy))[0])
        return gradients


class _ConvolutionGradW(chainer.FunctionNode):
    """The gradient with respect to the filters."""

    def __init__(self, stride, pad, shape):
        self.stride, self.pad, self.shape = stride, pad, shape

    def forward(self, inputs):
        self.retain_inputs((0, 1))
        return _correlate(*inputs, self.stride, self.pad, self.shape),

    def backward(self, indexes, grad_outputs):
        x, gy = self.get_retained_inputs()
        ggW, = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(_ConvolutionGradX(self.stride, self.pad, x.shape).apply((gy, ggW))[0])
        if 1 in indexes:
            gradients.append(convolution_2d(x, ggW, stride=self.stride, pad=self.pad))
        return gradients


def convolve(x, W, b=None, *, stride: int = 1, pad: int = 0, relu: bool = False, residual=None):
    """Convolve images and, in the same pass over the result, add, and cut off what is negative.

    ``relu(convolution + b + residual)``; no part of it is kept for a backward pass.

    Args:
        x: ``(N, C, H, W)`` float32 or float64 NumPy array, fastest with the channels outermost in memory.
        W: ``(O, C, kh, kw)`` of the same type.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        relu: Whether to replace negative numbers by zero.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.

    Returns:
        numpy.ndarray: ``(N, O, oh, ow)`` with the channels outermost in memory.
    """
    geometry = _Geometry(x.shape, W.shape, stride, pad)
    images = _channels_first(x)
    filters = W.reshape(len(W), -1)
    y = np.empty((len(W), geometry.n_row * geometry.out_width), x.dtype)
    bias = np.zeros(len(W), x.dtype) if b is None else b
    other = None if residual is None else _channels_first(residual).reshape(y.shape)
    for start, stop, columns in geometry.tiles(images):
        part = slice(start * geometry.out_width, stop * geometry.out_width)
        np.matmul(filters, columns, out=y[:, part])
        if b is not None or relu or residual is not None:
            _finish(y[:, part], bias, y[:, part][:, :0] if other is None else other[:, part], relu)
    return geometry.as_images(y)


def _convolve_transposed(gy, W, stride, pad, shape):
    geometry = _Geometry(shape, W.shape, stride, pad)
    gradient = _channels_first(gy).reshape(len(W), -1)
    filters = W.reshape(len(W), -1).T
    if geometry.is_pointwise:
        columns = filters @ gradient
        if stride == 1:
            return columns.reshape(shape[1], shape[0], *shape[2:]).transpose(1, 0, 2, 3)
    images = np.zeros((shape[1], shape[0], *shape[2:]), gy.dtype)
    if geometry.is_pointwise:
        images[:, :, ::stride, ::stride] = columns.reshape(
            shape[1], shape[0], geometry.out_height, geometry.out_width)
        return images.transpose(1, 0, 2, 3)
    for start, stop in geometry.row_ranges(gy.itemsize):
        part = slice(start * geometry.out_width, stop * geometry.out_width)
        geometry.scatter(filters @ gradient[:, part], images, start, stop)
    return images.transpose(1, 0, 2, 3)


def _correlate(x, gy, stride, pad, shape):
    geometry = _Geometry(x.shape, shape, stride, pad)
    gradient = _channels_first(gy).reshape(shape[0], -1)
    total = np.zeros((shape[0], geometry.n_tap), x.dtype)
    for start, stop, columns in geometry.tiles(_channels_first(x)):
        total += gradient[:, start * geometry.out_width:stop * geometry.out_width] @ columns.T
    return total.reshape(shape)


def _channels_first(x):
    """Return ``(N, C, H, W)`` as a contiguous ``(C, N, H, W)``, copying only what is laid out otherwise."""
    return np.ascontiguousarray(x.transpose(1, 0, 2, 3))


class _Geometry:
    """How windows lie on images: the rows of all outputs, one below the other, and their columns."""

    def __init__(self, x_shape, w_shape, stride, pad):
        self.n_image, self.n_channel, self.height, self.width = x_shape
        self.kernel = w_shape[2:]
        self.stride, self.pad = stride, pad
        self.out_height = (self.height + 2 * pad - self.kernel[0]) // stride + 1
        self.out_width = (self.width + 2 * pad - self.kernel[1]) // stride + 1
        self.n_row = self.n_image * self.out_height
        self.n_tap = self.n_channel * self.kernel[0] * self.kernel[1]
        self.is_pointwise = self.kernel == (1, 1) and pad == 0

    def as_images(self, y):
        """Return ``(O, rows * columns)`` as ``(N, O, oh, ow)``, without a copy."""
        return y.reshape(len(y), self.n_image, self.out_height, self.out_width).transpose(1, 0, 2, 3)

    def row_ranges(self, itemsize: int):
        """Yield ranges of output rows whose columns make one tile."""
        step = max(_TILE_BYTES // max(self.n_tap * self.out_width * itemsize, 1), 1)
        for start in range(0, self.n_row, step):
            yield start, min(start + step, self.n_row)

    def tiles(self, images):
        """Yield ranges of output rows and their windows as columns ``(taps, rows * out_width)``."""
        if self.is_pointwise:
            points = np.ascontiguousarray(images[:, :, ::self.stride, ::self.stride])
            yield 0, self.n_row, points.reshape(self.n_channel, -1)
            return
        for start, stop in self.row_ranges(images.itemsize):
            columns = np.empty((self.n_tap, (stop - start) * self.out_width), images.dtype)
            parallel_for(lambda first, last: _gather(
                images, columns, *self.kernel, self.stride, self.pad, self.out_height, self.out_width, start, stop,
                first, last), self.n_channel)
            yield start, stop, columns

    def scatter(self, columns, images, start, stop):
        """Add the windows of some output rows to the images they came from."""
        parallel_for(lambda first, last: _scatter(
            columns, images, *self.kernel, self.stride, self.pad, self.out_height, self.out_width, start, stop,
            first, last), self.n_channel)


@jit
def _finish_rows(y, bias, residual, relu, start, stop):
    zero = y.dtype.type(0)
    for i in range(start, stop):
        for j in range(y.shape[1]):
            value = y[i, j] + bias[i]
            if residual.shape[1] > 0:
                value += residual[i, j]
            y[i, j] = max(value, zero) if relu else value


def _finish(y, bias, residual, relu):
    parallel_for(lambda start, stop: _finish_rows(y, bias, residual, relu, start, stop), len(y))


@jit
def _valid(offset, stride, size, n_out):
    """Return the range of output positions whose tap at ``offset`` (may be negative) is inside."""
    first = 0 if offset >= 0 else (-offset + stride - 1) // stride
    last = (size - 1 - offset) // stride + 1 if size > offset else 0
    return min(first, n_out), max(min(last, n_out), 0)


@jit
def _gather(images, columns, kh, kw, stride, pad, out_height, out_width, start, stop, first, last):
    """Write the windows of output rows ``start`` to ``stop`` for channels ``first`` to ``last``."""
    height, width = images.shape[2:]
    for c in range(first, last):
        for i in range(kh):
            for j in range(kw):
                tap = (c * kh + i) * kw + j
                left, right = _valid(j - pad, stride, width, out_width)
                for row in range(start, stop):
                    line = columns[tap, (row - start) * out_width:(row - start + 1) * out_width]
                    y = row % out_height * stride + i - pad
                    if y < 0 or y >= height or left >= right:
                        line[:] = 0
                        continue
                    source = images[c, row // out_height, y]
                    line[:left] = 0
                    line[right:] = 0
                    if stride == 1:
                        line[left:right] = source[left + j - pad:right + j - pad]
                    else:
                        for x in range(left, right):
                            line[x] = source[x * stride + j - pad]


@jit
def _scatter(columns, images, kh, kw, stride, pad, out_height, out_width, start, stop, first, last):
    """Add what :func:`_gather` would have read; channels belong to one thread each."""
    height, width = images.shape[2:]
    for c in range(first, last):
        for i in range(kh):
            for j in range(kw):
                tap = (c * kh + i) * kw + j
                left, right = _valid(j - pad, stride, width, out_width)
                for row in range(start, stop):
                    y = row % out_height * stride + i - pad
                    if y < 0 or y >= height:
                        continue
                    line = columns[tap, (row - start) * out_width:(row - start + 1) * out_width]
                    target = images[c, row // out_height, y]
                    for x in range(left, right):
                        target[x * stride + j - pad] += line[x]
