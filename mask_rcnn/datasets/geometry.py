"""Crops, flips and quarter turns of examples, exact to the pixel: images, boxes, outlines and keypoints."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from mask_rcnn.datasets.coco_keypoints import COCO_MIRRORED_KEYPOINTS
from mask_rcnn.datasets.example import Annotations, Example, Segmentation
from mask_rcnn.datasets.segmentations import outline_area
from mask_rcnn.ops.masks.crop import crop_mask
from mask_rcnn.ops.masks.rle_crops import decode_crop, encode_crop


@dataclass(frozen=True)
class Window:
    """A rectangle of whole pixels in an image.

    Args:
        top: First row.
        left: First column.
        height: Number of rows.
        width: Number of columns.
    """

    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class Symmetry:
    """One of the eight symmetries of a rectangle's pixel grid: a transposition, then flips.

    Args:
        transpose: Whether rows and columns are exchanged first.
        flip_y: Whether the rows are then reversed.
        flip_x: Whether the columns are then reversed.
    """

    transpose: bool = False
    flip_y: bool = False
    flip_x: bool = False

    @classmethod
    def quarter_turns(cls, n: int) -> Symmetry:
        """Return the counter-clockwise rotation by ``n`` times 90 degrees, as ``numpy.rot90``."""
        return (cls(), cls(True, True, False), cls(False, True, True), cls(True, False, True))[n % 4]

    @property
    def is_reflection(self) -> bool:
        """True if the symmetry exchanges left and right hands; False if it is a rotation."""
        return self.transpose ^ self.flip_y ^ self.flip_x

    def apply(self, array: np.ndarray) -> np.ndarray:
        """Return a view of an array ``(..., H, W)``."""
        if self.transpose:
            array = array.swapaxes(-1, -2)
        return array[..., :: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]

    def apply_points(self, points: np.ndarray, size: tuple[int, int], *, offset: float) -> np.ndarray:
        """Map points.

        Args:
            points: ``(..., 2)`` of ``y, x``.
            size: Height and width of the image before the symmetry.
            offset: 1 if coordinates are those of pixels, from 0 to ``height - 1``; 0 if they are those of the edges
                of pixels, from 0 to ``height``.
        """
        if self.transpose:
            points, size = points[..., ::-1], size[::-1]
        mapped = points.copy()
        for axis, is_flipped in enumerate((self.flip_y, self.flip_x)):
            if is_flipped:
                mapped[..., axis] = size[axis] - offset - points[..., axis]
        return mapped


def crop_example(example: Example, window: Window) -> Example:
    """Crop an example.

    Objects without a pixel in the window are dropped.  Outlines are clipped; the box of an object that the window cuts
    becomes that of its clipped outline.  Keypoints outside the window become unlabelled.

    Args:
        example: The example.
        window: The part to keep; it lies within the image.
    """
    rows, columns = (slice(low, low + n) for low, n in ((window.top, window.height), (window.left, window.width)))
    image = np.ascontiguousarray(example.image[:, rows, columns])
    return dataclasses.replace(example, image=image, annotations=crop_annotations(example.annotations, window))


def crop_annotations(annotations: Annotations, window: Window) -> Annotations:
    """Return the objects that have a pixel in a window, in coordinates of the window; see :func:`crop_example`."""
    origin = np.array([window.top, window.left], np.float32)
    boxes = annotations.boxes - np.tile(origin, 2)
    last = np.array([window.height - 1, window.width - 1], np.float32)
    clipped = np.concatenate([np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, 2:], last)], axis=1)
    is_visible = np.all(clipped[:, :2] <= clipped[:, 2:], axis=1)
    is_cut = np.any(clipped != boxes, axis=1)
    segmentations = list(annotations.segmentations)
    for i in np.flatnonzero(is_visible):
        if not segmentations[i]:
            continue
        segmentations[i], box = _crop_segmentation(segmentations[i], window)
        if box is None:
            is_visible[i] = False
        elif is_cut[i]:
            clipped[i] = _intersect(clipped[i], box)
    keypoints = annotations.keypoints
    return Annotations(
        boxes=clipped,
        labels=annotations.labels,
        crowd=annotations.crowd,
        segmentations=tuple(segmentations),
        keypoints=None if keypoints is None else _crop_keypoints(keypoints, origin, last),
    ).select(is_visible)


def transform_example(example: Example, symmetry: Symmetry) -> Example:
    """Apply a symmetry to an example.  A reflection exchanges left and right keypoints."""
    size = example.image.shape[1], example.image.shape[2]
    image = np.ascontiguousarray(symmetry.apply(example.image))
    return dataclasses.replace(
        example, image=image, annotations=_transform_annotations(example.annotations, symmetry, size)
    )


def _transform_annotations(annotations: Annotations, symmetry: Symmetry, size: tuple[int, int]) -> Annotations:
    corners = symmetry.apply_points(annotations.boxes.reshape(-1, 2, 2), size, offset=1)  # both corners are pixels
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    return dataclasses.replace(
        annotations,
        boxes=boxes,
        segmentations=tuple(transform_segmentation(s, symmetry, size) for s in annotations.segmentations),
        keypoints=None
        if annotations.keypoints is None
        else _transform_keypoints(annotations.keypoints, symmetry, size),
    )


def transform_segmentation(segmentation: Segmentation, symmetry: Symmetry, size: tuple[int, int]) -> Segmentation:
    """Apply a symmetry to polygons or run lengths in an image of a height and a width."""
    if not isinstance(segmentation, dict):
        return tuple(_transform_polygon(polygon, symmetry, size) for polygon in segmentation)
    crop, top, left = decode_crop(segmentation)
    corners = np.array([[top, left], [top + crop.shape[0], left + crop.shape[1]]])
    top, left = symmetry.apply_points(corners, size, offset=0).min(axis=0).tolist()
    return encode_crop(symmetry.apply(crop), top, left, size[::-1] if symmetry.transpose else size)


def _transform_polygon(polygon: np.ndarray, symmetry: Symmetry, size: tuple[int, int]) -> np.ndarray:
    points = polygon.reshape(-1, 2)[:, ::-1]  # y, x
    return np.ascontiguousarray(symmetry.apply_points(points, size, offset=0)[:, ::-1]).ravel()


def _transform_keypoints(keypoints: np.ndarray, symmetry: Symmetry, size: tuple[int, int]) -> np.ndarray:
    if symmetry.is_reflection:
        keypoints = keypoints[:, COCO_MIRRORED_KEYPOINTS]
    points, visibility = keypoints[..., :2], keypoints[..., 2:]
    mapped = np.where(visibility > 0, symmetry.apply_points(points, size, offset=1), 0)
    return np.concatenate([mapped, visibility], axis=-1)


def _crop_segmentation(segmentation: Segmentation, window: Window) -> tuple[Segmentation, np.ndarray | None]:
    """Return the clipped outline and its box ``y_min, x_min, y_max, x_max`` of pixels, ``None`` if it is empty."""
    if isinstance(segmentation, dict):
        return _crop_rle(segmentation, window)
    polygons = tuple(clipped for polygon in segmentation if len(clipped := clip_polygon(polygon, window)))
    if not polygons:
        return (), None
    points = np.concatenate(polygons).reshape(-1, 2)[:, ::-1]
    return polygons, np.concatenate([points.min(axis=0), points.max(axis=0) - 1])


def _crop_rle(rle: dict, window: Window) -> tuple[Segmentation, np.ndarray | None]:
    crop, top, left = decode_crop(rle)
    top, left = top - window.top, left - window.left
    rows = slice(max(-top, 0), max(window.height - top, 0))
    columns = slice(max(-left, 0), max(window.width - left, 0))
    part = crop_mask(crop[rows, columns])
    if part is None:
        return (), None
    top, left = max(top, 0) + part.top, max(left, 0) + part.left
    cropped = encode_crop(part.mask, top, left, (window.height, window.width))
    height, width = part.mask.shape
    return cropped, np.array([top, left, top + height - 1, left + width - 1])


def clip_polygon(polygon: np.ndarray, window: Window) -> np.ndarray:
    """Clip a polygon to a window (Sutherland and Hodgman, 1974).

    The parts of a concave polygon that falls apart stay connected by edges along the border of the window, which
    enclose no area.

    Args:
        polygon: ``x, y, x, y, ...`` in pixels of the image.
        window: The window.

    Returns:
        numpy.ndarray: The polygon in coordinates of the window; empty if it has no area in the window.
    """
    points = polygon.reshape(-1, 2).astype(np.float64) - (window.left, window.top)
    size = np.array([window.width, window.height], np.float64)
    if (points >= 0).all() and (points <= size).all():
        return points.ravel()
    for axis in (0, 1):
        for sign, limit in ((1.0, 0.0), (-1.0, -size[axis])):  # keep the points with sign * coordinate >= limit
            points = _clip_half_plane(points, sign * points[:, axis] - limit)
    if len(points) < 3:
        return np.zeros(0)
    x, y = points.T
    area = (x * np.roll(y, -1) - y * np.roll(x, -1)).sum()
    # The areas of the parts of a polygon that crosses itself may have opposite signs.
    has_area = area != 0 or outline_area((points.ravel(),), (window.height, window.width)) > 0
    return points.ravel() if has_area else np.zeros(0)


def _clip_half_plane(points: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Clip a polygon ``(N, 2)`` to the half-plane in which the signed distances of its points are not negative."""
    following, next_distances = np.roll(points, -1, axis=0), np.roll(distances, -1)
    crosses = (distances >= 0) != (next_distances >= 0)
    with np.errstate(divide='ignore', invalid='ignore'):
        t = distances / (distances - next_distances)
        crossings = points + t[:, None] * (following - points)
    # Each point that is kept, and the crossing on the edge after each point.
    pairs = np.stack([points, crossings], axis=1)
    return pairs[np.stack([distances >= 0, crosses], axis=1)]


def _crop_keypoints(keypoints: np.ndarray, origin: np.ndarray, last: np.ndarray) -> np.ndarray:
    cropped = keypoints.copy()
    cropped[..., :2] -= origin
    is_inside = ((cropped[..., :2] >= -0.5) & (cropped[..., :2] <= last + 0.5)).all(axis=-1)
    cropped[np.logical_not(is_inside & (keypoints[..., 2] > 0))] = 0
    return cropped


def _intersect(box: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the intersection of two boxes; at least one pixel of the first one."""
    low = np.minimum(np.maximum(box[:2], other[:2]), box[2:])
    return np.concatenate([low, np.maximum(np.minimum(box[2:], other[2:]), low)])
