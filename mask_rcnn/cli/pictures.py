"""Writing of pictures in the formats of OpenCV."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.visualization.pictures import encode_picture


def can_write_picture(suffix: str) -> bool:
    """Return whether OpenCV writes pictures with a suffix; other names and characters do not reach it."""
    return suffix.isascii() and suffix.isprintable() and len(suffix) > 1 and cv2.haveImageWriter(f'picture{suffix}')


def write_picture(path: Path, rgb: np.ndarray) -> None:
    """Write a picture atomically, in the format of the file's suffix.

    Args:
        path: The file to write.
        rgb: ``(H, W, 3)`` uint8, RGB.

    Raises:
        ValueError: The format has no pictures of this size.
        mask_rcnn.io.atomic_file.FileError: The file cannot be written.
    """
    data = encode_picture(rgb, path.suffix)
    with open_for_writing(path) as file:
        file.write(data)
