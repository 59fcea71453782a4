"""Training targets for the mask head: polygons rasterised in the grid of a RoI.

Sources: ``detectron/roi_data/mask_rcnn.py`` and ``detectron/utils/segms.py``.  The targets of other programs are in
:mod:`mask_rcnn.targets.input_masks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pycocotools.mask

from mask_rcnn.datasets.example import Annotations, Segmentation
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.masks.resample_rle import resample_rle
from mask_rcnn.ops.masks.rle import check_polygons
from mask_rcnn.targets.sampling import IGNORED


def mask_targets(boxes: np.ndarray, annotations: Annotations, size: int, *, offset: float) -> np.ndarray:
    """Rasterise the object that each foreground RoI overlaps most.

    Overlap is the IoU with the bounding box of the object's segmentation; crowd regions are ignored.

    Args:
        boxes: ``(F, 4)`` float32 RoIs in pixels of the original image.
        annotations: The image's objects; at least one that is not a crowd region, unless F is 0.
        size: Height and width M of the masks.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.

    Returns:
        numpy.ndarray: ``(F, M, M)`` int32: 1 inside the object, 0 outside; -1 everywhere if the object has no
        segmentation.
    """
    if len(boxes) == 0:
        return np.empty((0, size, size), np.int32)
    objects = np.flatnonzero(~annotations.crowd)
    segmentations = [annotations.segmentations[i] for i in objects]
    shape_boxes = segmentation_boxes(segmentations, annotations.boxes[objects])
    matched = box_iou(boxes, shape_boxes, offset=offset).argmax(axis=1)
    return rasterize_in_boxes(segmentations, matched, boxes, size)


def segmentation_boxes(segmentations: Sequence[Segmentation], defaults: np.ndarray) -> np.ndarray:
    """Return the bounding boxes ``(G, 4)`` float32 of segmentations.

    Args:
        segmentations: For each object, polygons or RLE.
        defaults: ``(G, 4)`` boxes of the objects whose segmentation is empty.
    """
    boxes = np.array(defaults, np.float32)
    polygons: dict[int, list[np.ndarray]] = {}
    for i, segmentation in enumerate(segmentations):
        if segmentation and isinstance(segmentation, dict):
            x, y, width, height = pycocotools.mask.toBbox(segmentation)
            boxes[i] = y, x, y + height, x + width
        elif segmentation:
            polygons[i] = [np.reshape(polygon, (-1, 2)) for polygon in segmentation]
    if polygons:
        n_points = np.array([sum(map(len, parts)) for parts in polygons.values()])
        points = np.concatenate([part for parts in polygons.values() for part in parts])
        starts = np.cumsum(n_points) - n_points
        corners = [corner.reduceat(points, starts)[:, ::-1] for corner in (np.minimum, np.maximum)]
        boxes[list(polygons)] = np.concatenate(corners, axis=1)
    return boxes


def rasterize_in_boxes(
    segmentations: Sequence[Segmentation], objects: np.ndarray, boxes: np.ndarray, size: int
) -> np.ndarray:
    """Rasterise the part of a segmentation inside each box.

    Args:
        segmentations: For each object, polygons or RLE.
        objects: ``(R,)`` int index of the object of each box.
        boxes: ``(R, 4)`` float32 in the same coordinates.
        size: Height and width M of the masks.

    Returns:
        numpy.ndarray: ``(R, M, M)`` int32: 1 inside the object, 0 outside; -1 everywhere if its segmentation is empty.
    """
    masks = np.full((len(boxes), size, size), IGNORED, np.int32)
    of_polygons = []
    for i, segmentation in enumerate(segmentations):
        rows = np.flatnonzero(objects == i)
        if not segmentation or not len(rows):
            continue
        if isinstance(segmentation, dict):
            masks[rows] = resample_rle(segmentation, boxes[rows], size)
        else:
            of_polygons.extend(rows.tolist())
    if of_polygons:
        masks[of_polygons] = rasterize_polygons(
            [segmentations[objects[row]] for row in of_polygons], boxes[of_polygons], size
        )
    return masks


def scale_in_float32(points: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Map points to a grid of ``size`` x ``size`` pixels in their boxes (``polys_to_mask_wrt_box`` of Detectron).

    Arithmetic is float32, and the width of a box is ``x2 - x1`` (without + 1), but at least 1.

    Args:
        points: ``(P, 2)`` floats ``x, y``.
        boxes: ``(P, 4)`` float32: the box of each point.
        size: Height and width of the grid.
    """
    origins = boxes[:, 1::-1]  # x, y
    box_sizes = np.maximum(boxes[:, :1:-1] - origins, np.float32(1))
    return (points.astype(np.float32) - origins) * np.float32(size) / box_sizes


def rasterize_polygons(
    segmentations: Sequence[Sequence[np.ndarray]],
    boxes: np.ndarray,
    size: int,
    *,
    scale: Callable[[np.ndarray, np.ndarray, int], np.ndarray] = scale_in_float32,
) -> np.ndarray:
    """Scale polygons from each box to ``size`` x ``size`` pixels and rasterise them with pycocotools.

    All polygons are rasterised together: a call costs more than a polygon.

    Args:
        segmentations: For each box, at least one flat array ``x, y, x, y, ...`` of at least three points.
        boxes: ``(R, 4)`` float32; at least one.
        size: Height and width M of the masks.
        scale: Maps points to the grid of a box, as :func:`scale_in_float32` does.

    Returns:
        numpy.ndarray: ``(R, M, M)`` uint8, 0 or 1.

    Raises:
        ValueError: See :func:`mask_rcnn.ops.masks.rle.check_polygons`.
    """
    parts = [np.reshape(polygon, (-1, 2)) for polygons in segmentations for polygon in polygons]
    box_of_part = np.repeat(np.arange(len(boxes)), [len(polygons) for polygons in segmentations])
    stops = np.cumsum([len(part) for part in parts])
    box_of_point = np.repeat(box_of_part, np.diff(stops, prepend=0))
    points = scale(np.concatenate(parts), boxes[box_of_point], size)
    scaled = [part.ravel() for part in np.split(points, stops[:-1])]
    check_polygons(scaled)
    masks = pycocotools.mask.decode(pycocotools.mask.frPyObjects(scaled, size, size)).T  # (parts, x, y), contiguous
    is_first = np.diff(box_of_part, prepend=-1) > 0
    union = masks[is_first]
    for i in np.flatnonzero(~is_first):
        union[box_of_part[i]] |= masks[i]
    return union.transpose(0, 2, 1)
