"""Polygons around masks: the outlines that annotation tools edit.

The vertices are corners of pixels, and the edges are sides of pixels.  pycocotools rasterises such polygons to exactly
the pixels inside, whereas polygons through the centres of the boundary pixels lose half a pixel on each side.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.ops.masks.crop import MaskCrop, crop_mask

#: Distances in pixels between outlines and their simplifications, in the order in which they are tried, and the minimum
#: number of pixels of a mask.  The first makes 27 vertices of the 235 of an ellipse of 150 pixels, but changes too many
#: pixels of small masks; the second makes 9 of the 18 of an ellipse of 10 pixels.
_TOLERANCES = (0.75, 1000), (0.4, 0)
_MIN_IOU = 0.99  # of a simplified outline and its mask
_NO_PARENT = -1


def trace_polygons(mask: np.ndarray, *, simplify: bool = False) -> list[np.ndarray]:
    """Return the polygons around a mask, one for each part; parts that touch at a corner are one part.

    COCO's polygons have no holes.  Each hole is therefore joined to the outline of its part by a bridge, a line that
    the polygon follows in both directions.  A bridge has no area, so the polygon still excludes the hole.

    Args:
        mask: ``(H, W)`` bool.
        simplify: Replace the steps of slopes and curves by straight lines, which leaves a person a fraction of the
            vertices to move.  The IoU with the mask is at least 0.99; masks for which it would be less keep their
            exact outlines.

    Returns:
        For each part a flat float64 array ``x, y, x, y, ...``; an empty list for a mask without pixels.
    """
    crop = crop_mask(mask)
    return [] if crop is None else trace_crop(crop, simplify=simplify)


def trace_crop(crop: MaskCrop, *, simplify: bool = False) -> list[np.ndarray]:
    """Return the polygons around the mask of a crop, in pixels of the image; see :func:`trace_polygons`."""
    parts = _trace_rings(crop.mask)
    if simplify:
        parts = _simplify(parts, crop)
    offset = np.array((crop.left, crop.top), np.float64)
    return [(_join_holes(rings) + offset).ravel() for rings in parts]


def _trace_rings(mask: np.ndarray) -> list[list[np.ndarray]]:
    """Return the rings of each part, ``(P, 2)`` integers (x, y): the outer ring, then those of its holes."""
    # OpenCV follows the centres of boundary pixels.  In a mask of twice the size, each of them belongs to one corner of
    # a pixel of the original mask.
    doubled = cv2.resize(mask, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_drop_collinear((contour[:, 0] + 1) // 2) for contour in contours]
    parents = hierarchy[0, :, 3].tolist()
    parts = {i: [ring] for i, (ring, parent) in enumerate(zip(rings, parents, strict=True)) if parent == _NO_PARENT}
    for ring, parent in zip(rings, parents, strict=True):
        if parent != _NO_PARENT:
            parts[parent].append(ring)
    return list(parts.values())


def _drop_collinear(ring: np.ndarray) -> np.ndarray:
    """Drop repeated vertices and those inside straight lines from a ring whose edges are horizontal or vertical."""
    ring = _drop_repeated(ring)
    is_vertical = ring[:, 0] == _following(ring)[:, 0]
    return _following(ring)[is_vertical != _following(is_vertical)]


def _drop_repeated(ring: np.ndarray) -> np.ndarray:
    """Drop vertices that equal the next one of a ring."""
    change = ring != _following(ring)
    return ring[change[:, 0] | change[:, 1]]


def _following(ring: np.ndarray) -> np.ndarray:
    """Return the next vertex, or the value of the next edge, for each one of a ring."""
    return np.concatenate((ring[1:], ring[:1]))


def _simplify(parts: list[list[np.ndarray]], crop: MaskCrop) -> list[list[np.ndarray]]:
    """Return simplified rings of a mask, or the exact ones if its pixels would change too much."""
    for tolerance, min_pixels in _TOLERANCES:
        if crop.area >= min_pixels:
            simple = [[_approximate(ring, tolerance) for ring in rings] for rings in parts]
            if _iou(simple, crop.mask) >= _MIN_IOU:
                return simple
    return parts


def _approximate(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """Approximate a ring (Douglas and Peucker) through the middles of its steps; a ring with few vertices is kept."""
    after = _following(ring)
    length = np.abs(after - ring).sum(axis=1, keepdims=True)
    step = (after - ring) * np.minimum(0.5 / length, 0.5)  # half a pixel from the ends of longer edges
    middles = np.stack([ring + step, after - step], axis=1).reshape(-1, 2)
    simple = cv2.approxPolyDP(_drop_repeated(middles).astype(np.float32)[:, None], tolerance, True)[:, 0]
    return simple if 3 <= len(simple) < len(ring) else ring


def _iou(parts: Sequence[Sequence[np.ndarray]], mask: np.ndarray) -> float:
    """Return the IoU of polygons, rasterised as by pycocotools, and a mask of the same origin."""
    outlines = [_join_holes(rings).ravel() for rings in parts]  # inside the mask: they need no check
    found = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(outlines, *mask.shape)))
    union = cv2.countNonZero(found | mask)
    return cv2.countNonZero(found & mask) / union


def _join_holes(rings: Sequence[np.ndarray]) -> np.ndarray:
    """Return one ring ``(P, 2)`` float64 that follows the outer ring and, over bridges, those of the holes."""
    joined, *holes = (ring.astype(np.float64) for ring in rings)
    # From left to right: what a hole's bridge reaches, going left, is the outer ring or a hole that is already joined.
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
        start = int(np.lexsort((hole[:, 1], hole[:, 0]))[0])
        hole = np.roll(hole, -start, axis=0)
        edge, landing = _land_left(joined, hole[0])
        joined = _drop_repeated(
            np.concatenate([joined[: edge + 1], [landing], hole, hole[:1], [landing], joined[edge + 1 :]])
        )
    return joined


def _land_left(ring: np.ndarray, point: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the edge that a line from a point to the left meets first, as its first vertex, and the place on it."""
    x, y = point
    after = _following(ring)
    rise = after[:, 1] - ring[:, 1]
    with np.errstate(divide='ignore', invalid='ignore'):
        at = np.where(rise != 0, ring[:, 0] + (y - ring[:, 1]) / rise * (after[:, 0] - ring[:, 0]), ring[:, 0])
    is_met = ((ring[:, 1] <= y) & (y <= after[:, 1])) | ((after[:, 1] <= y) & (y <= ring[:, 1]))
    distance = np.where(is_met & (at <= x), x - at, np.inf)
    edge = int(np.argmin(distance))
    return edge, np.array((at[edge], y))
