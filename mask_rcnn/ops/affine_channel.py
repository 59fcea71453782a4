"""Affine channel: one scale and one bias per channel, what remains of frozen batch normalisation.

Source: Caffe2 ``caffe2/operators/affine_channel_op.cc``.
"""

from __future__ import annotations

import chainer
from chainer import functions as F
from chainer.backends import cuda
from chainer.utils import type_check


def affine_channel_2d(x, scale, bias) -> chainer.Variable:
    """Return ``x * scale + bias``, with one scale and one bias per channel.

    Differentiable with respect to all three (any number of times).  Where ``scale`` needs no gradient, ``x``
    is not kept for the backward pass.

    Args:
        x: Maps (N, C, H, W), floating point, array or variable.
        scale: (C,), of the same type.
        bias: (C,), of the same type.

    Returns:
        Variable (N, C, H, W).

    Raises:
        chainer.utils.type_check.InvalidType: If shapes or types do not fit.
    """
    scale = chainer.as_variable(scale)
    return _AffineChannel2D(scale.requires_grad).apply((x, scale, bias))[0]


class _AffineChannel2D(chainer.FunctionNode):

    def __init__(self, trains_scale: bool):
        self._trains_scale = trains_scale

    def check_type_forward(self, in_types):
        type_check._argname(in_types, ('x', 'scale', 'bias'))
        x, scale, bias = in_types
        type_check.expect(x.dtype.kind == 'f', x.ndim == 4)
        for parameter in (scale, bias):
            type_check.expect(parameter.dtype == x.dtype, parameter.ndim == 1,
                              parameter.shape[0] == x.shape[1])

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1) if self._trains_scale else (1,))
        x, scale, bias = inputs
        y = x * scale[:, None, None]
        y += bias[:, None, None]
        return y,

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1) if self._trains_scale else (1,))
        x, scale, bias = inputs
        return _affine_kernel()(x, scale[:, None, None], bias[:, None, None]),

    def backward(self, indexes, grad_outputs):
        gy, = grad_outputs
        *x, scale = self.get_retained_inputs()
        grads = []
        if 0 in indexes:
            grads.append(affine_channel_2d(gy, scale, scale.xp.zeros_like(scale.array)))
        if 1 in indexes:
            grads.append(F.sum(gy * x[0], axis=(0, 2, 3)))
        if 2 in indexes:
            grads.append(F.sum(gy, axis=(0, 2, 3)))
        return tuple(grads)


def _affine_kernel():
    return cuda.elementwise('T x, T scale, T bias', 'T y', 'y = x * scale + bias', 'affine_channel_2d')
