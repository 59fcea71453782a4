"""A convolution and what follows it as one differentiable function: of all that is computed only the result is kept."""

from __future__ import annotations

import chainer

from mask_rcnn.ops.cudnn_frontend.convolution import (
    as_nhwc,
    convolve,
    convolve_backward_data,
    convolve_backward_filter,
    deconvolve,
)


def convolution_2d(x, W, b=None, *, stride: int = 1, pad: int = 0, relu: bool = False) -> chainer.Variable:
    """Return ``relu(convolution + b)``, one kernel forward; differentiable once, with respect to all arrays.

    Args:
        x: ``(N, C, H, W)`` array or variable of CuPy, float32 or float16.
        W: ``(O, C, kh, kw)``.
        b: ``(O,)``, or ``None``.
        stride, pad: Of the convolution, the same for all sides.
        relu: Whether to replace negative numbers by zero.

    Returns:
        chainer.Variable: ``(N, O, oh, ow)`` of ``x``'s type, channels innermost in memory.
    """
    return _apply(_CudnnConvolution(None, relu, stride=stride, pad=pad), x=x, W=W, b=b)


def convolution_affine(
    x, W, scale, bias, residual=None, *, stride: int = 1, pad: int = 0, relu: bool = False
) -> chainer.Variable:
    """Return ``relu(convolution * scale + bias + residual)``, one kernel forward.

    Differentiable once, with respect to ``x``, ``W`` and ``residual``; a chain of functions would keep four
    arrays for the backward pass.

    Args:
        x, W, stride, pad, relu: As for :func:`convolution_2d`.
        scale, bias: ``(O,)`` arrays, constants.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.

    Returns:
        chainer.Variable: As of :func:`convolution_2d`.
    """
    node = _CudnnConvolution(scale[:, None, None, None], relu, stride=stride, pad=pad)
    return _apply(node, x=x, W=W, b=bias, residual=residual)


def deconvolution_2d(x, W, b=None, *, stride: int = 1, pad: int = 0, relu: bool = False) -> chainer.Variable:
    """Return the transposed convolution ``relu(deconvolution + b)``; differentiable once, like :func:`convolution_2d`.

    Args:
        x, b, stride, pad, relu: As for :func:`convolution_2d`.
        W: ``(C, O, kh, kw)``.

    Returns:
        chainer.Variable: ``(N, O, stride * (H - 1) + kh - 2 * pad, ...)`` of ``x``'s type, channels innermost.
    """
    return _apply(_CudnnDeconvolution(relu, stride=stride, pad=pad), x=x, W=W, b=b)


def _apply(node, **inputs):
    node.names = [name for name, array in inputs.items() if array is not None]
    return node.apply([inputs[name] for name in node.names])[0]


class _CudnnFunction(chainer.FunctionNode):
    """What the functions have in common; ``names`` are those of the inputs."""

    def __init__(self, relu, **geometry):
        self.relu, self.geometry = relu, geometry

    def forward(self, inputs):
        self.retain_inputs((0, 1))
        if self.relu:
            self.retain_outputs((0,))
        x, W, *rest = inputs
        y = self.compute(x, W, relu=self.relu, **dict(zip(self.names[2:], rest)), **self.geometry)
        return (as_nhwc(y).astype(x.dtype, copy=False).transpose(0, 3, 1, 2),)

    def backward(self, indexes, grad_outputs):
        x, W = (variable.array for variable in self.get_retained_inputs())
        g = grad_outputs[0].array
        if self.relu:
            y = self.get_retained_outputs()[0].array
            g = (as_nhwc(g) * (as_nhwc(y) > 0)).transpose(0, 3, 1, 2)
        gradients = {
            'x': lambda: self.gradient_x(g, x, W),
            'W': lambda: self.gradient_w(g, x, W),
            'b': lambda: as_nhwc(g).sum(axis=(0, 1, 2)),
            'residual': lambda: g,
        }
        return [
            chainer.as_variable(gradients[self.names[index]]().astype(self.inputs[index].dtype, copy=False))
            for index in indexes
        ]


class _CudnnConvolution(_CudnnFunction):
    def __init__(self, scale, relu, **geometry):
        super().__init__(relu, **geometry)
        self.scale = scale

    def compute(self, x, W, **rest):
        return convolve(x, self._scaled(W), **rest)

    def gradient_x(self, g, x, W):
        return convolve_backward_data(g, self._scaled(W), x.shape, **self.geometry)

    def gradient_w(self, g, x, W):
        return self._scaled(convolve_backward_filter(x, g, W.shape, **self.geometry))

    def _scaled(self, W):
        return W if self.scale is None else W * self.scale


class _CudnnDeconvolution(_CudnnFunction):
    def compute(self, x, W, **rest):
        return deconvolve(x, W, **rest)

    def gradient_x(self, g, x, W):
        return convolve(g, W, **self.geometry)

    def gradient_w(self, g, x, W):
        return convolve_backward_filter(g, x, W.shape, **self.geometry)
