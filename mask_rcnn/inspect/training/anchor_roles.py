"""The role of every anchor in the training of the RPN."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import TrainingExample
from mask_rcnn.inspect.training.record import LossTerms, TrainingRecord
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.targets import Sampling
from mask_rcnn.targets.rpn import anchor_candidates, match_anchors_of_image

#: The roles of anchors.  ``'positive'`` and ``'negative'`` anchors are sampled, those with ``not_sampled`` could have
#: been; ``'ignored'`` ones have an IoU between the thresholds, and ``'outside'`` ones extend too far beyond the image.
ANCHOR_ROLES = ('outside', 'ignored', 'negative_not_sampled', 'negative', 'positive_not_sampled', 'positive')
_OUTSIDE, _IGNORED, _NEGATIVE_NOT_SAMPLED, _NEGATIVE, _POSITIVE_NOT_SAMPLED, _POSITIVE = range(len(ANCHOR_ROLES))

#: Anchors whose overlaps with all objects are in memory at a time.
_CHUNK_SIZE = 1 << 16


@dataclass(frozen=True, eq=False)
class AnchorRoles:
    """The anchors of one image and their training targets.

    K is the number of anchors, S of sampled anchors, G of objects and crowd regions, and L of levels.

    Args:
        boxes: ``(K, 4)`` float32 in the network input.
        levels: ``(K,)`` int8 index of the level of each anchor.
        strides: Stride of each level.
        roles: ``(K,)`` int8 indices into :data:`ANCHOR_ROLES`.
        best_iou: ``(K,)`` float32 best IoU with an object that is not a crowd region; -1 for anchors that are outside.
        best_object: ``(K,)`` int32 index of that object in the annotations; -1 if no object overlaps.
        indices: ``(S,)`` int indices of the sampled anchors, positive ones first.
        labels: ``(S,)`` int32: 1 for an object, 0 for background.
        deltas: ``(S, 4)`` float32 regression targets; zero where the label is not 1.
        logits: ``(S,)`` floats: the network's objectness.
        classification: Terms ``(S,)`` of ``rpn_cls_loss``.
        regression: Terms ``(S, 4)`` of ``rpn_loc_loss``.
        best_iou_of_object: ``(G,)`` float32 best IoU of each object with an anchor that is not outside; NaN for crowd
            regions.
    """

    boxes: np.ndarray
    levels: np.ndarray
    strides: tuple[int, ...]
    roles: np.ndarray
    best_iou: np.ndarray
    best_object: np.ndarray
    indices: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray
    logits: np.ndarray
    classification: LossTerms
    regression: LossTerms
    best_iou_of_object: np.ndarray

    def with_role(self, role: str) -> np.ndarray:
        """Return the indices of the anchors with a role of :data:`ANCHOR_ROLES`."""
        return np.flatnonzero(self.roles == ANCHOR_ROLES.index(role))

    @property
    def counts(self) -> np.ndarray:
        """The number of anchors of each level and role, ``(L, len(ANCHOR_ROLES))``."""
        n_roles = len(ANCHOR_ROLES)
        flat = np.bincount(self.levels.astype(np.intp) * n_roles + self.roles, minlength=len(self.strides) * n_roles)
        return flat.reshape(-1, n_roles)

    @property
    def positives_of_object(self) -> np.ndarray:
        """The number of sampled positive anchors of each object and level, ``(G, L)``.

        An anchor belongs to the object that it overlaps most, whose box is its regression target.
        """
        counts = np.zeros((len(self.best_iou_of_object), len(self.strides)), np.intp)
        positive = self.with_role('positive')
        np.add.at(counts, (self.best_object[positive], self.levels[positive]), 1)
        return counts

    @property
    def objects_without_positive(self) -> dict[int, str]:
        """The objects to which no sampled positive anchor belongs: index -> reason."""
        is_object = ~np.isnan(self.best_iou_of_object)
        missing = np.flatnonzero(is_object & (self.positives_of_object.sum(axis=1) == 0))
        return {i: self._explain_missing(i) for i in missing.tolist()}

    def _explain_missing(self, i: int) -> str:
        if self.best_iou_of_object[i] == 0:
            return 'no anchor inside the image overlaps it'
        candidates = (self.best_object == i) & (self.best_iou == self.best_iou_of_object[i])
        if not candidates.any():
            return 'its best anchor overlaps another object more'
        if (self.roles[candidates] == _NEGATIVE).any():
            return 'its best anchor was sampled as a negative one'
        return 'its positive anchors were not sampled'


def anchor_roles(
    record: TrainingRecord,
    example: TrainingExample,
    anchors: np.ndarray,
    strides: tuple[int, ...],
    *,
    sampling: Sampling,
    dialect: Dialect,
) -> AnchorRoles:
    """Return the roles of the anchors in a recorded training pass.

    Args:
        record: The training pass.
        example: Its image.
        anchors: ``(K, 4)`` float32: all anchors in the network input.
        strides: Stride of each level.
        sampling: Sampling sizes and IoU thresholds of the training pass.
        dialect: The dialect of the network.
    """
    targets = record.anchors
    if targets is None:
        raise ValueError('no training pass is recorded')
    annotations, transform = example.annotations, example.image_transform
    objects = np.flatnonzero(~annotations.crowd)
    gt_boxes = transform.apply_boxes(annotations.boxes[objects])
    best_iou, best_gt, is_best = match_anchors_of_image(
        anchors, gt_boxes, transform.input_size, sampling=sampling, dialect=dialect
    )
    best_object = np.append(objects, -1)[np.where(best_iou > 0, best_gt, -1)].astype(np.int32)
    best_of_object = np.full(len(annotations), np.nan, np.float32)
    best_of_object[objects] = best_overlaps(gt_boxes, anchors[best_iou >= 0], dialect.boxes.offset)
    n_locations = [height * width for height, width in record.feature_sizes]
    per_location = len(anchors) // max(sum(n_locations), 1)
    return AnchorRoles(
        boxes=anchors,
        levels=np.repeat(np.arange(len(strides), dtype=np.int8), np.multiply(n_locations, per_location)),
        strides=strides,
        roles=_roles(best_iou, is_best, targets.indices, targets.labels, sampling, dialect),
        best_iou=best_iou,
        best_object=best_object,
        indices=targets.indices,
        labels=targets.labels,
        deltas=targets.deltas,
        logits=record.losses['rpn_cls_loss'].outputs,
        classification=record.losses['rpn_cls_loss'],
        regression=record.losses['rpn_loc_loss'],
        best_iou_of_object=best_of_object,
    )


def _roles(
    best_iou: np.ndarray,
    is_best: np.ndarray,
    indices: np.ndarray,
    labels: np.ndarray,
    sampling: Sampling,
    dialect: Dialect,
) -> np.ndarray:
    """Return the role of each anchor, ``(K,)`` int8."""
    is_positive, is_negative = anchor_candidates(
        best_iou, is_best, sampling, redraw_negatives=dialect.training.redraw_negatives
    )
    roles = np.full(len(best_iou), _IGNORED, np.int8)
    roles[best_iou < 0] = _OUTSIDE
    roles[is_negative] = _NEGATIVE_NOT_SAMPLED
    roles[is_positive] = _POSITIVE_NOT_SAMPLED
    roles[indices] = np.where(labels == 1, _POSITIVE, _NEGATIVE)
    return roles


def best_overlaps(objects: np.ndarray, boxes: np.ndarray, offset: float) -> np.ndarray:
    """Return the best IoU of each object with a box, ``(G,)`` float32; 0 without boxes.

    Args:
        objects: ``(G, 4)`` boxes of the objects.
        boxes: ``(K, 4)`` in the same coordinates; their overlaps are computed in chunks.
        offset: ``boxes.offset`` of the dialect.
    """
    best = np.zeros(len(objects), np.float32)
    for start in range(0, len(boxes) if len(objects) else 0, _CHUNK_SIZE):
        best = np.maximum(best, box_iou(boxes[start : start + _CHUNK_SIZE], objects, offset=offset).max(axis=0))
    return best
