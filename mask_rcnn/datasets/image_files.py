"""The image files of an annotation file: their names and their sizes."""

from __future__ import annotations

import contextlib
import os
import unicodedata
from pathlib import Path

from mask_rcnn.preprocessing.image_io import ImageFileError, read_image_size


def find_image_file(folder: Path, name: str) -> str:
    """Return the name of an image file, in another spelling if only the file of that name exists.

    Windows writes backslashes, macOS decomposes letters with accents, and names in UTF-8 come to systems with another
    encoding.
    """
    if (name.isascii() and '\\' not in name) or os.path.lexists(folder / name):
        return name
    slashes = name.replace('\\', '/') if os.sep == '/' else name
    spellings = [slashes, *(unicodedata.normalize(form, slashes) for form in ('NFC', 'NFD'))]
    spellings += [os.fsdecode(spelling.encode('utf-8', 'surrogateescape')) for spelling in spellings]
    return next((spelling for spelling in spellings if os.path.lexists(folder / spelling)), name)


def explain_size(name: str, size: tuple[int, int], expected: tuple[int, int]) -> ImageFileError | None:
    """Return the error of an image that does not have the expected height and width, otherwise ``None``.

    Args:
        name: Path of the image.
        size: Its height and width.
        expected: The height and width that the annotation file declares.
    """
    if tuple(size) == tuple(expected):
        return None
    reason = (
        f'the image has {size[0]} x {size[1]} pixels (height x width), but the annotation file declares '
        f'{expected[0]} x {expected[1]}'
    )
    if tuple(size) == tuple(expected)[::-1]:
        with contextlib.suppress(ImageFileError):  # the file has just vanished
            stored, upright = (read_image_size(name, apply_orientation=apply) for apply in (False, True))
            if stored == expected and upright == size:
                reason += (
                    ', its size without its orientation (EXIF or XMP): remove it from the file if the annotations '
                    'fit the stored pixels, otherwise exchange width and height in the annotation file'
                )
            elif upright == expected and stored == size:
                reason += ', its size with its orientation (EXIF or XMP), which models of this dialect do not apply'
    return ImageFileError(name, reason)
