"""A convolution, its fixed normalisation, a sum and ReLU as one differentiable function."""

from __future__ import annotations

import chainer
from chainer.backend import get_array_module

from mask_rcnn.ops.cudnn.convolution import convolve, convolve_backward_data, convolve_backward_filter


def convolution_affine(x, W, scale, bias, residual=None, *, stride: int = 1, pad: int = 0,
                       relu: bool = False) -> chainer.Variable:
    """Return ``relu(convolution * scale + bias + residual)``, one kernel forward.

    Differentiable once, with respect to ``x``, ``W`` and ``residual``.  Of all that is computed only the
    result is kept for the backward pass, which a chain of functions would keep four times.

    Args:
        x: ``(N, C, H, W)`` array or variable of CuPy, float32 or float16.
        W: ``(O, C, kh, kw)``.
        scale, bias: ``(O,)`` arrays, constants.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.
        stride, pad: Of the convolution, the same for all sides.
        relu: Whether to replace negative numbers by zero.

    Returns:
        chainer.Variable: ``(N, O, oh, ow)`` of ``x``'s type, channels innermost in memory.
    """
    inputs = (x, W) if residual is None else (x, W, residual)
    return _ConvolutionAffine(scale, bias, stride, pad, relu).apply(inputs)[0]


class _ConvolutionAffine(chainer.FunctionNode):

    def __init__(self, scale, bias, stride, pad, relu):
        self.scale, self.bias, self.relu = scale[:, None, None, None], bias, relu
        self.geometry = {'stride': stride, 'pad': pad}

    def forward(self, inputs):
        x, W, *residual = inputs
        self.retain_inputs((0, 1))
        if self.relu:
            self.retain_outputs((0,))
        y = convolve(x, W * self.scale, self.bias, relu=self.relu, residual=residual[0] if residual else None,
                     **self.geometry)
        return y.astype(x.dtype, order='K', copy=False),

    def backward(self, indexes, grad_outputs):
        x, W = (variable.array for variable in self.get_retained_inputs())
        g = grad_outputs[0].array
        if self.relu:
            y = self.get_retained_outputs()[0].array
            # Written in the layout of y, in which the two products below want it.
            xp = get_array_module(y)
            g = xp.multiply(g, y > 0, out=xp.empty_like(y))
        gradients = []
        if 0 in indexes:
            gradients.append(convolve_backward_data(g, W * self.scale, x.shape, **self.geometry))
        if 1 in indexes:
            gradients.append(convolve_backward_filter(x, g, W.shape, **self.geometry) * self.scale)
        if 2 in indexes:
            gradients.append(g)
        return [chainer.as_variable(gradient) for gradient in gradients]
