"""Pillow's resize pass by pass: in one call, the order of the passes depends on Pillow's version."""

from __future__ import annotations

import numpy as np
from PIL import Image


def resize_axes(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize the width of ``(H, W, 3)`` bytes, then the height."""
    image = Image.fromarray(pixels).resize((size[1], len(pixels)), Image.Resampling.BILINEAR)
    return np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR))
