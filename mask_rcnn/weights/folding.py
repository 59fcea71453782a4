"""Arithmetic that turns layers of other programs into ours without changing what the network computes.

All functions take and return NumPy arrays; they compute in float64 and round once, to float32.
"""

from __future__ import annotations

import numpy as np


def norm_to_affine(
    gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the affine channel that equals a batch normalisation in test mode.

    The normalisation ``gamma * (x - mean) / sqrt(var + eps) + beta`` is an affine function of each channel (Ioffe and
    Szegedy 2015, algorithm 2, line 11).

    Args:
        gamma: ``(C,)`` scale of the normalisation, or a number.
        beta: ``(C,)`` offset of the normalisation, or a number.
        mean: ``(C,)`` running mean.
        var: ``(C,)`` running variance.
        eps: Constant added to the variance.

    Returns:
        Scale and bias, two ``(C,)`` float32 arrays.
    """
    scale = _scale(gamma, var, eps)
    with np.errstate(invalid='ignore'):
        return scale.astype(np.float32), (beta - mean * scale).astype(np.float32)


def affine_to_norm(
    scale: np.ndarray, bias: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the batch normalisation with mean 0 and standard deviation 1 that equals an affine channel.

    Args:
        scale: ``(C,)`` scale of the affine channel.
        bias: ``(C,)`` bias of the affine channel.
        eps: Constant that the normalisation adds to the variance.

    Returns:
        gamma, beta, mean and variance, four ``(C,)`` arrays of the type of ``scale``.
    """
    zeros = np.zeros_like(scale)
    return scale, bias, zeros, zeros + (1 - eps)


def fold_bias_into_mean(bias: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the running mean of a batch normalisation whose convolution loses its bias.

    ``(x + bias) - mean`` is ``x - (mean - bias)``.

    Args:
        bias: ``(C,)``, of the convolution before the normalisation.
        mean: ``(C,)``, the normalisation's.

    Returns:
        ``(C,)`` float32.
    """
    return (mean.astype(np.float64) - bias).astype(np.float32)


def fold_norm_into_weight(weight: np.ndarray, gamma: np.ndarray, var: np.ndarray, eps: float) -> np.ndarray:
    """Return a convolution's or linear layer's weight with the normalisation behind it multiplied in.

    Together with :func:`fold_norm_into_bias`: the normalisation in test mode is an affine function of each
    channel (Ioffe and Szegedy 2015, algorithm 2, line 11), as is the layer before it.

    Args:
        weight: ``(C, ...)``, output channels first.
        gamma: ``(C,)``, the normalisation's factor.
        var: ``(C,)``, its running variance.
        eps: What it adds to the variance.

    Returns:
        Array of the weight's shape, float32.
    """
    scale = _scale(gamma, var, eps).reshape(-1, *[1] * (weight.ndim - 1))
    # NumPy multiplies in float64 block by block here, so that no float64 copy of the weight is made.
    return np.multiply(weight, scale, out=np.empty(weight.shape, np.float32), casting='same_kind')


def fold_norm_into_bias(
    bias: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> np.ndarray:
    """Return the bias that belongs to :func:`fold_norm_into_weight`.

    Args:
        bias: ``(C,)``, the layer's own.
        gamma, beta, mean, var: ``(C,)``, the normalisation's factor, offset, running mean and variance.
        eps: What it adds to the variance.

    Returns:
        ``(C,)`` float32.
    """
    return ((bias.astype(np.float64) - mean) * _scale(gamma, var, eps) + beta).astype(np.float32)


def softmax_pair_to_logit(array: np.ndarray) -> np.ndarray:
    """Return the weight or bias of one logit an anchor from that of a pair (background, foreground).

    The softmax of a pair is the sigmoid of its difference:
    ``exp(f) / (exp(b) + exp(f)) = 1 / (1 + exp(-(f - b)))``.

    Args:
        array: ``(2 * A, ...)``: rows ``2 * a`` and ``2 * a + 1`` are background and foreground of anchor
            ``a``.

    Returns:
        ``(A, ...)`` float32.
    """
    return (array[1::2].astype(np.float64) - array[::2]).astype(np.float32)


def _scale(gamma: np.ndarray, var: np.ndarray, eps: float) -> np.ndarray:
    with np.errstate(invalid='ignore', divide='ignore'):  # the reader reports what is not finite
        return gamma / np.sqrt(var.astype(np.float64) + eps)
