"""Access to the files of a source: parsed JSON, parsed XML, and listings of folders."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from mask_rcnn.datasets.coco_json import AnnotationFileError, read_json
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.preprocessing.image_errors import os_reason

#: Larger XML files are refused; LabelMe writes some kilobytes for each image.
_MAX_XML_SIZE = 64 << 20
_MAX_XML_DEPTH = 32
#: Number of files by which the format of a folder is recognised.
N_SAMPLED_FILES = 8


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


def list_files(folder: Path, suffix: str, *, recursive: bool = True) -> list[Path]:
    """Return the files of a folder with a suffix in lower or upper case, sorted, without hidden ones.

    Raises:
        AnnotationFileError: The folder cannot be read.
    """
    files: list[Path] = []

    def fail(error: OSError) -> None:
        raise AnnotationFileError(error.filename or folder, os_reason(error)) from error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith('.'))
        files += [Path(parent, name) for name in sorted(names) if _has_suffix(name, suffix)]
    return files


def _has_suffix(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and not name.startswith('.')


def sample(files: Iterable[Path]) -> list[Path]:
    """Return the first files of a folder, by which its format is recognised."""
    return list(files)[:N_SAMPLED_FILES]


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
