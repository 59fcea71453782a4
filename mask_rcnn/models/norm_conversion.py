"""Conversion between batch normalisations and equivalent affine channels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chainer
import chainer.links as L

from mask_rcnn.models.norms import BN_EPS, AffineChannel2D, scale_and_bias
from mask_rcnn.weights.folding import affine_to_norm


def bn_to_affine(chain: chainer.Chain) -> int:
    """Replace every batch normalisation in a chain with the affine channel that equals it in test mode.

    Args:
        chain: Changed in place.

    Returns:
        int: Number of replaced links.
    """
    return _replace(chain, L.BatchNormalization, _to_affine)


def affine_to_bn(chain: chainer.Chain, *, eps: float = BN_EPS) -> int:
    """Replace every affine channel with an equivalent batch normalisation; the inverse of :func:`bn_to_affine`.

    The new statistics are 0 and ``1 - eps``, so that the standard deviation is 1.

    Args:
        chain: Changed in place.
        eps: Epsilon of the new links.

    Returns:
        int: Number of replaced links.
    """
    return _replace(chain, AffineChannel2D, functools.partial(_to_bn, eps=eps))


def _to_affine(bn: Any) -> AffineChannel2D:
    affine: Any = AffineChannel2D(bn.avg_mean.size)
    affine.to_device(bn.device)
    affine.scale.array[...], affine.bias.array[...] = scale_and_bias(bn)
    return affine


def _to_bn(affine: Any, *, eps: float) -> L.BatchNormalization:
    bn: Any = L.BatchNormalization(affine.scale.size, eps=eps)
    bn.to_device(affine.device)
    arrays = (bn.gamma.array, bn.beta.array, bn.avg_mean, bn.avg_var)
    for array, value in zip(arrays, affine_to_norm(affine.scale.array, affine.bias.array, bn.eps), strict=True):
        array[...] = value
    return bn


def _replace(chain: chainer.Chain, old_type: type, convert: Callable) -> int:
    count = 0
    for parent in [link for link in chain.links() if isinstance(link, chainer.Chain)]:
        for child in list(parent.children()):
            if isinstance(child, old_type):
                name = str(child.name)
                delattr(parent, name)
                with parent.init_scope():
                    setattr(parent, name, convert(child))
                count += 1
    return count
