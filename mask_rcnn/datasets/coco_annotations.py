"""Parsing, validation and cleaning of annotation files in COCO's format."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.ops.masks.rle import decode_counts

_MIN_POLYGON_NUMBERS = 6  # three points


class AnnotationFileError(ValueError):
    """An annotation file cannot be used; the message is one line, ``path: reason``."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(f'{os.fspath(path)}: {reason}')
        self.path = Path(path)
        self.reason = reason


class AnnotationError(Exception):
    """An annotation is malformed; the message is the reason."""


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


def read_coco_json(path: str | os.PathLike) -> dict[str, list[dict]]:
    """Read an annotation file and check the entries of its three lists.

    Args:
        path: The JSON file.

    Returns:
        The lists ``images``, ``annotations`` and ``categories``.  Each image has an ``id`` and a ``file_name``, each
        category has an ``id`` and a ``name``, and the ids of each list are unique.

    Raises:
        AnnotationFileError: The file cannot be read or is not in COCO's format.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except OSError as error:
        raise AnnotationFileError(path, (error.strerror or str(error)).lower()) from error
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, or too many nested lists
        raise AnnotationFileError(path, f'not a JSON file ({error})') from error
    for key in ('images', 'annotations', 'categories'):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise AnnotationFileError(path, f"not COCO's format: there is no list {key!r}")
    for key, name_key in (('images', 'file_name'), ('categories', 'name')):
        _check_entries(path, key, content[key], name_key)
    return content


def _check_entries(path: str | os.PathLike, key: str, entries: list[dict], name_key: str) -> None:
    for entry in entries:
        if not _is_id(entry.get('id')) or not isinstance(entry.get(name_key), str):
            raise AnnotationFileError(path, f"not COCO's format: an entry of {key!r} has no 'id' or no {name_key!r}")
        if not all(_is_number(entry.get(side, 0)) for side in ('height', 'width')):
            raise AnnotationFileError(path, f'the size of image {entry["id"]} is not a number')
    if len({isinstance(entry['id'], str) for entry in entries}) > 1:  # numbers and strings cannot be sorted together
        raise AnnotationFileError(path, f'the ids of {key!r} are partly numbers, partly strings')
    if len({entry['id'] for entry in entries}) < len(entries):
        raise AnnotationFileError(path, f"two entries of {key!r} have the same 'id'")


def select_categories(
    path: Path, categories: list[dict], names: Sequence[str] | None
) -> tuple[tuple[int | str, ...], tuple[str, ...]]:
    """Return the ids and the names of the classes in the order of their labels.

    Args:
        path: The annotation file, for messages.
        categories: The file's categories.
        names: Names of the selected classes in the order of their labels; all classes sorted by id if ``None``.

    Raises:
        AnnotationFileError: A class is missing, or there is no category.
    """
    selected = sorted(categories, key=lambda category: category['id'])
    if names is not None:
        by_name = {category['name']: category for category in selected}
        missing = [name for name in names if name not in by_name]
        if missing:
            raise AnnotationFileError(path, f'there is no class {missing[0]!r}')
        selected = [by_name[name] for name in names]
    if not selected:
        raise AnnotationFileError(path, 'there is no category')
    return tuple(category['id'] for category in selected), tuple(category['name'] for category in selected)


def check_keypoint_names(path: Path, categories: list[dict]) -> None:
    """Check that a category has keypoints and that all keypoints are COCO's 17.

    Raises:
        AnnotationFileError: No category has keypoints, or a category has other keypoints.
    """
    all_names = [category['keypoints'] for category in categories if 'keypoints' in category]
    if not all_names:
        raise AnnotationFileError(path, "no category has 'keypoints' (COCO's are in person_keypoints_*.json)")
    if any(names != list(COCO_KEYPOINT_NAMES) for names in all_names):
        raise AnnotationFileError(path, "the keypoints of a category are not COCO's 17")


def check_annotations(content: dict[str, list[dict]]) -> Iterator[tuple[dict, str | None]]:
    """Yield each annotation with the error in its references, box, area or crowd flag, or with ``None``."""
    images = {image['id'] for image in content['images']}
    categories = {category['id'] for category in content['categories']}
    for i, annotation in enumerate(content['annotations']):
        name = f'annotation {annotation.get("id", f"number {i}")}'
        box = annotation.get('bbox')
        problem = None
        if not _is_id(annotation.get('image_id')) or annotation['image_id'] not in images:
            problem = f'{name} belongs to the image {annotation.get("image_id")!r}, which is not in the file'
        elif not _is_id(annotation.get('category_id')) or annotation['category_id'] not in categories:
            problem = f'{name} has the category {annotation.get("category_id")!r}, which is not in the file'
        elif not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            problem = f"the 'bbox' of {name} is not a list of four numbers"
        elif not _is_number(annotation.get('area', 0)):
            problem = f"the 'area' of {name} is not a number"
        elif annotation.get('iscrowd', 0) not in (0, 1):
            problem = f"the 'iscrowd' of {name} is neither 0 nor 1"
        yield annotation, problem


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str))


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number that fits into a float."""
    return isinstance(value, (int, float)) and abs(value) < 1e30


def clean_object(annotation: dict, label: int, size: tuple[int, int], *, keypoints: bool) -> COCOObject | None:
    """Validate and clean an annotation as Detectron does before training.

    Boxes are clipped to the image, and polygons of fewer than three points are dropped.  Objects without area are
    dropped (``detectron/datasets/json_dataset.py``, ``_add_gt_annotations``).  Objects without a usable polygon, which
    Detectron cannot process, are also dropped, unless keypoints are read.

    Args:
        annotation: An annotation accepted by :func:`check_annotations`.
        label: Index of its class.
        size: Height and width of its image.
        keypoints: Whether to read keypoints.

    Returns:
        The object, or ``None`` if it is dropped.

    Raises:
        AnnotationError: The segmentation or the keypoints are malformed.
    """
    annotation = _with_defaults(annotation)
    box = _clean_box(annotation['bbox'], size)
    if annotation['area'] <= 0 or annotation.get('ignore') == 1 or not (box[2:] > box[:2]).all():
        return None
    segmentation = _read_segmentation(annotation, size)
    if not segmentation and not keypoints:
        return None
    points = _read_keypoints(annotation) if keypoints else np.zeros((0, 3))
    return COCOObject(box, label, bool(annotation['iscrowd']), segmentation, points)


def to_ground_truth(annotation: dict, size: tuple[int, int], *, keypoints: bool) -> dict | None:
    """Return an annotation with all fields that pycocotools needs for evaluation.

    The box and the area are not cleaned.  Keypoints that are not labelled become zeros, and ``num_keypoints`` counts
    the labelled ones.

    Args:
        annotation: An annotation accepted by :func:`check_annotations`.
        size: Height and width of its image.
        keypoints: Whether to read keypoints.

    Returns:
        The annotation, or ``None`` if it is malformed, or has no segmentation and keypoints are not read.
    """
    truth = {key: value for key, value in _with_defaults(annotation).items() if key != 'segmentation'}
    try:
        if _read_segmentation(annotation, size):
            truth['segmentation'] = _drop_short_polygons(annotation['segmentation'])
        elif not keypoints:
            return None
        if keypoints:
            points = _read_keypoints(annotation)
            truth |= {
                'keypoints': points[:, [1, 0, 2]].ravel().tolist(),
                'num_keypoints': int(np.count_nonzero(points[:, 2])),
            }
    except AnnotationError:
        return None
    return truth


def _with_defaults(annotation: dict) -> dict:
    """Add the fields that pycocotools needs for evaluation and that custom datasets often lack."""
    _, _, width, height = annotation['bbox']
    return {'iscrowd': 0, 'area': width * height, **annotation}


def _clean_box(bbox: list[float], size: tuple[int, int]) -> np.ndarray:
    """Convert COCO's ``x, y, width, height`` to inclusive corners, clipped to the image."""
    x, y, width, height = bbox
    corners = np.array([y, x, y + max(0.0, height - 1.0), x + max(0.0, width - 1.0)])
    limits = np.array([*size, *size]) - 1
    return np.clip(corners, 0, limits).astype(np.float32)


def _read_keypoints(annotation: dict) -> np.ndarray:
    """Return ``(17, 3)`` float64 ``(y, x, visibility)``, zeros for an annotation without keypoints."""
    count = len(COCO_KEYPOINT_NAMES)
    numbers = annotation.get('keypoints')
    if numbers is None:
        return np.zeros((count, 3))
    if not isinstance(numbers, list) or len(numbers) != 3 * count or not all(map(_is_number, numbers)):
        name = annotation.get('id', 'without id')
        raise AnnotationError(f"the 'keypoints' of annotation {name} are not a list of {3 * count} numbers")
    points = np.array(numbers, np.float64).reshape(count, 3)[:, [1, 0, 2]]
    points[points[:, 2] <= 0] = 0
    return points


def _read_segmentation(annotation: dict, size: tuple[int, int]) -> Segmentation:
    """Return the polygons of at least three points, or compressed run lengths."""
    segmentation = annotation.get('segmentation') or []
    name = f"the 'segmentation' of annotation {annotation.get('id', 'without id')}"
    if isinstance(segmentation, dict):
        return _read_run_lengths(segmentation, size, name)
    if not isinstance(segmentation, list) or not all(isinstance(polygon, list) for polygon in segmentation):
        raise AnnotationError(f'{name} is neither a list of polygons nor run lengths')
    try:
        polygons = tuple(np.array(polygon, np.float64) for polygon in _drop_short_polygons(segmentation))
    except (TypeError, ValueError, OverflowError) as error:
        raise AnnotationError(f'{name} has a polygon that is not a list of numbers') from error
    for polygon in polygons:
        if polygon.ndim != 1 or polygon.size % 2 or not np.isfinite(polygon).all():
            raise AnnotationError(f'{name} has a polygon that is not a list x, y, x, y, ...')
    return polygons


def _drop_short_polygons(segmentation: list | dict) -> list | dict:
    """Drop polygons that pycocotools cannot read or takes for boxes."""
    if isinstance(segmentation, dict):
        return segmentation
    return [polygon for polygon in segmentation if len(polygon) >= _MIN_POLYGON_NUMBERS]


def _read_run_lengths(rle: dict, size: tuple[int, int], name: str) -> dict:
    """Return the compressed form of valid run lengths."""
    if rle.get('size') != list(size):
        raise AnnotationError(f'{name} is for an image of {rle.get("size")} pixels, not {list(size)}')
    try:
        counts = rle['counts']
        runs = np.array(counts if isinstance(counts, list) else decode_counts(counts))
        if not np.issubdtype(runs.dtype, np.integer) or runs.min() < 0 or runs.sum() != size[0] * size[1]:
            raise ValueError('their sum is not the number of pixels of the image')
        if isinstance(counts, list):
            counts = coco_mask.frPyObjects(rle, *size)['counts']
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise AnnotationError(f'{name} has malformed run lengths ({error})') from error
    return {'size': list(size), 'counts': counts.encode('ascii') if isinstance(counts, str) else counts}
