"""Which RoIs learn, and which class and box (``detectron/roi_data/fast_rcnn.py``)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.ops.boxes.boxes import box_iou, encode_boxes
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets.sampling import IGNORED, Sampling

if TYPE_CHECKING:
    from mask_rcnn.targets.keypoints import KeypointRoIs


@dataclass(frozen=True)
class SampledRoIs:
    """The RoIs of one image that learn: the foreground first.

    Args:
        rois: ``(R, 4)`` float32 boxes in the network input; at least one.
        boxes: ``(R, 4)`` float32, the same in pixels of the original image.
        labels: ``(R,)`` int32: 0 background, 1 + label for an object, -1 for the one RoI of an image in which
            there is nothing to learn.
        deltas: ``(F, 4)`` float32 ``(dy, dx, dh, dw)`` of the foreground.
        keypoints: The RoIs whose keypoints learn, which are others; ``None`` for a network without.
    """

    rois: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray
    keypoints: KeypointRoIs | None = None

    @property
    def n_foreground(self) -> int:
        """F: the first so many RoIs are foreground."""
        return len(self.deltas)


@dataclass(frozen=True)
class Candidates:
    """All RoIs that one image has to choose from: the objects' own boxes and the proposals.

    Args:
        boxes: ``(K, 4)`` float32 in pixels of the original image.
        iou: ``(K,)`` float32 best overlap with an object or crowd; -1 for a crowd itself.
        gt_index: ``(K,)``: with which one; -1 if there is none.
        labels: ``(K,)`` int32: 1 + its label; 0 if there is none, and for a crowd itself.
    """

    boxes: np.ndarray
    iou: np.ndarray
    gt_index: np.ndarray
    labels: np.ndarray


def sample_rois(
    proposals: np.ndarray,
    annotations: Annotations,
    transform: ImageTransform,
    *,
    sampling: Sampling,
    dialect: Dialect,
    rng: np.random.RandomState,
) -> SampledRoIs:
    """Choose the RoIs of one image that learn, and what.

    Args:
        proposals: ``(P, 4)`` float32 boxes in the network input.
        annotations: The image's objects.
        transform: Where the image lies in the network input.
        sampling: How many, from which overlaps on.
        dialect: Gives ``boxes.offset`` and ``boxes.box_delta_weights``.
        rng: Draws among too many.
    """
    candidates = match_rois(
        transform.invert_boxes(proposals, reciprocal=True), annotations, offset=dialect.boxes.offset
    )
    foreground, background = _sample_fg_bg(candidates, ~annotations.crowd, sampling, rng)
    if len(foreground) + len(background) == 0:
        return _dummy_roi()
    chosen = np.concatenate([foreground, background])
    boxes = candidates.boxes[chosen]
    labels = candidates.labels[chosen]
    labels[len(foreground) :] = 0
    deltas = box_targets(boxes[: len(foreground)], annotations.boxes[~annotations.crowd], dialect=dialect)
    return SampledRoIs(transform.apply_boxes(boxes), boxes, labels, deltas)


def match_rois(boxes: np.ndarray, annotations: Annotations, *, offset: float) -> Candidates:
    """Put the objects' own boxes in front of some RoIs and find everybody's object.

    Crowds take part: a RoI that overlaps a crowd most has its class (``detectron/datasets/json_dataset.py``,
    ``_merge_proposal_boxes_into_roidb``).

    Args:
        boxes: ``(P, 4)`` float32 RoIs in pixels of the original image.
        annotations: The image's objects.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.
    """
    crowd, own_labels = annotations.crowd, annotations.labels + np.int32(1)
    own_iou = np.where(crowd, -1, 1).astype(np.float32)
    iou, gt_index = np.zeros(len(boxes), np.float32), np.full(len(boxes), -1)
    if len(crowd) and len(boxes):
        overlaps = box_iou(boxes, annotations.boxes, offset=offset)
        iou = overlaps.max(axis=1)
        gt_index = np.where(iou > 0, overlaps.argmax(axis=1), -1)
    labels = np.append(own_labels, np.int32(0))[gt_index]  # -1 takes the 0
    return Candidates(
        boxes=np.concatenate([annotations.boxes, boxes]),
        iou=np.concatenate([own_iou, iou]),
        gt_index=np.concatenate([np.arange(len(crowd)), gt_index]),
        labels=np.concatenate([np.where(crowd, 0, own_labels), labels]).astype(np.int32),
    )


def box_targets(boxes: np.ndarray, gt_boxes: np.ndarray, *, dialect: Dialect) -> np.ndarray:
    """Return the deltas ``(R, 4)`` from boxes to the objects (no crowds) that they overlap most.

    Args:
        boxes: ``(R, 4)`` float32.
        gt_boxes: ``(G, 4)`` float32; at least one, unless there are no boxes.
        dialect: Gives ``boxes.offset`` and ``boxes.box_delta_weights``.
    """
    if len(boxes) == 0:
        return np.zeros((0, 4), np.float32)
    best = box_iou(boxes, gt_boxes, offset=dialect.boxes.offset).argmax(axis=1)
    return encode_boxes(boxes, gt_boxes[best], weights=dialect.boxes.box_delta_weights, offset=dialect.boxes.offset)


def _sample_fg_bg(candidates, is_object, sampling, rng):
    """Return the indices of the chosen foreground and background.

    In an image with crowds only there is no box and no mask to learn: its RoIs on a crowd are left out.
    (Detectron does not train on such images at all.)
    """
    low, high = sampling.roi_background_iou
    foreground = np.flatnonzero(candidates.iou >= sampling.roi_foreground_iou)
    if not is_object.any():
        foreground = foreground[:0]
    background = np.flatnonzero((candidates.iou >= low) & (candidates.iou < high))
    n_foreground = min(len(foreground), round(sampling.roi_foreground_fraction * sampling.roi_batch))
    n_background = min(len(background), sampling.roi_batch - n_foreground)
    if len(foreground):
        foreground = rng.choice(foreground, size=n_foreground, replace=False)
    if len(background):
        background = rng.choice(background, size=n_background, replace=False)
    return foreground, background


def _dummy_roi() -> SampledRoIs:
    """One RoI that is not looked at, because the heads cannot do with none."""
    box = np.array([[0, 0, 15, 15]], np.float32)
    return SampledRoIs(box, box, np.array([IGNORED], np.int32), np.zeros((0, 4), np.float32))
