"""Training targets for the keypoint head (Detectron's ``roi_data/keypoint_rcnn.py`` and ``utils/keypoints.py``).

As in Detectron, a keypoint is visible if its visibility is above 0: hidden but labelled keypoints count as visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.example import Annotations
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets.matching import Candidates, match_proposals
from mask_rcnn.targets.rois import SampledRoIs
from mask_rcnn.targets.sampling import IGNORED, Sampling


@dataclass(frozen=True)
class KeypointRoIs:
    """The RoIs of one image that are sampled for the keypoint head.

    Args:
        rois: ``(Q, 4)`` float32 boxes in the network input.
        locations: ``(Q, K)`` int32: flat index ``row * size + column`` of each keypoint in the RoI's heat map; -1
            where the keypoint is invisible or outside the RoI.
    """

    rois: np.ndarray
    locations: np.ndarray


def sample_keypoint_rois(
    proposals: np.ndarray,
    annotations: Annotations,
    transform: ImageTransform,
    size: int,
    *,
    sampling: Sampling,
    dialect: Dialect,
    rng: np.random.RandomState,
) -> KeypointRoIs:
    """Sample the RoIs of one image for the keypoint head: foreground with at least one visible keypoint.

    They are sampled independently of the RoIs of the box head, with the same limit as its foreground RoIs.

    Args:
        proposals: ``(P, 4)`` float32 boxes in the network input.
        annotations: The image's objects, with keypoints.
        transform: Maps the original image to the network input.
        size: Height and width of the heat maps in cells.
        sampling: Sampling sizes and IoU thresholds.
        dialect: Provides ``boxes.offset`` and ``training.match_in_input``.
        rng: Random number generator for the sampling.

    Returns:
        KeypointRoIs: At most ``sampling.roi_batch * sampling.roi_foreground_fraction`` RoIs; none if no
        foreground RoI contains a visible keypoint.

    Raises:
        ValueError: The annotations have no keypoints.
    """
    candidates, sampled = sample_keypoint_candidates(
        proposals, annotations, transform, sampling=sampling, dialect=dialect, rng=rng
    )
    boxes = candidates.boxes[sampled]
    keypoints = _matched_keypoints(annotations, transform, dialect)[candidates.gt_index[sampled]]
    rois = boxes if dialect.training.match_in_input else transform.apply_boxes(boxes)
    return KeypointRoIs(rois, keypoint_locations(keypoints, boxes, size))


def share_rois(
    rois: SampledRoIs, annotations: Annotations, transform: ImageTransform, size: int, *, dialect: Dialect
) -> tuple[KeypointRoIs, np.ndarray]:
    """Return the foreground RoIs of the box head with at least one visible keypoint of their object.

    The other RoIs do not contribute to the loss (``select_proposals_with_visible_keypoints`` of detectron2).

    Args:
        rois: The RoIs of the image that are sampled for the box head.
        annotations: The image's objects, with keypoints.
        transform: Maps the original image to the network input.
        size: Height and width of the heat maps in cells.
        dialect: Provides ``boxes.offset`` and ``training.match_in_input``.

    Returns:
        tuple: The RoIs with their targets, and their indices ``(Q,)`` among those of the box head.

    Raises:
        ValueError: The annotations have no keypoints.
    """
    keypoints, is_object = _matched_keypoints(annotations, transform, dialect), ~annotations.crowd
    boxes, gt_boxes = rois.boxes[: rois.n_foreground], annotations.boxes
    if dialect.training.match_in_input:
        boxes, gt_boxes = rois.rois[: rois.n_foreground], transform.apply_boxes(gt_boxes)
    if not len(boxes):
        return KeypointRoIs(boxes, np.zeros((0, keypoints.shape[1]), np.int32)), np.zeros(0, np.intp)
    matched = box_iou(boxes, gt_boxes[is_object], offset=dialect.boxes.offset).argmax(axis=1)
    keypoints = keypoints[is_object][matched]
    rows = np.flatnonzero(visible_inside(keypoints, boxes).any(axis=1))
    return KeypointRoIs(rois.rois[rows], keypoint_locations(keypoints[rows], boxes[rows], size)), rows


def sample_keypoint_candidates(
    proposals: np.ndarray,
    annotations: Annotations,
    transform: ImageTransform,
    *,
    sampling: Sampling,
    dialect: Dialect,
    rng: np.random.RandomState,
) -> tuple[Candidates, np.ndarray]:
    """Match the proposals of one image with its objects, and sample those with a visible keypoint.

    The arguments are those of :func:`sample_keypoint_rois`.

    Returns:
        tuple: The ground truth boxes and proposals with their best objects, and the indices of the sampled ones.

    Raises:
        ValueError: The annotations have no keypoints.
    """
    keypoints = _matched_keypoints(annotations, transform, dialect)
    candidates = match_proposals(proposals, annotations, transform, dialect=dialect)
    foreground = np.flatnonzero((candidates.iou >= sampling.roi_foreground_iou) & (candidates.gt_index >= 0))
    is_visible = visible_inside(keypoints[candidates.gt_index[foreground]], candidates.boxes[foreground])
    sampled = foreground[is_visible.any(axis=1)]
    max_rois = round(sampling.roi_foreground_fraction * sampling.roi_batch)
    if len(sampled) > max_rois:
        sampled = rng.choice(sampled, size=max_rois, replace=False)
    return candidates, sampled


def _matched_keypoints(annotations: Annotations, transform: ImageTransform, dialect: Dialect) -> np.ndarray:
    """Return the keypoints ``(G, K, 3)`` in the coordinates in which RoIs are matched."""
    if annotations.keypoints is None:
        raise ValueError('the network has a keypoint head, but the annotations have no keypoints')
    if not dialect.training.match_in_input:
        return annotations.keypoints
    keypoints = annotations.keypoints.copy()
    points = keypoints[:, :, :2]
    keypoints[:, :, :2] = transform.apply_boxes(points.reshape(-1, 2)).reshape(points.shape)
    return keypoints


def visible_inside(keypoints: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return whether each keypoint is visible and inside its box, borders included.

    Args:
        keypoints: ``(Q, K, 3)`` float32 ``(y, x, visibility)``.
        boxes: ``(Q, 4)`` float32, in the same coordinates.

    Returns:
        numpy.ndarray: ``(Q, K)`` bool.
    """
    points, boxes = keypoints[:, :, :2], boxes[:, None]
    inside = ((points >= boxes[:, :, :2]) & (points <= boxes[:, :, 2:])).all(axis=2)
    return inside & (keypoints[:, :, 2] > 0)


def keypoint_locations(keypoints: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Return the heat map cells of keypoints (``keypoints_to_heatmap_labels``).

    The half-open intervals ``[x_min, x_max)`` and ``[y_min, y_max)`` of a box are divided into ``size`` cells each,
    in float32.  A keypoint exactly on the far border belongs to the last cell.

    Args:
        keypoints: ``(Q, K, 3)`` float32 ``(y, x, visibility)``.
        boxes: ``(Q, 4)`` float32, in the same coordinates.
        size: Height and width of the heat maps.

    Returns:
        numpy.ndarray: ``(Q, K)`` int32: ``row * size + column``; -1 where a keypoint is invisible or outside its box.
    """
    points, low, high = keypoints[:, :, :2].astype(np.float32), boxes[:, None, :2], boxes[:, None, 2:]
    # In a box of zero width, only keypoints exactly on its border get a cell.
    scale = np.float32(size) / np.maximum(high - low, np.float32(1e-6))
    cells = np.floor((points - low) * scale)
    cells[points == high] = size - 1
    valid = ((cells >= 0) & (cells < size)).all(axis=2) & (keypoints[:, :, 2] > 0)
    cells = np.where(valid[:, :, None], cells, 0).astype(np.int32)
    return np.where(valid, cells[:, :, 0] * size + cells[:, :, 1], IGNORED).astype(np.int32)
