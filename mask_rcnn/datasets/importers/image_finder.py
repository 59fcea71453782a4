"""Search for the image files that annotations name: tools write the paths of their own storage."""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path

from mask_rcnn.datasets.annotation_values import shorten
from mask_rcnn.datasets.image_files import find_image_file
from mask_rcnn.io.paths import relative_name
from mask_rcnn.preprocessing.image_formats import IMAGE_SUFFIXES
from mask_rcnn.preprocessing.image_io import ImageFileError

#: Label Studio's prefix of uploaded files.
_UPLOAD_PREFIX = re.compile(r'[0-9a-f]{8}-(?=.)')
_DRIVE_OR_SCHEME = re.compile(r'^[A-Za-z]:(?=[/\\])|^[A-Za-z][A-Za-z0-9+.-]+://')
_MAX_PARTS = 20
_MAX_SHOWN = 255


class ImageFinder:
    """Finds image files in folders.

    A name is searched as it is, then without its first folders: ``/data/upload/1/a.jpg`` is also ``upload/1/a.jpg``,
    ``1/a.jpg`` and ``a.jpg``; at last without the prefix of eight digits that Label Studio adds.  Backslashes and
    the spellings of accents on other systems are also tried.

    Args:
        folders: The folders, in the order of the search.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(dict.fromkeys(folders))
        self._names: dict[str, str] = {}  # found path -> name in the annotations

    def find(self, name: str) -> Path:
        """Return the image file.

        Args:
            name: The name in the annotations: a path with slashes or backslashes, or an address.

        Raises:
            ImageFileError: The file does not exist, or another name has led to it.
        """
        for candidate in _candidates(name) if _is_encodable(name) else ():
            for folder in self.folders:
                path = folder / find_image_file(folder, candidate)
                if os.path.isfile(path):
                    return self._claim(_without_parents(path), name)
        raise self.missing(name)

    def find_by_stem(self, stem: str) -> Path | None:
        """Return the first image file with a name without its suffix, or ``None``."""
        for folder in self.folders:
            for suffix in IMAGE_SUFFIXES:
                for spelling in (suffix, suffix.upper()):
                    path = folder / (stem + spelling)
                    if os.path.isfile(path):
                        return path
        return None

    def missing(self, name: str) -> ImageFileError:
        """Return the error about a missing file."""
        first = next(_candidates(name), name)
        if len(first) > _MAX_SHOWN:
            first = f'{first[:_MAX_SHOWN]}...'
        return ImageFileError(self.folders[0] / first, 'no such image file; --images names the folder of the images')

    def _claim(self, path: Path, name: str) -> Path:
        other = self._names.setdefault(os.path.abspath(path), name)
        if other != name:
            raise ImageFileError(
                path, f'two images of the annotations lead to it, {shorten(other)} and {shorten(name)}'
            )
        return path


def _candidates(name: str) -> Iterator[str]:
    """Yield the relative paths under which an image may be stored, the most specific one first."""
    yield from _shortened(name)
    decoded = urllib.parse.unquote(name.split('?d=')[-1])  # ?d= precedes the path in Label Studio's addresses
    if decoded != name:
        yield from _shortened(decoded)


def _shortened(name: str) -> Iterator[str]:
    parts = [part for part in re.split(r'[/\\]', _DRIVE_OR_SCHEME.sub('', name)) if part not in ('', '.')]
    parts = parts[-_MAX_PARTS:]
    for i in range(len(parts)):
        yield '/'.join(parts[i:])
    if parts and _UPLOAD_PREFIX.match(parts[-1]):
        yield _UPLOAD_PREFIX.sub('', parts[-1], count=1)


def _is_encodable(name: str) -> bool:
    try:
        name.encode('utf-8', 'surrogateescape')
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


def _without_parents(path: Path) -> Path:
    """Return a path without ``..``; the name of an image that is a link stays."""
    if '..' not in path.parts or path.is_absolute():
        return path
    return Path(relative_name(os.path.realpath(path.parent), os.curdir), path.name)
