"""Writing of pictures in the formats of OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mask_rcnn.io.atomic_file import open_for_writing

#: Suffixes of pictures that can be transparent.
ALPHA_SUFFIXES = ('.png', '.webp', '.tif', '.tiff')


def can_write_picture(suffix: str) -> bool:
    """Return whether OpenCV writes pictures with a suffix; other names and characters do not reach it."""
    return suffix.isascii() and suffix.isprintable() and len(suffix) > 1 and cv2.haveImageWriter(f'picture{suffix}')


def encode_picture(suffix: str, rgb: np.ndarray) -> bytes:
    """Return the content of a picture file in the format of a suffix.

    Args:
        suffix: The suffix of the file.
        rgb: ``(H, W, 3)`` uint8, RGB, or ``(H, W, 4)``, RGBA, for a format of :data:`ALPHA_SUFFIXES`.

    Raises:
        ValueError: The format has no pictures of this size.
    """
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGBA2BGRA if rgb.shape[2] == 4 else cv2.COLOR_RGB2BGR)
    try:
        done, data = cv2.imencode(suffix, bgr)
    except cv2.error:
        done = False
    if not done:
        raise ValueError(f'a picture of this size cannot be written as {suffix}')
    return data.tobytes()


def write_picture(path: Path, rgb: np.ndarray) -> None:
    """Write a picture atomically, in the format of the file's suffix.

    Args:
        path: The file to write.
        rgb: ``(H, W, 3)`` uint8, RGB.

    Raises:
        ValueError: The format has no pictures of this size.
        mask_rcnn.io.atomic_file.FileError: The file cannot be written.
    """
    data = encode_picture(path.suffix, rgb)
    with open_for_writing(path) as file:
        file.write(data)
