"""Importer of LabelMe, MIT's annotation tool on the web: one XML file for each image; CVAT also exports it.

An object has a ``polygon``, or a ``segm`` with the name of a bitmap of the image's size in a folder ``Masks``.  The
parts of an object are objects of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from mask_rcnn.datasets.annotation_values import AnnotationError, shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.datasets.importers.assembly import ImageEntry, assemble, clean_name, measure_images
from mask_rcnn.datasets.importers.folders import list_files, sample
from mask_rcnn.datasets.importers.image_finder import ImageFinder
from mask_rcnn.datasets.importers.outlines import read_polygon
from mask_rcnn.datasets.importers.parts import refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.importers.source_files import read_xml
from mask_rcnn.ops.masks.rle import encode_labels
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.preprocessing.label_image import read_label_image

NAME = 'LabelMe XML'


def recognises(source: Path) -> bool:
    """Return whether a file, or a file in a folder, is an XML file of LabelMe; Pascal VOC's have other objects."""
    files = sample(list_files(source, '.xml')) if source.is_dir() else [source]
    return any(_is_labelme(file) for file in files)


def _is_labelme(file: Path) -> bool:
    try:
        root = read_xml(file)
    except AnnotationFileError:
        return False
    if root.tag != 'annotation' or root.find('filename') is None:
        return False
    objects = root.findall('object')
    if not objects:
        return root.find('size') is None and (root.find('imagesize') is not None or root.find('source') is not None)
    return any(obj.find('polygon/pt') is not None or obj.find('segm') is not None for obj in objects)


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read a file, or all files in a folder and its subfolders.

    Raises:
        AnnotationFileError: A file is damaged.
        ImageFileError: An image is missing or broken.
    """
    refuse_part(options.part, source)
    report = ImportReport(skip_broken=options.skip_broken)
    finders: dict[tuple[Path, ...], ImageFinder] = {}
    entries = []
    for file in list_files(source, '.xml') if source.is_dir() else [source]:
        try:
            root = read_xml(file)
            name = _text(root, 'filename')
            if root.tag != 'annotation' or not name:
                raise AnnotationFileError(file, "not a file of LabelMe: it has no 'annotation' with a 'filename'")
            folders = [options.image_folder] if options.image_folder else _image_folders(file, _text(root, 'folder'))
            path = finders.setdefault(tuple(folders), ImageFinder(folders)).find(name)
            entries.append(ImageEntry(file, path, partial(_read_objects, file, root, report, options.default_class)))
        except (AnnotationFileError, ImageFileError) as error:
            report.reject(error)
    return assemble(NAME, measure_images(entries, report), report)


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or '').strip()


def _image_folders(file: Path, folder: str) -> list[Path]:
    """Return the folders that may have an image: LabelMe has the trees ``Annotations`` and ``Images`` side by side."""
    folders = []
    parts = file.parent.absolute().parts
    if 'Annotations' in parts:
        i = len(parts) - 1 - parts[::-1].index('Annotations')
        folders.append(Path(*parts[:i], 'Images', *parts[i + 1 :]))
    if folder and '\0' not in folder and '..' not in folder:
        folders.append(file.parent / folder)
    return [*folders, file.parent]


def _read_objects(
    file: Path, root: Element, report: ImportReport, default_class: str, size: tuple[int, int]
) -> Iterator[ImportedObject]:
    for number, element in enumerate(root.findall('object')):
        place = f'object {_text(element, "id") or number}'
        name = f'{place} of {file.name}'
        if _text(element, 'deleted').lower() in ('1', 'true', 'yes'):
            report.omissions.add('marked as deleted', name)
            continue
        try:
            segmentation = _read_outline(file, element, size)
        except AnnotationError as problem:
            report.reject_object(file, place, problem)
            continue
        except ImageFileError as error:
            report.reject(error)
            continue
        if not segmentation:
            report.omissions.add('shapes without area', name, one='shape without area')
            continue
        class_name = clean_name(_text(element, 'name'))
        if not class_name:
            report.doubts.add(f'without a name, as {default_class!r} (--default-class)', name)
        yield ImportedObject(class_name or default_class, segmentation, place)


def _read_outline(file: Path, element: Element, size: tuple[int, int]) -> Segmentation:
    polygon, segment = element.find('polygon'), element.find('segm')
    if polygon is not None:
        points = polygon.findall('pt')
        columns, rows = ([_text(point, key) for point in points] for key in ('x', 'y'))
        outline = read_polygon(columns, rows, size)
        return (outline,) if len(outline) else ()
    if segment is None:
        raise AnnotationError("has neither a 'polygon' nor a 'segm'")
    name = _text(segment, 'mask')
    if not name:
        raise AnnotationError("has a 'segm' without the file name 'mask'")
    return _read_bitmap(_find_bitmap(file, name), size)


def _find_bitmap(file: Path, name: str) -> Path:
    parts = file.parent.absolute().parts
    folders = [file.parent / 'Masks']
    if 'Annotations' in parts:
        i = len(parts) - 1 - parts[::-1].index('Annotations')
        folders.append(Path(*parts[:i], 'Masks', *parts[i + 1 :]))
    try:
        return ImageFinder([*folders, file.parent]).find(name)
    except ImageFileError as error:
        raise AnnotationError(f'has the mask {shorten(name)}, which is not in {folders[-1]}') from error


def _read_bitmap(path: Path, size: tuple[int, int]) -> Segmentation:
    """Return the run lengths of the pixels of a bitmap that are not 0."""
    is_object = read_label_image(path).values != 0
    if is_object.shape != size:
        height, width = is_object.shape
        raise ImageFileError(path, f'has {height} x {width} pixels, but its image has {size[0]} x {size[1]}')
    return encode_labels(is_object).get(1, ())
