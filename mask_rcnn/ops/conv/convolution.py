"""Two-dimensional convolution on the CPU, as matrix products without transposes.

A convolution is ``W @ columns``: the filters as rows of a matrix, times a matrix whose columns are the
input windows.  Chainer lays the columns out image by image and moves the result's axes afterwards, which
costs as much as the product where channels are few or maps are small.  Here activations keep their
channels outermost in memory, ``(C, N, H, W)``, behind the usual shape ``(N, C, H, W)``: then the columns of
all images stand side by side, the product already has the layout of the result, and a 1x1 convolution needs
no columns at all.  Every thread gathers, multiplies and finishes tiles that fit into its cache (1x1: 85 to
95 % of the bare product's rate).  3x3 convolutions take a quarter of the multiplications
(:mod:`mask_rcnn.ops.conv.winograd`).  On the GPU the convolution is cuDNN's (:mod:`mask_rcnn.ops.cudnn_frontend`), or
Chainer's without it.
"""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv import winograd
from mask_rcnn.ops.conv.epilogue import bias_residual_relu
from mask_rcnn.ops.runtime.blas import parallel_matmul, sum_in_order
from mask_rcnn.ops.runtime.memory_layout import as_images, channels_first
from mask_rcnn.ops.runtime.parallel import jit, parallel_for

#: Bytes of columns that are made and multiplied at a time: they stay in the second-level cache ...
_TILE_BYTES = 1 << 20
#: ... but at least so many columns, because each product reads all filters ...
_MIN_COLUMNS = 256
#: ... and so many where the images are the columns (res5's 1x1 on 500 RoIs: 87 and 99 GFLOP/s instead of 83 and
#: 91).
_POINTWISE_COLUMNS = 2048
#: Channels of the result that are multiplied at a time where it has to be finished: their products stay in the cache.
_EPILOGUE_CHANNELS = 512
#: Bytes of columns that are added to images at a time, in the gradient of strided convolutions.
_SCATTER_BYTES = 32 << 20
#: Multiplications below which waking the other threads costs more than it gains.
_MIN_WORK = 1 << 21


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
    if not _has_fast_path(arrays):
        return F.convolution_2d(x, W, b, stride, pad)
    return _Convolution2DFunction(stride, pad).apply(arrays)[0]


def deconvolution_2d(x, W, b=None, *, stride: int = 1, pad: int = 0) -> chainer.Variable:
    """Convolve the transposed way; differentiable with respect to all arrays.

    Args:
        x: ``(N, I, h, w)`` floats.
        W: ``(I, O, kh, kw)`` filters.
        b: ``(O,)`` bias, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images that the convolution would have had.

    Returns:
        chainer.Variable: ``(N, O, stride (h - 1) + kh - 2 pad, ...)``.

    Raises:
        chainer.utils.type_check.InvalidType: Shapes or types do not fit.
    """
    if not _has_fast_path([array for array in (x, W, b) if array is not None]):
        return F.deconvolution_2d(x, W, b, stride, pad)
    y = _ConvolutionGradX(stride, pad, _deconvolved_shape(x, W, stride, pad)).apply((x, W))[0]
    return y if b is None else F.bias(y, F.cast(b, y.dtype))


def _has_fast_path(arrays) -> bool:
    """Whether all arrays are NumPy's and of one type that the matrix product knows, or cuDNN takes them."""
    if chainer.backend.get_array_module(*arrays) is not np:
        return cudnn_frontend.supports(*arrays)
    dtypes = {array.dtype for array in arrays}
    return len(dtypes) == 1 and dtypes <= {np.dtype('f4'), np.dtype('f8')}


class _Convolution2DFunction(chainer.FunctionNode):
    """The convolution.  On a GPU images may be float16 and parameters float32: gradients have each their type."""

    def __init__(self, stride, pad):
        self.stride, self.pad = stride, pad

    def check_type_forward(self, in_types):
        expect, x, W = chainer.utils.type_check.expect, in_types[0], in_types[1]
        expect(x.ndim == 4, W.ndim == 4, x.shape[1] == W.shape[1])
        if len(in_types) == 3:
            expect(in_types[2].ndim == 1, in_types[2].shape[0] == W.shape[0])

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        self.bias_dtype = inputs[-1].dtype
        return (convolve(*inputs, stride=self.stride, pad=self.pad),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        self.bias_dtype = inputs[-1].dtype
        y = cudnn_frontend.convolve(*inputs, stride=self.stride, pad=self.pad)
        return (y.astype(inputs[0].dtype, order='K', copy=False),)

    def backward(self, indexes, grad_outputs):
        x, W = self.get_retained_inputs()
        (gy,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(_ConvolutionGradX(self.stride, self.pad, x.shape).apply((gy, W))[0])
        if 1 in indexes:
            gradients.append(_ConvolutionGradW(self.stride, self.pad, W).apply((x, gy))[0])
        if 2 in indexes:
            gradients.append(F.cast(F.sum(gy, axis=(0, 2, 3)), self.bias_dtype))
        return gradients


class _ConvolutionGradX(chainer.FunctionNode):
    """The gradient with respect to the images: the transposed convolution of the output's gradient."""

    def __init__(self, stride, pad, shape):
        self.stride, self.pad, self.shape = stride, pad, shape

    def check_type_forward(self, in_types):
        expect, gy, W = chainer.utils.type_check.expect, *in_types
        expect(gy.ndim == 4, W.ndim == 4, gy.shape[1] == W.shape[0])

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_convolve_transposed(*inputs, self.stride, self.pad, self.shape),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        return (cudnn_frontend.convolve_backward_data(*inputs, self.shape, stride=self.stride, pad=self.pad),)

    def backward(self, indexes, grad_outputs):
        gy, W = self.get_retained_inputs()
        (ggx,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(convolution_2d(ggx, W, stride=self.stride, pad=self.pad))
        if 1 in indexes:
            gradients.append(_ConvolutionGradW(self.stride, self.pad, W).apply((ggx, gy))[0])
        return gradients


class _ConvolutionGradW(chainer.FunctionNode):
    """The gradient with respect to the filters, in their shape and type."""

    def __init__(self, stride, pad, W):
        self.stride, self.pad, self.shape, self.dtype = stride, pad, W.shape, W.dtype

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        return (_correlate(*inputs, self.stride, self.pad, self.shape),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        gradient = cudnn_frontend.convolve_backward_filter(*inputs, self.shape, stride=self.stride, pad=self.pad)
        return (gradient.astype(self.dtype, copy=False),)

    def backward(self, indexes, grad_outputs):
        x, gy = self.get_retained_inputs()
        (ggW,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(_ConvolutionGradX(self.stride, self.pad, x.shape).apply((gy, ggW))[0])
        if 1 in indexes:
            gradients.append(convolution_2d(x, ggW, stride=self.stride, pad=self.pad))
        return gradients


def convolve(
    x, W, b=None, *, stride: int = 1, pad: int = 0, relu: bool = False, residual=None, overwrite_residual: bool = False
):
    """Convolve images and, in the same pass over the result, add, and apply ReLU.

    ``relu(convolution + b + residual)``; no part of it is kept for a backward pass.

    Args:
        x: ``(N, C, H, W)`` float32 or float64 NumPy array, fastest with the channels outermost in memory; or
            what :func:`mask_rcnn.ops.cudnn_frontend.supports` accepts, of which the result has the layout and the type.
        W: ``(O, C, kh, kw)`` of the same type.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        relu: Whether to replace negative numbers by zero.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.
        overwrite_residual: Whether the result may take the place of ``residual``, which nobody needs any more (res5
            on 1000 RoIs: 0.6 of 10 CPU seconds, and 200 MB).

    Returns:
        NumPy or CuPy array: ``(N, O, oh, ow)`` with the channels outermost in memory; on a GPU innermost.
    """
    if chainer.backend.get_array_module(x) is not np:
        return cudnn_frontend.convolve(x, W, b, stride=stride, pad=pad, relu=relu, residual=residual)
    plan = _Im2colPlan(x.shape, W.shape, stride, pad)
    images = channels_first(x)
    bias = np.zeros(len(W), x.dtype) if b is None else b
    if residual is None:
        residual_matrix = np.empty((len(W), len(x), plan.out_height, 0), x.dtype)
    else:
        residual_matrix = channels_first(residual)
    if winograd.should_use(x.shape, W.shape, stride, pad):
        return as_images(winograd.convolve(images, W, pad, bias, residual_matrix, relu))
    filters, residual_matrix = W.reshape(len(W), -1), residual_matrix.reshape(len(W), -1)
    y = residual_matrix if overwrite_residual and residual is not None else np.empty((len(W), plan.n_columns), x.dtype)
    has_no_epilogue = b is None and residual is None and not relu

    def work(first, last):
        buffer = np.empty(0, x.dtype)
        for column_slice, columns in plan.tiles(images, first, last):
            if residual is None:
                np.matmul(filters, columns, out=y[:, column_slice])
                if not has_no_epilogue:
                    _apply_epilogue_rows(y[:, column_slice], bias, residual_matrix, relu)
                continue
            n_channels, n_columns = min(_EPILOGUE_CHANNELS, len(W)), columns.shape[1]
            buffer = buffer if buffer.size >= n_channels * n_columns else np.empty(n_channels * n_columns, x.dtype)
            for start in range(0, len(W), n_channels):
                stop = min(start + n_channels, len(W))
                product = buffer[: (stop - start) * n_columns].reshape(-1, n_columns)
                np.matmul(filters[start:stop], columns, out=product)
                _store_with_epilogue(
                    product, bias[start:stop], residual_matrix[start:stop], relu, y[start:stop], column_slice.start
                )

    plan.run_parallel(work, len(W))
    return plan.as_images(y)


def deconvolve(x, W, b=None, *, stride: int = 1, pad: int = 0, relu: bool = False):
    """Convolve the transposed way; no part of it is kept for a backward pass.

    Args:
        x: As for :func:`convolve`, ``(N, I, h, w)``.
        W: ``(I, O, kh, kw)`` of the same type.
        b, stride, pad: As for :func:`deconvolution_2d`.
        relu: Whether to replace negative numbers by zero.

    Returns:
        NumPy or CuPy array: ``(N, O, stride (h - 1) + kh - 2 pad, ...)``.
    """
    if chainer.backend.get_array_module(x) is not np:
        return cudnn_frontend.deconvolve(x, W, b, stride=stride, pad=pad, relu=relu)
    y = _convolve_transposed(x, W, stride, pad, _deconvolved_shape(x, W, stride, pad))
    return apply_epilogue(y, b, relu=relu)


def _deconvolved_shape(x, W, stride, pad):
    return (
        len(x),
        W.shape[1],
        *(stride * (side - 1) + window - 2 * pad for side, window in zip(x.shape[2:], W.shape[2:])),
    )


def apply_epilogue(x, b=None, *, relu: bool = False, residual=None):
    """Do to an array what :func:`convolve` does to its result, for one that is not finished at once.

    Args:
        x: ``(N, C, H, W)`` floats, overwritten where their layout allows it.
        b, relu, residual: As for :func:`convolve`.

    Returns:
        NumPy or CuPy array: ``relu(x + b + residual)``.
    """
    if chainer.backend.get_array_module(x) is not np:
        return cudnn_frontend.apply_epilogue(x, b, residual, relu)
    if b is None and residual is None and not relu:
        return x
    y = channels_first(x)
    bias = np.zeros(len(y), x.dtype) if b is None else b
    residual_matrix = y[..., :0] if residual is None else channels_first(residual)
    rows, residual_matrix = (array.reshape(len(y), -1) for array in (y, np.ascontiguousarray(residual_matrix)))
    parallel_for(
        lambda first, last: _apply_epilogue_rows(rows[first:last], bias[first:last], residual_matrix[first:last], relu),
        len(y),
    )
    return as_images(y)


def _convolve_transposed(gy, W, stride, pad, shape):
    """Return the gradient with respect to images of a ``shape``."""
    turned_pad = W.shape[2] - 1 - pad
    if stride == 1 and W.shape[2] == W.shape[3] and turned_pad >= 0:
        # The transposed convolution of stride 1 is one with the filters turned by half a turn.
        return convolve(gy, np.ascontiguousarray(W[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)), pad=turned_pad)
    plan = _Im2colPlan(shape, W.shape, stride, pad)
    gradient = channels_first(gy).reshape(len(W), -1)
    filters = W.reshape(len(W), -1).T
    if plan.is_non_overlapping:
        images = np.empty((shape[1], shape[0], *shape[2:]), gy.dtype)

        def work(first, last):
            for start, stop, column_slice in plan.tile_ranges(first, last, gy.itemsize):
                _interleave(filters @ gradient[:, column_slice], images, stride, plan.out_height, start, stop)

        plan.run_parallel(work, len(W))
        return as_images(images)
    images = np.zeros((shape[1], shape[0], *shape[2:]), gy.dtype)
    for start, stop in plan.row_ranges(gy.itemsize):
        column_slice = slice(start * plan.out_width, stop * plan.out_width)
        plan.scatter(filters @ gradient[:, column_slice], images, start, stop)
    return as_images(images)


def _correlate(x, gy, stride, pad, shape):
    """Return the gradient with respect to filters of a ``shape``."""
    plan = _Im2colPlan(x.shape, shape, stride, pad)
    images, gradient = channels_first(x), channels_first(gy)
    if winograd.should_use(x.shape, shape, stride, pad):
        return winograd.correlate(images, gradient, pad)
    gradient = gradient.reshape(shape[0], -1)
    parts = {}

    def work(first, last):
        parts[first] = total = np.zeros((shape[0], plan.patch_size), x.dtype)
        for column_slice, columns in plan.tiles(images, first, last):
            total += gradient[:, column_slice] @ columns.T

    plan.run_parallel(work, shape[0])
    return sum_in_order(parts, shape, x.dtype)


class _Im2colPlan:
    """How windows lie on images: the rows of all outputs, one below the other, and their columns."""

    def __init__(self, x_shape, w_shape, stride, pad):
        self.n_images, self.n_channels, self.height, self.width = x_shape
        self.kernel = w_shape[2:]
        self.stride, self.pad = stride, pad
        self.out_height = (self.height + 2 * pad - self.kernel[0]) // stride + 1
        self.out_width = (self.width + 2 * pad - self.kernel[1]) // stride + 1
        self.n_rows = self.n_images * self.out_height
        self.n_columns = self.n_rows * self.out_width
        self.patch_size = self.n_channels * self.kernel[0] * self.kernel[1]
        #: Whether the images are the columns themselves.
        self.is_pointwise = self.kernel == (1, 1) and pad == 0 and stride == 1
        #: Whether the windows cover the images, and none overlaps another.
        self.is_non_overlapping = (
            self.kernel == (stride, stride)
            and pad == 0
            and (self.height, self.width) == (stride * self.out_height, stride * self.out_width)
        )
        #: Columns that belong together in a tile.
        self.columns_per_unit = 1 if self.is_pointwise else self.out_width

    def as_images(self, y):
        """Return ``(O, rows * columns)`` as ``(N, O, oh, ow)``, without a copy."""
        return as_images(y.reshape(len(y), self.n_images, self.out_height, self.out_width))

    def run_parallel(self, work, out_channels: int):
        """Call ``work(first, last)``, for :meth:`tiles`, in all threads."""
        parallel_matmul(
            work,
            self.n_columns // max(self.columns_per_unit, 1),
            min_per_thread=_MIN_WORK // max(self.columns_per_unit * self.patch_size * out_channels, 1) + 1,
        )

    def tile_ranges(self, first: int, last: int, itemsize: int):
        """Yield the range of units of every tile, all of nearly the same size, and the slice of the columns."""
        columns = max(_TILE_BYTES // (self.patch_size * itemsize), _MIN_COLUMNS)
        step = max((_POINTWISE_COLUMNS if self.is_pointwise else columns) // self.columns_per_unit, 1)
        n = -(-(last - first) // step)
        for i in range(n):
            start, stop = (first + (last - first) * end // n for end in (i, i + 1))
            yield start, stop, slice(start * self.columns_per_unit, stop * self.columns_per_unit)

    def tiles(self, images, first: int, last: int):
        """Yield slices of the output's columns and the windows there, ``(taps, columns)``.

        Args:
            images: ``(C, N, H, W)`` contiguous.
            first, last: Range of units; a tile is some of them.
        """
        buffer = np.empty(0, images.dtype)
        for start, stop, column_slice in self.tile_ranges(first, last, images.itemsize):
            if self.is_pointwise:
                yield column_slice, images.reshape(self.n_channels, -1)[:, column_slice]
                continue
            size = self.patch_size * (column_slice.stop - column_slice.start)
            buffer = buffer if buffer.size >= size else np.empty(size, images.dtype)
            columns = buffer[:size].reshape(self.patch_size, -1)
            _gather(
                images,
                columns,
                *self.kernel,
                self.stride,
                self.pad,
                self.out_height,
                self.out_width,
                start,
                stop,
                0,
                self.n_channels,
            )
            yield column_slice, columns

    def row_ranges(self, itemsize: int):
        """Yield ranges of output rows for :meth:`scatter`: large ones, whose products use BLAS's own threads."""
        step = max(_SCATTER_BYTES // max(self.patch_size * self.out_width * itemsize, 1), 1)
        for start in range(0, self.n_rows, step):
            yield start, min(start + step, self.n_rows)

    def scatter(self, columns, images, start: int, stop: int):
        """Add the windows of some output rows to the images they came from."""
        parallel_for(
            lambda first, last: _scatter(
                columns,
                images,
                *self.kernel,
                self.stride,
                self.pad,
                self.out_height,
                self.out_width,
                start,
                stop,
                first,
                last,
            ),
            self.n_channels,
        )


@jit
def _apply_epilogue_rows(rows, bias, residual, relu):
    """Finish channels (O, n) in place."""
    for i in range(len(rows)):
        bias_residual_relu(rows[i], bias[i], residual[i], relu)


@jit
def _store_with_epilogue(products, bias, residual, relu, y, start):
    """Finish products (O, n), and write them to columns ``start``, ... of ``y``, which may be the residual."""
    for i in range(len(products)):
        row_values, column_slice = products[i], slice(start, start + products.shape[1])
        bias_residual_relu(row_values, bias[i], residual[i, column_slice], relu)
        y[i, column_slice] = row_values


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
                    row_values = columns[tap, (row - start) * out_width : (row - start + 1) * out_width]
                    y = row % out_height * stride + i - pad
                    if y < 0 or y >= height or left >= right:
                        row_values[:] = 0
                        continue
                    source = images[c, row // out_height, y]
                    row_values[:left] = 0
                    row_values[right:] = 0
                    if stride == 1:
                        row_values[left:right] = source[left + j - pad : right + j - pad]
                    else:
                        for x in range(left, right):
                            row_values[x] = source[x * stride + j - pad]


@jit
def _interleave(columns, images, stride, out_height, start, stop):
    """Write the windows of output rows ``start`` to ``stop`` where each has pixels of its own."""
    out_width = columns.shape[1] // (stop - start)
    for tap in range(len(columns)):
        c, i, j = tap // stride**2, tap // stride % stride, tap % stride
        for row in range(start, stop):
            row_values = columns[tap, (row - start) * out_width : (row - start + 1) * out_width]
            target = images[c, row // out_height, row % out_height * stride + i]
            for x in range(out_width):
                target[x * stride + j] = row_values[x]


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
                    row_values = columns[tap, (row - start) * out_width : (row - start + 1) * out_width]
                    target = images[c, row // out_height, y]
                    for x in range(left, right):
                        target[x * stride + j - pad] += row_values[x]
