"""Writer of datasets in COCO's format."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedObject
from mask_rcnn.datasets.segmentations import outline_area, outline_box, to_json
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.paths import relative_name


def write_coco(dataset: ImportedDataset, path: str | os.PathLike, image_folder: str | os.PathLike) -> None:
    """Write a dataset as a JSON file in COCO's format, which appears when it is complete.

    Args:
        dataset: The dataset.
        path: The file to write.
        image_folder: The folder to which ``file_name`` is relative.

    Raises:
        mask_rcnn.io.atomic_file.FileError: The file cannot be written.
    """
    text = json.dumps(coco_content(dataset, image_folder), allow_nan=False)
    with open_for_writing(path) as file:
        file.write(text.encode('ascii'))
        file.write(b'\n')


def coco_content(dataset: ImportedDataset, image_folder: str | os.PathLike) -> dict[str, Any]:
    """Return the content of the file: ``images``, ``annotations`` and ``categories`` with ids from 1.

    Polygons are lists of numbers, bitmaps are compressed run lengths as text.  ``area`` is the number of pixels of the
    outline, as pycocotools counts them, or the area of the box of an object without an outline.

    Args:
        dataset: The dataset.
        image_folder: See :func:`write_coco`.
    """
    labels = {name: label for label, name in enumerate(dataset.class_names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(dataset.images, 1):
        height, width = image.size
        name = relative_name(image.path, image_folder)
        images.append({'id': image_id, 'file_name': name, 'height': height, 'width': width})
        for obj in image.objects:
            references = {'id': len(annotations) + 1, 'image_id': image_id, 'category_id': labels[obj.class_name]}
            annotations.append({**references, **describe_object(obj, image.size)})
    categories = [{'id': label, 'name': name} for name, label in labels.items()]
    return {'images': images, 'annotations': annotations, 'categories': categories}


def describe_object(obj: ImportedObject, size: tuple[int, int]) -> dict[str, Any]:
    """Return the fields ``segmentation``, ``bbox``, ``area`` and ``iscrowd`` of an annotation.

    Args:
        obj: The object.
        size: Height and width of its image.
    """
    segmentation = obj.segmentation
    box: Sequence[float] | None = obj.box
    if segmentation:
        box = outline_box(segmentation, size, of_pixels=False) or box
    x, y, width, height = _clip(box, size) if box is not None else [0.0] * 4
    area = outline_area(segmentation, size) if segmentation else width * height
    return {
        'segmentation': to_json(segmentation) if segmentation else [],
        'bbox': [_plain(number) for number in (x, y, width, height)],
        'area': _plain(area),
        'iscrowd': int(obj.is_crowd),
    }


def _clip(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Return the part of a box ``x, y, width, height`` in its image."""
    x, y, width, height = box
    left, top = max(x, 0.0), max(y, 0.0)
    right, bottom = min(x + width, float(size[1])), min(y + height, float(size[0]))
    return [left, top, max(right - left, 0.0), max(bottom - top, 0.0)]


def _plain(number: float) -> float | int:
    """Return an integer for a whole number, which is shorter in JSON."""
    return int(number) if float(number).is_integer() else float(number)
