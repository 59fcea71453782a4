"""Importer of COCO's format as CVAT, Roboflow, Label Studio, COCO Annotator and others write it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from mask_rcnn.datasets.annotation_records import AnnotationRecord, read_records
from mask_rcnn.datasets.annotation_values import AnnotationError
from mask_rcnn.datasets.coco_json import AnnotationFileError, COCOFile, ImageRecord, check_coco_json
from mask_rcnn.datasets.importers.assembly import ImageEntry, assemble, clean_name, measure_images
from mask_rcnn.datasets.importers.folders import N_SAMPLED_FILES, list_files
from mask_rcnn.datasets.importers.image_finder import ImageFinder
from mask_rcnn.datasets.importers.parts import choose_part, refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.importers.source_files import json_or_none, read_json_source
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import ImageFileError

NAME = 'COCO'

#: The file of a Roboflow export, beside its images in each of these folders.
_ROBOFLOW_FILE = '_annotations.coco.json'
_PARTS = ('train', 'valid', 'val', 'test')
_LISTS = ('images', 'annotations')


def recognises(source: Path) -> bool:
    """Return whether a file, or a file in a folder, is in COCO's format."""
    if source.is_dir():
        return bool(_find_files(source) or _find_parts(source))
    return is_coco(json_or_none(source))


def is_coco(content: Any) -> bool:
    """Return whether the content of a JSON file has COCO's lists of images and annotations."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in _LISTS)


def _find_files(folder: Path) -> list[Path]:
    """Return the files in COCO's format in a folder or in its subfolder ``annotations``."""
    if (folder / _ROBOFLOW_FILE).is_file():
        return [folder / _ROBOFLOW_FILE]
    found: list[Path] = []
    for place in (folder, folder / 'annotations'):
        files = list_files(place, '.json', recursive=False) if place.is_dir() else []
        if len(files) <= N_SAMPLED_FILES:  # a folder with many files has one for each image, of another tool
            found += [file for file in files if is_coco(json_or_none(file))]
    return found


def _find_parts(folder: Path) -> list[Path]:
    """Return the folders of a Roboflow export."""
    return [folder / part for part in _PARTS if (folder / part / _ROBOFLOW_FILE).is_file()]


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read a file, or the only file in a folder.

    Raises:
        AnnotationFileError: The file is damaged, or a folder has several.
        ImageFileError: An image is missing, is broken, or does not have the declared size.
    """
    source = _choose_file(source, options.part)
    raw = read_json_source(source)
    report = ImportReport(skip_broken=options.skip_broken)
    content = check_coco_json(source, _without_deleted(raw, report))
    finder = ImageFinder([options.image_folder] if options.image_folder else _image_folders(source))
    objects: dict[int | str, list[ImportedObject]] = defaultdict(list)
    entries: dict[int | str, ImageEntry] = {}
    for image in content.images:
        try:
            path = _find_image(finder, image)
        except ImageFileError as error:
            report.reject(error)
            continue
        get_objects = partial(_objects_of, objects, image.image_id)
        entries[image.image_id] = ImageEntry(source, path, get_objects, (image.height, image.width))
    if not content.images:
        raise AnnotationFileError(source, 'has no images')
    measured = measure_images(list(entries.values()), report)
    size_of = {id(entry): size for entry, size in measured}
    sizes = {image_id: size_of.get(id(entry)) for image_id, entry in entries.items()}
    _read_objects(source, content, sizes, objects, report, options)
    names = [clean_name(category.name) for category in content.categories if not category.is_empty_root]
    for category in content.categories:
        if category.is_empty_root:
            report.omissions.add('empty root class of Roboflow', repr(category.name))
    return assemble(NAME, measured, report, names)


def _choose_file(source: Path, part: str | None) -> Path:
    files = _find_files(source) if source.is_dir() else [source]
    if len(files) == 1:
        refuse_part(part, source)
        return files[0]
    if files:
        names = ', '.join(str(file.relative_to(source)) for file in files)
        raise AnnotationFileError(
            source, f"{counted(len(files), 'file')} in COCO's format in the folder ({names}); name the file"
        )
    parts = {folder.name: folder for folder in _find_parts(source)}
    if not parts:
        raise AnnotationFileError(source, "no file in COCO's format in the folder")
    return parts[choose_part(parts, part, source)] / _ROBOFLOW_FILE


def _without_deleted(raw: Any, report: ImportReport) -> Any:
    """Return the content without the entries that COCO Annotator marks as deleted."""
    if not isinstance(raw, dict):
        return raw
    content = dict(raw)
    for key in (*_LISTS, 'categories'):
        if isinstance(raw.get(key), list):
            content[key] = [entry for entry in raw[key] if not _is_deleted(entry)]
            for entry in raw[key]:
                if _is_deleted(entry):
                    report.omissions.add('marked as deleted', f'{key} {entry.get("id")}')
    if all(isinstance(raw.get(key), list) for key in _LISTS):
        # As text: an id of a damaged file may be a list, which a set cannot contain.
        gone = {repr(entry.get('id')) for entry in raw['images'] if _is_deleted(entry)}
        content['annotations'] = [
            entry
            for entry in content['annotations']
            if not (isinstance(entry, dict) and repr(entry.get('image_id')) in gone)
        ]
    return content


def _is_deleted(entry: Any) -> bool:
    return isinstance(entry, dict) and entry.get('deleted') is True


def _image_folders(source: Path) -> list[Path]:
    """Return the folders that may have the images: beside the file, or where CVAT and COCO put them."""
    stem = source.stem.removeprefix('instances_')
    folders = [source.parent, source.parent / 'images']
    for parent in (source.parent.parent, source.parent):
        folders += [parent / 'images' / stem, parent / stem, parent / 'images']
    return [*folders, source.parent.parent]


def _find_image(finder: ImageFinder, image: ImageRecord) -> Path:
    """Return the file of an image; COCO Annotator's ``path`` leads to images in subfolders."""
    try:
        return finder.find(image.file_name)
    except ImageFileError:
        path = image.fields.get('path')
        if not isinstance(path, str) or not path:
            raise
        return finder.find(path)


def _objects_of(
    objects: Mapping[int | str, list[ImportedObject]], image_id: int | str, size: tuple[int, int]
) -> list[ImportedObject]:
    return objects.get(image_id, [])


def _read_objects(
    source: Path,
    content: COCOFile,
    sizes: Mapping[int | str, tuple[int, int] | None],
    objects: Mapping[int | str, list[ImportedObject]],
    report: ImportReport,
    options: ImportOptions,
) -> None:
    """Read all annotations into the lists of their images."""
    names = {category.category_id: clean_name(category.name) for category in content.categories}
    all_sizes = {image.image_id: sizes.get(image.image_id) for image in content.images}
    crowds: dict[str, list[str]] = defaultdict(list)
    has_objects = set()
    for record in read_records(content.annotations, all_sizes, list(names), keypoints=False):
        if isinstance(record, AnnotationError):
            report.reject(AnnotationFileError(source, str(record)))
            continue
        reason = _reason_to_omit(record)
        if reason:
            report.omissions.add(reason, record.name)
            continue
        class_name = names[record.category_id]
        is_crowd = record.is_crowd and options.crowds == 'keep'
        if is_crowd:
            crowds[class_name].append(record.name)
        else:
            has_objects.add(class_name)
        x, y, width, height = record.bbox or [0.0] * 4
        objects[record.image_id].append(
            ImportedObject(class_name, record.segmentation, record.name, (x, y, width, height), is_crowd)
        )
    for class_name, members in crowds.items():
        if class_name not in has_objects:
            reason = f'crowds, as all of {class_name!r} (--crowds objects makes them objects)'
            one = f'crowd, as all of {class_name!r} (--crowds objects makes it an object)'
            for name in members:
                report.doubts.add(reason, name, one=one)
    for annotation in content.annotations:
        if isinstance(annotation, dict) and annotation.get('keypoints'):
            report.omissions.add('sets of keypoints', f'annotation {annotation.get("id")}', one='set of keypoints')


def _reason_to_omit(record: AnnotationRecord) -> str:
    if record.is_ignored:
        return "marked 'ignore'"
    if record.bbox is None:
        return 'without a box and without an outline'
    return ''
