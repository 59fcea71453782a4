"""The part of a mask that contains its pixels."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np


class MaskCrop(NamedTuple):
    """The smallest rectangle of a mask that contains all of its pixels.

    Args:
        top, left: The upper left pixel in the image.
        mask: uint8, 0 or 1.
        area: Number of ones.
    """

    top: int
    left: int
    mask: np.ndarray
    area: int


def crop_mask(mask: np.ndarray) -> MaskCrop | None:
    """Return the crop of a mask ``(H, W)``, bool or uint8 of 0 and 1; ``None`` for a mask without pixels."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    if not width:
        return None
    part = np.ascontiguousarray(mask[top : top + height, left : left + width]).view(np.uint8)
    return MaskCrop(top, left, part, cv2.countNonZero(part))
