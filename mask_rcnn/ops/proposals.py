"""Which boxes come out: proposals of the RPN, and the detections of the whole network.

How many there are depends on the numbers.  A GPU's host would have to wait for it, once for every choice;
where it need not know, results are ``padded``: they have as many rows as there may be, those that nothing
fills come last, with boxes of NaN and scores of minus infinity.
"""

from __future__ import annotations

import numpy as np
from chainer.backend import get_array_module

from mask_rcnn.ops.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.nms import nms, nms_padded
from mask_rcnn.ops.top_k import best_first

#: Candidates for detections that the padded form looks at: the best.  1000 RoIs have hardly as many that score
#: above 0.05; where there are more, it matters only if NMS leaves fewer than the limit of the best of them.
_MAX_CANDIDATES = 8192
#: Rows of the padded form for detections that score as much as the last one within the limit.
_MAX_TIES = 4

#: A box's corner and a score of nothing.
_NOWHERE, _NONE = np.float32(np.nan), np.float32(-np.inf)


def generate_proposals(scores, deltas, anchors, size, scale, *, pre_nms: int, post_nms: int,
                       nms_threshold: float, min_size: float = 0.0, weights=(1.0, 1.0, 1.0, 1.0),
                       offset: float = 1.0, clip_offset: float = 1.0, max_log_scale=None, suppress_equal: bool = True,
                       per_level: bool = True, padded: bool = False):
    """Turn the RPN's maps of one image into its best proposals.

    ``detectron/ops/generate_proposals.py``: the best anchors of each map, decoded, clipped, without the small
    ones, after NMS; then, as in ``detectron/ops/collect_and_distribute_fpn_rpn_proposals.py``, the best of
    all maps.  Matterport's ``ProposalLayer`` knows one list of all maps' anchors.

    Args:
        scores: For each map, ``(A, H, W)`` float32 objectness, of any rising scale.
        deltas: For each map, ``(4 * A, H, W)`` float32; channels ``4 * a`` ... are anchor ``a``'s
            ``(dy, dx, dh, dw)``.
        anchors: For each map, ``(H * W * A, 4)`` float32 boxes (:func:`mask_rcnn.ops.anchors.shift_anchors`).
        size: Height and width of the network input.
        scale: Network input pixels per pixel of the original image.
        pre_nms: Best anchors of a map to look at.
        post_nms: Proposals to return at most.
        nms_threshold: IoU from which on a proposal suppresses a worse one of its map.
        min_size: Proposals with a side below it, in pixels of the original image, are dropped.
        weights: See :func:`mask_rcnn.ops.boxes.decode_boxes`, as for ``offset`` and ``max_log_scale``.
        clip_offset: The same for :func:`mask_rcnn.ops.boxes.clip_boxes`.
        suppress_equal: See :func:`mask_rcnn.ops.nms.nms`.
        per_level: Look at the maps one by one; else at the ``pre_nms`` best anchors of all together.
        padded: See the module.

    Returns:
        tuple: Boxes ``(K, 4)`` float32 in the network input and their scores ``(K,)``, falling.
    """
    xp = get_array_module(scores[0])
    candidates = [_best_anchors(*own, pre_nms) for own in zip(scores, deltas, anchors)]
    if not per_level:
        candidates = [_best_of_all(candidates, pre_nms)]
    found = []
    for own_anchors, own_deltas, own_scores in candidates:
        boxes = decode_boxes(own_anchors, own_deltas, weights=weights, offset=offset, max_log_scale=max_log_scale)
        boxes = clip_boxes(boxes, size, offset=clip_offset)
        large = _at_least(boxes, min_size, size, scale, offset)
        options = {'offset': offset, 'limit': post_nms, 'suppress_equal': suppress_equal}
        if padded:
            own_scores = xp.where(large, own_scores, _NONE)
            keep = nms_padded(boxes, own_scores, nms_threshold, **options)
            found.append(_rows(keep, boxes, own_scores))
        else:
            boxes, own_scores = boxes[large], own_scores[large]
            keep = nms(boxes, own_scores, nms_threshold, **options)
            found.append((boxes[keep], own_scores[keep]))
    return _best_of_all(found, post_nms)


def _best_of_all(parts, limit: int):
    """Join the maps' arrays, scores last; return the rows of the ``limit`` largest scores, falling."""
    xp = get_array_module(parts[0][-1])
    joined = [xp.concatenate(arrays) for arrays in zip(*parts)]
    best = best_first(joined[-1], limit)
    return tuple(array[best] for array in joined)


def _best_anchors(scores, deltas, anchors, limit: int):
    """Return the anchors of a map with the largest scores, their deltas and their scores, falling."""
    n_anchor = len(scores)
    scores = scores.transpose(1, 2, 0).ravel()
    best = best_first(scores, limit)
    deltas = deltas.reshape(n_anchor, 4, len(anchors) // n_anchor).transpose(2, 0, 1).reshape(-1, 4)
    return anchors[best], deltas[best], scores[best]


def select_detections(probs, boxes, *, score_threshold: float, nms_threshold: float,
                      max_detections: int, offset: float = 1.0, suppress_equal: bool = True,
                      best_class_only: bool = False, score_threshold_inclusive: bool = False, keep_ties: bool = True,
                      padded: bool = False):
    """Choose the detections of one image among its RoIs' classes.

    ``detectron/core/test.py`` ``box_results_with_nms_and_limit``: every class of every RoI is a
    candidate; each class has its own NMS, all classes share one limit.  In Matterport's
    ``refine_detections_graph`` only the best class of a RoI is.

    Args:
        probs: ``(R, 1 + C)`` float32 class probabilities; class 0 is the background.
        boxes: ``(R, 4 * (1 + C))`` float32 boxes of every class.
        score_threshold: Candidates must score above it.
        nms_threshold: IoU from which on a candidate suppresses a worse one of its class.
        max_detections: Number to return.
        offset: See :mod:`mask_rcnn.ops.boxes`.
        suppress_equal: See :func:`mask_rcnn.ops.nms.nms`.
        best_class_only: A RoI is a candidate of its best class only, and of none if that is the background.
        score_threshold_inclusive: Candidates may score just the threshold.
        keep_ties: Ties with the last one within the limit are returned, too.
        padded: See the module.  There are ``max_detections`` rows, and a few for ties.

    Returns:
        tuple: Boxes ``(K, 4)`` float32, labels ``(K,)`` int32 (0 is the first foreground class) and
        scores ``(K,)`` float32, best first.
    """
    xp = get_array_module(probs)
    # Class by class, so that equal scores come out by class and then by RoI.
    candidates = probs >= score_threshold if score_threshold_inclusive else probs > score_threshold
    if best_class_only:
        candidates &= xp.arange(probs.shape[1]) == probs.argmax(axis=1)[:, None]
    boxes = boxes.reshape(*probs.shape, 4)
    nms_options = {'threshold': nms_threshold, 'offset': offset, 'suppress_equal': suppress_equal}
    if padded:
        scores = xp.where(candidates, probs, _NONE)
        return _select_padded(scores, boxes, max_detections, keep_ties, nms_options)
    labels, rois = xp.nonzero(candidates[:, 1:].T)
    scores = probs[rois, labels + 1]
    boxes = boxes[rois, labels + 1]
    keep = nms(boxes, scores, groups=labels, **nms_options)
    if len(keep) > max_detections:
        kept_scores = scores[keep]  # falling
        within = kept_scores >= kept_scores[max_detections - 1]
        keep = keep[within] if keep_ties else keep[:max_detections]
    return boxes[keep], labels[keep].astype(xp.int32), scores[keep]


def _select_padded(scores, boxes, max_detections: int, keep_ties: bool, nms_options: dict):
    """Do the rest of :func:`select_detections`; what is no candidate has the score of nothing."""
    xp = get_array_module(scores)
    n_roi = len(scores)
    by_class = scores[:, 1:].T.ravel()
    best = best_first(by_class, _MAX_CANDIDATES)
    labels, rois = best // n_roi, best % n_roi
    scores, boxes = by_class[best], boxes[rois, labels + 1]
    rows = max_detections + _MAX_TIES * keep_ties
    keep = nms_padded(boxes, scores, groups=labels, limit=rows, **nms_options)
    boxes, scores = _rows(keep, boxes, scores)
    last = scores[max_detections - 1:max_detections]
    if len(last):
        beyond = scores < last
        boxes, scores = xp.where(beyond[:, None], _NOWHERE, boxes), xp.where(beyond, _NONE, scores)
    return boxes, xp.where(scores == _NONE, 0, labels[keep]).astype(np.int32), scores


def _rows(keep, boxes, scores):
    """Return the rows that :func:`nms_padded` chose, those of nothing last."""
    xp = get_array_module(boxes)
    scores = xp.where(keep < 0, _NONE, scores[keep])
    return xp.where((scores == _NONE)[:, None], _NOWHERE, boxes[keep]), scores


def _at_least(boxes, min_size, size, scale, offset):
    """Return which boxes have sides of ``min_size`` original pixels and their centre inside."""
    number = boxes.dtype.type
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + (sides + offset) / 2
    large = sides / number(scale) + offset >= min_size
    return large[:, 0] & large[:, 1] & (centres[:, 0] < number(size[0])) & (centres[:, 1] < number(size[1]))
