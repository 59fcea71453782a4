"""Selection of boxes: the proposals of the RPN and the detections of the network.

The number of selected boxes is data-dependent.  To use it as a shape, the host must read it, which synchronises the
host with the GPU after each selection.  With ``padded=True``, the shapes of the results are static instead: they depend
only on the shapes of the inputs and on the limits.  Unused rows are padding and come last.  Their boxes are NaN, their
labels are 0, and their scores are minus infinity: below every threshold, and ignored by
:func:`mask_rcnn.ops.boxes.nms.nms`.  The other rows are those of the result without padding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mask_rcnn.ops.boxes import padded_selection
from mask_rcnn.ops.boxes.boxes import clip_boxes, decode_boxes
from mask_rcnn.ops.boxes.nms import NO_SHIFT, GroupShift, nms, nms_padded
from mask_rcnn.ops.boxes.top_k import top_k_indices
from mask_rcnn.ops.runtime.array import Array, get_array_module

#: Coordinates and score of padding rows: NaN makes accidental uses visible, and minus infinity sorts last.
_PAD_BOX, _PAD_SCORE = np.float32(np.nan), np.float32(-np.inf)


def generate_proposals(
    scores: Sequence[Array],
    deltas: Sequence[Array],
    anchors: Sequence[Array],
    size: Sequence[float],
    scale: float,
    *,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
    min_size: float = 0.0,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    offset: float = 1.0,
    clip_offset: float = 1.0,
    max_log_scale: float | None = None,
    suppress_equal: bool = True,
    shift: GroupShift = NO_SHIFT,
    per_level: bool = True,
    last_of_ties_first: bool = False,
    drop_small_first: bool = False,
    require_centre_inside: bool = True,
    padded: bool = False,
    record: list[NMSRecord] | None = None,
) -> tuple[Array, Array]:
    """Select the proposals of one image from the outputs of the RPN.

    The anchors with the highest scores of each level are decoded, clipped, filtered by size and suppressed by NMS
    (``detectron/ops/generate_proposals.py``).  The proposals with the highest scores of all levels are returned
    (``detectron/ops/collect_and_distribute_fpn_rpn_proposals.py``).  Matterport's ``ProposalLayer`` joins the levels
    before the first step.

    Args:
        scores: For each level, ``(A, H, W)`` float32 objectness, on any increasing scale: probabilities or logits.
        deltas: For each level, ``(4 * A, H, W)`` float32 or float16; channels ``4 * a`` to ``4 * a + 3`` are the
            ``(dy, dx, dh, dw)`` of anchor ``a``.
        anchors: For each level, ``(H * W * A, 4)`` float32 boxes (:func:`mask_rcnn.ops.boxes.anchors.shift_anchors`).
        size: Height and width in network input pixels, to which proposals are clipped; the feature maps may extend
            further.
        scale: Network input pixels per pixel of the original image (Detectron), or 1 if ``min_size`` is in pixels of
            the network input.
        pre_nms: Maximum number of anchors before NMS, per level or in total.
        post_nms: Maximum number of proposals.
        nms_threshold: IoU threshold of NMS.
        min_size: Minimum height and width of a proposal, after its division by ``scale``; smaller proposals are
            dropped.
        weights: Weights of the deltas; see :func:`mask_rcnn.ops.boxes.boxes.decode_boxes`.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.
        clip_offset: ``offset`` of :func:`mask_rcnn.ops.boxes.boxes.clip_boxes`.
        max_log_scale: Upper limit of ``dh`` and ``dw``; see :func:`mask_rcnn.ops.boxes.boxes.decode_boxes`.
        suppress_equal: Whether NMS suppresses at an IoU equal to the threshold (Detectron), or only above it.
        shift: The shift of the boxes of each level in NMS per level.
        per_level: Whether the selection before NMS, and NMS, run per level (Detectron) or on all levels together
            (Matterport).
        last_of_ties_first: Whether the last anchor or the first one takes precedence among anchors with equal scores.
        drop_small_first: Whether small proposals are dropped before the selection of ``pre_nms`` anchors (DeNA), or
            after it (Detectron).
        require_centre_inside: Whether proposals with a centre outside ``size`` are dropped (Detectron).
        padded: Whether the result is padded; see the module.
        record: A list to which the run of NMS is appended, unless ``padded``.

    Returns:
        tuple: Boxes ``(K, 4)`` float32 in the network input and their scores ``(K,)`` in descending order.
    """
    xp = get_array_module(scores[0])
    levels = [as_rows(*level) for level in zip(scores, deltas, anchors, strict=True)]
    if padded and padded_selection.is_supported(scores[0]):
        return padded_selection.propose_gpu(
            levels if per_level else [tuple(map(xp.concatenate, zip(*levels, strict=True)))],
            padded_selection.BoxDecoding(weights, offset, max_log_scale, size, clip_offset),
            scale=scale,
            min_size=min_size,
            pre_nms=pre_nms,
            post_nms=post_nms,
            nms_threshold=nms_threshold,
            suppress_equal=suppress_equal,
            shift=shift,
            last_of_ties_first=last_of_ties_first,
            drop_small_first=drop_small_first,
            require_centre_inside=require_centre_inside,
        )

    decode = ProposalDecoding(size, scale, weights, offset, clip_offset, max_log_scale, min_size, require_centre_inside)
    levels_of_nms = _select_candidates(
        levels,
        pre_nms,
        per_level=per_level,
        last_of_ties_first=last_of_ties_first,
        decode_first=decode if drop_small_first else None,
    )
    counts = [len(level.indices) for level in levels_of_nms]
    candidates = _Candidates(*map(xp.concatenate, zip(*levels_of_nms, strict=True)))
    boxes, is_valid = decode(candidates.anchors, candidates.deltas)
    # One NMS with the level as the group of a box: among the `post_nms` best proposals of all levels are only proposals
    # that are among the `post_nms` best of their level.
    groups = xp.concatenate([xp.full(n, level, np.int32) for level, n in enumerate(counts)]) if per_level else None
    options: dict[str, Any] = {'offset': offset, 'limit': post_nms, 'suppress_equal': suppress_equal, 'shift': shift}
    if padded:
        valid_scores = xp.where(is_valid, candidates.scores, _PAD_SCORE)
        keep = nms_padded(boxes, valid_scores, nms_threshold, groups=groups, **options)
        return _take_padded(keep, boxes, valid_scores)
    rows = xp.flatnonzero(is_valid)
    groups = None if groups is None else groups[rows]
    keep = rows[nms(boxes[rows], candidates.scores[rows], nms_threshold, groups=groups, **options)]
    if record is not None:
        record.append(NMSRecord(candidates.indices, boxes, candidates.scores, is_valid, keep))
    return boxes[keep], candidates.scores[keep]


class NMSRecord(NamedTuple):
    """One run of NMS: its candidates and those that it keeps.

    Attributes:
        indices: ``(C,)`` index of each candidate: of the anchor, in the order of :func:`generate_proposals`; or of the
            class probability in ``(R, 1 + C)``, flattened.
        boxes: ``(C, 4)`` float32, decoded and clipped.
        scores: ``(C,)`` float32.
        is_valid: ``(C,)`` bool: False for candidates that are dropped before NMS.
        keep: Rows of the kept candidates, in descending order of score.
    """

    indices: Array
    boxes: Array
    scores: Array
    is_valid: Array
    keep: Array


class _Candidates(NamedTuple):
    """The anchors that enter one run of NMS, with their indices in all levels, in descending order of score."""

    indices: Array
    anchors: Array
    deltas: Array
    scores: Array


@dataclass(frozen=True)
class ProposalDecoding:
    """The decoding of anchors into proposals; the fields are arguments of :func:`generate_proposals`."""

    size: Sequence[float]
    scale: float
    weights: Sequence[float]
    offset: float
    clip_offset: float
    max_log_scale: float | None
    min_size: float
    require_centre_inside: bool

    def __call__(self, anchors: Array, deltas: Array) -> tuple[Array, Array]:
        """Return the clipped boxes ``(R, 4)`` and a mask of the valid ones ``(R,)``."""
        boxes = decode_boxes(
            anchors, deltas, weights=self.weights, offset=self.offset, max_log_scale=self.max_log_scale
        )
        boxes = clip_boxes(boxes, self.size, offset=self.clip_offset)
        size = self.size if self.require_centre_inside else None
        return boxes, _is_valid_proposal(boxes, self.min_size, self.scale, self.offset, size)


def _select_candidates(
    levels: Sequence[tuple[Array, Array, Array]],
    pre_nms: int,
    *,
    per_level: bool,
    last_of_ties_first: bool,
    decode_first: Callable[[Array, Array], tuple[Array, Array]] | None,
) -> list[_Candidates]:
    """Return the anchors with the highest scores, for NMS per level or on all levels together.

    Args:
        levels: Scores, anchors and deltas of each level; see :func:`as_rows`.
        pre_nms: See :func:`generate_proposals`.
        per_level: See :func:`generate_proposals`.
        last_of_ties_first: See :func:`generate_proposals`.
        decode_first: Decodes anchors, of which the invalid ones are dropped before the selection; ``None`` if they are
            dropped after it.
    """
    xp = get_array_module(levels[0][0])
    groups, start = [], 0
    for scores, anchors, deltas in levels:
        if decode_first is not None:
            scores = xp.where(decode_first(anchors, deltas)[1], scores, _PAD_SCORE)
        best = top_k_indices(scores, pre_nms, last_of_ties_first=last_of_ties_first)
        best_deltas = deltas[best].astype(np.float32, copy=False)
        groups.append(_Candidates(best + start, anchors[best], best_deltas, scores[best]))
        start += len(anchors)
    if per_level:
        return groups
    return [_Candidates(*_merge_levels(groups[::-1] if last_of_ties_first else groups, pre_nms))]


def as_rows(scores: Array, deltas: Array, anchors: Array) -> tuple[Array, Array, Array]:
    """Return scores ``(R,)``, anchors ``(R, 4)`` and deltas ``(R, 4)`` of a level; copy only if necessary."""
    return scores.transpose(1, 2, 0).ravel(), anchors, deltas.transpose(1, 2, 0).reshape(-1, 4)


def _merge_levels(levels: Sequence[tuple], limit: int) -> tuple:
    """Concatenate the arrays of all levels; return the rows with the ``limit`` highest scores, in descending order.

    Args:
        levels: For each level, a tuple of arrays of equal length; the last array has the scores.
        limit: Maximum number of rows.
    """
    xp = get_array_module(levels[0][-1])
    merged = [xp.concatenate(arrays) for arrays in zip(*levels, strict=True)]
    best = top_k_indices(merged[-1], limit)
    return tuple(array[best] for array in merged)


def _is_valid_proposal(
    boxes: Array, min_size: float, scale: float, offset: float, size: Sequence[float] | None
) -> Array:
    """Return a mask of the boxes that are large enough and have their centre inside the image, ``(R,)`` bool.

    Source: ``_filter_boxes`` of Detectron ``detectron/ops/generate_proposals.py``.  ``size`` is the height and width of
    the image, or ``None`` if centres may lie outside.
    """
    scalar_type = boxes.dtype.type
    sides = boxes[:, 2:] - boxes[:, :2]
    is_large = sides / scalar_type(scale) + offset >= min_size
    is_valid = is_large[:, 0] & is_large[:, 1]
    if size is None:
        return is_valid
    centres = boxes[:, :2] + (sides + offset) / 2
    is_inside = [centres[:, axis] < scalar_type(size[axis]) for axis in (0, 1)]
    return is_valid & is_inside[0] & is_inside[1]


def select_detections(
    probs: Array,
    boxes: Array,
    *,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    offset: float = 1.0,
    suppress_equal: bool = True,
    shift: GroupShift = NO_SHIFT,
    min_box_size: float = 0.0,
    best_class_only: bool = False,
    score_threshold_inclusive: bool = False,
    keep_ties: bool = True,
    last_of_ties_first: bool = False,
    padded: bool = False,
    record: list[NMSRecord] | None = None,
) -> tuple[Array, Array, Array]:
    """Select the detections of one image from the class probabilities and boxes of its RoIs.

    Every class of every RoI is a candidate, unless its score or a coordinate is NaN (of a network whose values
    overflow); NMS runs per class, and all classes share one limit (``detectron/core/test.py``
    ``box_results_with_nms_and_limit``).  In Matterport's ``refine_detections_graph``,
    only the best class of a RoI is a candidate.

    Args:
        probs: ``(R, 1 + C)`` float32 class probabilities; class 0 is the background.
        boxes: ``(R, 4 * (1 + C))`` float32 boxes of every class.
        score_threshold: Minimum score of a candidate.
        nms_threshold: IoU threshold of NMS.
        max_detections: Maximum number of detections, which ``keep_ties`` may exceed; 0 for no limit.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.
        suppress_equal: Whether NMS suppresses at an IoU equal to the threshold (Detectron), or only above it.
        shift: The shift of the boxes of each class in NMS.
        min_box_size: Minimum height and width of a candidate; smaller ones are dropped before NMS.
        best_class_only: Whether a RoI is a candidate only for its highest-scoring class, and not at all if that is
            the background.
        score_threshold_inclusive: Whether a score equal to the threshold passes, or only a score above it.
        keep_ties: Whether to return more than ``max_detections`` detections if those beyond the limit have the same
            score as the last one within it (Detectron).
        last_of_ties_first: Whether the last RoI or the first one takes precedence in the NMS of RoIs with equal scores.
        padded: Whether the result is padded; see the module.  It has ``max_detections`` rows, and four more with
            ``keep_ties``; without a limit, it has a row for each candidate.
        record: A list to which the run of NMS is appended, unless ``padded``.

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
    nms_options: dict[str, Any] = {
        'threshold': nms_threshold,
        'offset': offset,
        'suppress_equal': suppress_equal,
        'shift': shift,
    }
    if padded:
        scores = xp.where(candidates & _is_valid_candidate(boxes, min_box_size), probs, _PAD_SCORE)
        return _select_padded(scores, boxes, max_detections, keep_ties, last_of_ties_first, nms_options)
    labels, rois = xp.nonzero(candidates[:, 1:].T)
    if last_of_ties_first:
        labels, rois = labels[::-1], rois[::-1]
    boxes = boxes[rois, labels + 1]
    has_box = ~xp.isnan(boxes).any(axis=1)
    labels, rois, boxes = labels[has_box], rois[has_box], boxes[has_box]
    scores = probs[rois, labels + 1]
    is_valid = _is_valid_candidate(boxes, min_box_size)
    rows = xp.flatnonzero(is_valid)
    keep = rows[nms(boxes[rows], scores[rows], groups=labels[rows], **nms_options)]
    if record is not None:
        record.append(NMSRecord(rois * probs.shape[1] + labels + 1, boxes, scores, is_valid, keep))
    if 0 < max_detections < len(keep):
        kept_scores = scores[keep]  # in descending order
        within = kept_scores >= kept_scores[max_detections - 1]
        keep = keep[within] if keep_ties else keep[:max_detections]
    return boxes[keep], labels[keep].astype(xp.int32), scores[keep]


def _is_valid_candidate(boxes: Array, min_size: float) -> Array:
    """Return a mask of the boxes ``(..., 4)`` without NaN whose sides are at least ``min_size``; 0 admits all sides.

    Source: ``remove_small_boxes`` of ``torchvision/ops/boxes.py``.
    """
    xp = get_array_module(boxes)
    is_valid = ~xp.isnan(boxes).any(axis=-1)
    return is_valid & (boxes[..., 2:] - boxes[..., :2] >= np.float32(min_size)).all(axis=-1) if min_size else is_valid


def _select_padded(
    scores: Array,
    boxes: Array,
    max_detections: int,
    keep_ties: bool,
    last_of_ties_first: bool,
    nms_options: dict,
) -> tuple[Array, Array, Array]:
    """Select detections with static shapes: the second half of :func:`select_detections`.

    Args:
        scores: ``(R, 1 + C)``; the padding score where a class of a RoI is not a candidate.
        boxes: ``(R, 1 + C, 4)``.
        max_detections: See :func:`select_detections`.
        keep_ties: See :func:`select_detections`.
        last_of_ties_first: See :func:`select_detections`.
        nms_options: Options of :func:`mask_rcnn.ops.boxes.nms.nms_padded`.
    """
    xp = get_array_module(scores)
    n_rois = len(scores)
    class_scores = scores[:, 1:].T.ravel()  # class after class
    limit = padded_selection.n_candidates(class_scores, max_detections)
    best = top_k_indices(class_scores, limit, last_of_ties_first=last_of_ties_first)
    labels, rois = best // n_rois, best % n_rois
    scores, boxes = class_scores[best], boxes[rois, labels + 1]
    n_rows = padded_selection.n_rows(max_detections, keep_ties)
    keep = nms_padded(boxes, scores, groups=labels, limit=n_rows, **nms_options)
    boxes, scores = _take_padded(keep, boxes, scores)
    last_score = scores[max_detections - 1 : max_detections] if max_detections else scores[:0]
    if len(last_score):
        is_beyond = scores < last_score
        boxes, scores = xp.where(is_beyond[:, None], _PAD_BOX, boxes), xp.where(is_beyond, _PAD_SCORE, scores)
    return boxes, xp.where(scores == _PAD_SCORE, 0, labels[keep]).astype(np.int32), scores


def _take_padded(keep: Array, boxes: Array, scores: Array) -> tuple[Array, Array]:
    """Return the boxes and scores at the indices ``keep``, in which -1 stands for a padding row."""
    xp = get_array_module(boxes)
    scores = xp.where(keep < 0, _PAD_SCORE, scores[keep])
    return xp.where((scores == _PAD_SCORE)[:, None], _PAD_BOX, boxes[keep]), scores
