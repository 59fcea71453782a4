"""The five losses, each a weighted sum of what single anchors, RoIs and pixels lose.

Detectron's normalisations are weights (:func:`per_image_mean_weights`): what is counted of one image has the weight
1 together, and the loss of a batch is the mean over its images.  So the loss of a batch is that of its
parts, weighted with their numbers of images, however one divides it.  (Detectron divides objectness,
classes and masks by what is counted on a whole GPU, Matterport all losses: the same where a GPU has one
image.)
"""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np


def per_image_mean_weights(counted: np.ndarray, images: np.ndarray, n_images: int) -> np.ndarray:
    """Return weights with which a sum is a mean over what is counted of an image, and over the images.

    Args:
        counted: ``(K,)`` bool: what has a part in the loss.
        images: ``(K,)`` int: the image of each.
        n_images: Images of the batch.

    Returns:
        numpy.ndarray: ``(K,)`` float32, 0 where nothing is counted.
    """
    counts = np.bincount(images[counted], minlength=n_images)
    return (counted / (n_images * np.maximum(counts, 1)[images])).astype(np.float32)


def sigmoid_cross_entropy(logits, labels, weights) -> chainer.Variable:
    """Return the weighted sum of binary cross entropies (``SigmoidCrossEntropyLoss``).

    Args:
        logits: Floats of any shape.
        labels: int32 of the same shape: 1, 0, or -1 for what is not looked at.
        weights: float32 of the same shape, or one that broadcasts to it.
    """
    losses = F.sigmoid_cross_entropy(F.cast(logits, np.float32), labels, reduce='no')
    return F.sum(losses * weights)


def softmax_cross_entropy(scores, labels, weights) -> chainer.Variable:
    """Return the weighted sum of cross entropies (``SoftmaxWithLoss``).

    Args:
        scores: ``(R, C)`` floats.
        labels: ``(R,)`` int32, -1 for what is not looked at.
        weights: ``(R,)`` float32.
    """
    losses = F.softmax_cross_entropy(F.cast(scores, np.float32), labels, reduce='no')
    return F.sum(losses * weights)


def smooth_l1(predicted, targets, weights, *, beta: float) -> chainer.Variable:
    """Return the weighted sum of ``d * d / (2 * beta)`` where ``d < beta``, else ``d - beta / 2``.

    ``d`` is the absolute difference (Girshick 2015, equation 3; ``SmoothL1Loss``).

    Args:
        predicted: Floats of any shape.
        targets: float32 of the same shape.
        weights: float32 of the same shape, or one that broadcasts to it.
        beta: Where the loss turns linear.
    """
    losses = F.huber_loss(F.cast(predicted, np.float32), targets, beta, reduce='no')
    return F.sum(losses * (weights / np.float32(beta)))
