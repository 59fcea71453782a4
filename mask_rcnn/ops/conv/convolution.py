"""Two-dimensional convolution: the public functions, their gradients and the choice of the implementation.

On the CPU a convolution is a matmul of the weights and the im2col matrix (:mod:`mask_rcnn.ops.conv.im2col`).  Chainer
orders the columns image by image and transposes the result, which costs as much as the matmul where channels are few
or feature maps are small.  Here activations have their channels outermost in memory, ``(C, N, H, W)``, under the usual
shape ``(N, C, H, W)``: the columns of all images are adjacent, and the matmul already has the layout of the result.
3x3 convolutions need a quarter of the multiplications (:mod:`mask_rcnn.ops.conv.winograd`).  Groups are too small for
matmuls (:mod:`mask_rcnn.ops.conv.grouped`).

On a GPU cuDNN computes the convolution (:mod:`mask_rcnn.ops.cudnn_frontend`), or Chainer if cuDNN is missing.
"""

from __future__ import annotations

import enum

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv import grouped, im2col, winograd
from mask_rcnn.ops.conv.epilogue import apply_epilogue_to_rows
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_images, channels_first
from mask_rcnn.ops.runtime.parallel import parallel_for


class Backend(enum.Enum):
    """An implementation of convolution."""

    CPU = enum.auto()
    CUDNN = enum.auto()
    CHAINER = enum.auto()


def choose_backend(*arrays: Array | None) -> Backend:
    """Return the implementation of :func:`convolution_2d` and :func:`deconvolution_2d` for some arrays.

    ========================================= =========== ==============================================================
    arrays                                    backend     implementation
    ========================================= =========== ==============================================================
    NumPy, all float32 or all float64         ``CPU``     several groups: :mod:`~mask_rcnn.ops.conv.grouped`;
                                                          3x3 of stride 1: :mod:`~mask_rcnn.ops.conv.winograd`
                                                          if its ``should_use`` is true,
                                                          otherwise :mod:`~mask_rcnn.ops.conv.im2col`
    CuPy, float32 or float16, and cuDNN works ``CUDNN``   :mod:`mask_rcnn.ops.cudnn_frontend`
    all others                                ``CHAINER`` :mod:`chainer.functions`
    ========================================= =========== ==============================================================

    :func:`convolve` and :func:`deconvolve`, which build no graph, have the first two implementations.

    Args:
        arrays: Images, weights and bias, arrays or variables; ``None`` for an absent bias.
    """
    present = [array for array in arrays if array is not None]
    if get_array_module(*present) is not np:
        return Backend.CUDNN if cudnn_frontend.supports(*present) else Backend.CHAINER
    dtypes = {array.dtype for array in present}
    is_fast = len(dtypes) == 1 and dtypes <= {np.dtype('f4'), np.dtype('f8')}
    return Backend.CPU if is_fast else Backend.CHAINER


def convolution_2d(
    x: Array, W: Array, b: Array | None = None, *, stride: int = 1, pad: int = 0, groups: int = 1
) -> chainer.Variable:
    """Convolve images; differentiable with respect to all arrays any number of times.

    Args:
        x: ``(N, C, H, W)`` floats.
        W: ``(O, C / groups, kh, kw)`` weights.
        b: ``(O,)`` bias, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        groups: Number of groups: each ``O / groups`` output channels read ``C / groups`` input channels.

    Returns:
        chainer.Variable: ``(N, O, (H + 2 pad - kh) // stride + 1, ...)``.

    Raises:
        ValueError: The channels do not form ``groups`` groups.
        chainer.utils.type_check.InvalidType: Shapes or types do not match.
    """
    _check_groups(x, W, groups)
    if choose_backend(x, W, b) is Backend.CHAINER:
        return F.convolution_2d(x, W, b, stride, pad, groups=groups)
    arrays = [array for array in (x, W, b) if array is not None]
    return Convolution2DFunction(stride, pad, groups).apply(arrays)[0]


def deconvolution_2d(x: Array, W: Array, b: Array | None = None, *, stride: int = 1, pad: int = 0) -> chainer.Variable:
    """Apply the transposed convolution; differentiable with respect to all arrays any number of times.

    Args:
        x: ``(N, I, h, w)`` floats.
        W: ``(I, O, kh, kw)`` weights.
        b: ``(O,)`` bias, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images of the corresponding convolution.

    Returns:
        chainer.Variable: ``(N, O, stride (h - 1) + kh - 2 pad, ...)``.

    Raises:
        chainer.utils.type_check.InvalidType: Shapes or types do not match.
    """
    if choose_backend(x, W, b) is Backend.CHAINER:
        return F.deconvolution_2d(x, W, b, stride, pad)
    y = ConvolutionGradX(stride, pad, _deconvolved_shape(x, W, stride, pad)).apply((x, W))[0]
    return y if b is None else F.bias(y, F.cast(b, y.dtype))


class Convolution2DFunction(chainer.FunctionNode):
    """The convolution.

    On a GPU images may be float16 and parameters float32; each gradient has the type of its input.
    """

    def __init__(self, stride: int, pad: int, groups: int = 1):
        self.stride, self.pad, self.groups = stride, pad, groups

    def check_type_forward(self, in_types):
        expect, x, W = chainer.utils.type_check.expect, in_types[0], in_types[1]
        expect(x.ndim == 4, W.ndim == 4, x.shape[1] == W.shape[1] * self.groups)
        if len(in_types) == 3:
            expect(in_types[2].ndim == 1, in_types[2].shape[0] == W.shape[0])

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        self.bias_dtype = inputs[-1].dtype
        return (convolve(*inputs, stride=self.stride, pad=self.pad, groups=self.groups),)

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
            gradients.append(ConvolutionGradX(self.stride, self.pad, x.shape, self.groups).apply((gy, W))[0])
        if 1 in indexes:
            gradients.append(ConvolutionGradW(self.stride, self.pad, W, self.groups).apply((x, gy))[0])
        if 2 in indexes:
            gradients.append(F.cast(F.sum(gy, axis=(0, 2, 3)), self.bias_dtype))
        return gradients


class ConvolutionGradX(chainer.FunctionNode):
    """The gradient with respect to the images: the transposed convolution of the output's gradient."""

    def __init__(self, stride: int, pad: int, shape, groups: int = 1):
        self.stride, self.pad, self.shape, self.groups = stride, pad, shape, groups

    def check_type_forward(self, in_types):
        expect, gy, W = chainer.utils.type_check.expect, in_types[0], in_types[1]
        expect(gy.ndim == 4, W.ndim == 4, gy.shape[1] == W.shape[0])

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        gy, W = inputs
        return (_convolve_transposed(gy, W, self.stride, self.pad, self.shape, self.groups),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        gy, W = inputs
        return (cudnn_frontend.convolve_backward_data(gy, W, self.shape, stride=self.stride, pad=self.pad),)

    def backward(self, indexes, grad_outputs):
        gy, W = self.get_retained_inputs()
        (ggx,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(convolution_2d(ggx, W, stride=self.stride, pad=self.pad, groups=self.groups))
        if 1 in indexes:
            gradients.append(ConvolutionGradW(self.stride, self.pad, W, self.groups).apply((ggx, gy))[0])
        return gradients


class ConvolutionGradW(chainer.FunctionNode):
    """The gradient with respect to the weights, with their shape and type."""

    def __init__(self, stride: int, pad: int, W, groups: int = 1):
        self.stride, self.pad, self.shape, self.dtype, self.groups = stride, pad, W.shape, W.dtype, groups

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1))
        x, gy = inputs
        return (_correlate(x, gy, self.stride, self.pad, self.shape, self.groups),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1))
        x, gy = inputs
        gradient = cudnn_frontend.convolve_backward_filter(x, gy, self.shape, stride=self.stride, pad=self.pad)
        return (gradient.astype(self.dtype, copy=False),)

    def backward(self, indexes, grad_outputs):
        x, gy = self.get_retained_inputs()
        (ggW,) = grad_outputs
        gradients = []
        if 0 in indexes:
            gradients.append(ConvolutionGradX(self.stride, self.pad, x.shape, self.groups).apply((gy, ggW))[0])
        if 1 in indexes:
            gradients.append(convolution_2d(x, ggW, stride=self.stride, pad=self.pad, groups=self.groups))
        return gradients


def convolve(
    x: Array,
    W: Array,
    b: Array | None = None,
    *,
    stride: int = 1,
    pad: int = 0,
    groups: int = 1,
    relu: bool = False,
    residual: Array | None = None,
    overwrite_residual: bool = False,
) -> Array:
    """Return ``relu(convolution + b + residual)``, computed in one pass over the result and without a graph.

    Args:
        x: ``(N, C, H, W)``: a float32 or float64 NumPy array, fastest with the channels outermost in memory, or a CuPy
            array that :func:`mask_rcnn.ops.cudnn_frontend.supports` accepts.
        W: ``(O, C / groups, kh, kw)`` of the same type.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        groups: Number of groups.
        relu: Whether to apply ReLU.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.
        overwrite_residual: Whether the result may overwrite ``residual`` (this saves 0.6 of 10 CPU seconds and 200 MB
            in res5 on 1000 RoIs).

    Returns:
        NumPy or CuPy array: ``(N, O, oh, ow)``, in memory with the channels outermost; on a GPU innermost.

    Raises:
        ValueError: The channels do not form ``groups`` groups.
    """
    _check_groups(x, W, groups)
    if get_array_module(x) is not np:
        return cudnn_frontend.convolve(x, W, b, stride=stride, pad=pad, relu=relu, residual=residual)
    images = channels_first(x)
    residual = None if residual is None else channels_first(residual)
    if groups > 1:
        return as_images(grouped.convolve(images, W, groups, stride, pad, b, residual, relu))
    if winograd.should_use(images.shape, W.shape, stride, pad):
        return as_images(winograd.convolve(images, W, pad, b, residual, relu))
    return as_images(im2col.convolve(images, W, stride, pad, b, residual, relu, overwrite_residual))


def deconvolve(
    x: Array, W: Array, b: Array | None = None, *, stride: int = 1, pad: int = 0, relu: bool = False
) -> Array:
    """Return the transposed convolution ``relu(deconvolution + b)``, computed without a graph.

    Args:
        x: ``(N, I, h, w)``; see :func:`convolve`.
        W: ``(I, O, kh, kw)`` of the same type.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images of the corresponding convolution.
        relu: Whether to apply ReLU.

    Returns:
        NumPy or CuPy array: ``(N, O, stride (h - 1) + kh - 2 pad, ...)``.
    """
    if get_array_module(x) is not np:
        return cudnn_frontend.deconvolve(x, W, b, stride=stride, pad=pad, relu=relu)
    y = _convolve_transposed(x, W, stride, pad, _deconvolved_shape(x, W, stride, pad))
    return apply_epilogue(y, b, relu=relu)


def apply_epilogue(x: Array, b: Array | None = None, *, relu: bool = False, residual: Array | None = None) -> Array:
    """Apply the epilogue of :func:`convolve` to an existing array.

    Args:
        x: ``(N, C, H, W)`` floats; overwritten if the memory layout allows it.
        b: ``(C,)``, or ``None``.
        relu: Whether to apply ReLU.
        residual: ``(N, C, H, W)`` to add, or ``None``.

    Returns:
        NumPy or CuPy array: ``relu(x + b + residual)``, ``(N, C, H, W)``.
    """
    if get_array_module(x) is not np:
        return cudnn_frontend.apply_epilogue(x, b, residual, relu)
    if b is None and residual is None and not relu:
        return x
    y = channels_first(x)
    bias = np.zeros(len(y), x.dtype) if b is None else b
    rows = y.reshape(len(y), -1)
    residual = np.empty((len(y), 0), x.dtype) if residual is None else channels_first(residual).reshape(len(y), -1)

    def apply(first: int, last: int) -> None:
        apply_epilogue_to_rows(rows[first:last], bias[first:last], residual[first:last], relu)

    parallel_for(apply, len(y))
    return as_images(y)


def _check_groups(x: Array, W: Array, groups: int) -> None:
    if groups != 1 and (groups < 1 or x.shape[1] != groups * W.shape[1] or W.shape[0] % groups):
        raise ValueError(
            f'weights of shape {W.shape} do not convolve {x.shape[1]} channels in {groups} groups; expected '
            f'{x.shape[1]} / {groups} input channels and a multiple of {groups} output channels'
        )


def _deconvolved_shape(x: Array, W: Array, stride: int, pad: int) -> tuple[int, ...]:
    sides = zip(x.shape[2:], W.shape[2:], strict=False)  # the type check reports arrays that are not 4-D
    size = (stride * (side - 1) + window - 2 * pad for side, window in sides)
    return len(x), W.shape[1], *size


def _convolve_transposed(gy: np.ndarray, W: np.ndarray, stride: int, pad: int, shape, groups: int = 1) -> np.ndarray:
    """Return the gradient with respect to images of a ``shape`` ``(N, C, H, W)``."""
    channels_first_shape = shape[1], shape[0], *shape[2:]
    if groups > 1:
        return as_images(grouped.convolve_transposed(channels_first(gy), W, groups, stride, pad, channels_first_shape))
    full_pad = W.shape[2] - 1 - pad
    if stride == 1 and W.shape[2] == W.shape[3] and full_pad >= 0:
        # The transposed convolution of stride 1 is a convolution with the weights rotated by 180 degrees.
        return convolve(gy, np.ascontiguousarray(W[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)), pad=full_pad)
    return as_images(im2col.convolve_transposed(channels_first(gy), W, stride, pad, channels_first_shape))


def _correlate(x: np.ndarray, gy: np.ndarray, stride: int, pad: int, w_shape, groups: int = 1) -> np.ndarray:
    """Return the gradient with respect to weights of a ``w_shape``."""
    images, gradients = channels_first(x), channels_first(gy)
    if groups > 1:
        return grouped.correlate(images, gradients, groups, stride, pad, w_shape)
    if winograd.should_use(images.shape, w_shape, stride, pad):
        return winograd.correlate(images, gradients, pad)
    return im2col.correlate(images, gradients, stride, pad, w_shape)
