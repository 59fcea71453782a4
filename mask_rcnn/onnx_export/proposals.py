"""The proposals of the RPN in an ONNX graph.

The counterpart of ``RPN.propose`` in :mod:`mask_rcnn.models.rpn` and of
:func:`mask_rcnn.ops.boxes.proposals.generate_proposals`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.onnx_export.anchors import rpn_anchors
from mask_rcnn.onnx_export.boxes import clip_boxes, corners, decode_boxes
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.nms import shift_groups, suppress
from mask_rcnn.onnx_export.top_k import top_k
from mask_rcnn.onnx_export.transform import GraphTransform
from mask_rcnn.ops.boxes.nms import GroupShift


class _Anchors(NamedTuple):
    """Anchors with the outputs of the RPN: scores ``(R,)``, boxes ``(R, 4)`` and deltas ``(R, 4)``, all float32."""

    scores: Tensor
    boxes: Tensor
    deltas: Tensor

    def take(self, rows: Tensor) -> _Anchors:
        return _Anchors(*(tensor.take(rows) for tensor in self))


def propose(
    graph: GraphBuilder, logits: Sequence[Tensor], deltas: Sequence[Tensor], transform: GraphTransform, config: Config
) -> Tensor:
    """Select the proposals of one image from the outputs of the RPN.

    Args:
        graph: The graph.
        logits: For each feature map, ``(1, A, h, w)`` float32.
        deltas: For each feature map, ``(1, 4 * A, h, w)`` float32.
        transform: The image's transform.
        config: Anchors, limits and thresholds, and the dialect.

    Returns:
        Tensor: ``(K, 4)`` float32 boxes in the network input, in descending order of objectness.
    """
    dialect = config.dialect
    sizes = [(level.size(2), level.size(3)) for level in logits]
    levels = [
        _Anchors(_scores(level_logits, config), anchors, _by_location(level_deltas).reshape(-1, 4))
        for level_logits, level_deltas, anchors in zip(
            logits, deltas, rpn_anchors(graph, sizes, transform.padded, config), strict=True
        )
    ]
    if dialect.rpn.drop_small_first:
        levels = [_drop_small(graph, level, transform, config) for level in levels]
    best = [_select_best(level, config.rpn_pre_nms, dialect.boxes.last_of_ties_first) for level in levels]
    if not dialect.rpn.proposals_per_level:
        # The order of the levels is that of ties; within a level, ties already have the right order.
        merged = _concat(graph, best[::-1] if dialect.boxes.last_of_ties_first else best)
        best = [_select_best(merged, config.rpn_pre_nms, False)]
    candidates = _concat(graph, best)
    boxes, is_valid = _decode(graph, candidates, transform, config)
    kept = _suppress(graph, boxes, is_valid & (candidates.scores > -np.inf), best, config)
    # Rows are level after level: of equal scores, those of the first level take precedence.
    return boxes.take(kept.take(top_k(candidates.scores.take(kept), config.rpn_post_nms)))


def _by_location(level: Tensor) -> Tensor:
    """Return the values of a feature map location after location, flattened."""
    return level.transpose(0, 2, 3, 1).reshape(-1)


def _scores(logits: Tensor, config: Config) -> Tensor:
    """Return the objectness of one level, ``(R,)``; minus infinity instead of NaN, of a network that overflows."""
    graph, scores = logits.graph, _by_location(logits)
    if not config.dialect.rpn.rank_by_logits:
        # Chainer's formula decides which logits have equal probabilities.  In double precision, tanh differs by at most
        # one unit in the last place from NumPy's, and ONNX Runtime's in single precision by five.
        tanh = graph.op('Tanh', (scores * 0.5).cast(np.float64)).cast(np.float32)
        scores = tanh * 0.5 + 0.5
    return graph.op('IsNaN', scores, dtype=bool).where(-np.inf, scores)


def _drop_small(graph: GraphBuilder, level: _Anchors, transform: GraphTransform, config: Config) -> _Anchors:
    """Return the anchors with scores of minus infinity where the proposal is invalid."""
    _, is_valid = _decode(graph, level, transform, config)
    return level._replace(scores=is_valid.where(level.scores, -np.inf))


def _select_best(anchors: _Anchors, limit: int, last_of_ties_first: bool) -> _Anchors:
    """Return the anchors with the highest scores, in descending order."""
    return anchors.take(top_k(anchors.scores, limit, last_of_ties_first=last_of_ties_first))


def _concat(graph: GraphBuilder, levels: Sequence[_Anchors]) -> _Anchors:
    if len(levels) == 1:
        return levels[0]
    return _Anchors(*(graph.concat(tensors) for tensors in zip(*levels, strict=True)))


def _groups(graph: GraphBuilder, levels: Sequence[_Anchors]) -> Tensor:
    """Return the number of the level of each anchor, ``(R,)`` int64."""
    numbers = [
        graph.op('Expand', graph.constant(np.array([number])), level.scores.shape())
        for number, level in enumerate(levels)
    ]
    return graph.concat(numbers)


def _decode(graph: GraphBuilder, anchors: _Anchors, transform: GraphTransform, config: Config) -> tuple[Tensor, Tensor]:
    """Return the clipped proposals ``(R, 4)``, and a mask of the valid ones ``(R,)``."""
    dialect = config.dialect
    boxes = decode_boxes(
        graph,
        anchors.boxes,
        anchors.deltas,
        weights=dialect.boxes.rpn_delta_weights,
        offset=dialect.boxes.offset,
        max_log_scale=dialect.boxes.max_log_scale,
    )
    # A letterbox has no padding beside its image, which is the whole square.
    is_inner = dialect.rpn.clip_to_image and not dialect.input.letterbox
    size = transform.resized if is_inner else transform.padded
    boxes = clip_boxes(boxes, size, offset=dialect.boxes.clip_offset)
    return boxes, _is_valid(graph, boxes, size, transform, config)


def _is_valid(graph: GraphBuilder, boxes: Tensor, size: Tensor, transform: GraphTransform, config: Config) -> Tensor:
    """Return a mask of the boxes that are large enough and, if required, have their centre inside the image, ``(R,)``.

    NaN is neither.
    """
    dialect = config.dialect
    min_size = np.float32(config.rpn_min_size)
    if not dialect.rpn.min_size_inclusive:
        min_size = np.nextafter(min_size, np.float32(np.inf))
    first, second = corners(boxes)
    sides = second - first
    scaled = sides if dialect.rpn.min_size_in_input else sides / transform.factors.slice(0, 1).cast(np.float32)
    conditions = scaled + dialect.boxes.offset >= min_size
    if dialect.rpn.require_centre_inside:
        centres = first + (sides + dialect.boxes.offset) / 2
        conditions &= centres < size.cast(np.float32)
    return conditions.take(0, axis=1) & conditions.take(1, axis=1)


def _suppress(
    graph: GraphBuilder, boxes: Tensor, is_valid: Tensor, levels: Sequence[_Anchors], config: Config
) -> Tensor:
    """Return the rows of the boxes that NMS keeps, in ascending order.

    Args:
        graph: The graph.
        boxes: ``(R, 4)``, level after level, in descending order of the scores of each level.
        is_valid: ``(R,)`` bool, whether a box takes part.
        levels: The anchors of each level; boxes of different levels do not suppress each other.
        config: Threshold and limit, and the dialect.
    """
    conventions, groups = config.dialect.boxes, _groups(graph, levels)
    candidates = groups.equal(np.arange(len(levels))[:, None]) & is_valid
    return suppress(
        graph,
        shift_groups(graph, boxes, is_valid, groups, GroupShift(conventions.nms_shift_limit)).expand_dims(0),
        candidates.expand_dims(0),
        config.rpn_nms_threshold,
        offset=conventions.offset,
        suppress_equal=conventions.nms_suppress_equal,
        limit=config.rpn_post_nms,
    )
