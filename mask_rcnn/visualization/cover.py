"""Maps of the pixels that the objects of a picture cover."""

from __future__ import annotations

import cv2
import numpy as np

from mask_rcnn.ops.masks.crop import MaskCrop

_SALIENCY_SIZE = 512  # longer side of the saliency map, pixels


class Cover:
    """Maps of the objects of a picture, for its backdrop and for the placement of labels and of the legend.

    Args:
        size: ``(H, W)`` of the picture.

    Attributes:
        saliency: A small float32 map of the cost of hiding pixels; the values of each instance's pixels add up to 1.
        covered: ``(H, W)`` uint8, 1 for the pixels of objects.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = np.array(size)
        shape = np.maximum(1, np.rint(self.size * min(1, _SALIENCY_SIZE / self.size.max()))).astype(int)
        self.saliency = np.zeros(shape, np.float32)
        self.covered = np.zeros(size, np.uint8)
        self._scale = shape / self.size

    def add(self, crop: MaskCrop | None, box: np.ndarray) -> None:
        """Add an instance by its mask, or by its box if it has no mask."""
        if crop is None:
            region = self._region(box[:2], box[2:])
            region += 1 / region.size
            top, left, bottom, right = np.rint(box).astype(int)
            self.covered[top:bottom, left:right] = 1
            return
        start, shape = np.array((crop.top, crop.left)), crop.mask.shape
        self.covered[crop.top : crop.top + shape[0], crop.left : crop.left + shape[1]] |= crop.mask
        region = self._region(start, start + shape)
        coverage = cv2.resize(crop.mask * np.uint8(255), region.shape[::-1], interpolation=cv2.INTER_AREA)
        region += coverage / np.float32(max(int(coverage.sum()), 1))

    def _region(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        shape = np.array(self.saliency.shape)
        low = np.minimum(np.floor(start * self._scale).astype(int), shape - 1)
        high = np.clip(np.ceil(stop * self._scale).astype(int), low + 1, shape)
        return self.saliency[low[0] : high[0], low[1] : high[1]]
