"""Detections in a resized image."""

from __future__ import annotations

import numpy as np

from mask_rcnn.inference.detections import Detections
from mask_rcnn.ops.boxes.boxes import outer_corners


def resize_detections(detections: Detections, size: tuple[int, int]) -> Detections:
    """Return the detections of a resized image; masks are pasted in the new size.

    Args:
        detections: The detections of a model.
        size: Height and width of the resized image.
    """
    factors = np.array(size, np.float32) / np.array(detections.size, np.float32)
    offset = detections.dialect.boxes.offset
    keypoints = None if detections.keypoints is None else detections.keypoints.copy()
    if keypoints is not None:
        keypoints[:, :, :2] *= factors
    return Detections(
        boxes=outer_corners(outer_corners(detections.boxes, offset) * np.tile(factors, 2), -offset),
        labels=detections.labels,
        scores=detections.scores,
        size=size,
        mask_probs=detections.mask_probs,
        keypoints=keypoints,
        class_names=detections.class_names,
        category_ids=detections.category_ids,
        dialect=detections.dialect,
    )
