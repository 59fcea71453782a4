"""Importer of the text files of YOLO (Ultralytics, Darknet): polygons or boxes relative to the image.

A label file has one line ``class x1 y1 x2 y2 ...`` for each object, with coordinates from 0 to 1.  A line of four
numbers, ``class x y width height``, is a box.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mask_rcnn.datasets.annotation_values import AnnotationError, read_number
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.importers.source_files import read_lines
from mask_rcnn.datasets.importers.yolo_layout import PARTS, YOLOFiles, find_files, find_yaml, first_label_files
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import read_image_size

NAME = 'YOLO'

_BOX_NUMBERS, _MIN_POLYGON_NUMBERS = 4, 6
#: A coordinate may lie outside the image by this fraction of its height or width, a rounding error of some tools.
_TOLERANCE = 0.01


def recognises(source: Path) -> bool:
    """Return whether the source is a YAML file of YOLO, or a folder with such a file or with label files."""
    try:
        declared = find_yaml(source)
        if declared is not None:
            return any(declared[1].get(part) for part in PARTS)
        return any(map(_is_label_file, first_label_files(source)))
    except AnnotationFileError:
        return False


def _is_label_file(path: Path) -> bool:
    """Return whether a text file begins with a class and coordinates."""
    try:
        lines = read_lines(path)
        return bool(lines) and len(_read_numbers(lines[0][1])) > _BOX_NUMBERS
    except (AnnotationFileError, AnnotationError):
        return False


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read the label files; see :class:`mask_rcnn.datasets.importers.records.Importer`.

    An image without a label file has no objects.  Objects that have only a box are kept without an outline and
    counted as doubts.
    """
    files, report = find_files(source, options), ImportReport(skip_broken=options.skip_broken)

    def read_image(path: Path) -> ImportedImage:
        return _read_image(path, files, options.default_class, report)

    images = report.read_images(files.labels, read_image)
    names = files.names or (options.default_class,)
    return ImportedDataset(NAME, images, names, report.omissions, report.doubts)


def _read_image(path: Path, files: YOLOFiles, default_class: str, report: ImportReport) -> ImportedImage:
    size, label_path = read_image_size(path), files.labels[path]
    objects = []
    for number, line in read_lines(label_path) if label_path else ():
        place = f'line {number}'
        try:
            item = _read_object(line, place, size, files, default_class)
        except AnnotationError as error:
            raise AnnotationFileError(label_path or path, f'{place}: {error}') from error
        if item is None:
            report.omissions.add('outlines without area', f'{path.name}, {place}', one='outline without area')
            continue
        if not item.segmentation:
            report.doubts.add('boxes without an outline', f'{path.name}, {place}', one='box without an outline')
        objects.append(item)
    return ImportedImage(path, size, tuple(objects))


def _read_numbers(line: str) -> list[float]:
    return [read_number(text, f'value {i}') for i, text in enumerate(line.split(), 1)]


def _read_object(
    line: str, place: str, size: tuple[int, int], files: YOLOFiles, default_class: str
) -> ImportedObject | None:
    """Read a line; returns ``None`` for an outline without area."""
    index, *numbers = _read_numbers(line)
    name = _class_name(index, files, default_class)
    if len(numbers) == _BOX_NUMBERS:
        x, y, width, height = numbers
        corners = _to_pixels([x - width / 2, y - height / 2, x + width / 2, y + height / 2], size)
        left, top, right, bottom = corners.ravel().tolist()
        if right <= left or bottom <= top:
            return None
        return ImportedObject(name, (), place, (left, top, right - left, bottom - top))
    if len(numbers) < _MIN_POLYGON_NUMBERS or len(numbers) % 2:
        raise AnnotationError(
            f'has {counted(len(numbers), "number")} after the class; a polygon has x y of at least 3 points, a box 4 '
            'numbers'
        )
    points = _to_pixels(numbers, size)
    if not np.ptp(points, axis=0).all():
        return None
    return ImportedObject(name, (points.ravel(),), place)


def _class_name(index: float, files: YOLOFiles, default_class: str) -> str:
    if index < 0 or not index.is_integer():
        raise AnnotationError(f'the class is {index:g}, not an index of at least 0')
    names = files.names
    if names is None:
        if index:
            raise AnnotationError(
                f'the class is {index:g}, but no file declares names; write one name in each line of classes.txt'
            )
        return default_class
    if index >= len(names):
        origin = files.names_file.name if files.names_file else 'the dataset'
        raise AnnotationError(
            f'the class is {index:g}, but {origin} declares {counted(len(names), "name")} (0 to {len(names) - 1})'
        )
    return names[int(index)]


def _to_pixels(numbers: list[float], size: tuple[int, int]) -> np.ndarray:
    """Return points ``(N, 2)``, x and y in pixels, of relative coordinates.

    Raises:
        AnnotationError: A coordinate is outside the image.
    """
    points = np.array(numbers, np.float64).reshape(-1, 2)
    distances = np.maximum(-points, points - 1)
    if distances.max() > _TOLERANCE:
        worst = points.ravel()[distances.argmax()]
        hint = '; coordinates are fractions of width and height, not pixels' if abs(worst) > 2 else ''
        raise AnnotationError(f'the coordinate {worst:g} is not between 0 and 1{hint}')
    height, width = size
    return points.clip(0, 1) * (width, height)
