"""Annotation files in COCO's format: reading, and checks of their images and categories."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_rcnn.datasets.annotation_signposts import describe_bytes, describe_json
from mask_rcnn.datasets.annotation_values import AnnotationError, id_order, read_count, read_id, shorten
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.io.errors import BadFileError
from mask_rcnn.io.file_kinds import ARCHIVE, N_KIND_BYTES, VIDEO, WEIGHTS, describe_kind
from mask_rcnn.io.wording import counted

#: The lists of an annotation file.
_LISTS = ('images', 'annotations', 'categories')


class AnnotationFileError(BadFileError):
    """An annotation file cannot be used; ``str()`` is one line, ``path: reason``."""

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(path, reason)
        self.path = Path(path)


@dataclass(frozen=True)
class ImageRecord:
    """A checked entry of ``images``.

    Args:
        image_id: Its id.
        file_name: Path relative to the folder of the images; ``''`` if the entry has none.
        height, width: Declared size in pixels, or ``None``.
        fields: All fields of the entry.
    """

    image_id: int | str
    file_name: str
    height: int | None
    width: int | None
    fields: dict


@dataclass(frozen=True)
class CategoryRecord:
    """A checked entry of ``categories``.

    Args:
        category_id: Its id.
        name: Name of the class.
        is_empty_root: True for the root class of a Roboflow export: its ``supercategory`` is ``'none'``, it is the
            ``supercategory`` of other categories, and no annotation has it.
        fields: All fields of the entry.
    """

    category_id: int | str
    name: str
    is_empty_root: bool
    fields: dict


@dataclass(frozen=True)
class COCOFile:
    """The content of an annotation file, with checked images and categories.

    Args:
        images: Entries with unique ids, in the order of the file.
        annotations: Unchecked; see :func:`mask_rcnn.datasets.annotation_records.read_records`.
        categories: Entries with unique ids, sorted by id.
    """

    images: list[ImageRecord]
    annotations: list
    categories: list[CategoryRecord]


def read_coco_json(path: str | os.PathLike, *, needs_annotations: bool = True) -> COCOFile:
    """Read an annotation file.

    Args:
        path: The JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.
        needs_annotations: Whether the list ``annotations`` is needed; otherwise it may be missing.

    Raises:
        AnnotationFileError: The file cannot be read or is not in COCO's format.
    """
    return check_coco_json(path, read_json(path), needs_annotations=needs_annotations)


def check_coco_json(path: str | os.PathLike, content: Any, *, needs_annotations: bool = True) -> COCOFile:
    """Check the parsed JSON of an annotation file; see :func:`read_coco_json`.

    Args:
        path: The file, for messages.
        content: Its parsed JSON.
        needs_annotations: Whether the list ``annotations`` is needed.

    Raises:
        AnnotationFileError: The file is not in COCO's format.
    """
    other = describe_json(content)
    if other:
        raise AnnotationFileError(path, f"not COCO's format: it is {other}")
    try:
        return check_content(content, needs_annotations=needs_annotations)
    except AnnotationError as error:
        raise AnnotationFileError(path, str(error)) from error


def read_json(path: str | os.PathLike) -> Any:
    """Return the parsed JSON of an annotation file; see :func:`read_coco_json`."""
    start = b''
    try:
        with open_for_reading(path) as (file, _):
            start = file.read(N_KIND_BYTES)
            if describe_kind(start) in (WEIGHTS, VIDEO, ARCHIVE):  # gigabytes that need not be read
                raise ValueError
            return _parse_json(start + file.read())
    except AnnotationError as error:
        raise AnnotationFileError(path, str(error)) from error
    except OSError as error:
        raise AnnotationFileError(path, (error.strerror or str(error)).lower()) from error
    except (ValueError, RecursionError) as error:  # broken JSON, broken UTF-8, or too many nested lists
        other = describe_bytes(start)
        reason = f'not a JSON file: it is {other}' if other else f'not a JSON file ({error})'
        raise AnnotationFileError(path, reason) from error


def _parse_json(data: bytes) -> Any:
    """Parse JSON.  A list that is there twice is refused, because :mod:`json` would drop the first one."""
    text = data.decode(json.detect_encoding(data), 'surrogatepass')
    is_repeated = any(text.count(f'"{key}"') > 1 for key in _LISTS)
    return json.loads(text, object_pairs_hook=_refuse_repeated_lists if is_repeated else None)  # the hook is slow


def _refuse_repeated_lists(pairs: list[tuple[str, Any]]) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        for key in _LISTS:
            if keys.count(key) > 1:
                raise AnnotationError(f'the file has {counted(keys.count(key), "list")} {key!r}; join them into one')
    return content


def check_content(content: Any, *, needs_annotations: bool = True, needs_files: bool = True) -> COCOFile:
    """Check the images and categories of an annotation file.

    Args:
        content: The parsed JSON.
        needs_annotations: Whether the list ``annotations`` is needed.
        needs_files: Whether images need a ``file_name``.

    Raises:
        AnnotationError: The content is not in COCO's format.
    """
    images, categories = (_entries(content, key) for key in ('images', 'categories'))
    annotations = content.get('annotations')
    if annotations is None and not needs_annotations:
        annotations = []
    if not isinstance(annotations, list):
        raise AnnotationError("not COCO's format: there is no list 'annotations'")
    image_records = [_read_image(entry, i, needs_files) for i, entry in enumerate(images)]
    ids = [_read_entry_id(entry, i, 'categories') for i, entry in enumerate(categories)]
    _check_unique([image.image_id for image in image_records], 'images')
    _check_unique(ids, 'categories')
    roots = _empty_roots(categories, ids, annotations)
    category_records = [
        CategoryRecord(category_id, _read_name(entry, category_id), category_id in roots, entry)
        for category_id, entry in zip(ids, categories, strict=True)
    ]
    category_records.sort(key=lambda category: id_order(category.category_id))
    return COCOFile(image_records, annotations, category_records)


def _entries(content: Any, key: str) -> list[dict]:
    entries = content.get(key) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise AnnotationError(f"not COCO's format: there is no list {key!r}")
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise AnnotationError(f"not COCO's format: entry {i} of {key!r} is {shorten(entry)}, not an object")
    return entries


def _read_entry_id(entry: dict, i: int, key: str) -> int | str:
    if 'id' not in entry:
        raise AnnotationError(f"not COCO's format: entry {i} of {key!r} has no 'id'")
    return read_id(entry['id'], f"the 'id' of entry {i} of {key!r}")


def _check_unique(ids: list[int | str], key: str) -> None:
    seen: set[int | str] = set()
    for value in ids:
        if value in seen:
            raise AnnotationError(f"two entries of {key!r} have the same 'id', {shorten(value)}")
        seen.add(value)


def _read_image(entry: dict, i: int, needs_file: bool) -> ImageRecord:
    image_id = _read_entry_id(entry, i, 'images')
    name = entry.get('file_name')
    if needs_file or isinstance(name, str):
        if not isinstance(name, str) or not name:
            raise AnnotationError(f"not COCO's format: entry {i} of 'images' has no 'file_name'")
        if not _is_file_name(name):
            raise AnnotationError(f"the 'file_name' of image {shorten(image_id)} is {shorten(name)}, not a file name")
    sides: dict[str, int | None] = {}
    for key in ('height', 'width'):
        try:
            side = entry.get(key)
            sides[key] = (None if side is None else read_count(side, key)) or None  # some tools write 0
        except AnnotationError as error:
            raise AnnotationError(f'the size of image {shorten(image_id)} is not a number: {error}') from error
    return ImageRecord(image_id, name if isinstance(name, str) else '', sides['height'], sides['width'], entry)


def _is_file_name(text: str) -> bool:
    try:
        return b'\0' not in text.encode('utf-8', 'surrogateescape')  # whatever the encoding of the system's names is
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _read_name(entry: dict, category_id: int | str) -> str:
    name = entry.get('name')
    if isinstance(name, int) and not isinstance(name, bool):  # digits
        name = str(name)
    if not isinstance(name, str) or not name.strip():
        raise AnnotationError(f"the 'name' of category {shorten(category_id)} is {shorten(name)}, not a text")
    return name


def _empty_roots(categories: list[dict], ids: list[int | str], annotations: Iterable) -> set[int | str]:
    """Return the ids of the root classes without objects."""
    roots = {
        category_id
        for category_id, entry in zip(ids, categories, strict=True)
        if str(entry.get('supercategory')).lower() == 'none'
        and 'supercategory' in entry
        and any(other is not entry and other.get('supercategory') == entry.get('name') for other in categories)
    }
    if not roots:
        return roots
    return roots - {_reference_or_none(annotation) for annotation in annotations}


def _reference_or_none(annotation: Any) -> int | str | None:
    try:
        return read_id(annotation.get('category_id'), '') if isinstance(annotation, dict) else None
    except AnnotationError:
        return None
