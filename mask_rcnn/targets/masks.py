"""What the mask head learns (``detectron/roi_data/mask_rcnn.py``, ``detectron/utils/segms.py``)."""

from __future__ import annotations

import numpy as np
import pycocotools.mask

from mask_rcnn.datasets.example import Annotations, Segmentation
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.targets.sampling import IGNORED


def mask_targets(boxes: np.ndarray, annotations: Annotations, size: int, *, offset: float) -> np.ndarray:
    """Draw, for every foreground RoI, the object in it.

    A RoI's object is the one whose shape's bounding box overlaps it most; crowds are none.

    Args:
        boxes: ``(F, 4)`` float32 RoIs in pixels of the original image.
        annotations: The image's objects; at least one that is no crowd, unless there are no RoIs.
        size: Side M of the masks.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.

    Returns:
        numpy.ndarray: ``(F, M, M)`` int32: 1 the object, 0 not; -1 everywhere if its shape is not known.
    """
    targets = np.empty((len(boxes), size, size), np.int32)
    if len(boxes) == 0:
        return targets
    objects = np.flatnonzero(~annotations.crowd)
    shape_boxes = np.stack([segmentation_box(annotations.segmentations[i], annotations.boxes[i]) for i in objects])
    chosen = objects[box_iou(boxes, shape_boxes, offset=offset).argmax(axis=1)]
    for i in np.unique(chosen):
        rows = np.flatnonzero(chosen == i)
        targets[rows] = draw_in_boxes(annotations.segmentations[i], boxes[rows], size)
    return targets


def segmentation_box(segmentation: Segmentation, default) -> np.ndarray:
    """Return the bounding box ``(4,)`` float32 of a shape, or ``default`` if there is none."""
    if not segmentation:
        return np.asarray(default, np.float32)
    if isinstance(segmentation, dict):
        x, y, width, height = pycocotools.mask.toBbox(segmentation)
        return np.array([y, x, y + height, x + width], np.float32)
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in segmentation])
    return np.concatenate([points.min(axis=0)[::-1], points.max(axis=0)[::-1]]).astype(np.float32)


def draw_in_boxes(segmentation: Segmentation, boxes: np.ndarray, size: int) -> np.ndarray:
    """Draw the parts of one shape that are in some boxes.

    Args:
        segmentation: Polygons or run lengths.
        boxes: ``(R, 4)`` float32 in the shape's pixels.
        size: Side M of the masks.

    Returns:
        numpy.ndarray: ``(R, M, M)`` int32: 1 the shape, 0 not; -1 everywhere if there is no shape.
    """
    if not segmentation:
        return np.full((len(boxes), size, size), IGNORED, np.int32)
    if isinstance(segmentation, dict):
        mask = pycocotools.mask.decode(segmentation)
        return np.stack([resample_mask(mask, box, size) for box in boxes])
    return np.stack([rasterize_polygons(segmentation, box, size) for box in boxes])


def rasterize_polygons(polygons, box: np.ndarray, size: int) -> np.ndarray:
    """Move polygons into a box of ``size`` x ``size`` pixels and draw them with COCO's code.

    ``detectron/utils/segms.py`` ``polys_to_mask_wrt_box``: float32, and the box is ``x2 - x1`` wide (no + 1).

    Args:
        polygons: Flat arrays ``x, y, x, y, ...`` of at least three points.
        box: ``(4,)`` float32.
        size: Side M of the mask.

    Returns:
        numpy.ndarray: ``(M, M)`` int32, 0 or 1.
    """
    origin = box[1::-1]  # x, y
    side = np.maximum(box[:1:-1] - origin, np.float32(1))
    moved = [
        ((np.asarray(polygon, np.float32).reshape(-1, 2) - origin) * np.float32(size) / side).ravel()
        for polygon in polygons
    ]
    parts = pycocotools.mask.frPyObjects(moved, size, size)
    return pycocotools.mask.decode(parts).any(axis=2).astype(np.int32)


def resample_mask(mask: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Cut a box out of a mask and resize it: 1 where at least half of a pixel of the result is covered.

    Args:
        mask: ``(H, W)`` of 0 and 1; pixel ``i`` reaches from ``i`` to ``i + 1``, as in COCO's polygons.
        box: ``(4,)`` float32.
        size: Side M of the result.

    Returns:
        numpy.ndarray: ``(M, M)`` int32, 0 or 1.
    """
    rows = _coverage(box[0], box[2], size, mask.shape[0])
    columns = _coverage(box[1], box[3], size, mask.shape[1])
    return (rows @ mask @ columns.T >= 0.5).astype(np.int32)


def _coverage(low, high, n_bin: int, n_pixel: int) -> np.ndarray:
    """Return what part of each of ``n_bin`` bins from ``low`` to ``high`` each pixel covers."""
    edges = float(low) + max(float(high) - float(low), 1.0) * np.arange(n_bin + 1) / n_bin
    pixels = np.arange(n_pixel)
    begin = np.maximum(edges[:-1, None], pixels)
    end = np.minimum(edges[1:, None], pixels + 1)
    return np.maximum(end - begin, 0) / (edges[1] - edges[0])
