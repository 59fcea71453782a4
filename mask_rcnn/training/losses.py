"""The normalisation of the losses, which are weighted sums over anchors, RoIs or pixels.

Detectron's normalisations are expressed as weights (:func:`per_image_mean_weights`): the weights of each image sum to
the same value, and the loss of a batch is the mean over its images.  The loss of a batch is therefore the mean of the
losses of its parts, weighted by their image counts, for any division.  (Detectron divides the objectness,
classification and mask losses by the count of a whole GPU, and Matterport, torchvision and detectron2 do so with all
losses; the result is the same if each GPU has one image, or if all images have the same counts.)
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Dialect


def per_image_mean_weights(counted: np.ndarray, images: np.ndarray, n_images: int) -> np.ndarray:
    """Return weights that turn a sum into the mean over images of per-image means.

    Args:
        counted: ``(K,)`` bool: True for the elements that contribute to the loss; or int, the number of values of each
            element that contribute.
        images: ``(K,)`` int index of the image of each element.
        n_images: Number of images in the batch.

    Returns:
        numpy.ndarray: ``(K,)`` float32, 0 where ``counted`` is 0.
    """
    counts = np.bincount(images, weights=counted, minlength=n_images)
    return ((counted > 0) / (n_images * np.maximum(counts, 1)[images])).astype(np.float32)


def box_loss_weights(
    weights: np.ndarray, positive: np.ndarray, images: np.ndarray, n_images: int, dialect: Dialect
) -> np.ndarray:
    """Return the weights of anchors or RoIs in the box regression loss.

    Args:
        weights: ``(K,)`` float32 weights in the classification loss.
        positive: ``(K,)`` bool: True for objects.
        images: ``(K,)`` int index of the image of each anchor or RoI.
        n_images: Number of images in the batch.
        dialect: Provides ``losses.box_loss_normalizer``.

    Returns:
        numpy.ndarray: ``(K,)`` float32, 0 where ``positive`` is False.
    """
    if dialect.losses.box_loss_normalizer == 'sampled':
        return weights * positive
    return per_image_mean_weights(positive, images, n_images) / np.float32(4)
