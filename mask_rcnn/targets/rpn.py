"""What the anchors learn (Ren et al. 2015, section 3.1.2; ``detectron/roi_data/rpn.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.ops.boxes.boxes import box_iou, encode_boxes
from mask_rcnn.targets.sampling import IGNORED, Sampling


@dataclass(frozen=True)
class RPNTargets:
    """What the anchors of one image learn.

    Args:
        labels: ``(K,)`` int32: 1 an object, 0 background, -1 not looked at.
        deltas: ``(K, 4)`` float32 ``(dy, dx, dh, dw)``; zero where the label is not 1.
    """

    labels: np.ndarray
    deltas: np.ndarray


def rpn_targets(
    anchors: np.ndarray, gt_boxes: np.ndarray, size, *, sampling: Sampling, dialect: Dialect, rng: np.random.RandomState
) -> RPNTargets:
    """Choose the anchors of one image that learn, and what.

    Args:
        anchors: ``(K, 4)`` float32 boxes in the network input.
        gt_boxes: ``(G, 4)`` float32 boxes of the objects (no crowds), in the network input.
        size: Height and width of the image in the network input, without padding.
        sampling: How many, from which overlaps on.
        dialect: Gives ``boxes.offset`` and ``boxes.rpn_delta_weights``.
        rng: Draws among too many.
    """
    labels = np.full(len(anchors), IGNORED, np.int32)
    deltas = np.zeros((len(anchors), 4), np.float32)
    inside = anchors_inside(anchors, size, sampling.rpn_straddle)
    candidates = anchors[inside]
    best_iou, best_gt, is_best = match_anchors(box_iou(candidates, gt_boxes, offset=dialect.boxes.offset))
    labels[inside] = label_anchors(best_iou, is_best, sampling, rng)
    positive = np.flatnonzero(labels[inside] == 1)
    deltas[inside[positive]] = encode_boxes(
        candidates[positive],
        gt_boxes[best_gt[positive]],
        weights=dialect.boxes.rpn_delta_weights,
        offset=dialect.boxes.offset,
    )
    return RPNTargets(labels, deltas)


def anchors_inside(anchors: np.ndarray, size, straddle: float) -> np.ndarray:
    """Return the indices of the anchors that reach at most ``straddle`` pixels out of an image.

    Args:
        anchors: ``(K, 4)`` float32.
        size: Height and width of the image.
        straddle: Pixels; negative for all anchors.
    """
    if straddle < 0:
        return np.arange(len(anchors))
    low, high = anchors[:, :2], anchors[:, 2:]
    return np.flatnonzero(((low >= -straddle) & (high < np.asarray(size) + straddle)).all(axis=1))


def match_anchors(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find every anchor's object and every object's anchors.

    An object that no anchor touches has no best ones.  (In Detectron all anchors that do not touch it become
    positive then, to learn the box of some other object: hundreds of them, by one small object in a corner.)

    Args:
        iou: ``(K, G)`` overlaps of anchors and objects.

    Returns:
        tuple: For each anchor, its best overlap ``(K,)`` float32 (0 without objects), the object ``(K,)``
        and whether it is, perhaps with others, the best anchor of an object ``(K,)`` bool.
    """
    count = len(iou)
    if iou.size == 0:
        return np.zeros(count, np.float32), np.zeros(count, np.intp), np.zeros(count, bool)
    best_gt = iou.argmax(axis=1)
    best_of_gt = iou.max(axis=0)
    is_best = ((iou == best_of_gt) & (best_of_gt > 0)).any(axis=1)
    return iou[np.arange(count), best_gt], best_gt, is_best


def label_anchors(
    best_iou: np.ndarray, is_best: np.ndarray, sampling: Sampling, rng: np.random.RandomState
) -> np.ndarray:
    """Choose who learns to be an object and who to be background.

    Negatives are drawn with replacement and written last, so that an object's best anchor, if its overlap is
    small, may become a negative: both as in Detectron.

    Args:
        best_iou: ``(K,)`` best overlaps of the anchors.
        is_best: ``(K,)`` bool: an object has no better one.
        sampling: How many, from which overlaps on.
        rng: Draws among too many.

    Returns:
        numpy.ndarray: ``(K,)`` int32: 1, 0 or -1.
    """
    labels = np.full(len(best_iou), IGNORED, np.int32)
    labels[is_best | (best_iou >= sampling.rpn_positive_iou)] = 1
    positive = np.flatnonzero(labels == 1)
    surplus = len(positive) - int(sampling.rpn_positive_fraction * sampling.rpn_batch)
    if surplus > 0:
        labels[rng.choice(positive, size=surplus, replace=False)] = IGNORED
    negative = np.flatnonzero(best_iou < sampling.rpn_negative_iou)
    wanted = sampling.rpn_batch - np.count_nonzero(labels == 1)
    if len(negative) > wanted:
        negative = negative[rng.randint(len(negative), size=wanted)]
    labels[negative] = 0
    return labels
