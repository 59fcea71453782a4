"""Normalisation links: affine channels, and batch and group normalisation."""

from __future__ import annotations

from typing import Any

import chainer
import chainer.links as L
import numpy as np

from mask_rcnn.config import BackboneConventions
from mask_rcnn.ops.conv.affine_channel import affine_channel_2d
from mask_rcnn.ops.conv.group_norm import check_groups, group_norm
from mask_rcnn.weights.folding import norm_to_affine

#: Epsilon of the Caffe ResNets' batch normalisation.
BN_EPS = 1e-5
#: Detectron's ``GROUP_NORM.NUM_GROUPS`` and ``GROUP_NORM.EPSILON``.
GN_GROUPS, GN_EPS = 32, 1e-5


class AffineChannel2D(chainer.Link):
    """``y = x * scale + bias`` with one scale and one bias per channel: a frozen batch normalisation.

    Caffe2's ``AffineChannel``.

    Args:
        n_channels: Channels of the ``(N, C, H, W)`` input.

    Attributes:
        scale, bias (chainer.Parameter): ``(C,)`` float32; initially 1 and 0.
    """

    def __init__(self, n_channels: int):
        super().__init__()
        with self.init_scope():
            self.scale = chainer.Parameter(np.float32(1), (n_channels,))
            self.bias = chainer.Parameter(np.float32(0), (n_channels,))

    def forward(self, x):
        return affine_channel_2d(x, self.scale, self.bias)


class GroupNormalization(chainer.Link):
    """Group normalisation with one scale and one bias per channel (:func:`mask_rcnn.ops.conv.group_norm.group_norm`).

    Wu and He 2018; Detectron's ``GroupNorm``.

    Args:
        n_channels: Channels of the ``(N, C, H, W)`` input, a multiple of ``groups``.
        groups: Number of groups.
        eps: Constant that is added to the variance.

    Attributes:
        gamma, beta (chainer.Parameter): ``(C,)`` float32; initially 1 and 0.
        groups, eps: The arguments; :func:`set_conventions` sets those of a dialect.
    """

    def __init__(self, n_channels: int, groups: int = GN_GROUPS, eps: float = GN_EPS):
        super().__init__()
        self.groups, self.eps = groups, eps
        with self.init_scope():
            self.gamma = chainer.Parameter(np.float32(1), (n_channels,))
            self.beta = chainer.Parameter(np.float32(0), (n_channels,))

    def forward(self, x, *, residual=None, relu=False, overwrite=False):
        """Normalise ``(N, C, H, W)``; see :func:`~mask_rcnn.ops.conv.group_norm.group_norm` for the options."""
        options = {'residual': residual, 'relu': relu, 'overwrite': overwrite}
        return group_norm(x, self.gamma, self.beta, self.groups, self.eps, **options)


def make_norm(norm: str, n_channels: int) -> chainer.Link:
    """Return a new normalisation link, ``'affine'``, ``'bn'`` or ``'gn'``."""
    if norm == 'affine':
        return AffineChannel2D(n_channels)
    return GroupNormalization(n_channels) if norm == 'gn' else L.BatchNormalization(n_channels, eps=BN_EPS)


def set_conventions(chain: chainer.Chain, conventions: BackboneConventions) -> None:
    """Set the constants of every batch and group normalisation in a chain to those of a dialect.

    Raises:
        ValueError: The number of channels of a group normalisation is not a multiple of the number of groups.
    """
    for path, link in chain.namedlinks():
        if isinstance(link, L.BatchNormalization):
            link.eps = conventions.bn_eps
        elif isinstance(link, GroupNormalization):
            try:
                check_groups(len(link.gamma), conventions.gn_groups)
            except ValueError as error:
                raise ValueError(f'{path.lstrip("/")}: {error}') from None
            link.groups, link.eps = conventions.gn_groups, conventions.gn_eps


def scale_and_bias(norm: Any) -> tuple[Any, Any]:
    """Return the scale and the bias that an affine channel, or a batch normalisation in test mode, applies.

    Both are ``(C,)`` float32.
    """
    if isinstance(norm, AffineChannel2D):
        return norm.scale.array, norm.bias.array
    gamma: Any = 1 if norm.gamma is None else norm.gamma.array
    beta: Any = 0 if norm.beta is None else norm.beta.array
    return norm_to_affine(gamma, beta, norm.avg_mean, norm.avg_var, norm.eps)


def apply_frozen_bn(bn: L.BatchNormalization, x) -> chainer.Variable:
    """Normalise with the running statistics regardless of ``chainer.config.train``; these do not change.

    Computed as the equivalent affine channel.  If gamma and beta are frozen, its backward pass needs no activations,
    and only ``x`` gets a gradient.
    """
    scale, bias = scale_and_bias(bn)
    if any(parameter.requires_grad for parameter in bn.params()):
        trained_scale, trained_bias = _TrainedAffine(bn, scale, bias).apply((bn.gamma, bn.beta))
        return affine_channel_2d(x, trained_scale, trained_bias)
    return affine_channel_2d(x, scale.astype(x.dtype, copy=False), bias.astype(x.dtype, copy=False))


class _TrainedAffine(chainer.FunctionNode):
    """The affine channel of a batch normalisation as a function of its gamma and beta.

    Args:
        bn: The normalisation, with running statistics.
        scale, bias: The result of :func:`scale_and_bias`, which computes it in float64.
    """

    def __init__(self, bn: L.BatchNormalization, scale: Any, bias: Any):
        self._affine = scale, bias
        mean: Any = bn.avg_mean
        variance: Any = bn.avg_var
        self._mean = mean
        self._unit_scale = norm_to_affine(mean.dtype.type(1), mean, mean, variance, bn.eps)[0]

    def forward(self, inputs):
        return self._affine

    def backward(self, indexes, grad_outputs):
        grad_scale, grad_bias = grad_outputs
        return (grad_scale - grad_bias * self._mean) * self._unit_scale, grad_bias
