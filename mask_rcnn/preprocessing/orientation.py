"""The orientation of a photo: its choice among metadata, EXIF's tag, and its application to an array."""

from __future__ import annotations

import struct

import numpy as np

from mask_rcnn.preprocessing.xmp import xmp_orientation

#: The EXIF and TIFF tag of the orientation.
ORIENTATION_TAG = 0x0112

#: Orientation of an image whose pixels are stored as they are displayed.
UPRIGHT = 1

_FIRST_TRANSPOSED = 5  # orientations 5 to 8 exchange height and width
_EXIF_PREFIX = b'Exif\0\0'
_BYTE_ORDERS = {b'II': '<', b'MM': '>'}
_INTEGERS = {1: 'B', 3: 'H', 4: 'I'}  # TIFF's types BYTE, SHORT and LONG
_ENTRY_SIZE = 12


def choose_orientation(stated: int | None, xmp: bytes | None) -> int:
    """Return the orientation of an image, by one rule for all formats.

    Args:
        stated: The value of EXIF or of the format itself; values that are not valid count as missing.
        xmp: XMP data; it is parsed only if ``stated`` is not valid.

    Returns:
        1 to 8; 1 if no value is valid.
    """
    return _valid(stated) or xmp_orientation(xmp) or UPRIGHT


def exif_orientation(exif: bytes | None) -> int | None:
    """Return the orientation in EXIF data, 1 to 8; ``None`` if the data is missing, damaged or has no valid one.

    Args:
        exif: A TIFF structure (EXIF 2.32, section 4.5), with or without the prefix ``Exif`` and two zeros.
    """
    data = (exif or b'').removeprefix(_EXIF_PREFIX)
    order = _BYTE_ORDERS.get(data[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(f'{order}I', data, 4)
        (n_entries,) = struct.unpack_from(f'{order}H', data, start)
        for entry in range(start + 2, start + 2 + n_entries * _ENTRY_SIZE, _ENTRY_SIZE):
            tag, kind = struct.unpack_from(f'{order}HH', data, entry)
            if tag == ORIENTATION_TAG and kind in _INTEGERS:
                return _valid(*struct.unpack_from(f'{order}{_INTEGERS[kind]}', data, entry + 8))
    except struct.error:  # the data ends too early
        pass
    return None


def _valid(value: int | None) -> int | None:
    return value if value is not None and 1 <= value <= 8 else None


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the height and width after :func:`make_upright`."""
    return size[::-1] if orientation >= _FIRST_TRANSPOSED else size


def make_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an orientation to stored pixels.

    Args:
        pixels: ``(H, W, C)``.
        orientation: 1 to 8.

    Returns:
        ``(H, W, C)``, or ``(W, H, C)`` for the orientations 5 to 8; contiguous.
    """
    if orientation >= _FIRST_TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
