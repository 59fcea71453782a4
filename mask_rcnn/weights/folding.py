"""Folding: layers rewritten with fewer or other parameters that compute the same function.

All functions compute in float64 and round once, to float32.  Those on normalisation parameters accept NumPy and CuPy
arrays; the others accept NumPy arrays.
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
        gamma: ``(C,)`` scale of the normalisation, or a scalar.
        beta: ``(C,)`` offset of the normalisation, or a scalar.
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


def gamma_for_epsilon(gamma: np.ndarray, var: np.ndarray, eps: float, new_eps: float) -> np.ndarray:
    """Return the ``gamma`` that keeps a batch normalisation's output when its epsilon changes.

    Args:
        gamma: ``(C,)`` scale of the normalisation.
        var: ``(C,)`` running variance.
        eps: Constant that has been added to the variance.
        new_eps: Constant that will be added to the variance.

    Returns:
        ``(C,)`` float32.
    """
    var = var.astype(np.float64)
    with np.errstate(invalid='ignore'):  # the caller reports values that are not finite
        return (gamma * np.sqrt((var + new_eps) / (var + eps))).astype(np.float32)


def fold_bias_into_mean(bias: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Return the running mean of a batch normalisation after the bias of its convolution is removed.

    ``(x + bias) - mean`` is ``x - (mean - bias)``.

    Args:
        bias: ``(C,)`` bias of the convolution before the normalisation.
        mean: ``(C,)`` running mean of the normalisation.

    Returns:
        ``(C,)`` float32.
    """
    return (mean.astype(np.float64) - bias).astype(np.float32)


def fold_norm_into_weight(weight: np.ndarray, gamma: np.ndarray, var: np.ndarray, eps: float) -> np.ndarray:
    """Return the weight of a convolution or linear layer multiplied by the scale of its batch normalisation.

    :func:`fold_norm_into_bias` returns the matching bias.

    Args:
        weight: ``(C, ...)``, output channels first.
        gamma: ``(C,)`` scale of the normalisation.
        var: ``(C,)`` running variance.
        eps: Constant added to the variance.

    Returns:
        Array of the weight's shape, float32.
    """
    scale = _scale(gamma, var, eps).reshape(-1, *[1] * (weight.ndim - 1))
    # NumPy multiplies in float64 block by block here, so that it makes no float64 copy of the weight.
    return np.multiply(weight, scale, out=np.empty(weight.shape, np.float32), casting='same_kind')


def fold_norm_into_bias(
    bias: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, var: np.ndarray, eps: float
) -> np.ndarray:
    """Return the bias that belongs to the weight of :func:`fold_norm_into_weight`.

    Args:
        bias: ``(C,)`` bias of the layer.
        gamma: ``(C,)`` scale of the normalisation.
        beta: ``(C,)`` offset of the normalisation.
        mean: ``(C,)`` running mean.
        var: ``(C,)`` running variance.
        eps: Constant added to the variance.

    Returns:
        ``(C,)`` float32.
    """
    return ((bias.astype(np.float64) - mean) * _scale(gamma, var, eps) + beta).astype(np.float32)


def softmax_pair_to_logit(array: np.ndarray) -> np.ndarray:
    """Return the weight or bias of one logit per anchor from that of a pair (background, foreground).

    The softmax of a pair is the sigmoid of its difference:
    ``exp(f) / (exp(b) + exp(f)) = 1 / (1 + exp(-(f - b)))``.

    Args:
        array: ``(2 * A, ...)``: rows ``2 * a`` and ``2 * a + 1`` are background and foreground of anchor ``a``.

    Returns:
        ``(A, ...)`` float32.
    """
    return (array[1::2].astype(np.float64) - array[::2]).astype(np.float32)


def _scale(gamma: np.ndarray, var: np.ndarray, eps: float) -> np.ndarray:
    with np.errstate(invalid='ignore', divide='ignore'):  # the caller reports values that are not finite
        return gamma / np.sqrt(var.astype(np.float64) + eps)
