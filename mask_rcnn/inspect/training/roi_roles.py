"""The RoIs sampled for training, with their targets and losses: of the box, mask and keypoint heads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import TrainingExample
from mask_rcnn.inspect.training.anchor_roles import best_overlaps
from mask_rcnn.inspect.training.record import LossTerms, TrainingRecord
from mask_rcnn.ops.boxes.boxes import decode_boxes
from mask_rcnn.targets import IGNORED


@dataclass(frozen=True, eq=False)
class RoIRoles:
    """The RoIs of one image that are sampled for training, foreground first.

    R is the number of RoIs, F of foreground RoIs, C of classes, and G of objects and crowd regions.

    Args:
        boxes: ``(R, 4)`` float32 in the network input.
        labels: ``(R,)`` int32: 0 for background, 1 + label for foreground, -1 for the dummy RoI of an image without
            any RoI to sample.
        iou: ``(R,)`` float32 best IoU with an object or crowd region.
        best_object: ``(R,)`` int index of that object in the annotations; -1 if no object overlaps.
        is_annotated: ``(R,)`` bool: True for the annotated boxes themselves, which join the proposals.
        deltas: ``(F, 4)`` float32 regression targets.
        target_boxes: ``(F, 4)`` float32: the boxes to which the targets decode, in the network input.
        probabilities: ``(R, 1 + C)`` floats: the network's classification.
        classification: Terms ``(R,)`` of ``roi_cls_loss``.
        regression: Terms ``(F, 4)`` of ``roi_loc_loss``.
        is_crowd: ``(G,)`` bool.
        best_proposal: ``(G,)`` float32 best IoU of each object with a proposal, sampled or not.
        n_proposals: Number of the RPN's proposals.
    """

    boxes: np.ndarray
    labels: np.ndarray
    iou: np.ndarray
    best_object: np.ndarray
    is_annotated: np.ndarray
    deltas: np.ndarray
    target_boxes: np.ndarray
    probabilities: np.ndarray
    classification: LossTerms
    regression: LossTerms
    is_crowd: np.ndarray
    best_proposal: np.ndarray
    n_proposals: int

    @property
    def n_foreground(self) -> int:
        """The number of foreground RoIs, F; they come first."""
        return len(self.deltas)

    @property
    def foreground_of_object(self) -> np.ndarray:
        """The number of foreground RoIs of each object, ``(G,)``."""
        return np.bincount(self.best_object[: self.n_foreground], minlength=len(self.is_crowd))

    @property
    def objects_without_foreground(self) -> np.ndarray:
        """The indices of the objects, crowd regions excepted, that no foreground RoI overlaps most."""
        return np.flatnonzero((self.foreground_of_object == 0) & ~self.is_crowd)


@dataclass(frozen=True, eq=False)
class MaskTargets:
    """The training targets of the mask head for the foreground RoIs of one image.

    Args:
        targets: ``(F, M, M)`` int32, or float32 of soft labels: 1 inside the object, 0 outside, -1 for the mask of an
            object without an outline.
        probabilities: ``(F, M, M)`` floats: the network's masks of the RoIs' classes.
        terms: Terms ``(F, M, M)`` of ``roi_mask_loss``.
    """

    targets: np.ndarray
    probabilities: np.ndarray
    terms: LossTerms


@dataclass(frozen=True, eq=False)
class KeypointTargets:
    """The training targets of the keypoint head.

    Q is the number of its RoIs, and N of the keypoints of an object.

    Args:
        boxes: ``(Q, 4)`` float32 in the network input.
        best_object: ``(Q,)`` int index of the object of each RoI in the annotations.
        locations: ``(Q, N)`` int32: flat index ``row * size + column`` of each keypoint in the RoI's heat map; -1 where
            it is invisible or outside the RoI.
        predicted: ``(Q, N)`` int: the cell with the highest probability.
        size: Height and width of the heat maps in cells.
        terms: Terms ``(Q, N)`` of ``roi_keypoint_loss``.
    """

    boxes: np.ndarray
    best_object: np.ndarray
    locations: np.ndarray
    predicted: np.ndarray
    size: int
    terms: LossTerms


def roi_roles(record: TrainingRecord, example: TrainingExample, dialect: Dialect) -> RoIRoles:
    """Return the sampled RoIs of a recorded training pass.

    Args:
        record: The training pass.
        example: Its image.
        dialect: The dialect of the network.
    """
    rois, candidates = record.rois, record.candidates
    if rois is None or candidates is None:
        raise ValueError('no training pass is recorded')
    annotations, n_foreground = example.annotations, rois.n_foreground
    is_dummy = (rois.labels == IGNORED).any()  # not one of the candidates
    iou, best_object = np.zeros(1, np.float32), np.full(1, -1)
    if not is_dummy:
        iou, best_object = candidates.iou[record.sampled], candidates.gt_index[record.sampled]
    boxes = dialect.boxes
    gt_boxes, proposals = np.split(candidates.boxes, [len(annotations)])
    decoded = decode_boxes(rois.boxes[:n_foreground], rois.deltas, weights=boxes.box_delta_weights, offset=boxes.offset)
    classification, regression = record.losses['roi_cls_loss'], record.losses['roi_loc_loss']
    return RoIRoles(
        boxes=rois.rois,
        labels=rois.labels,
        iou=iou,
        best_object=best_object,
        is_annotated=np.zeros(1, bool) if is_dummy else record.sampled < len(annotations),
        deltas=rois.deltas,
        target_boxes=example.image_transform.apply_boxes(decoded),
        probabilities=classification.outputs,
        classification=classification,
        regression=_first_rows(regression, (n_foreground, 4)),
        is_crowd=annotations.crowd,
        best_proposal=best_overlaps(gt_boxes, proposals, boxes.offset),
        n_proposals=len(record.proposals),
    )


def mask_targets_of_record(record: TrainingRecord) -> MaskTargets | None:
    """Return the targets of the mask head in a recorded training pass; ``None`` without a mask head."""
    targets, rois = record.mask_targets, record.rois
    if targets is None or rois is None:
        return None
    shape = rois.n_foreground, *targets.shape[1:]
    terms = _first_rows(record.losses['roi_mask_loss'], shape)
    with np.errstate(over='ignore'):
        probabilities = 1 / (1 + np.exp(-terms.outputs.astype(np.float32)))
    return MaskTargets(targets[: len(probabilities)], probabilities, terms)


def keypoint_targets_of_record(record: TrainingRecord) -> KeypointTargets | None:
    """Return the targets of the keypoint head in a recorded training pass; ``None`` without a keypoint head."""
    rois, candidates = record.keypoint_rois, record.candidates
    if rois is None or candidates is None:
        return None
    terms = record.losses['roi_keypoint_loss']
    size = round(terms.outputs.shape[1] ** 0.5)
    shape = rois.locations.shape
    terms = _first_rows(terms, shape)
    return KeypointTargets(
        boxes=rois.rois,
        best_object=candidates.gt_index[record.keypoint_sampled],
        locations=rois.locations,
        predicted=terms.outputs.reshape(*shape, size**2).argmax(axis=2),
        size=size,
        terms=terms,
    )


def _first_rows(terms: LossTerms, shape: tuple[int, ...]) -> LossTerms:
    """Return the terms of the RoIs ``shape[0]``; heads without RoIs run on one more, whose weights are 0."""
    n_elements = int(np.prod(shape))
    weights = np.broadcast_to(terms.weights, terms.losses.shape)
    losses, weights = (array.ravel()[:n_elements].reshape(shape) for array in (terms.losses, weights))
    n_rows = n_elements * len(terms.outputs) // max(terms.losses.size, 1)
    return LossTerms(terms.value, losses, weights, terms.outputs[:n_rows])
