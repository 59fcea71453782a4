"""Training targets for the mask head from shapes in the network input.

:func:`bitmap_targets` crops bitmaps (DeNA), :func:`roi_align_targets` averages them (torchvision), and
:func:`input_polygon_targets` rasterises polygons in the grid of a RoI (detectron2).
"""

from __future__ import annotations

from collections.abc import Callable

import chainer
import cv2
import numpy as np

from mask_rcnn.datasets.example import Annotations, Segmentation
from mask_rcnn.ops.boxes.boxes import box_iou
from mask_rcnn.ops.masks.rle import decode_rle, encode_polygons
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.preprocessing.image_transform import ImageTransform
from mask_rcnn.targets.masks import rasterize_polygons
from mask_rcnn.targets.sampling import IGNORED

Resize = Callable[[np.ndarray, tuple[int, int]], np.ndarray]


def bitmap_targets(
    rois: np.ndarray, annotations: Annotations, transform: ImageTransform, size: int, *, offset: float
) -> np.ndarray:
    """Crop the bitmap of the object that each foreground RoI overlaps most, and resize it (DeNA).

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

    def crop(segmentation: Segmentation, object_rois: np.ndarray) -> np.ndarray:
        bitmap = input_bitmap(segmentation, transform)
        return np.stack([crop_bitmap(bitmap, roi, size) for roi in object_rois])

    matched = match_objects(rois, annotations, transform, offset=offset)
    return _fill_targets(np.int32, rois, annotations, matched, size, crop)


def resize_bilinear(bitmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bitmap to a height and a width with OpenCV as uint8: bilinearly, and rounded to 0 or 1 (DeNA)."""
    return cv2.resize(bitmap, size[::-1])


def resize_nearest_torch(bitmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bitmap to a height and a width like PyTorch's ``interpolate(mode='nearest')``, in float32."""
    rows, columns = (
        np.minimum(np.arange(n_out, dtype=np.float32) * (np.float32(n_in) / np.float32(n_out)), n_in - 1).astype(int)
        for n_in, n_out in zip(bitmap.shape, size, strict=True)
    )
    return bitmap[np.ix_(rows, columns)]


def resize_nearest_pillow(bitmap: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a bitmap to a height and a width like Pillow's ``resize(resample=NEAREST)``, which adds up its steps."""
    rows, columns = (
        np.minimum(np.cumsum([0.5 * n_in / n_out, *[n_in / n_out] * (n_out - 1)]), n_in - 1).astype(int)
        for n_in, n_out in zip(bitmap.shape, size, strict=True)
    )
    return bitmap[np.ix_(rows, columns)]


def input_bitmap(
    segmentation: Segmentation, transform: ImageTransform, *, resize: Resize = resize_bilinear
) -> np.ndarray:
    """Rasterise a segmentation in the original image, and resize the bitmap to the network input.

    Args:
        segmentation: Polygons or RLE in the original image.
        transform: Maps the original image to the network input.
        resize: Resizes a bitmap to a height and a width.

    Returns:
        numpy.ndarray: ``(h, w)`` uint8 of 0 and 1, the size of the network input without padding.
    """
    rle = segmentation if isinstance(segmentation, dict) else encode_polygons(segmentation, transform.size)
    top, left, bottom, right = map(int, transform.window)
    resized = resize(decode_rle(rle), (bottom - top + 1, right - left + 1))
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


def roi_align_targets(
    rois: np.ndarray, annotations: Annotations, transform: ImageTransform, size: int, *, offset: float
) -> np.ndarray:
    """Average the bitmap of the object that each foreground RoI overlaps most with RoIAlign.

    Sources: torchvision's ``roi_heads.py``, ``project_masks_on_boxes``, and ``transform.py``, ``resize``.  Overlap is
    the IoU with the object's annotated box; crowd regions are ignored.

    Args:
        rois: ``(F, 4)`` float32 boxes in the network input.
        annotations: The image's objects; at least one that is not a crowd region, unless F is 0.
        transform: Maps the original image to the network input.
        size: Height and width M of the masks.
        offset: See :mod:`mask_rcnn.ops.boxes.boxes`.

    Returns:
        numpy.ndarray: ``(F, M, M)`` float32: the fraction of the samples in each bin that are inside the object; -1
        everywhere if the object has no segmentation.
    """

    def average(segmentation: Segmentation, object_rois: np.ndarray) -> np.ndarray:
        bitmap = input_bitmap(segmentation, transform, resize=resize_nearest_torch)
        return average_bitmap(bitmap, object_rois, size, aligned=False)

    matched = match_objects(rois, annotations, transform, offset=offset)
    return _fill_targets(np.float32, rois, annotations, matched, size, average)


def input_polygon_targets(
    rois: np.ndarray, annotations: Annotations, transform: ImageTransform, size: int, *, offset: float
) -> np.ndarray:
    """Rasterise the object that each foreground RoI overlaps most in coordinates of the network input.

    Sources: detectron2's ``structures/masks.py``, ``PolygonMasks`` for polygons and ``BitMasks`` for run lengths.
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

    def rasterize(segmentation: Segmentation, object_rois: np.ndarray) -> np.ndarray:
        if isinstance(segmentation, dict):
            bitmap = input_bitmap(segmentation, transform, resize=resize_nearest_pillow)
            return average_bitmap(bitmap, object_rois, size, aligned=True) >= 0.5
        polygons = [_move_polygon(polygon, transform) for polygon in segmentation]
        return rasterize_polygons([polygons] * len(object_rois), object_rois, size, scale=scale_in_float64)

    matched = match_objects(rois, annotations, transform, offset=offset)
    return _fill_targets(np.int32, rois, annotations, matched, size, rasterize)


def _fill_targets(
    dtype: type,
    rois: np.ndarray,
    annotations: Annotations,
    matched: np.ndarray,
    size: int,
    make: Callable[[Segmentation, np.ndarray], np.ndarray],
) -> np.ndarray:
    """Return the targets ``(F, M, M)`` of RoIs: -1 for objects without a segmentation.

    Args:
        dtype: Type of the targets.
        rois: ``(F, 4)`` float32.
        annotations: The image's objects.
        matched: ``(F,)`` index of the object of each RoI.
        size: Height and width M of the masks.
        make: Returns the targets ``(R, M, M)`` of a segmentation in some RoIs ``(R, 4)``.
    """
    targets: np.ndarray = np.full((len(rois), size, size), IGNORED, dtype)
    for i in np.unique(matched):
        if annotations.segmentations[i]:
            targets[matched == i] = make(annotations.segmentations[i], rois[matched == i])
    return targets


def match_objects(
    rois: np.ndarray, annotations: Annotations, transform: ImageTransform, *, offset: float
) -> np.ndarray:
    """Return the index ``(F,)`` of the object that each RoI overlaps most; see :func:`bitmap_targets`."""
    if len(rois) == 0:
        return np.zeros(0, np.intp)
    objects = np.flatnonzero(~annotations.crowd)
    boxes = transform.apply_boxes(annotations.boxes[objects])
    return objects[box_iou(rois, boxes, offset=offset).argmax(axis=1)]


def average_bitmap(bitmap: np.ndarray, rois: np.ndarray, size: int, *, aligned: bool) -> np.ndarray:
    """Average a bitmap in the bins of RoIs with one sample per pixel of a bin.

    Args:
        bitmap: ``(h, w)`` of 0 and 1.
        rois: ``(R, 4)`` float32.
        size: Height and width M of the grid of bins.
        aligned: See :func:`mask_rcnn.ops.roi.roi_align.roi_align`.

    Returns:
        numpy.ndarray: ``(R, M, M)`` float32 from 0 to 1.
    """
    x, images = bitmap.astype(np.float32)[None, None], np.zeros(len(rois), np.int32)
    averages = roi_align(x, rois, images, output_size=size, spatial_scale=1.0, sampling_ratio=0, aligned=aligned)
    return np.clip(chainer.as_array(averages)[:, 0], 0, 1)  # sums of the weights of samples are rounded


def scale_in_float64(points: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    """Map points to a grid of ``size`` x ``size`` pixels in their boxes.

    Source: detectron2's ``structures/masks.py``, ``rasterize_polygons_within_box``.  The ratio of the sizes is float32,
    and the rest float64; sides are at least 0.1.

    Args:
        points: ``(P, 2)`` floats ``x, y``.
        boxes: ``(P, 4)`` float32: the box of each point.
        size: Height and width of the grid.
    """
    origins = boxes[:, 1::-1]  # x, y
    ratios = np.float32(size) / np.maximum(boxes[:, :1:-1] - origins, np.float32(0.1))
    return (points.astype(np.float64) - origins) * ratios


def _move_polygon(polygon: np.ndarray, transform: ImageTransform) -> np.ndarray:
    """Map a polygon ``x, y, x, y, ...`` from the original image to the network input, in float64."""
    factors, origin = np.array(transform.factors[::-1]), np.array(transform.window[1::-1])
    return (np.reshape(polygon, (-1, 2)).astype(np.float64) * factors + origin).ravel()
