"""The network input as a picture."""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.preprocessing.image_io import to_pixels


def viewable_input(x: np.ndarray, config: Config) -> np.ndarray:
    """Return a network input as a picture: the inverse of the conversion of colours.

    The mean is added, and the channels get the order of the picture.  Zero padding therefore has the mean colour
    (Detectron), or is black where the mean is subtracted after the padding (Matterport).

    Args:
        x: ``(3, h, w)`` floats, the network input of one image; see
            :func:`mask_rcnn.preprocessing.image_transform.prepare_image`.
        config: Provides the order, mean and standard deviation of the channels (``dialect.input``).

    Returns:
        numpy.ndarray: ``(h, w, 3)`` uint8, RGB; values are rounded, and NaN is black.

    Raises:
        ValueError: ``x`` does not have this shape; a batch of images has one more axis.
    """
    if np.ndim(x) != 3 or len(x) != 3:
        raise ValueError(f'a network input must have the shape (3, h, w), not {np.shape(x)}')
    conventions = config.dialect.input
    std, mean = (
        np.array(values, np.float32)[:, None, None] for values in (conventions.pixel_std, conventions.pixel_mean)
    )
    channels = x.astype(np.float32) * std + mean
    if conventions.channel_order == 'BGR':
        channels = channels[::-1]
    return to_pixels(np.nan_to_num(channels))
