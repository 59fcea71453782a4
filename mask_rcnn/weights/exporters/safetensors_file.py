"""Write safetensors files; :mod:`mask_rcnn.weights.readers.safetensors_file` describes the format."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import numpy as np

from mask_rcnn.weights.files import create_weight_file
from mask_rcnn.weights.readers.safetensors_file import METADATA

#: The format's name of each type of array.
_KINDS = {'f8': 'F64', 'f4': 'F32', 'f2': 'F16', 'i8': 'I64', 'i4': 'I32', 'b1': 'BOOL'}

#: The values begin at a multiple of this, so that a reader can map the file into memory.
_ALIGNMENT = 64


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write arrays and text, which appear under the file's name only when it is complete.

    Args:
        path: The file to write, usually ``*.safetensors``.
        arrays: Array of floats, of integers of 32 or 64 bits or of booleans by name.
        metadata: Text by key.

    Raises:
        WeightFileError: The file cannot be written; an existing one stays unchanged.
    """
    # Arrays of wide types first, so that each of them is aligned.
    names = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    header: dict[str, object] = {METADATA: dict(metadata)}
    position = 0
    for name in names:
        array = arrays[name]
        end = position + array.nbytes
        header[name] = {
            'dtype': _KINDS[array.dtype.str[1:]],
            'shape': list(array.shape),
            'data_offsets': [position, end],
        }
        position = end
    text = json.dumps(header, separators=(',', ':'), allow_nan=False).encode()
    text += b' ' * (-(8 + len(text)) % _ALIGNMENT)
    with create_weight_file(path) as file:
        file.write(len(text).to_bytes(8, 'little') + text)
        for name in names:
            array = np.asarray(arrays[name], arrays[name].dtype.newbyteorder('<'), order='C')
            file.write(array.reshape(-1).view(np.uint8).data)
