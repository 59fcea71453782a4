"""RoIs sampled for training, with their classes and box deltas (``detectron/roi_data/fast_rcnn.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.ops.boxes.boxes import box_iou, encode_boxes
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets.matching import Candidates, match_proposals
from mask_rcnn.targets.sampling import IGNORED, Sampling


@dataclass(frozen=True)
class SampledRoIs:
    """The RoIs of one image that are sampled for training, foreground first.

    Args:
        rois: ``(R, 4)`` float32 boxes in the network input; at least one.
        boxes: ``(R, 4)`` float32, the same boxes in pixels of the original image.
        labels: ``(R,)`` int32: 0 for background, 1 + label for an object, -1 for the dummy RoI of an image without
            any RoI to sample.
        deltas: ``(F, 4)`` float32 ``(dy, dx, dh, dw)`` of the foreground.
    """

    rois: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    deltas: np.ndarray

    @property
    def n_foreground(self) -> int:
        """The number of foreground RoIs, F; they come first."""
        return len(self.deltas)


def sample_rois(
    proposals: np.ndarray,
    annotations: Annotations,
    transform: ImageTransform,
    *,
    sampling: Sampling,
    dialect: Dialect,
    rng: np.random.RandomState,
) -> SampledRoIs:
    """Sample the RoIs of one image and compute their classes and box deltas.

    Args:
        proposals: ``(P, 4)`` float32 boxes in the network input.
        annotations: The image's objects.
        transform: Maps the original image to the network input.
        sampling: Sampling sizes and IoU thresholds.
        dialect: Provides ``boxes.offset``, ``boxes.box_delta_weights`` and ``training.match_in_input``.
        rng: Random number generator for the sampling.
    """
    candidates, foreground, background = sample_candidates(
        proposals, annotations, transform, sampling=sampling, dialect=dialect, rng=rng
    )
    if len(foreground) + len(background) == 0:
        return _dummy_roi()
    sampled = np.concatenate([foreground, background])
    boxes = candidates.boxes[sampled]
    labels = candidates.labels[sampled]
    labels[len(foreground) :] = 0
    gt_boxes = candidates.boxes[: len(annotations)][~annotations.crowd]
    deltas = box_targets(boxes[: len(foreground)], gt_boxes, dialect=dialect)
    if dialect.training.match_in_input:
        return SampledRoIs(boxes, transform.invert_boxes(boxes), labels, deltas)
    return SampledRoIs(transform.apply_boxes(boxes), boxes, labels, deltas)


def sample_candidates(
    proposals: np.ndarray,
    annotations: Annotations,
    transform: ImageTransform,
    *,
    sampling: Sampling,
    dialect: Dialect,
    rng: np.random.RandomState,
) -> tuple[Candidates, np.ndarray, np.ndarray]:
    """Match the proposals of one image with its objects, and sample from them.

    The arguments are those of :func:`sample_rois`.

    Returns:
        tuple: The ground truth boxes and proposals with their best objects, and the indices of the sampled foreground
        and background among them.
    """
    candidates = match_proposals(proposals, annotations, transform, dialect=dialect)
    return candidates, *_sample_fg_bg(candidates, ~annotations.crowd, sampling, rng)


def box_targets(boxes: np.ndarray, gt_boxes: np.ndarray, *, dialect: Dialect) -> np.ndarray:
    """Return the deltas ``(R, 4)`` from boxes to the objects with the best IoU.

    Args:
        boxes: ``(R, 4)`` float32.
        gt_boxes: ``(G, 4)`` float32 boxes of objects, without crowd regions; at least one, unless R is 0.
        dialect: Provides ``boxes.offset`` and ``boxes.box_delta_weights``.
    """
    if len(boxes) == 0:
        return np.zeros((0, 4), np.float32)
    best = box_iou(boxes, gt_boxes, offset=dialect.boxes.offset).argmax(axis=1)
    return encode_boxes(boxes, gt_boxes[best], weights=dialect.boxes.box_delta_weights, offset=dialect.boxes.offset)


def _sample_fg_bg(
    candidates: Candidates, is_object: np.ndarray, sampling: Sampling, rng: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the sampled foreground and background.

    If an image contains only crowd regions, RoIs on them are ignored: there is no box and no mask to regress.
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
    """Return one RoI with the label :data:`IGNORED`; the heads cannot run on an empty batch."""
    box = np.array([[0, 0, 15, 15]], np.float32)
    return SampledRoIs(box, box, np.array([IGNORED], np.int32), np.zeros((0, 4), np.float32))
