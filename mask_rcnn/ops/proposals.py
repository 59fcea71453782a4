"""Which boxes come out: proposals of the RPN, and the detections of the whole network."""

from __future__ import annotations

from chainer.backend import get_array_module

from mask_rcnn.ops.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.nms import nms


def generate_proposals(scores, deltas, anchors, size, scale, *, pre_nms: int, post_nms: int,
                       nms_threshold: float, min_size: float = 0.0, weights=(1.0, 1.0, 1.0, 1.0),
                       extent: float = 1.0, clip=None):
    """Turn the RPN's maps of one image into its best proposals.

    ``detectron/ops/generate_proposals.py``: the best anchors of each map, decoded, clipped, without the small
    ones, after NMS; then, as in ``detectron/ops/collect_and_distribute_fpn_rpn_proposals.py``, the best of
    all maps.

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
        min_size: Proposals with a side below it, in pixels of the original image, are dropped (and
            below one pixel in any case).
        weights: See :func:`mask_rcnn.ops.boxes.decode_boxes`, as for ``extent`` and ``clip``.

    Returns:
        tuple: Boxes ``(K, 4)`` float32 in the network input and their scores ``(K,)``, falling.
    """
    xp = get_array_module(scores[0])
    found = []
    for own_scores, own_deltas, own_anchors in zip(scores, deltas, anchors):
        candidates = _best_anchors(own_scores, own_deltas, own_anchors, pre_nms)
        boxes = decode_boxes(*candidates[:2], weights=weights, extent=extent, clip=clip)
        boxes, own_scores = clip_boxes(boxes, size, extent=extent), candidates[2]
        large = _at_least(boxes, max(min_size, 1.0), size, scale, extent)
        boxes, own_scores = boxes[large], own_scores[large]
        keep = nms(boxes, own_scores, nms_threshold, extent=extent, limit=post_nms)
        found.append((boxes[keep], own_scores[keep]))
    boxes, scores = (xp.concatenate(parts) for parts in zip(*found))
    best = _falling(scores)[:post_nms]
    return boxes[best], scores[best]


def _best_anchors(scores, deltas, anchors, limit: int):
    """Return the anchors of a map with the largest scores, their deltas and their scores, falling."""
    n_anchor = len(scores)
    scores = scores.transpose(1, 2, 0).ravel()
    best = _best_first(scores, limit)
    deltas = deltas.reshape(n_anchor, 4, len(anchors) // n_anchor).transpose(2, 0, 1).reshape(-1, 4)
    return anchors[best], deltas[best], scores[best]


def select_detections(probs, boxes, *, score_threshold: float, nms_threshold: float,
                      max_detections: int, extent: float = 1.0):
    """Choose the detections of one image among its RoIs' classes.

    ``detectron/core/test.py`` ``box_results_with_nms_and_limit``: every class of every RoI is a
    candidate; each class has its own NMS, all classes share one limit.

    Args:
        probs: ``(R, 1 + C)`` float32 class probabilities; class 0 is the background.
        boxes: ``(R, 4 * (1 + C))`` float32 boxes of every class.
        score_threshold: Candidates must score above it.
        nms_threshold: IoU from which on a candidate suppresses a worse one of its class.
        max_detections: Number to return; ties with the last one are returned, too.
        extent: See :mod:`mask_rcnn.ops.boxes`.

    Returns:
        tuple: Boxes ``(K, 4)`` float32, labels ``(K,)`` int32 (0 is the first foreground class) and
        scores ``(K,)`` float32, best first.
    """
    xp = get_array_module(probs)
    # Class by class, so that equal scores come out by class and then by RoI.
    labels, rois = xp.nonzero(probs[:, 1:].T > score_threshold)
    scores = probs[rois, labels + 1]
    boxes = boxes.reshape(*probs.shape, 4)[rois, labels + 1]
    keep = nms(boxes, scores, nms_threshold, extent=extent, groups=labels)
    if len(keep) > max_detections:
        kept_scores = scores[keep]  # falling
        keep = keep[kept_scores >= kept_scores[max_detections - 1]]
    return boxes[keep], labels[keep].astype(xp.int32), scores[keep]


def _best_first(scores, limit: int):
    """Return the indices of the ``limit`` largest scores, falling; ties by index."""
    xp = get_array_module(scores)
    if limit < len(scores):
        worst = xp.partition(scores, len(scores) - limit)[len(scores) - limit]
        candidates = xp.flatnonzero(scores >= worst)
        return candidates[_falling(scores[candidates])[:limit]]
    return _falling(scores)


def _falling(scores):
    xp = get_array_module(scores)
    return xp.argsort(-scores, kind='stable')


def _at_least(boxes, min_size, size, scale, extent):
    """Return which boxes have sides of ``min_size`` original pixels and their centre inside."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + (sides + extent) / 2
    xp = get_array_module(boxes)
    limit = xp.asarray(size, boxes.dtype)
    return ((sides / boxes.dtype.type(scale) + extent >= min_size) & (centres < limit)).all(axis=1)
