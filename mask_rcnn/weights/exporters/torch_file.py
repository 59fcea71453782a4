"""Write PyTorch's files of tensors in the zip format, without PyTorch.

The layout is that of ``torch.save`` (``torch/serialization.py``, ``_save``): ``archive/data.pkl`` is the pickled state
dict, whose tensors refer to the storages ``archive/data/0``, ``archive/data/1``, ...  ``torch.load(weights_only=True)``
reads the file, also with ``mmap=True``: the bytes of every storage begin at a multiple of 64.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Mapping

import numpy as np

from mask_rcnn.weights.exporters import opcodes
from mask_rcnn.weights.exporters.opcodes import integer, integers, sequence, text
from mask_rcnn.weights.files import create_weight_file

#: PyTorch's storage of each type of array.
STORAGES = {'f4': 'FloatStorage', 'f8': 'DoubleStorage', 'f2': 'HalfStorage', 'i8': 'LongStorage', 'b1': 'BoolStorage'}

_ALIGNMENT = 64
#: Length of a member's header in the archive without its name and its extra field.
_MEMBER_HEADER = 30
_FOLDER = 'archive'


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a state dict, which appears under its name only when it is complete.  Equal arrays make equal files.

    Args:
        path: The file to write, usually ``*.pth``.
        arrays: Array of a type in :data:`STORAGES` by parameter name.

    Raises:
        WeightFileError: The file cannot be written; an existing one stays unchanged.
    """
    arrays = {name: np.asarray(array, array.dtype.newbyteorder('<'), order='C') for name, array in arrays.items()}
    with create_weight_file(path) as file, zipfile.ZipFile(file, 'w', zipfile.ZIP_STORED, allowZip64=True) as archive:
        position = _write_member(archive, 'data.pkl', pickle_state_dict(arrays), 0)
        position = _write_member(archive, 'byteorder', b'little', position)
        for i, array in enumerate(arrays.values()):
            position = _write_member(archive, f'data/{i}', array.reshape(-1).view(np.uint8).data, position)
        _write_member(archive, 'version', b'3\n', position)


def pickle_state_dict(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return the pickle of a state dict; tensor ``i`` is the whole storage ``i``."""
    items = b''.join(text(name) + of_array(array, str(i)) for i, (name, array) in enumerate(arrays.items()))
    return opcodes.start(2) + opcodes.ORDERED_DICT + b'(' + items + b'u' + opcodes.STOP


def of_array(array: np.ndarray, key: str, *, legacy: bool = False) -> bytes:
    """Return a whole array as a tensor with its own storage."""
    kind = STORAGES[array.dtype.str[1:]]
    strides = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
    return tensor(storage(kind, key, array.size, legacy=legacy), 0, array.shape, strides)


def storage(kind: str, key: str, length: int, legacy: bool = False) -> bytes:
    """Return the reference to a storage; ``legacy`` adds the view that the format before PyTorch 1.6 has."""
    parts = [text('storage'), opcodes.name('torch', kind), text(key), text('cpu'), integer(length)]
    return sequence(*parts, *[opcodes.NONE] * legacy) + b'Q'


def tensor(
    stored: bytes, offset: int, shape: tuple[int, ...], strides: list[int], rebuild: str = '_rebuild_tensor_v2'
) -> bytes:
    """Return a tensor that needs no gradient; offset and strides count elements."""
    arguments = integer(offset), integers(shape), integers(strides), opcodes.FALSE, opcodes.ORDERED_DICT
    return opcodes.call(opcodes.name('torch._utils', rebuild), stored, *arguments)


def _write_member(archive: zipfile.ZipFile, name: str, data: bytes | memoryview, position: int) -> int:
    """Write a member at a position of the archive; returns the position after it."""
    info = zipfile.ZipInfo(f'{_FOLDER}/{name}')  # has a fixed date
    info.file_size = len(data)
    before = position + _MEMBER_HEADER + len(info.filename) + 4
    n_padding = -before % _ALIGNMENT
    info.extra = b'FB' + struct.pack('<H', n_padding) + b'Z' * n_padding  # PyTorch's own padding
    with archive.open(info, 'w') as member:
        member.write(data)
    return before + n_padding + len(data)
