"""The loss functions, as weighted sums over anchors, RoIs or pixels.

Detectron's normalisations are expressed as weights (:func:`per_image_mean_weights`): the weights of each image sum to
the same value, and the loss of a batch is the mean over its images.  The loss of a batch is therefore the mean of the
losses of its parts, weighted by their image counts, for any division.  (Detectron divides the objectness,
classification and mask losses by the count of a whole GPU, and Matterport does so with all losses; the result is the
same if each GPU has one image.)
"""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np


def per_image_mean_weights(counted: np.ndarray, images: np.ndarray, n_images: int) -> np.ndarray:
    """Return weights that turn a sum into the mean over images of per-image means.

    Args:
        counted: ``(K,)`` bool: True for the elements that contribute to the loss.
        images: ``(K,)`` int index of the image of each element.
        n_images: Number of images in the batch.

    Returns:
        numpy.ndarray: ``(K,)`` float32, 0 where ``counted`` is False.
    """
    counts = np.bincount(images[counted], minlength=n_images)
    return (counted / (n_images * np.maximum(counts, 1)[images])).astype(np.float32)


def sigmoid_cross_entropy(
    logits: chainer.Variable | np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> chainer.Variable:
    """Return the weighted sum of binary cross entropies (``SigmoidCrossEntropyLoss``).

    Args:
        logits: Floats of any shape.
        labels: int32 of the same shape: 1, 0, or -1 for ignored elements.
        weights: float32 of the same shape, or of one that broadcasts to it.
    """
    losses = F.sigmoid_cross_entropy(F.cast(logits, np.float32), labels, reduce='no')
    return F.sum(losses * weights)


def softmax_cross_entropy(
    scores: chainer.Variable | np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> chainer.Variable:
    """Return the weighted sum of cross entropies (``SoftmaxWithLoss``).

    Args:
        scores: ``(R, C)`` floats.
        labels: ``(R,)`` int32, -1 for ignored rows.
        weights: ``(R,)`` float32.
    """
    losses = F.softmax_cross_entropy(F.cast(scores, np.float32), labels, reduce='no')
    return F.sum(losses * weights)


def smooth_l1(
    predicted: chainer.Variable | np.ndarray, targets: np.ndarray, weights: np.ndarray, *, beta: float
) -> chainer.Variable:
    """Return the weighted sum of ``d * d / (2 * beta)`` where ``d < beta``, else ``d - beta / 2``.

    ``d`` is the absolute difference (Girshick 2015, equation 3; ``SmoothL1Loss``).

    Args:
        predicted: Floats of any shape.
        targets: float32 of the same shape.
        weights: float32 of the same shape, or of one that broadcasts to it.
        beta: Difference at which the loss becomes linear.
    """
    losses = F.huber_loss(F.cast(predicted, np.float32), targets, beta, reduce='no')
    return F.sum(losses * (weights / np.float32(beta)))
