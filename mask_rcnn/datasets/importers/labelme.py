"""Importer of labelme: one JSON file for each image, beside the images."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mask_rcnn.datasets.annotation_values import AnnotationError, read_count, shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError, read_json
from mask_rcnn.datasets.importers.assembly import ImageEntry, assemble, clean_name, measure_images
from mask_rcnn.datasets.importers.folders import list_files, sample
from mask_rcnn.datasets.importers.image_finder import ImageFinder
from mask_rcnn.datasets.importers.labelme_shapes import LEFT_OUT_SHAPES, read_shape
from mask_rcnn.datasets.importers.outlines import join
from mask_rcnn.datasets.importers.parts import refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.importers.source_files import json_or_none
from mask_rcnn.preprocessing.image_io import ImageFileError

NAME = 'labelme'


def recognises(source: Path) -> bool:
    """Return whether a file, or a file in a folder, is of labelme."""
    if source.is_dir():
        return any(is_labelme(json_or_none(file)) for file in sample(list_files(source, '.json')))
    return is_labelme(json_or_none(source))


def is_labelme(content: Any) -> bool:
    """Return whether the content of a JSON file is labelme's."""
    return isinstance(content, dict) and 'shapes' in content and 'imagePath' in content


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read a file, or all files in a folder and its subfolders.

    Shapes with the same label and ``group_id`` are one object.  Lines and points are left out.

    Raises:
        AnnotationFileError: A file is damaged.
        ImageFileError: An image is missing, is broken, or does not have the declared size.
    """
    refuse_part(options.part, source)
    report = ImportReport(skip_broken=options.skip_broken)
    files = list_files(source, '.json') if source.is_dir() else [source]
    finders: dict[Path, ImageFinder] = {}
    entries = []
    for file in files:
        try:
            content = read_json(file)
            if not is_labelme(content):
                if source.is_dir():
                    report.omissions.add('JSON files of another kind', file.name, one='JSON file of another kind')
                    continue
                raise AnnotationFileError(file, "not a file of labelme: it has no 'shapes' and 'imagePath'")
            folders = [options.image_folder] if options.image_folder else [file.parent]
            finder = finders.setdefault(folders[0], ImageFinder(folders))
            entries.append(_read_file(file, content, finder, report, options))
        except (AnnotationFileError, ImageFileError) as error:
            report.reject(error)
    return assemble(NAME, measure_images(entries, report), report)


def _read_file(
    file: Path, content: dict, finder: ImageFinder, report: ImportReport, options: ImportOptions
) -> ImageEntry:
    shapes, name = content['shapes'], content['imagePath']
    if not isinstance(shapes, list):
        raise AnnotationFileError(file, f"'shapes' is {shorten(shapes)}, not a list")
    if not isinstance(name, str) or not name:
        raise AnnotationFileError(file, f"'imagePath' is {shorten(name)}, not a file name")
    try:
        height, width = (_read_side(content, key) for key in ('imageHeight', 'imageWidth'))
    except AnnotationError as error:
        raise AnnotationFileError(file, str(error)) from error
    path, read_data = _find_image(file, content, name, finder, options)
    read_objects = partial(_read_objects, file, shapes, report, options.default_class)
    return ImageEntry(file, path, read_objects, (height, width), read_data)


def _read_side(content: dict, key: str) -> int | None:
    value = content.get(key)
    return None if value is None else read_count(value, repr(key)) or None


def _find_image(file: Path, content: dict, name: str, finder: ImageFinder, options: ImportOptions) -> tuple[Path, Any]:
    """Return the image of a file: the named one, one with the file's stem, or the one inside the file."""
    try:
        return finder.find(name), None
    except ImageFileError as error:
        path = finder.find_by_stem(file.stem)
        if path is not None:
            return path, None
        if not isinstance(content.get('imageData'), str) or not content['imageData']:
            raise
        path = finder.folders[0] / Path(name.replace('\\', '/')).name
        if not options.embedded_images:
            reason = f'no such image file, but {file} contains it; --copy-images writes it to a folder'
            raise ImageFileError(path, reason) from error
        return path, partial(_read_image_data, file)


def _read_image_data(file: Path) -> bytes:
    """Return the image inside a file, which is read again because the images of a folder may not fit into memory."""
    content = read_json(file)
    try:
        return base64.b64decode(content['imageData'], validate=False)
    except (binascii.Error, ValueError, KeyError, TypeError) as error:
        raise AnnotationFileError(file, "'imageData' is not an image in base64") from error


def _read_objects(
    file: Path, shapes: Iterable[Any], report: ImportReport, default_class: str, size: tuple[int, int]
) -> Iterator[ImportedObject]:
    """Yield the objects of a file, those of groups at the place of their first shape."""
    parts: dict[Any, list[tuple[int, Any]]] = {}
    for number, shape in enumerate(shapes):
        name = f'shape {number}'
        try:
            if not isinstance(shape, dict):
                raise AnnotationError(f'is {shorten(shape)}, not an object')
            kind = 'polygon' if shape.get('shape_type') is None else shape['shape_type']
            if isinstance(kind, str) and kind in LEFT_OUT_SHAPES:
                report.omissions.add('lines and points', f'{name} of {file.name}', one='line or point')
                continue
            label, group = _read_label(shape), _read_group(shape)
            outline = read_shape(kind, shape, size)
        except AnnotationError as problem:
            report.reject_object(file, name, problem)
            continue
        if not outline:
            report.omissions.add('shapes without area', f'{name} of {file.name}', one='shape without area')
            continue
        if not label:
            report.doubts.add(f'without a label, as {default_class!r} (--default-class)', f'{name} of {file.name}')
        key = number if group is None else (label, group)
        parts.setdefault((label or default_class, key), []).append((number, outline))
    for (label, _), members in parts.items():
        place = 'shape' + ('s ' if len(members) > 1 else ' ') + ', '.join(str(number) for number, _ in members)
        yield ImportedObject(label, join([outline for _, outline in members], size), place)


def _read_label(shape: dict) -> str:
    label = shape.get('label')
    if isinstance(label, (int, float)) and not isinstance(label, bool):
        label = str(label)
    if label is not None and not isinstance(label, str):
        raise AnnotationError(f'has the label {shorten(label)}, not a text')
    return clean_name(label or '')


def _read_group(shape: dict) -> int | str | None:
    group = shape.get('group_id')
    if group is not None and not isinstance(group, (int, str)):
        raise AnnotationError(f"has the 'group_id' {shorten(group)}, not an integer")
    return group
