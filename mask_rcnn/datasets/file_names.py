"""The names of image files in annotation files, which other systems may spell differently."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path


def find_spelling(folder: Path, name: str) -> str:
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
