"""Batch normalisation and its frozen form, the affine channel, and the way from one to the other."""

from __future__ import annotations

import functools

import chainer
import chainer.links as L
import numpy as np

from mask_rcnn.ops.conv.affine_channel import affine_channel_2d

#: Epsilon of the Caffe ResNets' batch normalisation.
BN_EPS = 1e-5


class AffineChannel2D(chainer.Link):
    """``y = x * scale + bias`` with one scale and one bias a channel.

    Caffe2's ``AffineChannel``: a batch normalisation with fixed statistics, folded.

    Args:
        n_channels (int): Channels of the ``(N, C, H, W)`` input.

    Attributes:
        scale, bias (chainer.Parameter): ``(C,)`` float32; 1 and 0 at first.
    """

    def __init__(self, n_channels: int):
        super().__init__()
        with self.init_scope():
            self.scale = chainer.Parameter(1, (n_channels,))
            self.bias = chainer.Parameter(0, (n_channels,))

    def forward(self, x):
        return affine_channel_2d(x, self.scale, self.bias)


def make_norm(norm: str, n_channels: int) -> chainer.Link:
    """Return a new normalisation link: ``'affine'`` or ``'bn'``."""
    if norm == 'affine':
        return AffineChannel2D(n_channels)
    return L.BatchNormalization(n_channels, eps=BN_EPS)


def fixed_batch_normalization(bn: L.BatchNormalization, x) -> chainer.Variable:
    """Normalise with the running statistics, whatever ``chainer.config.train`` is; they stay as they are.

    Computed as the affine channel that it is, whose backward pass needs no activations; the gradient is that
    of ``x`` alone.

    Args:
        bn: Its ``gamma`` and ``beta`` are taken as constants.
        x: ``(N, C, H, W)`` floats.
    """
    scale, bias = scale_and_bias(bn)
    return affine_channel_2d(x, scale.astype(x.dtype, copy=False), bias.astype(x.dtype, copy=False))


def is_fixed(norm: chainer.Link) -> bool:
    """Whether a link now normalises with given numbers, not with those of the batch."""
    return isinstance(norm, AffineChannel2D) or not chainer.config.train


def scale_and_bias(norm: chainer.Link):
    """Return the scale and the bias, two ``(C,)`` float32 arrays, that a link of :func:`make_norm` applies.

    Of a batch normalisation: in test mode.
    """
    if isinstance(norm, AffineChannel2D):
        return norm.scale.array, norm.bias.array
    std = norm.xp.sqrt(norm.avg_var.astype(np.float64) + norm.eps)
    gamma = 1 if norm.gamma is None else norm.gamma.array.astype(np.float64)
    beta = 0 if norm.beta is None else norm.beta.array.astype(np.float64)
    scale = gamma / std
    return scale.astype(np.float32), (beta - norm.avg_mean * scale).astype(np.float32)


def bn_to_affine(chain: chainer.Chain) -> int:
    """Replace every batch normalisation below a chain by the affine channel that equals it.

    The output is that of the batch normalisation in test mode (Ioffe and Szegedy 2015, section 3.1,
    with the running statistics): scale ``gamma / sqrt(var + eps)``, bias ``beta - mean * scale``.

    Args:
        chain: Changed in place.

    Returns:
        int: Number of links replaced.
    """
    return _replace(chain, L.BatchNormalization, _folded)


def affine_to_bn(chain: chainer.Chain, *, eps: float = BN_EPS) -> int:
    """Inverse of :func:`bn_to_affine`: statistics 0 and ``1 - eps``, so that the output is the same."""
    return _replace(chain, AffineChannel2D, functools.partial(_unfolded, eps=eps))


def set_epsilon(chain: chainer.Chain, eps: float) -> None:
    """Set what every batch normalisation below a chain adds to the variance."""
    for link in chain.links():
        if isinstance(link, L.BatchNormalization):
            link.eps = eps


def _folded(bn: L.BatchNormalization) -> AffineChannel2D:
    affine = AffineChannel2D(bn.avg_mean.size)
    affine.to_device(bn.device)
    affine.scale.array[...], affine.bias.array[...] = scale_and_bias(bn)
    return affine


def _unfolded(affine: AffineChannel2D, *, eps: float) -> L.BatchNormalization:
    bn = L.BatchNormalization(affine.scale.size, eps=eps)
    bn.to_device(affine.device)
    bn.gamma.array[...] = affine.scale.array
    bn.beta.array[...] = affine.bias.array
    bn.avg_mean[...] = 0
    bn.avg_var[...] = 1 - bn.eps
    return bn


def _replace(chain, old_type, convert) -> int:
    count = 0
    for parent in [link for link in chain.links() if isinstance(link, chainer.Chain)]:
        for child in list(parent.children()):
            if isinstance(child, old_type):
                name = child.name
                delattr(parent, name)
                with parent.init_scope():
                    setattr(parent, name, convert(child))
                count += 1
    return count
