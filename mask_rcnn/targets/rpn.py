"""Training targets for anchors (Ren et al. 2015, section 3.1.2; ``detectron/roi_data/rpn.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.ops.boxes.boxes import box_iou, encode_boxes
from mask_rcnn.targets.sampling import IGNORED, Sampling


@dataclass(frozen=True)
class RPNTargets:
    """Training targets for the anchors of one image.

    Args:
        labels: ``(K,)`` int32: 1 for an object, 0 for background, -1 for ignored anchors.
        deltas: ``(K, 4)`` float32 ``(dy, dx, dh, dw)``; zero where the label is not 1.
    """

    labels: np.ndarray
    deltas: np.ndarray


def rpn_targets(
    anchors: np.ndarray,
    gt_boxes: np.ndarray,
    size: Sequence[float],
    *,
    sampling: Sampling,
    dialect: Dialect,
    rng: np.random.RandomState,
) -> RPNTargets:
    """Sample the anchors of one image and compute their labels and deltas.

    Args:
        anchors: ``(K, 4)`` float32 boxes in the network input.
        gt_boxes: ``(G, 4)`` float32 boxes of the objects, without crowd regions, in the network input.
        size: Height and width of the image in the network input, without padding.
        sampling: Sampling sizes and IoU thresholds.
        dialect: Provides ``boxes.offset`` and ``boxes.rpn_delta_weights``.
        rng: Random number generator for the sampling.
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


def anchors_inside(anchors: np.ndarray, size: Sequence[float], straddle: float) -> np.ndarray:
    """Return the indices of the anchors that extend at most ``straddle`` pixels beyond an image.

    Args:
        anchors: ``(K, 4)`` float32.
        size: Height and width of the image.
        straddle: Limit in pixels; a negative value admits all anchors.
    """
    if straddle < 0:
        return np.arange(len(anchors))
    low, high = anchors[:, :2], anchors[:, 2:]
    return np.flatnonzero(((low >= -straddle) & (high < np.asarray(size) + straddle)).all(axis=1))


def match_anchors(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match anchors with objects.

    An object that overlaps no anchor has no best anchors.  (In Detectron, all anchors that do not overlap such an
    object become positive and regress the box of some other object: one small object in a corner makes hundreds of
    anchors positive.)

    Args:
        iou: ``(K, G)`` IoU of anchors and objects.

    Returns:
        tuple: Three arrays with one entry per anchor: its best IoU ``(K,)`` float32 (0 without objects), the index of
        that object ``(K,)`` intp, and ``(K,)`` bool, True if the anchor is the best one of an object, ties included.
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
    """Label anchors as positive, negative or ignored, and sample from the positive and negative ones.

    Two details follow Detectron: negatives are sampled with replacement, and their labels are written last.  The best
    anchor of an object therefore becomes negative if its IoU is small and it is sampled.

    Args:
        best_iou: ``(K,)`` best IoU of each anchor.
        is_best: ``(K,)`` bool: True for the best anchors of an object.
        sampling: Sampling sizes and IoU thresholds.
        rng: Random number generator for the sampling.

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
    n_negative = sampling.rpn_batch - np.count_nonzero(labels == 1)
    if len(negative) > n_negative:
        negative = negative[rng.randint(len(negative), size=n_negative)]
    labels[negative] = 0
    return labels
