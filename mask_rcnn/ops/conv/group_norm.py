"""Group normalisation (Wu and He 2018); Caffe2's ``GroupNorm``."""

from __future__ import annotations

import chainer
import numpy as np
from chainer.utils import type_check

from mask_rcnn.ops.conv.group_norm_cpu import gradients_cpu, normalize_cpu
from mask_rcnn.ops.conv.group_norm_gpu import gradients_gpu, normalize_gpu
from mask_rcnn.ops.cudnn_frontend.epilogue_gradient import epilogue_gradient
from mask_rcnn.ops.runtime.array import Array, get_array_module


def group_norm(
    x: Array,
    gamma: Array,
    beta: Array,
    groups: int,
    eps: float,
    *,
    residual: Array | None = None,
    relu: bool = False,
    overwrite: bool = False,
) -> chainer.Variable:
    """Return ``relu((x - mean) / sqrt(variance + eps) * gamma + beta + residual)``.

    Mean and biased variance are those of the locations and the ``C / groups`` consecutive channels of a group, for each
    image separately.  Differentiable once with respect to all arrays.  The result has the same bits in every run and
    with any number of threads.

    Args:
        x: Feature maps ``(N, C, H, W)``, floating point, array or variable.
        gamma: ``(C,)``, of the type of ``x``, or wider if ``x`` is half precision.
        beta: ``(C,)``, of the type of ``gamma``.
        groups: Number of groups.
        eps: Constant that is added to the variance.
        residual: ``(N, C, H, W)`` to add, of the type of ``x``, or ``None``.
        relu: Whether to apply ReLU.
        overwrite: Whether the result may use the memory of ``x`` if backprop is disabled.

    Returns:
        chainer.Variable: ``(N, C, H, W)`` of the type of ``x``; on the CPU in its memory layout, on a GPU with the
        channels innermost.

    Raises:
        ValueError: The number of channels is not a multiple of the number of groups.
        chainer.utils.type_check.InvalidType: Shapes or types do not match.
    """
    inputs = [x, gamma, beta] if residual is None else [x, gamma, beta, residual]
    overwrite = overwrite and not chainer.config.enable_backprop
    return GroupNormFunction(groups, eps, relu=relu, overwrite=overwrite).apply(inputs)[0]


def check_groups(n_channels: int, groups: int) -> None:
    """Raise a ValueError if a number of channels is not a multiple of the number of groups."""
    if n_channels % groups:
        raise ValueError(
            f'group normalisation with {groups} groups needs a multiple of {groups} channels, not {n_channels}'
        )


class GroupNormFunction(chainer.FunctionNode):
    """The function of :func:`group_norm`; its inputs are ``x``, ``gamma``, ``beta`` and optionally ``residual``.

    Args:
        groups: Number of groups.
        eps: Constant that is added to the variance.
        relu: Whether to apply ReLU.
        overwrite: Whether the result may use the memory of ``x``.
    """

    def __init__(self, groups: int, eps: float, *, relu: bool, overwrite: bool):
        self._groups, self._eps = groups, eps
        self._relu, self._overwrite = relu, overwrite

    def check_type_forward(self, in_types):
        type_check._argname(in_types, ('x', 'gamma', 'beta', 'residual')[: len(in_types)])
        x, gamma, beta, *residual = in_types
        type_check.expect(x.dtype.kind == 'f', x.ndim == 4)
        type_check.expect(gamma.dtype.kind == 'f', gamma.dtype == beta.dtype)
        if type_check.eval(x.dtype) != np.float16:
            type_check.expect(gamma.dtype == x.dtype)
        for parameter in (gamma, beta):
            type_check.expect(parameter.ndim == 1, parameter.shape[0] == x.shape[1])
        for term in residual:
            type_check.expect(term.dtype == x.dtype, term.shape == x.shape)
        check_groups(type_check.eval(x.shape[1]), self._groups)

    def forward_cpu(self, inputs):
        return self._forward(normalize_cpu, inputs)

    def forward_gpu(self, inputs):
        return self._forward(normalize_gpu, inputs)

    def _forward(self, normalize, inputs):
        self.retain_inputs((0, 1))
        if self._relu:
            self.retain_outputs((0,))
        x, gamma, beta, *terms = inputs
        residual = terms[0] if terms else None
        if x.size == 0:
            self._statistics = None
            return (get_array_module(x).empty_like(x),)
        options = {'relu': self._relu, 'overwrite': self._overwrite}
        y, self._statistics = normalize(x, gamma, beta, self._groups, self._eps, residual, **options)
        return (y,)

    def backward(self, indexes, grad_outputs):
        inputs = [*self.get_retained_inputs(), grad_outputs[0]]
        if self._relu:
            inputs.append(self.get_retained_outputs()[0])
        gradients = GroupNormGradient(self._statistics).apply(inputs)
        return [gradients[index] for index in indexes]


class GroupNormGradient(chainer.FunctionNode):
    """The gradients of ``x``, ``gamma``, ``beta`` and ``residual`` for ``x``, ``gamma``, ``gy`` and the ReLU's result.

    Args:
        statistics: Those of the groups, the second result of the forward pass; ``None`` for empty images.
    """

    def __init__(self, statistics: Array | None):
        self._statistics = statistics

    def forward_cpu(self, inputs):
        return self._forward(gradients_cpu, inputs)

    def forward_gpu(self, inputs):
        return self._forward(gradients_gpu, inputs)

    def _forward(self, differentiate, inputs):
        x, gamma, gy, *outputs = inputs
        g = _multiply_by_derivative(gy, outputs[0]) if outputs else gy
        if self._statistics is None:
            zeros = get_array_module(x).zeros_like
            return zeros(x), zeros(gamma), zeros(gamma), g
        gx, *grads = differentiate(x, gamma, g, self._statistics)
        return gx, *(grad.astype(gamma.dtype, copy=False) for grad in grads), g

    def backward(self, indexes, grad_outputs):
        raise RuntimeError('group normalisation is differentiable only once')


def _multiply_by_derivative(gy: Array, y: Array) -> Array:
    """Return the gradient before ReLU, whose result is ``y``; an infinite gradient is NaN where ReLU is 0."""
    if get_array_module(gy) is np or gy.dtype == np.float64:
        return gy * (y > 0)
    return epilogue_gradient(gy, y)[0]
