"""The files of a dataset in the format of YOLO: its parts, images, label files and class names."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mask_rcnn.datasets.annotation_values import shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.folders import images_in, list_folder, list_images
from mask_rcnn.datasets.importers.parts import choose_part, refuse_part
from mask_rcnn.datasets.importers.records import ImportOptions
from mask_rcnn.datasets.importers.source_files import read_lines, read_text
from mask_rcnn.io.wording import counted

#: Keys of the parts in a YAML file.
PARTS = ('train', 'val', 'test')
_IMAGES, _LABELS = 'images', 'labels'
_YAML_SUFFIXES, _YAML_NAMES = ('.yaml', '.yml'), ('data.yaml', 'data.yml', 'dataset.yaml')
_NAME_FILES = ('classes.txt', 'obj.names')
#: Text files beside label files that are not label files.
_OTHER_TEXTS = {*_NAME_FILES, 'train.txt', 'val.txt', 'test.txt'}
#: PyYAML needs seconds for larger files, and minutes for thousands of nested brackets.
_MAX_YAML_CHARACTERS, _MAX_YAML_BRACKETS = 1 << 18, 400
_MAX_PARENTS = 2
_MAX_DEPTH = 16
_MAX_FILES_TO_RECOGNISE = 20


@dataclass(frozen=True)
class YOLOFiles:
    """The files of one part of a dataset.

    Args:
        labels: The label file of each image, ``None`` for an image without one.
        names: The names of the classes by index, ``None`` if no file declares them.
        names_file: The file that declares them.
    """

    labels: dict[Path, Path | None]
    names: tuple[str, ...] | None
    names_file: Path | None


def find_files(source: Path, options: ImportOptions) -> YOLOFiles:
    """Return the files of a dataset.

    Args:
        source: A YAML file; a folder with a YAML file; a folder of images (``images/train``) or labels; a folder with
            the folders ``images`` and ``labels``; or a folder of such folders (``train``, ``valid``).
        options: The settings of the import.

    Raises:
        AnnotationFileError: The source is broken, has no images, or has several parts and none was chosen.
    """
    declared = find_yaml(source)
    entries = {part: declared[1][part] for part in PARTS if declared[1].get(part)} if declared else {}
    if declared and entries and options.image_folder is None:
        part = choose_part(entries, options.part, source)
        images = list(_resolve(*declared, part, entries[part]))
    else:
        images = _images_of(declared[0].parent if declared else source, options)
    labels = _pair(images, source, options)
    if declared:
        return YOLOFiles(labels, _read_yaml_names(*declared), declared[0])
    names, names_file = _search_names(source, labels)
    return YOLOFiles(labels, names, names_file)


def label_files(folder: Path) -> list[Path]:
    """Return the text files of a folder that can be label files."""
    if not os.path.isdir(folder):
        return []
    return [path for path in list_folder(folder)[0] if path.suffix == '.txt' and path.name not in _OTHER_TEXTS]


def first_label_files(source: Path) -> list[Path]:
    """Return some text files, not empty, in the places of the label files of a folder."""
    _, subfolders = list_folder(source)
    labels = source / _LABELS
    folders = [source, labels, *(list_folder(labels)[1] if os.path.isdir(labels) else [])]
    folders += [folder / _LABELS for folder in subfolders]
    if _IMAGES in Path(os.path.abspath(source)).parts:
        folders.append(_sibling(source, _IMAGES, _LABELS))
    files = (path for folder in folders for path in label_files(folder) if os.path.getsize(path))
    return list(itertools.islice(files, _MAX_FILES_TO_RECOGNISE))


def find_yaml(source: Path) -> tuple[Path, dict] | None:
    """Return the YAML file that declares the names of the classes, and its content.

    Args:
        source: The YAML file, in which errors are raised, or its folder, where other YAML files are ignored.

    Raises:
        AnnotationFileError: The source is a broken YAML file, or a folder with several ones.
    """
    if os.path.isfile(source):
        if source.suffix.lower() not in _YAML_SUFFIXES:
            raise AnnotationFileError(source, 'is not a YAML file that declares a dataset of YOLO')
        content = _read_yaml(source)
        if 'names' not in content:
            raise AnnotationFileError(source, "has no 'names' of the classes")
        return source, content
    found = []
    for path in list_folder(source)[0]:
        if path.suffix.lower() in _YAML_SUFFIXES:
            try:
                content = _read_yaml(path)
            except AnnotationFileError:
                if path.stem == 'data':
                    raise
                continue
            if 'names' in content:
                found.append((path, content))
    if len(found) > 1:
        found = [entry for entry in found if entry[0].stem == 'data'] or found
    if len(found) > 1:
        names = ', '.join(path.name for path, _ in found)
        raise AnnotationFileError(source, f'has the files {names}; name one of them as the source')
    return found[0] if found else None


def _read_yaml(path: Path) -> dict:
    """Return the top level of a YAML file; all scalars are text.

    The base loader constructs only texts, lists and dictionaries: no objects, and no flags from class names such as
    ``no``.
    """
    text = read_text(path)
    if len(text) > _MAX_YAML_CHARACTERS:
        raise AnnotationFileError(
            path, f'has {counted(len(text), "character")}, too many for the description of a dataset'
        )
    if text.count('[') + text.count('{') > _MAX_YAML_BRACKETS:
        raise AnnotationFileError(path, 'has too many brackets for the description of a dataset')
    try:
        content = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, 'problem_mark', None)
        place = f' (line {mark.line + 1}: {getattr(error, "problem", None)})' if mark else ''
        raise AnnotationFileError(path, f'not a YAML file{place}') from error
    if not isinstance(content, dict):
        raise AnnotationFileError(path, "not a description of a dataset: it is not a mapping with 'names'")
    return content


def _read_yaml_names(path: Path, content: dict) -> tuple[str, ...]:
    """Return ``names``: a list, or a mapping from the indices 0, 1, ..."""
    if content.get('kpt_shape'):
        raise AnnotationFileError(path, "declares keypoints ('kpt_shape'): its labels are boxes without outlines")
    names = content['names']
    if isinstance(names, dict):
        indices = {str(i) for i in range(len(names))}
        if set(names) != indices:
            raise AnnotationFileError(
                path, f"the keys of 'names' are {shorten(list(names))}, not 0 to {len(names) - 1}"
            )
        names = [names[str(i)] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) and name.strip() for name in names):
        raise AnnotationFileError(path, f"'names' is {shorten(names)}, not a list of texts")
    return _check_names(path, names)


def _check_names(path: Path, names: list[str]) -> tuple[str, ...]:
    if not names:
        raise AnnotationFileError(path, 'has no names of classes')
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise AnnotationFileError(path, f'has the name {shorten(name)} {count} times')
    return tuple(names)


def _resolve(path: Path, content: dict, part: str, entry: Any) -> Iterator[Path]:
    """Yield the images of a part that a YAML file declares."""
    root = content.get('path')
    folders = [path.parent / root, path.parent] if isinstance(root, str) and root else [path.parent]
    for text in entry if isinstance(entry, list) else [entry]:
        if not isinstance(text, str):
            raise AnnotationFileError(path, f'{part!r} is {shorten(entry)}, not a folder or a list of images')
        # Files of Roboflow have ../train/images, although train is beside the file.
        texts = [text, text.removeprefix('../')]
        places = [folder / text for text in texts for folder in folders]
        place = next((place for place in places if os.path.exists(place)), None)
        if place is None:
            raise AnnotationFileError(path, f'{part!r} is {shorten(text)}, which does not exist in {folders[0]}')
        yield from _read_list(place, folders) if os.path.isfile(place) else _nested_images(place)


def _read_list(path: Path, folders: list[Path]) -> Iterator[Path]:
    """Yield the images of a text file with one path in each line."""
    for number, line in read_lines(path):
        places = [folder / line for folder in (*folders, path.parent)]
        image = next((place for place in places if os.path.isfile(place)), None)
        if image is None:
            raise AnnotationFileError(path, f'line {number}: the image {shorten(line)} does not exist in {folders[0]}')
        yield image


def _nested_images(folder: Path, depth: int = 0) -> list[Path]:
    """Return the images of a folder and its subfolders, without following links to folders."""
    images = list_images(folder)
    for subfolder in list_folder(folder)[1] if depth < _MAX_DEPTH else []:
        if not os.path.islink(subfolder) and subfolder.name != _LABELS:
            images += _nested_images(subfolder, depth + 1)
    return images


def _images_of(source: Path, options: ImportOptions) -> list[Path]:
    """Return the images of a folder whose layout has no description."""
    images = list_images(options.image_folder) if options.image_folder is not None else _direct_images(source)
    if images:
        refuse_part(options.part, source)
        return images
    inside = source / _IMAGES
    if os.path.isdir(inside):
        parts = {folder.name: images for folder in list_folder(inside)[1] if (images := _nested_images(folder))}
    else:
        folders = list_folder(source)[1]
        parts = {folder.name: images for folder in folders if (images := images_in(folder / _IMAGES))}
    return parts[choose_part(parts, options.part, source)] if parts else []


def _direct_images(source: Path) -> list[Path]:
    """Return the images in a folder itself, in ``images`` inside it, or those of a folder of labels."""
    folders = [source, source / _IMAGES]
    if label_files(source):
        folders.append(_sibling(source, _LABELS, _IMAGES))
    candidates = [images for folder in folders if (images := images_in(folder))]
    # The folder of a dataset may also contain pictures that are not annotated.
    labelled = (images for images in candidates if any(_label_of(image, []) for image in images))
    return next(labelled, candidates[0] if candidates else [])


def _pair(images: Iterable[Path], source: Path, options: ImportOptions) -> dict[Path, Path | None]:
    """Return the label file of each image."""
    folders = []
    if options.image_folder is not None:
        root = source if os.path.isdir(source) else source.parent
        folders = [root, root / _LABELS]
    labels = {image: _label_of(image, folders) for image in images}
    if not labels:
        raise AnnotationFileError(source, 'has no images; the folder needs images/ and labels/')
    if not any(labels.values()):
        expected = _sibling(next(iter(labels)), _IMAGES, _LABELS).with_suffix('.txt')
        raise AnnotationFileError(source, f'has no label file for any of its images, such as {expected}')
    return labels


def _label_of(image: Path, folders: list[Path]) -> Path | None:
    """Return the label file of an image.

    Args:
        image: The image.
        folders: The folders of the label files; if empty, the file is in ``labels`` instead of ``images``, or
            beside the image.
    """
    name = f'{image.stem}.txt'
    places = [folder / name for folder in folders]
    places = places or [_sibling(image, _IMAGES, _LABELS).with_name(name), image.with_name(name)]
    return next((place for place in places if os.path.isfile(place)), None)


def _sibling(path: Path, name: str, other: str) -> Path:
    """Return a path in which the last folder ``name`` is replaced by ``other``."""
    path = path if name in path.parts else Path(os.path.abspath(path))
    parts = list(path.parts)
    if name not in parts:
        return path
    last = len(parts) - 1 - parts[::-1].index(name)
    return Path(*parts[:last], other, *parts[last + 1 :])


def _search_names(source: Path, labels: dict[Path, Path | None]) -> tuple[tuple[str, ...] | None, Path | None]:
    """Search the names of the classes in the folders of the labels and the source, and in the two above each."""
    first = next(path for path in labels.values() if path is not None)
    starts = [Path(os.path.abspath(folder)) for folder in (source, first.parent)]
    for folder in dict.fromkeys(place for start in starts for place in (start, *start.parents[:_MAX_PARENTS])):
        for path in (folder / name for name in _NAME_FILES):
            if os.path.isfile(path):
                return _check_names(path, [line for _, line in read_lines(path)]), path
        for path in (folder / name for name in _YAML_NAMES):
            if os.path.isfile(path) and (declared := find_yaml(path)):
                return _read_yaml_names(*declared), path
    return None, None
