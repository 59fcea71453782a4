"""Fused convolution and epilogue as one differentiable function that stores only its output."""

from __future__ import annotations

import abc
from typing import Any

import chainer
import numpy as np

from mask_rcnn.ops.cudnn_frontend.convolution import (
    convolve,
    convolve_backward_data,
    convolve_backward_filter,
    deconvolve,
)
from mask_rcnn.ops.cudnn_frontend.epilogue_gradient import epilogue_gradient
from mask_rcnn.ops.cudnn_frontend.gradient_sum import add_gradient
from mask_rcnn.ops.cudnn_frontend.precision import Precision, current_precision
from mask_rcnn.ops.cudnn_frontend.storage import scale_weight, to_storage
from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.ops.runtime.memory_layout import cast_nchw


def convolution_2d(
    x: Array,
    W: Array,
    b: Array | None = None,
    *,
    stride: int = 1,
    pad: int = 0,
    relu: bool = False,
    precision: Precision | None = None,
) -> chainer.Variable:
    """Return ``relu(convolution + b)``, one kernel forward; differentiable once with respect to all arrays.

    Args:
        x: ``(N, C, H, W)`` CuPy array or variable, float32 or float16.
        W: ``(O, C, kh, kw)``.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        relu: Whether to apply ReLU.
        precision: Precision of both passes, by default that of the configuration.

    Returns:
        chainer.Variable: ``(N, O, oh, ow)`` of the type of ``x``, channels innermost in memory.
    """
    options = {'stride': stride, 'pad': pad, 'relu': relu, 'precision': precision}
    return _apply(_CudnnConvolution, {'x': x, 'W': W, 'b': b}, **options)


def convolution_affine(
    x: Array,
    W: Array,
    scale: Array,
    bias: Array | None,
    residual: Array | None = None,
    *,
    stride: int = 1,
    pad: int = 0,
    relu: bool = False,
) -> chainer.Variable:
    """Return ``relu(convolution * scale + bias + residual)``, one kernel forward.

    Differentiable once with respect to ``x``, ``W`` and ``residual``.  A chain of functions would keep four arrays for
    the backward pass.

    Args:
        x: ``(N, C, H, W)`` CuPy array or variable, float32 or float16.
        W: ``(O, C, kh, kw)``.
        scale: ``(O,)`` array, a constant.
        bias: ``(O,)`` array, a constant, or ``None``.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        relu: Whether to apply ReLU.

    Returns:
        chainer.Variable: ``(N, O, oh, ow)`` of the type of ``x``, channels innermost in memory.
    """
    inputs = {'x': x, 'W': W, 'b': bias, 'residual': residual}
    return _apply(_CudnnConvolution, inputs, stride=stride, pad=pad, relu=relu, scale=scale[:, None, None, None])


def deconvolution_2d(
    x: Array, W: Array, b: Array | None = None, *, stride: int = 1, pad: int = 0, relu: bool = False
) -> chainer.Variable:
    """Return the transposed convolution ``relu(deconvolution + b)``; differentiable once, like :func:`convolution_2d`.

    Args:
        x: ``(N, C, H, W)`` CuPy array or variable, float32 or float16.
        W: ``(C, O, kh, kw)``.
        b: ``(O,)``, or ``None``.
        stride: Step of the windows in both directions.
        pad: Zeros around the images of the corresponding convolution.
        relu: Whether to apply ReLU.

    Returns:
        chainer.Variable: ``(N, O, stride * (H - 1) + kh - 2 * pad, ...)`` of the type of ``x``, channels innermost.
    """
    return _apply(_CudnnDeconvolution, {'x': x, 'W': W, 'b': b}, stride=stride, pad=pad, relu=relu)


def _apply(function: type[_CudnnFunction], inputs: dict, **options) -> chainer.Variable:
    """Apply a function to the inputs that are not ``None``."""
    inputs = {name: array for name, array in inputs.items() if array is not None}
    return function(list(inputs), **options).apply(list(inputs.values()))[0]


class _CudnnFunction(chainer.FunctionNode, abc.ABC):
    """A convolution with an epilogue.

    Args:
        names: Names of the inputs: ``'x'``, ``'W'`` and those of ``'b'`` and ``'residual'`` that are present.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        relu: Whether to apply ReLU.
        precision: Precision of both passes, or ``None`` for that of the configuration.
    """

    def __init__(self, names: list[str], *, stride: int, pad: int, relu: bool, precision: Precision | None = None):
        self.names, self.relu = names, relu
        self.options: dict[str, Any] = {'stride': stride, 'pad': pad, 'precision': precision}

    @abc.abstractmethod
    def compute(self, x, W, **epilogue):
        """Return the result of the function."""

    @abc.abstractmethod
    def gradient_x(self, g, x, W):
        """Return the gradient with respect to ``x``; ``g`` is the gradient before ReLU."""

    @abc.abstractmethod
    def gradient_w(self, g, x, W):
        """Return the gradient with respect to ``W``; ``g`` is the gradient before ReLU."""

    def forward(self, inputs):
        self.retain_inputs((0, 1))
        if self.relu:
            self.retain_outputs((0,))
        x, W, *terms = inputs
        self.input_dtypes = [array.dtype for array in inputs]
        y = self.compute(x, W, relu=self.relu, **dict(zip(self.names[2:], terms, strict=True)))
        return (cast_nchw(y, x.dtype),)

    def backward(self, indexes, grad_outputs):
        x, W = (variable.array for variable in self.get_retained_inputs())
        y = self.get_retained_outputs()[0].array if self.relu else None
        names = [self.names[index] for index in indexes]
        g, bias_gradient = epilogue_gradient(grad_outputs[0].array, y, has_bias='b' in names)
        gradients = [self._gradient(name, g, bias_gradient, x, W) for name in names]
        dtypes = [self.input_dtypes[index] for index in indexes]
        return [chainer.as_variable(g.astype(dtype, copy=False)) for g, dtype in zip(gradients, dtypes, strict=True)]

    def backward_accumulate(self, target_input_indexes, grad_outputs, grad_inputs):
        gradients = self.backward(target_input_indexes, grad_outputs)
        return tuple(
            # The gradient of the residual may be that of the result.
            add_gradient(gradient, other, overwrite=self.names[index] == 'x')
            for index, gradient, other in zip(target_input_indexes, gradients, grad_inputs, strict=True)
        )

    def _gradient(self, name: str, g, bias_gradient, x, W):
        if name == 'x':
            return self.gradient_x(g, x, W)
        if name == 'W':
            return self.gradient_w(g, x, W)
        return bias_gradient if name == 'b' else g


class _CudnnConvolution(_CudnnFunction):
    """The convolution; ``scale`` ``(O, 1, 1, 1)``, if given, multiplies the weights."""

    def __init__(self, names: list[str], *, scale=None, **options):
        super().__init__(names, **options)
        self.scale = scale
        self._stored: tuple[Precision, Array] | None = None

    def compute(self, x, W, **epilogue):
        return convolve(x, self._stored_weight(W), **epilogue, **self.options)

    def gradient_x(self, g, x, W):
        return convolve_backward_data(g, self._stored_weight(W), x.shape, **self.options)

    def gradient_w(self, g, x, W):
        return convolve_backward_filter(x, g, W.shape, dtype=W.dtype, scale=self.scale, **self.options)

    def _stored_weight(self, W):
        """Return the scaled weight in the storage type, computed once for the forward and the backward pass."""
        precision = self.options['precision'] or current_precision()
        if self._stored is None or self._stored[0] is not precision:
            self._stored = precision, self._convert_weight(W, precision.storage)
        return self._stored[1]

    def _convert_weight(self, W, storage):
        if self.scale is None:
            return to_storage(W, storage)  # without a copy if possible
        if storage == np.uint16:  # the bits of bfloat16
            return to_storage(W * self.scale, storage)
        return scale_weight(W, self.scale, storage, channels_last=True)


class _CudnnDeconvolution(_CudnnFunction):
    """The transposed convolution."""

    def compute(self, x, W, **epilogue):
        return deconvolve(x, W, **epilogue, **self.options)

    def gradient_x(self, g, x, W):
        return convolve(g, W, **self.options)

    def gradient_w(self, g, x, W):
        return convolve_backward_filter(g, x, W.shape, dtype=W.dtype, **self.options)
