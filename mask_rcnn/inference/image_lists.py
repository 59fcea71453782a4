"""Checks of the images that the user passes, with advice on their conversion."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from mask_rcnn.preprocessing.image_io import load_image

_ADVICE = 'detect takes a list of images; for one image write'


def check_images(images: Any) -> None:
    """Raise an error for a single image, whose characters or rows would be taken for images.

    Args:
        images: The argument of :meth:`mask_rcnn.models.MaskRCNN.detect`.

    Raises:
        TypeError: It is not a list of images; the message names it and states the call that is right.
    """
    if isinstance(images, (str, os.PathLike)):
        raise TypeError(f'{_ADVICE} detect([{os.fspath(images)!r}])')
    if images is None or isinstance(images, (bytes, bytearray, dict, bool, int, float)):
        raise TypeError(f'{_ADVICE} detect([image]), not detect({type(images).__name__})')
    if isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype.kind not in 'USO':
        raise TypeError(f'{_ADVICE} detect([array]); this is a single array of shape {images.shape}')
    if _is_pillow(images):
        raise TypeError(f'{_ADVICE} detect([numpy.asarray(image.convert("RGB"))])')
    if not hasattr(images, '__iter__'):
        raise TypeError(f'{_ADVICE} detect([image]), not detect({type(images).__name__})')


def load_listed_image(image: Any, **options: bool) -> np.ndarray:
    """Read or check an image; the error about a wrong type or shape also states the conversion.

    Args:
        image: See :func:`mask_rcnn.preprocessing.image_io.load_image`.
        **options: See there.

    Raises:
        ImageFileError, TypeError, ValueError: See there.
    """
    try:
        return load_image(image, **options)
    except (TypeError, ValueError) as error:
        advice = '' if isinstance(image, (str, os.PathLike)) else _advise(image)
        if not advice:
            raise
        raise type(error)(f'{error}; {advice}') from None


def _advise(image: Any) -> str:
    """Return the conversion of an object to an image as a sentence, or an empty string."""
    if _is_pillow(image):
        return 'convert a PIL image with numpy.asarray(image.convert("RGB"))'
    if image is None:
        return 'cv2.imread returns None for a file that it cannot read'
    if not isinstance(image, np.ndarray) or not image.size:
        return ''
    if image.ndim == 2:
        return 'convert a grayscale image with numpy.stack([image] * 3, axis=2)'
    if image.ndim == 4:
        return 'this is a batch: detect(list(batch))'
    if image.ndim == 3 and image.shape[2] == 4:
        return 'drop the alpha channel with image[:, :, :3]'
    if image.ndim == 3 and image.shape[2] == 1:
        return 'convert a grayscale image with numpy.repeat(image, 3, axis=2)'
    if image.ndim == 3 and image.shape[2] == 3:
        return 'convert values from 0 to 255 with image.astype(numpy.uint8)'
    if image.ndim == 3 and image.shape[0] == 3:
        return 'convert it with image.astype(numpy.float32), with values from 0 to 255'
    return ''


def _is_pillow(image: Any) -> bool:
    return hasattr(image, 'convert') and hasattr(image, 'getbands')
