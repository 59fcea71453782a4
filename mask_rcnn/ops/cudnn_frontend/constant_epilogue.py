"""A constant bias and ReLU after another function than a convolution, as one differentiable function."""

from __future__ import annotations

import chainer

from mask_rcnn.ops.cudnn_frontend.convolution import apply_epilogue
from mask_rcnn.ops.cudnn_frontend.epilogue_gradient import epilogue_gradient
from mask_rcnn.ops.runtime.array import Array


def apply_constant_epilogue(x: chainer.Variable, bias: Array, *, relu: bool = False) -> chainer.Variable:
    """Return ``relu(x + bias)``, in place and in one kernel; differentiable once with respect to ``x``.

    Args:
        x: ``(N, C, H, W)``, float32 or float16, fastest with the channels innermost in memory; its array is
            overwritten, so that the function that has computed it must not need it in its backward pass.
        bias: ``(C,)`` array, a constant.
        relu: Whether to apply ReLU.

    Returns:
        chainer.Variable: ``(N, C, H, W)`` of the type and in the array of ``x``.
    """
    return _ConstantEpilogue(bias, relu).apply((x,))[0]


class _ConstantEpilogue(chainer.FunctionNode):
    def __init__(self, bias: Array, relu: bool):
        self._bias, self._relu = bias, relu

    def forward(self, inputs):
        if self._relu:
            self.retain_outputs((0,))
        return (apply_epilogue(inputs[0], self._bias, relu=self._relu),)

    def backward(self, indexes, grad_outputs):
        y = self.get_retained_outputs()[0].array if self._relu else None
        gradient, _ = epilogue_gradient(grad_outputs[0].array, y)
        return (chainer.as_variable(gradient),)
