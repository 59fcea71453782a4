"""Access to the files of a source: parsed JSON, parsed XML, and text."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mask_rcnn.datasets.coco_json import AnnotationFileError, read_json
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.io.file_kinds import N_KIND_BYTES, describe_kind
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_errors import os_reason

#: Text files are lists of names or of coordinates; a file that is larger is another one.
_MAX_TEXT_BYTES = 1 << 26

#: Larger XML files are refused; LabelMe writes some kilobytes for each image.
_MAX_XML_SIZE = 64 << 20
_MAX_XML_DEPTH = 32


def read_json_source(path: Path) -> Any:
    """Return the content of a JSON file; it is kept for the next call with the same file, and must not be changed.

    Raises:
        AnnotationFileError: The file cannot be read or is not JSON.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return read_json(path)
    return _read_cached(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=1)
def _read_cached(path: Path, mtime: int, size: int) -> Any:
    return read_json(path)


def forget_json() -> None:
    """Free the memory of :func:`read_json_source`."""
    _read_cached.cache_clear()


def json_or_none(path: Path) -> Any:
    """Return the content of a JSON file, or ``None`` if it cannot be read."""
    try:
        return read_json_source(path)
    except AnnotationFileError:
        return None


def read_xml(path: Path) -> Element:
    """Return the root of an XML file.

    A document type declaration, which could declare entities, is refused, as are files of more than 64 MiB and deep
    nesting.  Nothing is loaded.

    Raises:
        AnnotationFileError: The file cannot be read, is not XML, or is refused.
    """
    try:
        with open_for_reading(path) as (file, size):
            if size > _MAX_XML_SIZE:
                raise AnnotationFileError(path, f'is too large for an XML file of annotations ({size} bytes)')
            return _parse_xml(path, file.read())
    except OSError as error:
        raise AnnotationFileError(path, os_reason(error)) from error


def _parse_xml(path: Path, data: bytes) -> Element:
    builder, depth = TreeBuilder(), 0
    parser = expat.ParserCreate()
    parser.buffer_text = True

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_XML_DEPTH:
            raise AnnotationFileError(
                path, f'line {parser.CurrentLineNumber}: more than {_MAX_XML_DEPTH} nested elements'
            )
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    def refuse(*_: object) -> None:
        raise AnnotationFileError(path, 'has a document type declaration, which annotations do not need; remove it')

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:
        if isinstance(error, AnnotationFileError):
            raise
        raise AnnotationFileError(path, f'not an XML file ({error})') from error
    return builder.close()


def read_text(path: Path, *, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """Return the content of a text file.

    Args:
        path: The file, in UTF-8 with or without a byte order mark.
        max_bytes: The maximum size of the file.

    Raises:
        AnnotationFileError: The file is missing, unreadable, too large, or is not a text.
    """
    try:
        with open_for_reading(path) as (file, n_bytes):
            if n_bytes > max_bytes:
                raise AnnotationFileError(
                    path, f'has {counted(n_bytes, "byte")}, too many for a text file of annotations'
                )
            data = file.read()
    except AnnotationFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise AnnotationFileError(path, os_reason(error)) from error
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        kind = describe_kind(data[:N_KIND_BYTES])
        raise AnnotationFileError(path, f'not a text file in UTF-8{f": it is {kind}" if kind else ""}') from error
    if '\0' in text:
        raise AnnotationFileError(path, 'not a text file: it contains NUL characters')
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not empty, with their numbers; see :func:`read_text`."""
    numbered = enumerate(read_text(path).splitlines(), 1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]
