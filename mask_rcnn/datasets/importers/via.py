"""Importer of the VGG Image Annotator, versions 1 and 2: JSON exports, project files and CSV exports.

A file has images by keys of name and size.  ``regions`` is an object in version 1 and a list in version 2.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn.datasets.annotation_values import AnnotationError, read_number, shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.assembly import ImageEntry, assemble, measure_images
from mask_rcnn.datasets.importers.folders import N_SAMPLED_FILES, list_files
from mask_rcnn.datasets.importers.image_finder import ImageFinder
from mask_rcnn.datasets.importers.outlines import ellipse, read_polygon, rectangle
from mask_rcnn.datasets.importers.parts import refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.importers.source_files import json_or_none, read_json_source
from mask_rcnn.datasets.importers.via_attributes import ClassAttribute, find_attribute
from mask_rcnn.datasets.importers.via_csv import is_via_csv, read_via_csv
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import ImageFileError

NAME = 'VIA'

#: Number of images by which a file is recognised.
_N_SAMPLED_IMAGES = 8


def recognises(source: Path) -> bool:
    """Return whether a file, or a file in a folder, is a project or an export of VIA."""
    if source.is_dir():
        return bool(_find_files(source))
    return is_via_csv(source) or is_via(json_or_none(source))


def is_via(content: Any) -> bool:
    """Return whether the content of a JSON file is VIA's."""
    if not isinstance(content, dict):
        return False
    if '_via_img_metadata' in content:
        return True
    return any(
        isinstance(image, dict) and 'regions' in image and 'filename' in image
        for image in itertools.islice(content.values(), _N_SAMPLED_IMAGES)
    )


def _find_files(folder: Path) -> list[Path]:
    """Return VIA's files directly in a folder; a folder with many files has one for each image, of another tool."""
    tables = list_files(folder, '.csv', recursive=False)
    files = list_files(folder, '.json', recursive=False)
    found = [file for file in files if len(files) <= N_SAMPLED_FILES and is_via(json_or_none(file))]
    return found or [file for file in tables if len(tables) <= N_SAMPLED_FILES and is_via_csv(file)]


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read a file, or the only file of VIA in a folder.

    Raises:
        AnnotationFileError: The file is damaged, or its classes need ``options.attribute``.
        ImageFileError: An image is missing or broken.
    """
    refuse_part(options.part, source)
    if source.is_dir():
        files = _find_files(source)
        if len(files) != 1:
            names = ', '.join(file.name for file in files) or 'none'
            raise AnnotationFileError(
                source, f'{counted(len(files), "file")} of VIA in the folder ({names}); name the file'
            )
        (source,) = files
    is_table = is_via_csv(source)
    content = read_via_csv(source) if is_table else read_json_source(source)
    if not is_via(content):
        raise AnnotationFileError(source, 'not a file of VIA: it has no images with regions')
    images, settings = _split_project(source, content)
    report = ImportReport(skip_broken=options.skip_broken)
    finder = ImageFinder([options.image_folder] if options.image_folder else _image_folders(source, settings))
    regions = {key: list(_list_regions(source, key, image, report)) for key, image in images.items()}
    declared = _declared_attributes(content)
    attribute = find_attribute(source, (r for rs in regions.values() for _, r in rs), declared, options)
    entries: list[ImageEntry] = []
    for key, image in images.items():
        if not isinstance(image, dict) or not isinstance(image.get('filename'), str) or not image['filename']:
            report.reject(AnnotationFileError(source, f"image {shorten(key)} has no 'filename'"))
            continue
        try:
            path = finder.find(image['filename'])
        except ImageFileError as error:
            report.reject(error)
            continue
        entries.append(ImageEntry(source, path, partial(_read_objects, source, path, regions[key], attribute, report)))
    if not images:
        raise AnnotationFileError(source, 'has no images')
    is_first_version = any(
        isinstance(image, dict) and isinstance(image.get('regions'), dict) for image in images.values()
    )
    name = 'VIA CSV' if is_table else 'VIA 1' if is_first_version else 'VIA 2'
    return assemble(name, measure_images(entries, report), report)


def _split_project(source: Path, content: dict) -> tuple[dict, Any]:
    """Return the images of an export or of a project, and the settings."""
    if '_via_img_metadata' not in content:
        return content, None
    images = content['_via_img_metadata']
    if not isinstance(images, dict):
        raise AnnotationFileError(source, f"'_via_img_metadata' is {shorten(images)}, not an object")
    return images, content.get('_via_settings')


def _image_folders(source: Path, settings: Any) -> list[Path]:
    """Return the folders that may have the images: that of the file, and the one in the settings of a project."""
    core = settings.get('core') if isinstance(settings, dict) else None
    folder = core.get('default_filepath') if isinstance(core, dict) else None
    folders = [source.parent, source.parent / 'images']
    if isinstance(folder, str) and folder and '\0' not in folder:
        folders.insert(1, source.parent / folder.replace('\\', '/'))
    return folders


def _declared_attributes(content: dict) -> list[str]:
    """Return the names of the region attributes that a project declares."""
    attributes = content.get('_via_attributes')
    regions = attributes.get('region') if isinstance(attributes, dict) else None
    return list(regions) if isinstance(regions, dict) else []


def _list_regions(source: Path, key: str, image: Any, report: ImportReport) -> Iterator[tuple[str, dict]]:
    """Yield the names and contents of the regions of an image."""
    regions = image.get('regions') if isinstance(image, dict) else None
    if regions is None:
        return
    if not isinstance(regions, (dict, list)):
        report.reject(AnnotationFileError(source, f"the 'regions' of image {shorten(key)} are {shorten(regions)}"))
        return
    for number, region in regions.items() if isinstance(regions, dict) else enumerate(regions):
        if isinstance(region, dict):
            yield f'region {number}', region
        else:
            problem = AnnotationError(f'is {shorten(region)}, not an object')
            report.reject_object(source, f'region {number} of image {shorten(key)}', problem)


def _read_objects(
    source: Path,
    path: Path,
    regions: Iterable[tuple[str, dict]],
    attribute: ClassAttribute,
    report: ImportReport,
    size: tuple[int, int],
) -> Iterator[ImportedObject]:
    for place, region in regions:
        name = f'{place} of {path.name}'
        try:
            shape = region.get('shape_attributes')
            if not isinstance(shape, dict):
                raise AnnotationError(f"has the 'shape_attributes' {shorten(shape)}, not an object")
            kind = shape.get('name')
            if kind == 'point':
                report.omissions.add('points', name, one='point')
                continue
            polygon = _read_shape(kind, shape, size)
            class_name = attribute.read(region, name, report)
        except AnnotationError as problem:
            report.reject_object(source, name, problem)
            continue
        if not len(polygon):
            report.omissions.add('shapes without area', name, one='shape without area')
            continue
        if kind == 'polyline':
            report.doubts.add('polylines, as closed outlines', name, one='polyline, as a closed outline')
        yield ImportedObject(class_name, (polygon,), place)


def _read_shape(kind: Any, shape: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return the polygon of a region; empty without area."""
    if kind in ('polygon', 'polyline'):
        return read_polygon(shape.get('all_points_x'), shape.get('all_points_y'), size)
    if kind == 'rect':
        x, y, width, height = _numbers(shape, 'x', 'y', 'width', 'height')
        return rectangle(x, y, x + width, y + height, size)
    if kind == 'circle':
        x, y, radius = _numbers(shape, 'cx', 'cy', 'r')
        return ellipse((x, y), (radius, radius), size)
    if kind == 'ellipse':
        x, y, rx, ry = _numbers(shape, 'cx', 'cy', 'rx', 'ry')
        angle = _numbers(shape, 'theta')[0] if 'theta' in shape else 0.0  # radians, version 2.0.6 or later
        return ellipse((x, y), (rx, ry), size, angle)
    raise AnnotationError(
        f'has the shape {shorten(kind)}; known are polygon, polyline, rect, circle, ellipse and point'
    )


def _numbers(shape: Mapping[str, Any], *keys: str) -> list[float]:
    return [read_number(shape.get(key), f'has a {key!r} that') for key in keys]
