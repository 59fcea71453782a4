"""Pictures and masks in other sizes, and the encoding of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

#: Suffixes of the formats whose pictures can be transparent.
ALPHA_SUFFIXES = ('.png', '.webp', '.tif', '.tiff')


def resize_picture(picture: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a picture: average pixels if it becomes smaller, otherwise interpolate bicubically.

    Args:
        picture: ``(H, W, 3)`` uint8.
        size: Height and width of the result.

    Returns:
        A uint8 array of shape ``(*size, 3)``.
    """
    height, width = size
    is_smaller = height * width < picture.shape[0] * picture.shape[1]
    return cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if is_smaller else cv2.INTER_CUBIC)


def encode_picture(picture: np.ndarray, suffix: str) -> bytes:
    """Encode a picture as a file in a format of OpenCV.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB, or ``(H, W, 4)``, RGBA, for a format of :data:`ALPHA_SUFFIXES`.
        suffix: The suffix of the format's files, such as ``'.png'``.

    Raises:
        ValueError: The format has no pictures of this size.
    """
    bgr = cv2.cvtColor(picture, cv2.COLOR_RGBA2BGRA if picture.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    try:
        done, data = cv2.imencode(suffix, bgr)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f'a picture of this size cannot be written as {suffix}')
    return data.tobytes()


def resize_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resize a mask; a pixel of the result is inside if at least half of it is.

    Args:
        mask: ``(H, W)`` uint8, 0 or 1.
        size: Height and width of the result.

    Returns:
        A bool array of shape ``size``.
    """
    height, width = size
    is_smaller = height * width < mask.size
    interpolation = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
    return cv2.resize(mask * np.uint8(255), (width, height), interpolation=interpolation) > 127
