"""The first directory of a TIFF file (TIFF 6.0, section 2), and TIFF files that contain only its essential tags.

Pillow decodes such a reduced file.  Without the other tags, it neither applies the orientation (versions differ) nor
warns of unknown or damaged metadata.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.orientation import ORIENTATION_TAG, choose_orientation
from mask_rcnn.preprocessing.xmp import MAX_XMP_SIZE

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
SAMPLES, PLANAR, MAX_SAMPLE, EXTRA_SAMPLES, SUBSAMPLING = 277, 284, 281, 338, 530
_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES, _SAMPLE_FORMAT = 273, 279, 324, 325, 339
_ROWS_PER_STRIP, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT = 278, 317, 322, 323
_XMP = 700
_PLANES = 2  # value of PLANAR
_DATA_TAGS = (_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES)
#: Tags with several values; only the first value of the others is kept.
_ARRAYS = {BITS, EXTRA_SAMPLES, _SAMPLE_FORMAT, MAX_SAMPLE, *_DATA_TAGS, 320, 347, 529, SUBSAMPLING, 532, _XMP}
#: Tags that determine the pixels: sizes, fill order, rows per strip, fax options, predictor, palette, tiles, inks,
#: JPEG tables and the parameters of YCbCr.
_ESSENTIAL = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, EXTRA_SAMPLES, _SAMPLE_FORMAT, *_DATA_TAGS),
    *(266, _ROWS_PER_STRIP, 292, 293, _PREDICTOR, 320, _TILE_WIDTH, _TILE_HEIGHT, 332, 347, 529, SUBSAMPLING, 531, 532),
}
#: Other tags that are read; a damaged one counts as missing.
_OPTIONAL = {ORIENTATION_TAG, MAX_SAMPLE, _XMP}
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, YCBCR = 0, 1, 2, 6  # photometric interpretations
_N_CHANNELS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, 3: 1, 5: 4, YCBCR: 3, 8: 3}
_ASSOCIATED_ALPHA, _ALPHA = 1, 2  # values of EXTRA_SAMPLES
_MAX_EXTRA_SAMPLES = 16
_TYPE_FORMATS = {1: 'B', 3: 'H', 4: 'I', 6: 'b', 8: 'h', 9: 'i', 16: 'Q'}  # integers
_TYPE_SIZES = {2: 1, 5: 8, 7: 1, 10: 8, 11: 4, 12: 8} | {
    kind: struct.calcsize(f'={code}') for kind, code in _TYPE_FORMATS.items()
}


@dataclass
class TiffDirectory:
    """The essential tags of a TIFF file's first image.

    Args:
        order: Byte order, ``'<'`` or ``'>'``.
        is_big: Whether the file is a BigTIFF file, which has offsets of 64 bits.
        tags: Type and values of each tag, as bytes in the file's byte order.
    """

    order: str
    is_big: bool
    tags: dict[int, tuple[int, bytes]]

    def integers(self, tag: int) -> tuple[int, ...]:
        """Return the values of a tag; no values if it is missing or has another type."""
        kind, data = self.tags.get(tag, (0, b''))
        code = _TYPE_FORMATS.get(kind)
        return struct.unpack(f'{self.order}{len(data) // _TYPE_SIZES[kind]}{code}', data) if code else ()

    def integer(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        return next(iter(self.integers(tag)), default)

    @property
    def size(self) -> tuple[int, int]:
        """The stored height and width."""
        return self.integer(HEIGHT, 0), self.integer(WIDTH, 0)

    @property
    def has_planes(self) -> bool:
        """True if the pixels are stored as one plane for grey, or for each of R, G and B, and further planes."""
        is_planar = self.integer(PLANAR, 1) == _PLANES and self.integer(SAMPLES, 1) > 1
        return is_planar and self.integer(PHOTOMETRIC, BLACK_IS_ZERO) in (BLACK_IS_ZERO, RGB)

    @property
    def has_deep_alpha(self) -> bool:
        """True if the pixels consist of 16-bit grey and alpha, without a predictor."""
        return (
            (self.integers(BITS), self.integer(SAMPLES, 1)) == ((16, 16), 2)
            and self.integer(PHOTOMETRIC, BLACK_IS_ZERO) in (WHITE_IS_ZERO, BLACK_IS_ZERO)
            and (self.integer(PLANAR, 1), self.integer(_PREDICTOR, 1)) == (1, 1)
        )

    @property
    def orientation(self) -> int:
        """The orientation, 1 to 8."""
        _, xmp = self.tags.get(_XMP, (0, None))
        return choose_orientation(self.integer(ORIENTATION_TAG, 0), xmp)


def read_tiff_directory(file: BinaryIO) -> TiffDirectory:
    """Read the first directory of a TIFF or BigTIFF file.

    Raises:
        ValueError: The directory is damaged.
    """
    length = file.seek(0, os.SEEK_END)
    head = _read_at(file, 0, 8, length)
    order = '<' if head[:2] == b'II' else '>'
    is_big = struct.unpack_from(f'{order}H', head, 2) == (43,)
    count_format, entry_format, word = ('Q', 'HHQ', 8) if is_big else ('H', 'HHI', 4)
    if is_big:
        head = _read_at(file, 8, 8, length)
        (start,) = struct.unpack(f'{order}Q', head)
    else:
        (start,) = struct.unpack_from(f'{order}I', head, 4)
    count_size, entry_size = struct.calcsize(f'={count_format}'), struct.calcsize(f'={entry_format}') + word
    (n_entries,) = struct.unpack(f'{order}{count_format}', _read_at(file, start, count_size, length))
    entries = _read_at(file, start + count_size, n_entries * entry_size, length)
    directory = TiffDirectory(order, is_big, {})
    for at in range(0, len(entries), entry_size):
        tag, kind, count = struct.unpack_from(f'{order}{entry_format}', entries, at)
        if tag not in _ESSENTIAL | _OPTIONAL or tag in directory.tags:
            continue
        place = entries[at + entry_size - word : at + entry_size]
        try:
            directory.tags[tag] = kind, _read_value(file, order, (tag, kind, count), place, length)
        except ValueError:
            if tag in _ESSENTIAL:
                raise
    return directory


def _read_value(file: BinaryIO, order: str, entry: tuple[int, int, int], place: bytes, length: int) -> bytes:
    """Return the values of an entry (tag, type and count), of which ``place`` has the first bytes or the offset."""
    tag, kind, count = entry
    if kind not in _TYPE_SIZES or not count:
        raise ValueError(f'tag {tag} has type {kind} and {counted(count, "value")}')
    n_bytes = _TYPE_SIZES[kind] * count
    if tag == _XMP:
        n_bytes = min(n_bytes, MAX_XMP_SIZE)
    if n_bytes > len(place):
        (offset,) = struct.unpack(f'{order}{"Q" if len(place) > 4 else "I"}', place)
        place = _read_at(file, offset, n_bytes, length)
    return place[: n_bytes if tag in _ARRAYS else _TYPE_SIZES[kind]]


def check_strips(directory: TiffDirectory) -> None:
    """Check that the strips or tiles cover the image, because Pillow leaves the rest of the image black.

    Raises:
        ValueError: Strips or tiles are missing.
    """
    height, width = directory.size
    if _TILE_OFFSETS in directory.tags:
        offsets, rows, columns = _TILE_OFFSETS, directory.integer(_TILE_HEIGHT, 0), directory.integer(_TILE_WIDTH, 0)
    else:
        offsets, rows, columns = _STRIP_OFFSETS, min(directory.integer(_ROWS_PER_STRIP, height), height), width
    if rows < 1 or columns < 1:
        raise ValueError(f'strips or tiles of {rows} x {columns} pixels')
    needed = -(-height // rows) * -(-width // columns)
    if directory.integer(PLANAR, 1) == _PLANES:
        needed *= directory.integer(SAMPLES, 1)
    if len(directory.integers(offsets)) < needed:
        raise ValueError(f'{len(directory.integers(offsets))} of {counted(needed, "strip or tile", "strips or tiles")}')


def strip_tiff(data: bytes, directory: TiffDirectory, photometric: int) -> list[bytes]:
    """Return a TIFF file without metadata, or one grey file for each of grey or R, G and B if they are planes.

    Pixels of 16-bit grey and alpha, which Pillow cannot decode, are declared as 8-bit RGBA, which has equally large
    pixels.

    Args:
        data: The file.
        directory: Its first directory.
        photometric: The photometric interpretation that the new files declare.
    """
    order = directory.order
    tags = {tag: value for tag, value in directory.tags.items() if tag in _ESSENTIAL}
    tags[PHOTOMETRIC] = _shorts(order, photometric)
    n_samples = directory.integer(SAMPLES, 1)
    n_channels = _N_CHANNELS.get(photometric, n_samples)
    if n_samples == 1:
        tags.pop(PLANAR, None)  # has no meaning
    if directory.has_planes:
        planes = range(min(n_channels, n_samples))
        return [_append_directory(data, directory, _plane_tags(tags, order, k, n_samples)) for k in planes]
    if directory.has_deep_alpha:
        tags |= {PHOTOMETRIC: _shorts(order, RGB), BITS: _shorts(order, 8, 8, 8, 8), SAMPLES: _shorts(order, 4)}
        tags.pop(_SAMPLE_FORMAT, None)
        n_samples, n_channels = 4, 3
    n_extra = n_samples - n_channels
    if 0 < n_extra <= _MAX_EXTRA_SAMPLES:  # the tag is often missing, and Pillow knows few of its combinations
        is_associated = directory.integer(EXTRA_SAMPLES, _ALPHA) == _ASSOCIATED_ALPHA
        tags[EXTRA_SAMPLES] = _shorts(order, _ASSOCIATED_ALPHA if is_associated else _ALPHA, *[0] * (n_extra - 1))
    return [_append_directory(data, directory, tags)]


def _shorts(order: str, *values: int) -> tuple[int, bytes]:
    return 3, struct.pack(f'{order}{len(values)}H', *values)


def _plane_tags(tags: dict[int, tuple[int, bytes]], order: str, k: int, n_samples: int) -> dict[int, tuple[int, bytes]]:
    """Return the tags of a grey image that consists of plane ``k``."""
    plane = {tag: value for tag, value in tags.items() if tag not in (SAMPLES, PLANAR, EXTRA_SAMPLES)}
    plane[PHOTOMETRIC] = _shorts(order, BLACK_IS_ZERO)
    for tag in (BITS, _SAMPLE_FORMAT):
        if tag in plane:
            kind, values = plane[tag]
            plane[tag] = kind, values[: _TYPE_SIZES[kind]]
    for tag in _DATA_TAGS:
        if tag in plane:
            kind, values = plane[tag]
            n_bytes = len(values) // n_samples // _TYPE_SIZES[kind] * _TYPE_SIZES[kind]
            plane[tag] = kind, values[k * n_bytes : (k + 1) * n_bytes]
    return plane


def _append_directory(data: bytes, directory: TiffDirectory, tags: dict[int, tuple[int, bytes]]) -> bytes:
    """Return the file with another first directory after its data."""
    order, is_big = directory.order, directory.is_big
    word, count_format, entry_format = ('Q', 'Q', 'HHQ') if is_big else ('I', 'H', 'HHI')
    word_size = struct.calcsize(f'={word}')
    start = len(data) + len(data) % 2
    entry_size = struct.calcsize(f'={entry_format}') + word_size
    values_start = start + struct.calcsize(f'={count_format}') + len(tags) * entry_size + word_size
    entries, values = [struct.pack(f'{order}{count_format}', len(tags))], b''
    for tag, (kind, value) in sorted(tags.items()):
        entries.append(struct.pack(f'{order}{entry_format}', tag, kind, len(value) // _TYPE_SIZES[kind]))
        if len(value) <= word_size:
            entries.append(value.ljust(word_size, b'\0'))
        else:
            entries.append(struct.pack(f'{order}{word}', values_start + len(values)))
            values += value + b'\0' * (len(value) % 2)
    entries.append(bytes(word_size))  # there is no next directory
    pointer = struct.pack(f'{order}{word}', start)
    header = data[:8] + pointer if is_big else data[:4] + pointer
    return b''.join([header, data[len(header) :], b'\0' * (len(data) % 2), *entries, values])


def _read_at(file: BinaryIO, start: int, n_bytes: int, length: int) -> bytes:
    if start + n_bytes > length:
        raise ValueError('the file ends in its directory')
    file.seek(start)
    return file.read(n_bytes)
