"""The codestream of JPEG 2000 files (ITU-T T.800, annexes A and I)."""

from __future__ import annotations

import struct

_START = b'\xff\x4f\xff\x51'  # markers SOC and SIZ
_SIZE_OFFSET = 8
_SRGB = 16


def wrap_deep_colors(data: bytes) -> tuple[bytes, int] | None:
    """Wrap the codestream of an image with several components of more than 8 bits in a JP2 file that declares sRGB.

    OpenCV writes a line about every file without a colour space.

    Args:
        data: A JP2 file or a codestream.

    Returns:
        The new file and the number of bits per sample; ``None`` for images of another kind.
    """
    start = data.find(_START)
    if start < 0 or len(data) < start + _SIZE_OFFSET + 35:
        return None
    right, bottom, left, top = struct.unpack_from('>4I', data, start + _SIZE_OFFSET)
    n_components, kind = struct.unpack_from('>HB', data, start + _SIZE_OFFSET + 32)
    depth = (kind & 0x7F) + 1
    if n_components < 3 or depth <= 8 or right <= left or bottom <= top:
        return None
    image_header = struct.pack('>IIHBBBB', bottom - top, right - left, n_components, kind, 7, 0, 0)
    header = _box(b'ihdr', image_header) + _box(b'colr', struct.pack('>BBBI', 1, 0, 0, _SRGB))
    boxes = [
        _box(b'jP  ', b'\r\n\x87\n'),
        _box(b'ftyp', b'jp2 ' + bytes(4) + b'jp2 '),
        _box(b'jp2h', header),
        _box(b'jp2c', data[start:]),
    ]
    return b''.join(boxes), depth


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack('>I', 8 + len(content)) + name + content
