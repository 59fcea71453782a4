"""The size of GIF files (GIF 89a, sections 18 to 24)."""

from __future__ import annotations

import struct
from typing import BinaryIO

_EXTENSION, _IMAGE = 0x21, 0x2C


def first_image_size(file: BinaryIO) -> tuple[int, int]:
    """Return the height and width of the box around the screen and the first image.

    This is the size of the array that Pillow allocates for the first image.

    Args:
        file: The file, at any position.

    Raises:
        ValueError: The file ends before its first image.
    """
    file.seek(6)
    width, height, flags = struct.unpack('<HHB', _read(file, 5))
    table_size = 3 << (flags & 7) + 1 if flags & 0x80 else 0
    file.seek(13 + table_size)
    while (kind := _read(file, 1)[0]) != _IMAGE:
        if kind != _EXTENSION:  # Pillow skips other bytes
            continue
        _read(file, 1)  # the kind of the extension
        while n_bytes := _read(file, 1)[0]:
            _read(file, n_bytes)
    left, top, image_width, image_height = struct.unpack('<4H', _read(file, 8))
    return max(height, top + image_height), max(width, left + image_width)


def _read(file: BinaryIO, n_bytes: int) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise ValueError('the file ends before its first image')
    return data
