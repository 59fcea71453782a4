"""Annotations of COCO files as checked, plain records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.datasets.annotation_values import AnnotationError, read_flag, read_id, read_number, read_numbers, shorten
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.datasets.segmentations import outline_area, outline_box, read_segmentation, to_json

_N_KEYPOINTS = len(COCO_KEYPOINT_NAMES)


@dataclass(frozen=True)
class AnnotationRecord:
    """A checked annotation.

    Args:
        name: Name in messages: ``annotation 7``.
        image_id: Id of its image.
        category_id: Id of its category.
        bbox: The box ``x, y, width, height``: the annotated one, or that of the outline if the annotation has none or
            an empty one.  ``None`` if there is neither.  The box of polygons is that of their vertices, as in COCO,
            but that of their pixels if the annotated area is the number of pixels or missing.
        area: The annotated area, or the pixels of the outline if there is none or 0, or the area of the box.
        is_crowd: True for a region of several objects.
        is_ignored: True if the annotation is marked ``ignore``.
        segmentation: Polygons, run lengths, or ``()`` without an outline.
        keypoints: ``(17, 3)`` float64, ``(y, x, visibility)``, zeros if they are not labelled; ``None`` if the
            annotation has no ``keypoints`` or they are not read.
    """

    name: str
    image_id: int | str
    category_id: int | str
    bbox: list[float] | None
    area: float
    is_crowd: bool
    is_ignored: bool
    segmentation: Segmentation
    keypoints: np.ndarray | None

    def ground_truth(self, number: int, *, keypoints: bool) -> dict:
        """Return the record with all fields that pycocotools needs.

        Args:
            number: The id of the result.  pycocotools needs ids of at least 1: 0 means that a detection has no match.
            keypoints: Whether to add keypoints; ``num_keypoints`` counts the labelled ones.
        """
        truth: dict[str, Any] = {
            'id': number,
            'image_id': self.image_id,
            'category_id': self.category_id,
            'bbox': self.bbox,
            'area': self.area,
            'iscrowd': int(self.is_crowd),
        }
        if self.segmentation:
            truth['segmentation'] = to_json(self.segmentation)
        if keypoints:
            points = np.zeros((_N_KEYPOINTS, 3)) if self.keypoints is None else self.keypoints
            truth['keypoints'] = points[:, [1, 0, 2]].ravel().tolist()
            truth['num_keypoints'] = int(np.count_nonzero(points[:, 2]))
        return truth


def read_records(
    annotations: Iterable,
    sizes: Mapping[int | str, tuple[int, int] | None],
    category_ids: Iterable[int | str],
    *,
    keypoints: bool,
) -> Iterator[AnnotationRecord | AnnotationError]:
    """Yield the record of each annotation, or the error if it is malformed.

    Args:
        annotations: The ``annotations`` of a file.
        sizes: Height and width of each image of the file by its id.  The annotations of an image without a size are
            skipped.
        category_ids: The ids of the file's categories.
        keypoints: Whether to read keypoints; those of other objects than COCO's persons are malformed.
    """
    known_categories = frozenset(category_ids)
    for i, annotation in enumerate(annotations):
        try:
            if not isinstance(annotation, dict):
                raise AnnotationError(f'annotation number {i} is {shorten(annotation)}, not an object')
            number = annotation.get('id')
            name = f'annotation {f"number {i}" if number is None else shorten(number).strip(chr(39))}'
            image_id = _read_reference(annotation, 'image_id', name, 'belongs to the image', sizes)
            category_id = _read_reference(annotation, 'category_id', name, 'has the category', known_categories)
            size = sizes[image_id]
            if size is None:
                continue
            yield _read_record(annotation, name, image_id, category_id, size, keypoints=keypoints)
        except AnnotationError as error:
            yield error


def _read_record(
    annotation: dict,
    name: str,
    image_id: int | str,
    category_id: int | str,
    size: tuple[int, int],
    *,
    keypoints: bool,
) -> AnnotationRecord:
    bbox = _read_box(annotation.get('bbox'), name)
    area = annotation.get('area')
    area = 0.0 if area is None else read_number(area, f"the 'area' of {name}")
    try:
        segmentation = read_segmentation(annotation.get('segmentation'), size, bbox=bbox, shape=_shape_type(annotation))
    except AnnotationError as error:
        raise AnnotationError(f"the 'segmentation' of {name} {error}") from error
    is_box_empty = bbox is None or min(bbox[2:]) <= 0
    if is_box_empty or area <= 0:
        n_pixels = outline_area(segmentation, size)
        if is_box_empty:  # tools that count the pixels of masks write the boxes of pixels, COCO those of vertices
            bbox = outline_box(segmentation, size, of_pixels=area <= 0 or area == n_pixels) or bbox
        if area <= 0:
            area = n_pixels
    if area <= 0 and bbox is not None and (not segmentation or annotation.get('area') is None):
        area = max(bbox[2], 0.0) * max(bbox[3], 0.0)
    return AnnotationRecord(
        name=name,
        image_id=image_id,
        category_id=category_id,
        bbox=bbox,
        area=area,
        is_crowd=read_flag(annotation.get('iscrowd'), f"the 'iscrowd' of {name}"),
        is_ignored=read_flag(annotation.get('ignore'), f"the 'ignore' of {name}"),
        segmentation=segmentation,
        keypoints=_read_keypoints(annotation.get('keypoints'), name) if keypoints else None,
    )


def _read_reference(annotation: dict, key: str, name: str, verb: str, known: Any) -> int | str:
    """Return the id of an annotation's image or category, which must be known."""
    value = annotation.get(key)
    try:
        reference = read_id(value, key)
    except AnnotationError:
        reference = ''
    if reference not in known:
        raise AnnotationError(f'{name} {verb} {shorten(value)}, which is not in the file')
    return reference


def _read_box(value: Any, name: str) -> list[float] | None:
    if value is None or value in ([], (), '', {}):
        return None
    try:
        if not isinstance(value, (list, tuple)) or len(value) != 4:
            raise AnnotationError('another number of values')
        return read_numbers(value, 'bbox')
    except AnnotationError as error:
        raise AnnotationError(f"the 'bbox' of {name} is not a list of four numbers") from error


def _read_keypoints(value: Any, name: str) -> np.ndarray | None:
    """Return ``(17, 3)`` float64 ``(y, x, visibility)``; keypoints that are not labelled become zeros."""
    if not value and value not in (0, False):
        return None
    try:
        if not isinstance(value, (list, tuple)):
            raise AnnotationError('not a list')
        if all(isinstance(point, (list, tuple)) for point in value):
            value = [number for point in value for number in point]
        numbers = read_numbers(value, 'keypoint')
        if len(numbers) != 3 * _N_KEYPOINTS:
            raise AnnotationError('another number of values')
    except AnnotationError as error:
        raise AnnotationError(f"the 'keypoints' of {name} are not a list of {3 * _N_KEYPOINTS} numbers") from error
    points = np.array(numbers, np.float64).reshape(-1, 3)[:, [1, 0, 2]]
    points[points[:, 2] <= 0] = 0
    return points


def _shape_type(annotation: dict) -> str | None:
    """Return the kind of shape that a labelling tool states."""
    attributes = annotation.get('attributes')
    for entry in (annotation, attributes if isinstance(attributes, dict) else {}):
        shape = entry.get('shape_type')
        if isinstance(shape, str):
            return shape.lower()
    return None
