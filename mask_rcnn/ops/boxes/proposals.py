"""Selection of boxes: the proposals of the RPN and the detections of the network.

The number of selected boxes depends on the values; reading it after each selection would synchronise the host with
the GPU.  With ``padded=True``, a result has the maximum number of rows instead.  Padding rows come last and have boxes
of NaN and scores of minus infinity.
"""

from __future__ import annotations

import numpy as np
from chainer.backend import get_array_module

from mask_rcnn.ops.boxes.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.boxes.nms import nms, nms_padded
from mask_rcnn.ops.boxes.top_k import top_k_indices

#: Maximum number of candidates for padded detections; the candidates with the highest scores are used.  1000 RoIs
#: rarely have as many scores above 0.05.  A larger number changes the result only if NMS keeps fewer boxes than the
#: limit allows.
_MAX_CANDIDATES = 8192
#: Additional rows of padded detections for ties with the last detection within the limit.
_MAX_TIES = 4

#: Coordinate and score of padding rows.
_PAD_BOX, _PAD_SCORE = np.float32(np.nan), np.float32(-np.inf)


def generate_proposals(
    scores,
    deltas,
    anchors,
    size,
    scale,
    *,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
    min_size: float = 0.0,
    weights=(1.0, 1.0, 1.0, 1.0),
    offset: float = 1.0,
    clip_offset: float = 1.0,
    max_log_scale=None,
    suppress_equal: bool = True,
    per_level: bool = True,
    padded: bool = False,
):
    """Select the proposals of one image from the outputs of the RPN.

    The anchors with the highest scores of each level are decoded, clipped, filtered by size and suppressed by NMS
    (``detectron/ops/generate_proposals.py``).  The proposals with the highest scores of all levels are returned
    (``detectron/ops/collect_and_distribute_fpn_rpn_proposals.py``).  Matterport's ``ProposalLayer`` joins the levels
    before the first step.

    Args:
        scores: For each level, ``(A, H, W)`` float32 objectness, on any increasing scale.
        deltas: For each level, ``(4 * A, H, W)`` float32; channels ``4 * a`` to ``4 * a + 3`` are the
            ``(dy, dx, dh, dw)`` of anchor ``a``.
        anchors: For each level, ``(H * W * A, 4)`` float32 boxes (:func:`mask_rcnn.ops.boxes.anchors.shift_anchors`).
        size: Height and width of the network input.
        scale: Network input pixels per pixel of the original image.
        pre_nms: Maximum number of anchors before NMS, per level or in total.
        post_nms: Maximum number of proposals.
        nms_threshold: IoU threshold of NMS.
        min_size: Minimum side of a proposal in pixels of the original image; smaller proposals are dropped.
        weights: Weights of the deltas; see :func:`mask_rcnn.ops.boxes.boxes.decode_boxes`.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.
        clip_offset: ``offset`` of :func:`mask_rcnn.ops.boxes.boxes.clip_boxes`.
        max_log_scale: Upper limit of ``dh`` and ``dw``; see :func:`mask_rcnn.ops.boxes.boxes.decode_boxes`.
        suppress_equal: Whether NMS suppresses at an IoU equal to the threshold; see :func:`mask_rcnn.ops.boxes.nms.nms`.
        per_level: Whether the selection before NMS, and NMS, run per level (Detectron) or on all levels together
            (Matterport).
        padded: Whether the result is padded; see the module.

    Returns:
        tuple: Boxes ``(K, 4)`` float32 in the network input and their scores ``(K,)`` in descending order.
    """
    xp = get_array_module(scores[0])
    candidates = [_best_anchors(*level, pre_nms) for level in zip(scores, deltas, anchors)]
    if not per_level:
        candidates = [_best_of_all(candidates, pre_nms)]
    proposals = []
    for level_anchors, level_deltas, level_scores in candidates:
        boxes = decode_boxes(level_anchors, level_deltas, weights=weights, offset=offset, max_log_scale=max_log_scale)
        boxes = clip_boxes(boxes, size, offset=clip_offset)
        large = _at_least(boxes, min_size, size, scale, offset)
        options = {'offset': offset, 'limit': post_nms, 'suppress_equal': suppress_equal}
        if padded:
            level_scores = xp.where(large, level_scores, _PAD_SCORE)
            keep = nms_padded(boxes, level_scores, nms_threshold, **options)
            proposals.append(_rows(keep, boxes, level_scores))
        else:
            boxes, level_scores = boxes[large], level_scores[large]
            keep = nms(boxes, level_scores, nms_threshold, **options)
            proposals.append((boxes[keep], level_scores[keep]))
    return _best_of_all(proposals, post_nms)


def _best_of_all(parts, limit: int):
    """Join tuples of arrays, of which the last has the scores; return the rows with the ``limit`` highest scores."""
    xp = get_array_module(parts[0][-1])
    joined = [xp.concatenate(arrays) for arrays in zip(*parts)]
    best = top_k_indices(joined[-1], limit)
    return tuple(array[best] for array in joined)


def _best_anchors(scores, deltas, anchors, limit: int):
    """Return the anchors, deltas and scores with the ``limit`` highest scores of a level, in descending order."""
    n_anchor = len(scores)
    scores = scores.transpose(1, 2, 0).ravel()
    best = top_k_indices(scores, limit)
    deltas = deltas.reshape(n_anchor, 4, len(anchors) // n_anchor).transpose(2, 0, 1).reshape(-1, 4)
    return anchors[best], deltas[best], scores[best]


def select_detections(
    probs,
    boxes,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    offset: float = 1.0,
    suppress_equal: bool = True,
    best_class_only: bool = False,
    score_threshold_inclusive: bool = False,
    keep_ties: bool = True,
    padded: bool = False,
):
    """Select the detections of one image from the classes of its RoIs.

    Every class of every RoI is a candidate; NMS runs per class, and all classes share one limit
    (``detectron/core/test.py`` ``box_results_with_nms_and_limit``).  In Matterport's ``refine_detections_graph``,
    only the best class of a RoI is a candidate.

    Args:
        probs: ``(R, 1 + C)`` float32 class probabilities; class 0 is the background.
        boxes: ``(R, 4 * (1 + C))`` float32 boxes of every class.
        score_threshold: Minimum score of a candidate.
        nms_threshold: IoU threshold of NMS.
        max_detections: Maximum number of detections.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.
        suppress_equal: Whether NMS suppresses at an IoU equal to the threshold; see :func:`mask_rcnn.ops.boxes.nms.nms`.
        best_class_only: Whether a RoI is a candidate only for its best class.  A RoI with the background as its best
            class is not a candidate then.
        score_threshold_inclusive: Whether a score equal to the threshold passes, or only a score above it.
        keep_ties: Whether detections with the same score as the last detection within the limit are returned beyond
            the limit.
        padded: Whether the result is padded; see the module.  It has ``max_detections`` rows, and four more with
            ``keep_ties``.

    Returns:
        tuple: Boxes ``(K, 4)`` float32, labels ``(K,)`` int32 (0 is the first foreground class) and scores ``(K,)``
        float32, in descending order of score.
    """
    xp = get_array_module(probs)
    # The transpose below sorts candidates with equal scores by class and then by RoI.
    candidates = probs >= score_threshold if score_threshold_inclusive else probs > score_threshold
    if best_class_only:
        candidates &= xp.arange(probs.shape[1]) == probs.argmax(axis=1)[:, None]
    boxes = boxes.reshape(*probs.shape, 4)
    nms_options = {'threshold': nms_threshold, 'offset': offset, 'suppress_equal': suppress_equal}
    if padded:
        scores = xp.where(candidates, probs, _PAD_SCORE)
        return _select_padded(scores, boxes, max_detections, keep_ties, nms_options)
    labels, rois = xp.nonzero(candidates[:, 1:].T)
    scores = probs[rois, labels + 1]
    boxes = boxes[rois, labels + 1]
    keep = nms(boxes, scores, groups=labels, **nms_options)
    if len(keep) > max_detections:
        kept_scores = scores[keep]  # in descending order
        within = kept_scores >= kept_scores[max_detections - 1]
        keep = keep[within] if keep_ties else keep[:max_detections]
    return boxes[keep], labels[keep].astype(xp.int32), scores[keep]


def _select_padded(scores, boxes, max_detections: int, keep_ties: bool, nms_options: dict):
    """Select detections with a static shape; rows that are not candidates have the padding score."""
    xp = get_array_module(scores)
    n_roi = len(scores)
    by_class = scores[:, 1:].T.ravel()
    best = top_k_indices(by_class, _MAX_CANDIDATES)
    labels, rois = best // n_roi, best % n_roi
    scores, boxes = by_class[best], boxes[rois, labels + 1]
    rows = max_detections + _MAX_TIES * keep_ties
    keep = nms_padded(boxes, scores, groups=labels, limit=rows, **nms_options)
    boxes, scores = _rows(keep, boxes, scores)
    last = scores[max_detections - 1 : max_detections]
    if len(last):
        beyond = scores < last
        boxes, scores = xp.where(beyond[:, None], _PAD_BOX, boxes), xp.where(beyond, _PAD_SCORE, scores)
    return boxes, xp.where(scores == _PAD_SCORE, 0, labels[keep]).astype(np.int32), scores


def _rows(keep, boxes, scores):
    """Return the boxes and scores that :func:`nms_padded` kept, followed by padding rows."""
    xp = get_array_module(boxes)
    scores = xp.where(keep < 0, _PAD_SCORE, scores[keep])
    return xp.where((scores == _PAD_SCORE)[:, None], _PAD_BOX, boxes[keep]), scores


def _at_least(boxes, min_size, size, scale, offset):
    """Return which boxes have sides of at least ``min_size`` original pixels and a centre inside the input."""
    scalar = boxes.dtype.type
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + (sides + offset) / 2
    large = sides / scalar(scale) + offset >= min_size
    return large[:, 0] & large[:, 1] & (centres[:, 0] < scalar(size[0])) & (centres[:, 1] < scalar(size[1]))
