"""Binary PGM and PPM files with other samples than those of 8 bits, which Pillow decodes in a loop of Python."""

from __future__ import annotations

import re

import numpy as np

from mask_rcnn.io.wording import counted

#: Magic number, width, height and largest value, with white space and comments in between.
_HEADER = re.compile(rb'P([56])' + rb'(?:\s|#[^\n\r]*[\n\r])+(\d{1,9})' * 3 + rb'\s')
_MAX_VALUE = 65535
_BYTE = 255


def decode_netpbm(data: bytes) -> tuple[np.ndarray, int] | None:
    """Decode a binary PGM or PPM file whose largest value is not 255.

    Args:
        data: The file.

    Returns:
        The samples, ``(H, W, 1)`` or ``(H, W, 3)`` uint8 or uint16, and the largest value that the file declares;
        ``None`` for other files.

    Raises:
        ValueError: The file is truncated.
    """
    match = _HEADER.match(data)
    if match is None:
        return None
    kind, width, height, largest = (int(text) for text in match.groups())
    if largest == _BYTE or not 0 < largest <= _MAX_VALUE:
        return None
    dtype = np.dtype('>u2' if largest > _BYTE else np.uint8)
    shape = (height, width, 3 if kind == 6 else 1)
    n_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    content = data[match.end() : match.end() + n_bytes]
    if len(content) < n_bytes:
        raise ValueError(f'the file ends after {len(content)} of {counted(n_bytes, "byte")} of pixels')
    samples = np.frombuffer(content, dtype).reshape(shape)
    return samples.astype(dtype.newbyteorder('=')), largest
