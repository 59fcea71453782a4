"""The structure of JPEG and PNG files: size, EXIF and XMP data, and the parts without metadata.

Pillow decodes only what these functions keep.  Metadata cannot change the pixels, and damaged metadata cannot cause
errors, warnings, or a decompression of the image (Pillow searches a PNG file for EXIF data after the pixels).
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import BinaryIO

from mask_rcnn.preprocessing.image_errors import UnsupportedImageError
from mask_rcnn.preprocessing.xmp import MAX_XMP_SIZE

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_JPEG_WITHOUT_LENGTH = {0x01, _SOI, *range(0xD0, 0xD8)}
_JPEG_FRAMES = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame; the others are tables and extensions
_JPEG_APP1, _JPEG_COMMENT = 0xE1, 0xFE
#: Application segments and comments, except JFIF (APP0) and Adobe (APP14), which determine the colour space.
_JPEG_METADATA = set(range(0xE1, 0xF0)) - {0xEE} | {_JPEG_COMMENT}
#: A marker that is not part of the pixels: those have zeros and restart markers after 0xFF.
_JPEG_MARKER = re.compile(rb'\xff([^\x00\xd0-\xd7\xff])', re.DOTALL)
_EXIF_PREFIX = b'Exif\0\0'
_XMP_PREFIX = b'http://ns.adobe.com/xap/1.0/\0'
_MAX_SCAN_SEGMENTS = 20_000  # a scan has a few tables; counting more takes long
_JPEG_TAIL = 4096  # bytes read from the end of a file, to find the end marker before zero padding

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_PNG_PIXEL_CHUNKS = (b'IHDR', b'PLTE', b'IDAT')
_PNG_END = struct.pack('>I4sI', 0, b'IEND', zlib.crc32(b'IEND'))
_MAX_EXIF_SIZE = 1 << 26
_PNG_XMP_PREFIX = b'XML:com.adobe.xmp\0'  # the keyword of a chunk of text


@dataclass
class Parts:
    """The parts of a JPEG or PNG file.

    Args:
        size: Stored height and width.
        exif: The EXIF data, if the file has some.
        xmp: The XMP data, if the file has some.
        ranges: Start and stop of the parts of the file that are necessary to decode the pixels.
        is_complete: Whether the file ends as it should.
    """

    size: tuple[int, int] = (0, 0)
    exif: bytes | None = None
    xmp: bytes | None = None
    ranges: list[tuple[int, int]] = field(default_factory=list)
    is_complete: bool = True


def find_jpeg_parts(file: BinaryIO) -> Parts:
    """Read the segments of a JPEG file up to the first scan.

    Raises:
        ValueError: There is no image before the first scan.
        UnsupportedImageError: The samples do not have 8 bits.
    """
    parts, length = Parts(ranges=[(0, 2)]), _length(file)
    file.seek(2)
    while (marker := _next_marker(file)) != _SOS:
        if marker == _EOI:
            raise ValueError('no image data')
        if marker in _JPEG_WITHOUT_LENGTH:
            continue
        start = file.tell() - 2
        (n_bytes,) = struct.unpack('>H', _read(file, 2))
        content = _read(file, max(n_bytes - 2, 0))
        if marker in _JPEG_FRAMES:
            bits, height, width = struct.unpack_from('>BHH', content)
            parts.size = (height, width)
            if bits != 8:
                raise UnsupportedImageError(f'JPEG images with {bits} bits per sample are not supported')
        elif marker == _JPEG_APP1 and content.startswith(_EXIF_PREFIX) and parts.exif is None:
            parts.exif = content
        elif marker == _JPEG_APP1 and content.startswith(_XMP_PREFIX) and parts.xmp is None:
            parts.xmp = content.removeprefix(_XMP_PREFIX)
        if marker not in _JPEG_METADATA:
            parts.ranges.append((start, file.tell()))
    parts.ranges.append((file.tell() - 2, length))
    file.seek(max(file.tell(), length - _JPEG_TAIL))
    parts.is_complete = file.read().rstrip(b'\0').endswith(bytes((0xFF, _EOI)))
    return parts


def _next_marker(file: BinaryIO) -> int:
    """Skip to the next marker, over padding and other bytes as libjpeg does, and return its code."""
    code = 0
    while not code:
        while _read(file, 1) != b'\xff':
            pass
        while (code := _read(file, 1)[0]) == 0xFF:
            pass
    return code


def count_jpeg_scans(data: bytes, parts: Parts) -> int:
    """Return the number of scans of a JPEG file, of which a progressive image has several.

    Images that follow in the same file are not counted.

    Raises:
        ValueError: The scans consist of more segments than encoders write.
    """
    n_scans, n_segments, place = 0, 0, parts.ranges[-1][0]  # the first scan
    while (found := _JPEG_MARKER.search(data, place)) is not None and found[1][0] != _EOI:
        n_segments += 1
        if n_segments > _MAX_SCAN_SEGMENTS:
            raise ValueError(f'more than {_MAX_SCAN_SEGMENTS:,} segments follow the header')
        n_scans += found[1][0] == _SOS
        has_length = found[1][0] not in _JPEG_WITHOUT_LENGTH
        place = found.end() + (int.from_bytes(data[found.end() : found.end() + 2], 'big') if has_length else 0)
    return n_scans


def strip_jpeg(data: bytes, parts: Parts) -> bytes:
    """Return a JPEG file without metadata."""
    return b''.join(data[start:stop] for start, stop in parts.ranges)


def find_png_parts(file: BinaryIO) -> Parts:
    """Read the headers of the chunks of a PNG file.

    Raises:
        ValueError: The file does not begin with an image header, or has two of them.
    """
    parts, length = Parts(is_complete=False), _length(file)
    file.seek(len(_PNG_SIGNATURE))
    while len(head := file.read(8)) == 8:
        n_bytes, name = struct.unpack('>I4s', head)
        start = file.tell()
        stop = start + n_bytes + 4  # with the checksum
        if name == b'IHDR' and not parts.ranges:
            width, height = struct.unpack('>II', _read(file, 8))
            parts.size = (height, width)
        elif not parts.ranges:
            raise ValueError('the file does not begin with an image header')
        elif name == b'IHDR':  # Pillow would read the size from the last one
            raise ValueError('the file has two image headers')
        if name == b'eXIf' and parts.exif is None and n_bytes < _MAX_EXIF_SIZE:
            parts.exif = file.read(n_bytes)
        elif name == b'iTXt' and parts.xmp is None:
            parts.xmp = _png_xmp(file, n_bytes)
        if name in _PNG_PIXEL_CHUNKS:
            parts.ranges.append((start - 8, min(stop, length)))
        if name == b'IEND' or stop > length:
            parts.is_complete = name == b'IEND'
            break
        file.seek(stop)
    if not parts.ranges:
        raise ValueError('the file ends in its header')
    return parts


def _png_xmp(file: BinaryIO, n_bytes: int) -> bytes | None:
    """Return the XMP data in a chunk of text; ``None`` if the chunk contains other text or is damaged."""
    if n_bytes < len(_PNG_XMP_PREFIX) or file.read(len(_PNG_XMP_PREFIX)) != _PNG_XMP_PREFIX:
        return None
    content = file.read(min(n_bytes - len(_PNG_XMP_PREFIX), MAX_XMP_SIZE))
    pieces = content[2:].split(b'\0', 2)  # language, translated keyword and text, after two bytes for the compression
    if len(pieces) < 3 or not content[0]:
        return pieces[2] if len(pieces) == 3 else None
    try:
        return zlib.decompressobj().decompress(pieces[2], MAX_XMP_SIZE)
    except zlib.error:
        return None


def strip_png(data: bytes, parts: Parts) -> bytes:
    """Return a PNG file without metadata, transparency, and frames of an animation after the first."""
    pieces = [data[start:stop] for start, stop in parts.ranges]
    return b''.join([_PNG_SIGNATURE, *pieces, _PNG_END if parts.is_complete else b''])


def _length(file: BinaryIO) -> int:
    return file.seek(0, os.SEEK_END)


def _read(file: BinaryIO, n_bytes: int) -> bytes:
    data = file.read(n_bytes)
    if len(data) < n_bytes:
        raise ValueError('the file ends in its header')
    return data
