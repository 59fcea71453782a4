"""From an image to the network's input: resizing, normalisation, padding.

:func:`prepare_image` is the one way into the network; prediction and training both take it.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.preprocessing.image_transform import ImageTransform, rounded_sides
from mask_rcnn.preprocessing.resize import resize_uint8_skimage, subtract_mean_and_resize


def input_scale(size: tuple[int, int], config: Config) -> float:
    """Return by what factor an image is resized.

    ``detectron/utils/blob.py`` ``get_target_size``: the shorter side becomes ``config.min_size`` unless
    the longer one would exceed ``config.max_size``.  In a dialect that only enlarges (Matterport's
    ``utils.resize_image``), a larger image stays as it is, within that limit.

    Args:
        size: ``(H, W)`` of the image.
        config: Gives both limits.
    """
    short, long = min(size), max(size)
    scale = config.min_size / short
    if config.dialect.input.upscale_only:
        scale = max(scale, 1.0)
    if np.round(scale * long) > config.max_size:
        scale = config.max_size / long
    return float(scale)


def prepare_image(image: np.ndarray, config: Config) -> tuple[np.ndarray, ImageTransform]:
    """Make the network's input of an image.

    ``detectron/utils/blob.py`` ``prep_im_for_blob``: the mean goes before the image is resized; and
    ``im_list_to_blob``: a network with a feature pyramid gets zeros below and to the right, up to multiples
    of its coarsest stride.  Matterport's ``utils.resize_image`` and ``mold_image`` do it the other way round.

    Args:
        image: ``(3, H, W)`` float32, RGB, 0 to 255.
        config: Gives the sizes and, with its dialect, the order, mean and deviation of the channels.

    Returns:
        tuple: ``(3, h, w)`` float32 array, and where the image lies in it.
    """
    dialect, size = config.dialect, image.shape[1:]
    channels = image[::-1] if dialect.input.channel_order == 'BGR' else image
    scale = input_scale(size, config)
    image_transform = (
        ImageTransform.letterbox(size, scale, config.max_size)
        if dialect.input.letterbox
        else ImageTransform.top_left(size, scale)
    )
    if dialect.input.resize == 'opencv_float32':
        x = _pad(subtract_mean_and_resize(channels, dialect.input.pixel_mean, scale), image_transform, config)
    else:
        x = _pad(resize_uint8_skimage(channels, rounded_sides(size, scale)), image_transform, config)
        # In double precision, as NumPy subtracts Matterport's means; rounded once.
        np.subtract(x, np.array(dialect.input.pixel_mean)[:, None, None], out=x, casting='same_kind')
    if any(std != 1 for std in dialect.input.pixel_std):
        x /= np.array(dialect.input.pixel_std, np.float32)[:, None, None]
    return x, image_transform


def _pad(x: np.ndarray, image_transform: ImageTransform, config: Config) -> np.ndarray:
    """Put zeros around an image: what its transform wants, and below and to the right up to multiples."""
    top, left = (int(first) for first in image_transform.window[:2])
    height, width = (side + -side % config.size_divisor for side in image_transform.input_size)
    if (height, width) == x.shape[1:]:
        return x
    padded = np.zeros((len(x), height, width), np.float32)
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return padded
