"""Training targets for the mask head.

:func:`mask_targets` rasterises polygons in the grid of a RoI (``detectron/roi_data/mask_rcnn.py``,
``detectron/utils/segms.py``), and :func:`bitmap_targets` crops bitmaps of the network input (DeNA).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pycocotools.mask

from mask_rcnn.datasets.example import Annotations, Segmentation
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.masks.resample_rle import resample_rle
from mask_rcnn.ops.masks.rle import check_polygons, decode_rle, encode_polygons
from mask_rcnn.preprocessing.image_transform import ImageTransform
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


def bitmap_targets(
    rois: np.ndarray, annotations: Annotations, transform: ImageTransform, size: int, *, offset: float
) -> np.ndarray:
    """Crop the bitmap of the object that each foreground RoI overlaps most, and resize it.

    Overlap is the IoU with the object's annotated box; crowd regions are ignored.

    Args:
        rois: ``(F, 4)`` float32 boxes in the network input.
        annotations: The image's objects; at least one that is not a crowd region, unless F is 0.
        transform: Maps the original image to the network input.
        size: Height and width M of the masks.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.

    Returns:
        numpy.ndarray: ``(F, M, M)`` int32: 1 inside the object, 0 outside; -1 everywhere if the object has no
        segmentation.
    """
    targets = np.full((len(rois), size, size), IGNORED, np.int32)
    if len(rois) == 0:
        return targets
    objects = np.flatnonzero(~annotations.crowd)
    boxes = transform.apply_boxes(annotations.boxes[objects])
    matched = objects[box_iou(rois, boxes, offset=offset).argmax(axis=1)]
    for i in np.unique(matched):
        if annotations.segmentations[i]:
            bitmap = input_bitmap(annotations.segmentations[i], transform)
            for row in np.flatnonzero(matched == i):
                targets[row] = crop_bitmap(bitmap, rois[row], size)
    return targets


def input_bitmap(segmentation: Segmentation, transform: ImageTransform) -> np.ndarray:
    """Rasterise a segmentation in the original image, and resize the bitmap to the network input.

    The bitmap is resized by OpenCV as uint8: bilinearly, and rounded to 0 or 1.

    Args:
        segmentation: Polygons or RLE in the original image.
        transform: Maps the original image to the network input.

    Returns:
        numpy.ndarray: ``(h, w)`` uint8 of 0 and 1, the size of the network input without padding.
    """
    rle = segmentation if isinstance(segmentation, dict) else encode_polygons(segmentation, transform.size)
    top, left, bottom, right = map(int, transform.window)
    resized = cv2.resize(decode_rle(rle), (right - left + 1, bottom - top + 1))
    bitmap = np.zeros(transform.input_size, np.uint8)
    bitmap[top : bottom + 1, left : right + 1] = resized
    return bitmap


def crop_bitmap(bitmap: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Crop a bitmap at a box's corners, truncated to integers, and resize it as :func:`input_bitmap` does.

    At least one pixel of the bitmap is cropped.  (DeNA's program fails if the corners enclose none.)

    Args:
        bitmap: ``(h, w)`` uint8 of 0 and 1.
        box: ``(4,)`` float32.
        size: Height and width M of the result.

    Returns:
        numpy.ndarray: ``(M, M)`` uint8 of 0 and 1.
    """
    corners = box.astype(np.int64)
    top, left = np.clip(corners[:2], 0, np.subtract(bitmap.shape, 1))
    bottom, right = np.maximum(corners[2:], (top + 1, left + 1))
    return cv2.resize(bitmap[top:bottom, left:right], (size, size))


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


def rasterize_polygons(segmentations: Sequence[Sequence[np.ndarray]], boxes: np.ndarray, size: int) -> np.ndarray:
    """Scale polygons from each box to ``size`` x ``size`` pixels and rasterise them with pycocotools.

    This is ``polys_to_mask_wrt_box`` of ``detectron/utils/segms.py``: arithmetic is float32, and the width of a box is
    ``x2 - x1`` (without + 1).  All polygons are rasterised together: a call costs more than a polygon.

    Args:
        segmentations: For each box, at least one flat array ``x, y, x, y, ...`` of at least three points.
        boxes: ``(R, 4)`` float32; at least one.
        size: Height and width M of the masks.

    Returns:
        numpy.ndarray: ``(R, M, M)`` uint8, 0 or 1.

    Raises:
        ValueError: See :func:`mask_rcnn.ops.masks.rle.check_polygons`.
    """
    parts = [np.asarray(polygon, np.float32).reshape(-1, 2) for polygons in segmentations for polygon in polygons]
    box_of_part = np.repeat(np.arange(len(boxes)), [len(polygons) for polygons in segmentations])
    stops = np.cumsum([len(part) for part in parts])
    box_of_point = np.repeat(box_of_part, np.diff(stops, prepend=0))
    origins = boxes[:, 1::-1]  # x, y
    box_sizes = np.maximum(boxes[:, :1:-1] - origins, np.float32(1))
    points = (np.concatenate(parts) - origins[box_of_point]) * np.float32(size) / box_sizes[box_of_point]
    scaled = [part.ravel() for part in np.split(points, stops[:-1])]
    check_polygons(scaled)
    masks = pycocotools.mask.decode(pycocotools.mask.frPyObjects(scaled, size, size)).T  # (parts, x, y), contiguous
    is_first = np.diff(box_of_part, prepend=-1) > 0
    union = masks[is_first]
    for i in np.flatnonzero(~is_first):
        union[box_of_part[i]] |= masks[i]
    return union.transpose(0, 2, 1)
