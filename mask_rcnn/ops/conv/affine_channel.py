"""Affine channel: one scale and one bias per channel, equivalent to a frozen batch normalisation.

Source: Caffe2 ``caffe2/operators/affine_channel_op.cc``.
"""

from __future__ import annotations

import chainer
import numpy as np
from chainer import functions as F
from chainer.backends import cuda
from chainer.utils import type_check

from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import memory_axis_order
from mask_rcnn.ops.runtime.parallel import parallel_for

#: The number of bytes of weights that justifies a thread.
_MIN_BYTES = 1 << 18


def affine_channel_2d(x: Array, scale: Array, bias: Array) -> chainer.Variable:
    """Return ``x * scale + bias``, with one scale and one bias per channel.

    Differentiable with respect to all three inputs any number of times.  If ``scale`` needs no gradient, ``x`` is not
    kept for the backward pass.

    Args:
        x: Feature maps ``(N, C, H, W)``, floating point, array or variable.
        scale: ``(C,)``, floating point: of the type of ``x``, or wider if ``x`` is half precision.
        bias: ``(C,)``, of the type of ``scale``.

    Returns:
        chainer.Variable: ``(N, C, H, W)``, with the type and the memory layout of ``x``.

    Raises:
        chainer.utils.type_check.InvalidType: Shapes or types do not match.
    """
    scale = chainer.as_variable(scale)
    return AffineChannel2DFunction(scale.requires_grad).apply((x, scale, bias))[0]


class AffineChannel2DFunction(chainer.FunctionNode):
    """The function of :func:`affine_channel_2d`.

    Args:
        trains_scale: Whether to keep ``x``, which the gradient of the scale needs.
    """

    def __init__(self, trains_scale: bool):
        self._trains_scale = trains_scale

    def check_type_forward(self, in_types):
        type_check._argname(in_types, ('x', 'scale', 'bias'))
        x, scale, bias = in_types
        type_check.expect(x.dtype.kind == 'f', x.ndim == 4)
        type_check.expect(scale.dtype.kind == 'f', scale.dtype == bias.dtype)
        if type_check.eval(x.dtype) != np.float16:
            type_check.expect(scale.dtype == x.dtype)
        for parameter in (scale, bias):
            type_check.expect(parameter.ndim == 1, parameter.shape[0] == x.shape[1])

    def forward_cpu(self, inputs):
        self.retain_inputs((0, 1) if self._trains_scale else (1,))
        x, scale, bias = inputs
        y = x * scale[:, None, None]
        y += bias[:, None, None]
        return (y.astype(x.dtype, copy=False),)

    def forward_gpu(self, inputs):
        self.retain_inputs((0, 1) if self._trains_scale else (1,))
        x, scale, bias = inputs
        axes = memory_axis_order(x)
        arrays = [array.transpose(*axes) for array in (x, scale[None, :, None, None], bias[None, :, None, None])]
        return (_affine_kernel()(*arrays).transpose(*map(axes.index, range(4))),)

    def backward(self, indexes, grad_outputs):
        (gy,) = grad_outputs
        *x, scale = self.get_retained_inputs()
        grads = []
        if 0 in indexes:
            grads.append(affine_channel_2d(gy, scale, scale.xp.zeros_like(scale.array)))
        if 1 in indexes:
            grads.append(F.cast(F.sum(gy * x[0], axis=(0, 2, 3)), scale.dtype))
        if 2 in indexes:
            grads.append(F.cast(F.sum(gy, axis=(0, 2, 3)), scale.dtype))
        return tuple(grads)


def _affine_kernel():
    return cuda.elementwise('T x, S scale, S bias', 'T y', 'y = x * scale + bias', 'affine_channel_2d')


def scale_output_channels(W: Array, scale: Array) -> Array:
    """Return weights multiplied by one scale per output channel, on all CPUs.

    Args:
        W: ``(O, I, kh, kw)`` floats.
        scale: ``(O,)`` floats.

    Returns:
        NumPy or CuPy array: ``(O, I, kh, kw)``, of the wider of both types.
    """
    factors = scale[:, None, None, None]
    if get_array_module(W) is not np:
        return W * factors
    scaled = array_pool.empty(W.shape, np.result_type(W, scale))
    parallel_for(
        lambda start, stop: np.multiply(W[start:stop], factors[start:stop], out=scaled[start:stop]),
        len(W),
        min_per_thread=_MIN_BYTES // W[0].nbytes + 1,
    )
    return scaled
