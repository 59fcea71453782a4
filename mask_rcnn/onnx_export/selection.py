"""The detections of the box head in an ONNX graph.

The counterpart of ``BoxHead.decode`` in :mod:`mask_rcnn.models.box_head` and of
:func:`mask_rcnn.ops.boxes.proposals.select_detections`.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.onnx_export.box_mapping import invert_boxes
from mask_rcnn.onnx_export.boxes import clip_boxes, corners, decode_boxes
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.nms import shift_groups, suppress
from mask_rcnn.onnx_export.top_k import top_k
from mask_rcnn.onnx_export.transform import GraphTransform
from mask_rcnn.ops.boxes.nms import GroupShift


def select_detections(
    graph: GraphBuilder, rois: Tensor, probs: Tensor, deltas: Tensor, transform: GraphTransform, config: Config
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the detections of one image from the outputs of the box head.

    Args:
        graph: The graph.
        rois: ``(K, 4)`` float32 boxes in the network input.
        probs: ``(K, 1 + C)`` float32 class probabilities; class 0 is the background.
        deltas: ``(K, 4 * (1 + C))`` float32.
        transform: The image's transform.
        config: Thresholds and the dialect.

    Returns:
        tuple: Boxes ``(R, 4)`` float32, labels ``(R,)`` int64 (0 is the first foreground class) and scores ``(R,)``
        float32, in descending order of score.  The boxes are in pixels of the network input if the dialect has
        ``detections.postprocess_in_input_space``, otherwise in pixels of the image.
    """
    dialect, n_class = config.dialect, config.n_fg_class
    labels = np.arange(n_class)
    # One row for each class: candidates with equal scores are ordered by class and then by RoI.
    boxes = _class_boxes(graph, rois, deltas, transform, config).transpose(1, 0, 2)
    scores, is_valid = probs.slice(1, axis=1).transpose(1, 0), _candidates(graph, probs, config).transpose(1, 0)
    is_valid &= _is_valid(graph, boxes, dialect.detections.min_box_size)
    if dialect.boxes.last_of_ties_first:
        labels = labels[::-1]
        boxes, scores, is_valid = (_reverse(tensor) for tensor in (boxes, scores, is_valid))
    scores = is_valid.where(scores, -np.inf)
    order = top_k(scores)
    scores = graph.op('GatherElements', scores, order, axis=1)
    boxes = graph.op('GatherND', boxes, order.expand_dims(2), batch_dims=1)

    kept = _suppress(graph, boxes, scores > -np.inf, labels, config)
    kept = _limit(graph, kept, scores.reshape(-1).take(kept), config)
    rows = kept / scores.size(1).maximum(1)  # without RoIs, there is no row to divide
    return boxes.reshape(-1, 4).take(kept), graph.constant(labels, 'labels').take(rows), scores.reshape(-1).take(kept)


def _class_boxes(
    graph: GraphBuilder, rois: Tensor, deltas: Tensor, transform: GraphTransform, config: Config
) -> Tensor:
    """Return the clipped boxes of the foreground classes, ``(K, C, 4)``."""
    dialect = config.dialect
    in_input = dialect.detections.postprocess_in_input_space
    boxes = decode_boxes(
        graph,
        (rois if in_input else invert_boxes(rois, transform)).expand_dims(1),
        deltas.reshape(deltas.size(0), 1 + config.n_fg_class, 4).slice(1, axis=1),
        weights=dialect.boxes.box_delta_weights,
        offset=dialect.boxes.offset,
        max_log_scale=dialect.boxes.max_log_scale,
    )
    if in_input:
        return clip_boxes(boxes, transform.resized, offset=dialect.boxes.clip_offset, origin=transform.origin)
    return clip_boxes(boxes, transform.size, offset=dialect.boxes.clip_offset)


def _candidates(graph: GraphBuilder, probs: Tensor, config: Config) -> Tensor:
    """Return a mask of the foreground classes of RoIs whose score passes the threshold, ``(K, C)``; NaN does not."""
    conventions, threshold = config.dialect.detections, config.score_threshold
    passes = probs >= threshold if conventions.score_threshold_inclusive else probs > threshold
    if conventions.best_class_only:
        is_nan = graph.op('IsNaN', probs, dtype=bool)
        best = graph.op('ArgMax', is_nan.where(np.inf, probs), axis=1, keepdims=1, dtype=np.int64)
        passes &= best.equal(np.arange(1 + config.n_fg_class))
    return passes.slice(1, axis=1)


def _is_valid(graph: GraphBuilder, boxes: Tensor, min_size: float) -> Tensor:
    """Return a mask of the boxes ``(..., 4)`` without NaN whose sides are at least ``min_size``; 0 admits all sides."""
    first, second = corners(boxes)
    # A side is NaN if a corner is; clipped corners are not infinite.
    sides = second - first
    conditions = sides >= min_size if min_size else ~graph.op('IsNaN', sides, dtype=bool)
    return conditions.take(0, axis=-1) & conditions.take(1, axis=-1)


def _reverse(tensor: Tensor) -> Tensor:
    """Reverse classes and RoIs, the first two axes."""
    for axis in (0, 1):
        tensor = tensor.slice(-1, np.iinfo(np.int64).min, axis=axis, step=-1)
    return tensor


def _suppress(graph: GraphBuilder, boxes: Tensor, is_valid: Tensor, labels: np.ndarray, config: Config) -> Tensor:
    """Return the rows that NMS keeps of ``(C, K)`` boxes, flattened, in ascending order."""
    dialect = config.dialect
    shift = GroupShift(dialect.boxes.nms_shift_limit, int(dialect.detections.shift_counts_background))
    # With ties, a class may have more detections than the limit.
    limit = config.max_detections if config.max_detections and not dialect.detections.keep_ties else None
    return suppress(
        graph,
        shift_groups(graph, boxes, is_valid, graph.constant(labels[:, None]), shift),
        is_valid.expand_dims(1),
        config.nms_threshold,
        offset=dialect.boxes.offset,
        suppress_equal=dialect.boxes.nms_suppress_equal,
        limit=limit,
    )


def _limit(graph: GraphBuilder, kept: Tensor, scores: Tensor, config: Config) -> Tensor:
    """Return the kept rows in descending order of their scores, up to the limit on detections.

    Of equal scores, the first rows take precedence.
    """
    limit = config.max_detections
    if not (limit and config.dialect.detections.keep_ties):
        return kept.take(top_k(scores, limit or None))
    order = top_k(scores)
    scores = scores.take(order)
    # With fewer detections than the limit, the last score is minus infinity, and all detections are kept.
    last = graph.concat([scores, scores.like([-np.inf])]).take(scores.size(0).minimum(limit - 1))
    return kept.take(order).compress(scores >= last)
