"""The objects of COCO datasets: choice of classes, and cleaning of annotations for training."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.annotation_records import AnnotationRecord, read_records
from mask_rcnn.datasets.annotation_values import AnnotationError
from mask_rcnn.datasets.coco_json import AnnotationFileError, CategoryRecord, check_content
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.datasets.segmentations import outline_area, outline_box

#: Below this IoU with the box of its outline, a box is reported: x, y, x, y instead of x, y, width, height, the box of
#: another object, or a box that begins at its centre.
_MIN_BOX_OVERLAP = 0.2
#: Boxes with shorter sides in pixels are not compared: tools that trace pixels write outlines without area for them.
_MIN_COMPARED_SIDE = 4


@dataclass(frozen=True)
class COCOObject:
    """A validated and cleaned annotation.

    Args:
        box: ``(4,)`` float32, ``(y_min, x_min, y_max, x_max)``; both corners are pixels of the box.
        label: Index of the class.
        crowd: True for a region of several objects.
        segmentation: Polygons or run lengths.
        keypoints: ``(17, 3)`` float64, ``(y, x, visibility)``, or ``(0, 3)`` if the dataset has no keypoints.
    """

    box: np.ndarray
    label: int
    crowd: bool
    segmentation: Segmentation
    keypoints: np.ndarray

    @property
    def is_trainable(self) -> bool:
        """True if the object is used for training: not a crowd and, with keypoints, at least one of them labelled."""
        return not self.crowd and (len(self.keypoints) == 0 or bool((self.keypoints[:, 2] > 0).any()))


def select_categories(
    path: str | os.PathLike, categories: Sequence[CategoryRecord], names: Sequence[str] | None, kept: Iterable[str] = ()
) -> list[CategoryRecord]:
    """Return the classes in the order of their labels.

    Args:
        path: The annotation file, for messages.
        categories: The file's categories, sorted by id.
        names: Names of the selected classes in the order of their labels.  ``None`` for all classes except an empty
            root class.
        kept: Names of root classes that are not left out.

    Raises:
        AnnotationFileError: A class is missing, or there is no category.
    """
    if names is None:
        selected = [category for category in categories if not category.is_empty_root or category.name in set(kept)]
    else:
        by_name = {category.name: category for category in categories}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise AnnotationFileError(path, f'there is no class {missing[0]!r}')
        selected = [by_name[name] for name in names]
    if not selected:
        raise AnnotationFileError(path, 'there is no category')
    return selected


def check_keypoint_names(path: str | os.PathLike, categories: Iterable[CategoryRecord]) -> None:
    """Check that a category has keypoints and that all keypoints are COCO's 17.

    Raises:
        AnnotationFileError: No category has keypoints, or a category has other keypoints.
    """
    all_names = [category.fields['keypoints'] for category in categories if category.fields.get('keypoints')]
    if not all_names:
        raise AnnotationFileError(path, "no category has 'keypoints' (COCO's are in person_keypoints_*.json)")
    if any(names != list(COCO_KEYPOINT_NAMES) for names in all_names):
        raise AnnotationFileError(path, "the keypoints of a category are not COCO's 17")


def clean_object(
    record: AnnotationRecord, label: int, size: tuple[int, int], *, masks: bool, keypoints: bool
) -> COCOObject | str:
    """Clean an annotation as Detectron does before training.

    Boxes are clipped to the image.  Objects without area are left out (``detectron/datasets/json_dataset.py``,
    ``_add_gt_annotations``).  Objects without an outline, which Detectron cannot process, are left out if masks are
    trained.

    Args:
        record: The annotation.
        label: Index of its class.
        size: Height and width of its image.
        masks: Whether the object needs an outline.
        keypoints: Whether to read keypoints.

    Returns:
        The object, or the reason why it is left out.
    """
    if record.is_ignored:
        return "marked 'ignore'"
    if record.bbox is None:
        return 'without a box and without an outline that has one'
    if masks and not record.segmentation:
        return 'without an outline'
    box = _clean_box(record.bbox, size)
    if not (box[2:] > box[:2]).all():
        return 'with a box of at most one pixel in a direction or outside the image'
    if record.area <= 0:
        return 'without area'
    points = np.zeros((0, 3))
    if keypoints:
        points = np.zeros((len(COCO_KEYPOINT_NAMES), 3)) if record.keypoints is None else record.keypoints
    return COCOObject(box, label, record.is_crowd, record.segmentation, points)


def explain_doubt(record: AnnotationRecord, size: tuple[int, int], *, masks: bool, evaluated: bool) -> str:
    """Return the reason for which an object is probably annotated wrongly, or an empty string.

    Args:
        record: The annotation.
        size: Height and width of its image.
        masks: Whether masks are used.
        evaluated: Whether the object is evaluated; boxes and masks that no detection can match are then reported.
            Before training, boxes are clipped and those without area are left out.
    """
    if record.is_crowd or record.bbox is None:
        return ''
    x, y, width, height = record.bbox
    inside = _clip_to_image(record.bbox, size)
    if evaluated:
        if min(width, height) < 1:
            return 'with a box smaller than a pixel'
        if min(inside[2:]) <= 0:
            return 'with a box outside its image'
        if inside[2] * inside[3] < width * height / 2:
            return 'with a box mostly outside its image'
        if masks and record.segmentation and not _has_pixels(record.segmentation, size):
            return 'whose outline has no pixel in its image'
    if record.segmentation and min(inside[2:]) >= _MIN_COMPARED_SIDE:
        outline = outline_box(record.segmentation, size, of_pixels=False) or [x, y, 0, 0]
        if coco_mask.iou(np.array([inside]), np.array([_clip_to_image(outline, size)]), [0]).item() < _MIN_BOX_OVERLAP:
            return 'with a box that does not fit its outline ("bbox" is x, y, width, height)'
    return ''


def clean_ground_truth(content: dict, *, keypoints: bool = True) -> dict:
    """Check annotations in COCO's format and return what pycocotools needs of them.

    Args:
        content: ``images``, ``annotations`` and ``categories``; every image that has an outline needs its ``height``
            and ``width``.
        keypoints: Whether to read keypoints.

    Returns:
        dict: The three lists, with ids as integers where they are integers in any form, and annotations numbered from
        1.  Annotations without a box and an outline are left out.

    Raises:
        ValueError: The content is not in COCO's format.
    """
    file = check_content(content, needs_annotations=False, needs_files=False)
    sizes = {image.image_id: (image.height or 0, image.width or 0) for image in file.images}
    truths: list[dict] = []
    category_ids = [category.category_id for category in file.categories]
    for i, record in enumerate(read_records(file.annotations, sizes, category_ids, keypoints=keypoints)):
        if isinstance(record, AnnotationError):
            raise AnnotationError(f'the ground truth cannot be used: {record}')
        if record.segmentation and 0 in sizes[record.image_id]:
            raise AnnotationError(f'the ground truth cannot be used: image {record.image_id!r} has no size')
        if record.bbox is not None:
            has_keypoints = keypoints and ('num_keypoints' in file.annotations[i] or record.keypoints is not None)
            truths.append(record.ground_truth(len(truths) + 1, keypoints=has_keypoints))
    return {
        'images': [
            {**image.fields, 'id': image.image_id, 'height': image.height, 'width': image.width}
            for image in file.images
        ],
        'annotations': truths,
        'categories': [{**category.fields, 'id': category.category_id} for category in file.categories],
    }


def _clip_to_image(bbox: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Return the part ``x, y, width, height`` of a box in its image; its sides are 0 if there is none."""
    x, y, width, height = bbox
    left, top = max(x, 0.0), max(y, 0.0)
    return [left, top, max(min(x + width, size[1]) - left, 0.0), max(min(y + height, size[0]) - top, 0.0)]


def _clean_box(bbox: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    """Convert COCO's ``x, y, width, height`` to inclusive corners, clipped to the image."""
    x, y, width, height = bbox
    corners = y, x, y + max(0.0, height - 1.0), x + max(0.0, width - 1.0)
    limits = size[0] - 1.0, size[1] - 1.0
    # Python's functions are several times faster than NumPy's on four numbers.
    return np.array([min(max(corners[i], 0.0), limits[i % 2]) for i in range(4)], np.float32)


def _has_pixels(segmentation: Segmentation, size: tuple[int, int]) -> bool:
    """Return whether an outline has a pixel in its image."""
    if isinstance(segmentation, tuple) and any(_is_thick(polygon, size) for polygon in segmentation):
        return True  # the usual case, several times faster
    return outline_area(segmentation, size) > 0


def _is_thick(polygon: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether a polygon is inside of the image and contains a circle with a radius of one pixel.

    Its area is at most its perimeter times the radius of the largest circle in it (Bonnesen's inequality).
    """
    points = polygon.reshape(-1, 2)
    if points.min() < 0 or (points.max(axis=0) > size[::-1]).any():
        return False
    edges = np.empty_like(points)
    edges[1:], edges[0] = points[1:] - points[:-1], points[0] - points[-1]
    doubled_area = points[:, 0] @ edges[:, 1] - points[:, 1] @ edges[:, 0]
    return abs(doubled_area) / 2 > np.abs(edges).sum()  # which is at least the perimeter
