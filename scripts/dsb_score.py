"""The score of the Data Science Bowl 2018 for the masks of one image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from pycocotools import mask as coco_mask

#: IoU thresholds of the competition; an IoU equal to a threshold is not a match.
THRESHOLDS = np.arange(10) * 0.05 + 0.5


def dsb_score(masks: Iterable[np.ndarray], truth: Sequence[dict]) -> float:
    """Return the mean of TP / (TP + FP + FN) over the IoU thresholds 0.50, 0.55, ..., 0.95.

    The competition accepted no masks that overlap: a pixel belongs to the first mask that contains it.

    Args:
        masks: ``(H, W)`` bool each, in descending order of score.
        truth: Run lengths of the annotated objects, ``{'size': [H, W], 'counts': str or bytes}``.

    Returns:
        float: From 0 to 1; 1 if there are neither masks nor objects.
    """
    found = _encode_without_overlaps(masks)
    if not found or not truth:
        return float(not found and not truth)
    ious = np.asarray(coco_mask.iou(found, list(truth), [0] * len(truth)))
    scores = []
    for threshold in THRESHOLDS:
        # Above 0.5, an object matches one mask only, because the masks do not overlap.
        n_matches = min((ious > threshold).any(axis=1).sum(), (ious > threshold).any(axis=0).sum())
        scores.append(n_matches / (len(found) + len(truth) - n_matches))
    return float(np.mean(scores))


def _encode_without_overlaps(masks: Iterable[np.ndarray]) -> list[dict]:
    """Return the run lengths of masks without the pixels of earlier masks; empty ones are left out."""
    encoded = []
    occupied: np.ndarray | None = None
    for mask in masks:
        free = mask if occupied is None else mask & ~occupied
        occupied = mask.copy() if occupied is None else occupied | mask
        if free.any():
            encoded.append(coco_mask.encode(np.asfortranarray(free.astype(np.uint8))))
    return encoded
