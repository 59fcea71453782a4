"""What the keypoint head learns (Detectron's ``roi_data/keypoint_rcnn.py`` and ``utils/keypoints.py``)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.datasets.example import Annotations
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets.rois import match_rois
from mask_rcnn.targets.sampling import IGNORED, Sampling


@dataclass(frozen=True)
class KeypointRoIs:
    """The RoIs of one image whose keypoints learn.

    Args:
        rois: ``(Q, 4)`` float32 boxes in the network input.
        locations: ``(Q, K)`` int32: the place of each keypoint in the RoI's heat map, counted row by row; -1
            where it is not visible, or not in the RoI.
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
    offset: float,
    rng: np.random.RandomState,
) -> KeypointRoIs:
    """Choose the RoIs of one image whose keypoints learn: foreground that shows one at least.

    They are drawn for themselves, not from the foreground whose boxes learn, but are as many at most.

    Args:
        proposals: ``(P, 4)`` float32 boxes in the network input.
        annotations: The image's objects, with keypoints.
        transform: Where the image lies in the network input.
        size: Side of the heat maps.
        sampling: How many, from which overlap on.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.
        rng: Draws among too many.

    Returns:
        KeypointRoIs: ``sampling.roi_batch * sampling.roi_foreground_fraction`` RoIs at most; none where no
        foreground shows a keypoint.

    Raises:
        ValueError: The annotations have no keypoints.
    """
    if annotations.keypoints is None:
        raise ValueError('keypoints are to be learned, but the data have none')
    candidates = match_rois(transform.invert_boxes(proposals, reciprocal=True), annotations, offset=offset)
    shows = np.zeros(len(candidates.boxes), bool)
    near = np.flatnonzero((candidates.iou >= sampling.roi_foreground_iou) & (candidates.gt_index >= 0))
    keypoints = annotations.keypoints[candidates.gt_index[near]]
    shows[near] = visible_inside(keypoints, candidates.boxes[near]).any(axis=1)
    chosen = np.flatnonzero(shows)
    limit = round(sampling.roi_foreground_fraction * sampling.roi_batch)
    if len(chosen) > limit:
        chosen = rng.choice(chosen, size=limit, replace=False)
    boxes = candidates.boxes[chosen]
    locations = keypoint_locations(annotations.keypoints[candidates.gt_index[chosen]], boxes, size)
    return KeypointRoIs(transform.apply_boxes(boxes), locations)


def visible_inside(keypoints: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return which keypoints are visible and in their boxes, borders included.

    Args:
        keypoints: ``(Q, K, 3)`` float32 ``(y, x, visibility)``.
        boxes: ``(Q, 4)`` float32, in the same pixels.

    Returns:
        numpy.ndarray: ``(Q, K)`` bool.
    """
    points, boxes = keypoints[:, :, :2], boxes[:, None]
    inside = ((points >= boxes[:, :, :2]) & (points <= boxes[:, :, 2:])).all(axis=2)
    return inside & (keypoints[:, :, 2] > 0)


def keypoint_locations(keypoints: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Return the places of keypoints in their boxes' heat maps.

    ``keypoints_to_heatmap_labels``: a box's half-open intervals ``[x_min, x_max)`` and ``[y_min, y_max)``
    become ``size`` places each, in float32; what lies just on the far border belongs to the last place.

    Args:
        keypoints: ``(Q, K, 3)`` float32 ``(y, x, visibility)``.
        boxes: ``(Q, 4)`` float32, in the same pixels.
        size: Side of the heat maps.

    Returns:
        numpy.ndarray: ``(Q, K)`` int32: ``row * size + column``; -1 where a keypoint is invisible or outside.
    """
    points, low, high = keypoints[:, :, :2].astype(np.float32), boxes[:, None, :2], boxes[:, None, 2:]
    # A box without a width has room for what lies on its border only.
    scale = np.float32(size) / np.maximum(high - low, np.float32(1e-6))
    places = np.floor((points - low) * scale)
    places[points == high] = size - 1
    valid = ((places >= 0) & (places < size)).all(axis=2) & (keypoints[:, :, 2] > 0)
    places = np.where(valid[:, :, None], places, 0).astype(np.int32)
    return np.where(valid, places[:, :, 0] * size + places[:, :, 1], IGNORED).astype(np.int32)
