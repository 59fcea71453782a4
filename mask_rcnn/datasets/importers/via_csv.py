"""CSV exports of the VGG Image Annotator, read into the structure of its JSON exports."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from mask_rcnn.datasets.annotation_values import shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.source_files import read_text
from mask_rcnn.io.atomic_file import open_for_reading

#: The columns that are read; version 1 writes '#filename'.
_COLUMNS = ('filename', 'region_shape_attributes', 'region_attributes')
_N_HEADER_BYTES = 512
#: Maximum length of a field; the default of :mod:`csv` is shorter than long polygons.
_MAX_FIELD = 1 << 26
_MAX_FILE_SIZE = 1 << 30


def is_via_csv(path: Path) -> bool:
    """Return whether a file begins with the head of VIA's table."""
    try:
        with open_for_reading(path) as (file, _):
            start = file.read(_N_HEADER_BYTES)
    except OSError:
        return False
    head = start.decode('utf-8-sig', 'replace').split('\n')[0]
    return all(name in head for name in _COLUMNS)


def read_via_csv(path: Path) -> dict[str, Any]:
    """Return the images of a CSV file by their keys, as in a JSON export.

    Raises:
        AnnotationFileError: The file cannot be read or is damaged.
    """
    text = read_text(path, max_bytes=_MAX_FILE_SIZE)
    images: dict[str, Any] = {}
    limit = csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(io.StringIO(text, newline=''), strict=True)
    try:
        head = [name.lstrip('#').strip() for name in next(reader)]
        for row in reader:
            if row:
                _add_row(path, reader.line_num, dict(zip(head, row, strict=False)), images)
    except csv.Error as error:
        raise AnnotationFileError(path, f'line {reader.line_num}: {error}') from error
    finally:
        csv.field_size_limit(limit)
    return images


def _add_row(path: Path, line: int, row: dict[str, str], images: dict[str, Any]) -> None:
    missing = [name for name in _COLUMNS if name not in row]
    if missing:
        raise AnnotationFileError(path, f'line {line} has no {missing[0]!r}')
    key = row['filename'] + row.get('file_size', '')
    image = images.setdefault(key, {'filename': row['filename'], 'regions': []})
    shape, attributes = (_read_field(path, line, row, name) for name in _COLUMNS[1:])
    if shape:  # {} in the row of an image without regions
        image['regions'].append({'shape_attributes': shape, 'region_attributes': attributes})


def _read_field(path: Path, line: int, row: dict[str, str], name: str) -> Any:
    try:
        return json.loads(row[name] or '{}')
    except (ValueError, RecursionError) as error:
        raise AnnotationFileError(path, f'line {line}: {name!r} is {shorten(row[name])}, not JSON') from error
