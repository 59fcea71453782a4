"""The GPU implementation of the padded selections of :mod:`mask_rcnn.ops.boxes.proposals`, in few kernel launches.

Only the selected boxes are decoded.  No shape depends on a value, and nothing is copied to the device, so that a CUDA
graph can capture the launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_rcnn.ops.boxes.nms import GroupShift, nms_padded
from mask_rcnn.ops.boxes.top_k import top_k_indices
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module

_SOURCE = 'boxes/padded_selection.cu'

#: Maximum number of candidates for padded detections; the candidates with the highest scores are used.  1000 RoIs
#: rarely have that many scores above 0.05.  A larger limit changes the result only if NMS keeps fewer boxes than
#: ``max_detections``.
MAX_CANDIDATES = 8192
#: Additional rows of padded detections with ``keep_ties``, for ties with the last detection within the limit.
MAX_TIES = 4


def n_candidates(class_scores: Array, max_detections: int) -> int:
    """Return the number of candidates that enter NMS: with a limit on the detections at most :data:`MAX_CANDIDATES`.

    Without a limit, all candidates enter NMS: the host waits for their number.

    Args:
        class_scores: ``(K,)`` float32; minus infinity if not a candidate.
        max_detections: Maximum number of detections; 0 for no limit.
    """
    if max_detections:
        return MAX_CANDIDATES
    return max(int((class_scores > -math.inf).sum()), 1)


def n_rows(max_detections: int, keep_ties: bool) -> int | None:
    """Return the number of rows of padded detections, or ``None`` without a limit."""
    return max_detections + MAX_TIES * keep_ties if max_detections else None


def is_supported(array: Array) -> bool:
    """Return whether the kernels process an array: whether it is on a GPU."""
    return get_array_module(array) is not np


@dataclass(frozen=True)
class BoxDecoding:
    """The decoding of deltas and the clipping of the boxes.

    Attributes:
        weights: Weights of the deltas; see :func:`mask_rcnn.ops.boxes.boxes.decode_boxes`.
        offset: 1 or 0; see :mod:`mask_rcnn.ops.boxes.boxes`.
        max_log_scale: Upper limit of ``dh`` and ``dw``, or ``None``.
        size: Height and width of the image to which boxes are clipped.
        clip_offset: ``offset`` of :func:`mask_rcnn.ops.boxes.boxes.clip_boxes`.
        origin: ``origin`` of :func:`mask_rcnn.ops.boxes.boxes.clip_boxes`.
        factors: Factors by which RoIs are divided before they are decoded, for ``y`` and ``x``.
        shift: Coordinates that are subtracted from RoIs before.
    """

    weights: Sequence[float]
    offset: float
    max_log_scale: float | None
    size: Sequence[float]
    clip_offset: float
    origin: Sequence[float] = (0.0, 0.0)
    factors: Sequence[float] = (1.0, 1.0)
    shift: Sequence[float] = (0.0, 0.0)

    def transform_arguments(self) -> list[np.float32]:
        """Return the kernel's arguments for the transform of RoIs."""
        return [np.float32(value) for value in (*self.shift, *self.factors)]

    def decoding_arguments(self) -> list[np.float32]:
        """Return the kernels' arguments for the decoding."""
        limit = math.inf if self.max_log_scale is None else self.max_log_scale
        return [np.float32(value) for value in (*self.weights, self.offset, limit)]

    def low(self) -> list[np.float32]:
        """Return the lowest ``y`` and ``x``."""
        return [np.float32(value) for value in self.origin]

    def high(self) -> list[np.float32]:
        """Return the highest ``y`` and ``x``, rounded as :func:`mask_rcnn.ops.boxes.boxes.clip_boxes` does."""
        offset = np.float32(self.clip_offset)
        return [low + np.float32(side) - offset for low, side in zip(self.low(), self.size, strict=True)]


def propose_gpu(
    levels: Sequence[tuple[Array, Array, Array]],
    decoding: BoxDecoding,
    *,
    scale: float,
    min_size: float,
    pre_nms: int,
    post_nms: int,
    nms_threshold: float,
    suppress_equal: bool,
    shift: GroupShift,
    last_of_ties_first: bool,
    drop_small_first: bool,
    require_centre_inside: bool,
) -> tuple[Array, Array]:
    """Select proposals; see :func:`mask_rcnn.ops.boxes.proposals.generate_proposals`.

    NMS runs once with the level as the group of a box.  The result is that of NMS per level: among the ``post_nms``
    best proposals of all levels are only proposals that are among the ``post_nms`` best of their level.

    Args:
        levels: For each level, scores ``(R,)`` float32, anchors ``(R, 4)`` float32 and deltas ``(R, 4)`` float32 or
            float16.
        decoding: The decoding and clipping.
        scale: Divisor of the sides that are compared with ``min_size``.
        min_size: Minimum height and width of a proposal.
        pre_nms: Maximum number of anchors of a level.
        post_nms: Maximum number of proposals.
        nms_threshold: IoU threshold of NMS.
        suppress_equal: Whether NMS suppresses at an IoU equal to the threshold.
        shift: The shift of the boxes of each level in NMS.
        last_of_ties_first: Whether the last anchor or the first one takes precedence among anchors with equal scores.
        drop_small_first: Whether small proposals are dropped before the selection of ``pre_nms`` anchors or after it.
        require_centre_inside: Whether proposals with a centre outside the image are dropped.
    """
    xp = get_array_module(levels[0][0])
    validity = [*map(np.float32, (*decoding.size, scale)), _min_side(min_size), np.int32(require_centre_inside)]
    if drop_small_first:
        levels = [_drop_invalid(level, decoding, validity) for level in levels]
    counts = [min(pre_nms, len(scores)) for scores, _, _ in levels]
    total = sum(counts)
    boxes, scores, groups = xp.empty((total, 4), np.float32), xp.empty(total, np.float32), xp.empty(total, np.int32)
    start = 0
    for number, (n, level) in enumerate(zip(counts, levels, strict=True)):
        part = slice(start, start + n)
        start += n
        best = top_k_indices(level[0], n, last_of_ties_first=last_of_ties_first).astype(np.int32, copy=False)
        _decode_proposals(level, best, number, decoding, validity, boxes[part], scores[part], groups[part])
    keep = nms_padded(
        boxes,
        scores,
        nms_threshold,
        offset=decoding.offset,
        groups=groups if len(levels) > 1 else None,
        limit=post_nms,
        suppress_equal=suppress_equal,
        shift=shift,
    )
    boxes, _, scores = _take_kept(keep, -1, boxes, scores, groups)
    return boxes, scores


def _min_side(min_size: float) -> np.float32:
    """Return a minimum side as an argument of a kernel; a GPU takes denormal numbers for 0, which empty boxes have."""
    return np.maximum(np.float32(min_size), np.finfo(np.float32).tiny if min_size else np.float32(0))


def _drop_invalid(
    level: tuple[Array, Array, Array], decoding: BoxDecoding, validity: Sequence[np.generic]
) -> tuple[Array, Array, Array]:
    """Return a level with the score of padding for anchors whose proposals are not valid."""
    xp, n = get_array_module(level[0]), len(level[0])
    boxes, scores, groups = xp.empty((n, 4), np.float32), xp.empty(n, np.float32), xp.empty(n, np.int32)
    _decode_proposals(level, xp.arange(n, dtype=np.int32), 0, decoding, validity, boxes, scores, groups)
    return scores, level[1], level[2]


def _decode_proposals(
    level: tuple[Array, Array, Array],
    order: Array,
    number: int,
    decoding: BoxDecoding,
    validity: Sequence[np.generic],
    boxes: Array,
    scores: Array,
    groups: Array,
) -> None:
    """Decode the anchors ``order`` of a level into ``boxes``, ``scores`` and ``groups``.

    Args:
        level: Scores, anchors and deltas of the level.
        order: ``(n,)`` int32 indices of anchors.
        number: Number of the level, which is written to ``groups``.
        decoding: The decoding and clipping.
        validity: The kernel's arguments for the test of a proposal.
        boxes: ``(n, 4)`` float32.
        scores: ``(n,)`` float32; that of padding for a proposal that is not valid.
        groups: ``(n,)`` int32.
    """
    xp, (level_scores, anchors, deltas) = get_array_module(order), level
    is_half = deltas.dtype == np.float16
    cuda_kernels.launch(
        cuda_kernels.kernel(_SOURCE, 'decode_proposals_half' if is_half else 'decode_proposals'),
        len(order),
        (
            xp.ascontiguousarray(level_scores, np.float32),
            xp.ascontiguousarray(anchors, np.float32),
            xp.ascontiguousarray(deltas).view(np.uint16) if is_half else xp.ascontiguousarray(deltas, np.float32),
            order,
            np.int32(len(order)),
            np.int32(number),
            *decoding.decoding_arguments(),
            *decoding.high(),
            *validity,
            boxes,
            scores,
            groups,
        ),
    )


def detect_gpu(
    rois: Array,
    probs: Array,
    deltas: Array,
    decoding: BoxDecoding,
    *,
    score_threshold: float,
    score_threshold_inclusive: bool,
    best_class_only: bool,
    max_detections: int,
    keep_ties: bool,
    nms_threshold: float,
    suppress_equal: bool,
    shift: GroupShift,
    min_box_size: float,
    last_of_ties_first: bool,
) -> tuple[Array, Array, Array]:
    """Decode and select detections; see :func:`mask_rcnn.ops.boxes.proposals.select_detections`.

    Args:
        rois: ``(R, 4)`` float32 boxes in the network input; padding RoIs are NaN.
        probs: ``(R, 1 + C)`` float32 class probabilities.
        deltas: ``(R, 4 * (1 + C))`` float32.
        decoding: The decoding and clipping.
        score_threshold: Minimum score of a candidate.
        score_threshold_inclusive: Whether a score equal to the threshold passes.
        best_class_only: Whether a RoI is a candidate only for its highest-scoring class.
        max_detections: Maximum number of detections, except for ties; 0 for no limit.
        keep_ties: Whether the result has rows for ties with the last detection within the limit.
        nms_threshold: IoU threshold of NMS.
        suppress_equal: Whether NMS suppresses at an IoU equal to the threshold.
        shift: The shift of the boxes of each class in NMS.
        min_box_size: Minimum height and width of a candidate; 0 admits all sides.
        last_of_ties_first: Whether the last RoI or the first one takes precedence in the NMS of RoIs with equal scores.
    """
    xp = get_array_module(probs)
    rois, probs, deltas = (xp.ascontiguousarray(array, np.float32) for array in (rois, probs, deltas))
    class_scores = _candidate_scores(rois, probs, score_threshold, score_threshold_inclusive, best_class_only)
    limit = n_candidates(class_scores, max_detections)
    best = top_k_indices(class_scores, limit, last_of_ties_first=last_of_ties_first)
    boxes, scores, labels = _decode_candidates(rois, probs.shape[1], deltas, class_scores, best, decoding, min_box_size)
    keep = nms_padded(
        boxes,
        scores,
        nms_threshold,
        offset=decoding.offset,
        groups=labels,
        limit=n_rows(max_detections, keep_ties),
        suppress_equal=suppress_equal,
        shift=shift,
    )
    last = max_detections - 1 if 0 < max_detections <= len(keep) else -1
    return _take_kept(keep, last, boxes, scores, labels)


def _candidate_scores(rois: Array, probs: Array, threshold: float, inclusive: bool, best_class_only: bool) -> Array:
    """Return the scores of all foreground classes, class after class; minus infinity if not a candidate."""
    n_rois, n_classes = probs.shape
    scores = get_array_module(probs).empty(n_rois * (n_classes - 1), np.float32)
    cuda_kernels.launch(
        cuda_kernels.kernel(_SOURCE, 'candidate_scores'),
        scores.size,
        (
            rois,
            probs,
            np.int32(n_rois),
            np.int32(n_classes),
            np.float32(threshold),
            np.int32(inclusive),
            np.int32(best_class_only),
            scores,
        ),
    )
    return scores


def _decode_candidates(
    rois: Array,
    n_classes: int,
    deltas: Array,
    class_scores: Array,
    best: Array,
    decoding: BoxDecoding,
    min_box_size: float,
) -> tuple[Array, Array, Array]:
    """Return boxes, scores and labels of the candidates ``best``, indices of ``class_scores``.

    The score of a box that is smaller than ``min_box_size`` is that of padding; ``min_box_size`` 0 admits all sides.
    """
    xp = get_array_module(rois)
    best = best.astype(np.int32, copy=False)
    n = len(best)
    boxes, scores, labels = xp.empty((n, 4), np.float32), xp.empty(n, np.float32), xp.empty(n, np.int32)
    cuda_kernels.launch(
        cuda_kernels.kernel(_SOURCE, 'decode_detections'),
        n,
        (
            rois,
            deltas,
            class_scores,
            best,
            *map(np.int32, (n, len(rois), n_classes)),
            *decoding.transform_arguments(),
            *decoding.decoding_arguments(),
            *decoding.low(),
            *decoding.high(),
            _min_side(min_box_size) if min_box_size else np.float32(-math.inf),
            boxes,
            scores,
            labels,
        ),
    )
    return boxes, scores, labels


def _take_kept(keep: Array, last: int, boxes: Array, scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Return boxes, labels or groups and scores at ``keep``; padding at -1 and below the score of row ``last``."""
    xp, n = get_array_module(keep), len(keep)
    kept = xp.empty((n, 4), np.float32), xp.empty(n, np.float32), xp.empty(n, np.int32)
    cuda_kernels.launch(
        cuda_kernels.kernel(_SOURCE, 'take_kept'), n, (keep, np.int32(n), np.int32(last), boxes, scores, labels, *kept)
    )
    return kept[0], kept[2], kept[1]


def softmax_gpu(logits: Array) -> Array:
    """Return the softmax of each row of ``(R, K)`` floats as float32."""
    xp = get_array_module(logits)
    logits = xp.ascontiguousarray(logits, np.float32)
    probs = xp.empty(logits.shape, np.float32)
    cuda_kernels.launch(
        cuda_kernels.kernel(_SOURCE, 'softmax'), len(logits), (logits, *map(np.int32, logits.shape), probs)
    )
    return probs


def sigmoid_gpu(logits: Array) -> Array:
    """Return the sigmoid of ``(A, H, W)`` logits, float16 or float32, as float32 with ``A`` innermost in memory."""
    xp, is_half = get_array_module(logits), logits.dtype == np.float16
    logits = xp.ascontiguousarray(logits.transpose(1, 2, 0))
    scores = xp.empty(logits.shape, np.float32)
    cuda_kernels.launch(
        cuda_kernels.kernel(_SOURCE, 'sigmoid_half' if is_half else 'sigmoid'),
        scores.size,
        (cuda_kernels.as_argument(logits), np.int32(scores.size), scores),
    )
    return scores.transpose(2, 0, 1)
