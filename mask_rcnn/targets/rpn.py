"""Training targets for anchors (Ren et al. 2015, section 3.1.2; ``detectron/roi_data/rpn.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.ops.boxes.boxes import encode_boxes
from mask_rcnn.ops.boxes.iou import match_boxes
from mask_rcnn.targets.sampling import Sampling


@dataclass(frozen=True)
class RPNTargets:
    """The sampled anchors of one image, positive ones first, and their training targets.

    Of 268,000 anchors 256 are sampled; arrays of all anchors would cost milliseconds.

    Args:
        indices: ``(S,)`` int indices of the anchors; distinct.
        labels: ``(S,)`` int32: 1 for an object, 0 for background.
        deltas: ``(S, 4)`` float32 ``(dy, dx, dh, dw)``; zero where the label is not 1.
    """

    indices: np.ndarray
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
        dialect: Provides ``boxes.offset``, ``boxes.clip_offset``, ``boxes.rpn_delta_weights``,
            ``training.anchors_inside_only`` and ``training.redraw_negatives``.
        rng: Random number generator for the sampling.
    """
    offset = dialect.boxes.offset
    best_iou, best_gt, is_best = match_anchors_of_image(anchors, gt_boxes, size, sampling=sampling, dialect=dialect)
    positive, negative = sample_anchors(
        best_iou, is_best, sampling, rng, redraw_negatives=dialect.training.redraw_negatives
    )
    labels = np.zeros(len(positive) + len(negative), np.int32)
    labels[: len(positive)] = 1
    deltas = np.zeros((len(labels), 4), np.float32)
    deltas[: len(positive)] = encode_boxes(
        anchors[positive], gt_boxes[best_gt[positive]], weights=dialect.boxes.rpn_delta_weights, offset=offset
    )
    return RPNTargets(np.concatenate([positive, negative]), labels, deltas)


def match_anchors_of_image(
    anchors: np.ndarray, gt_boxes: np.ndarray, size: Sequence[float], *, sampling: Sampling, dialect: Dialect
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the result of :func:`match_anchors` with the conventions of a dialect.

    Args:
        anchors: See :func:`rpn_targets`.
        gt_boxes: See :func:`rpn_targets`.
        size: See :func:`rpn_targets`.
        sampling: Provides ``rpn_straddle``.
        dialect: Provides ``boxes.offset``, ``boxes.clip_offset``, ``training.match_in_float32`` and
            ``training.anchors_inside_only``.
    """
    return match_anchors(
        anchors,
        gt_boxes,
        size,
        straddle=sampling.rpn_straddle if dialect.training.anchors_inside_only else -1,
        offset=dialect.boxes.offset,
        include_border=dialect.boxes.clip_offset == 0,
        single_precision=dialect.training.match_in_float32,
    )


def match_anchors(
    anchors: np.ndarray,
    gt_boxes: np.ndarray,
    size: Sequence[float],
    *,
    straddle: float,
    offset: float,
    include_border: bool = False,
    single_precision: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Match the anchors that extend at most ``straddle`` pixels beyond the image with objects.

    An object that overlaps no anchor has no best anchors.  (In Detectron, all anchors that do not overlap such an
    object become positive and regress the box of some other object: one small object in a corner makes hundreds of
    anchors positive.)

    Args:
        anchors: ``(K, 4)`` float32.
        gt_boxes: ``(G, 4)`` float32.
        size: Height and width of the image.
        straddle: Limit in pixels; a negative value admits all anchors.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.
        include_border: Whether an anchor may end at ``size + straddle`` (corners are coordinates), or must end before
            it (corners are pixels).
        single_precision: See :func:`mask_rcnn.ops.boxes.iou.match_boxes`.

    Returns:
        tuple: Three arrays with one entry per anchor: its best IoU ``(K,)`` float32 (0 without objects, -1 for an
        anchor that extends too far), the index of that object ``(K,)`` int32, and ``(K,)`` bool, True if the anchor is
        the best one of an object, ties included.
    """
    if straddle < 0:
        return match_boxes(anchors, gt_boxes, offset=offset, single_precision=single_precision)
    high = np.asarray(size) + straddle
    if include_border:
        high = np.nextafter(high, np.inf)  # `match_boxes` excludes its upper limits
    limits: dict[str, Any] = {'low': -straddle, 'high': high}
    return match_boxes(anchors, gt_boxes, offset=offset, single_precision=single_precision, **limits)


def sample_anchors(
    best_iou: np.ndarray,
    is_best: np.ndarray,
    sampling: Sampling,
    rng: np.random.RandomState,
    *,
    redraw_negatives: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Sample from the positive and the negative anchors.

    With ``redraw_negatives``, two details follow Detectron: negatives are sampled with replacement, and their labels
    are written last.  The best anchor of an object therefore becomes negative if its IoU is small and it is sampled.
    Otherwise negatives are sampled without replacement, from the anchors that are not the best one of an object.

    Args:
        best_iou: ``(K,)`` best IoU of each anchor; anchors with -1 are ignored.
        is_best: ``(K,)`` bool: True for the best anchors of an object.
        sampling: Sampling sizes and IoU thresholds.
        rng: Random number generator for the sampling.
        redraw_negatives: The dialect's ``training.redraw_negatives``.

    Returns:
        tuple: The indices of the positive and of the negative anchors, each ascending; they are disjoint.
    """
    is_positive, is_negative = anchor_candidates(best_iou, is_best, sampling, redraw_negatives=redraw_negatives)
    positive = np.flatnonzero(is_positive)
    surplus = max(len(positive) - int(sampling.rpn_positive_fraction * sampling.rpn_batch), 0)
    if surplus:
        dropped = rng.choice(positive, size=surplus, replace=False)
        positive = np.setdiff1d(positive, dropped, assume_unique=True)
    negative = np.flatnonzero(is_negative)
    n_negative = sampling.rpn_batch - len(positive)
    if len(negative) > n_negative:
        if redraw_negatives:
            negative = np.unique(negative[rng.randint(len(negative), size=n_negative)])
        else:
            negative = np.sort(rng.choice(negative, size=n_negative, replace=False))
    return np.setdiff1d(positive, negative, assume_unique=True), negative


def anchor_candidates(
    best_iou: np.ndarray, is_best: np.ndarray, sampling: Sampling, *, redraw_negatives: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the anchors from which :func:`sample_anchors` samples.

    Args:
        best_iou: See :func:`sample_anchors`.
        is_best: See :func:`sample_anchors`.
        sampling: Provides the IoU thresholds.
        redraw_negatives: See :func:`sample_anchors`.

    Returns:
        tuple: Two arrays ``(K,)`` bool: True for positive and for negative anchors.  With ``redraw_negatives``, the
        best anchor of an object can be both.
    """
    is_negative = (best_iou >= 0) & (best_iou < sampling.rpn_negative_iou)
    return (
        is_best | (best_iou >= sampling.rpn_positive_iou),
        is_negative if redraw_negatives else is_negative & ~is_best,
    )
