"""Read safetensors files without the library of that name.

Such a file is the length of a header in 8 bytes, the header, which is JSON text, and the values of all tensors.  The
header contains, for each tensor, its type, its shape and the range of its bytes after the header; the optional entry
``__metadata__`` is a dictionary of text.  The ranges must cover the rest of the file without gaps and overlaps, so that
reading never allocates more than about the size of the file (twice that for bfloat16).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import is_array_shape, open_weight_file

#: Maximum length of the header in bytes; that of a network with 2000 arrays has about 200 kB.  JSON text can become
#: 25 times its size in memory.
MAX_HEADER = 1 << 22

#: Name of the header's entry that is not a tensor.
METADATA = '__metadata__'

_DTYPES = {
    'F64': '<f8',
    'F32': '<f4',
    'F16': '<f2',
    'BF16': '<u2',
    'I64': '<i8',
    'I32': '<i4',
    'I16': '<i2',
    'I8': '|i1',
    'U64': '<u8',
    'U32': '<u4',
    'U16': '<u2',
    'U8': '|u1',
    'BOOL': '|b1',
}

_MAX_TENSORS = 100_000


class SafetensorsFile(NamedTuple):
    """The content of a file.

    Attributes:
        arrays: Arrays by name in the order of their values; bfloat16 becomes float32.
        metadata: The text of ``__metadata__`` by key.
    """

    arrays: dict[str, np.ndarray]
    metadata: dict[str, str]


class Header(NamedTuple):
    """The header of a file.

    Attributes:
        names: The names of the arrays.
        metadata: The text of ``__metadata__`` by key.
    """

    names: tuple[str, ...]
    metadata: dict[str, str]


class _Entry(NamedTuple):
    """A tensor in the header."""

    name: str
    kind: str
    shape: tuple[int, ...]
    start: int
    end: int


def is_safetensors(start: bytes) -> bool:
    """Return whether a file that begins with these bytes has the format: a header of plausible length follows."""
    return len(start) > 9 and 2 <= int.from_bytes(start[:8], 'little') <= MAX_HEADER and start[8:9] == b'{'


def read(path: str | os.PathLike) -> SafetensorsFile:
    """Read all tensors and the metadata of a file.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or has a tensor of a type that NumPy does not have.
    """
    with open_weight_file(path) as (file, size), _one_line_errors(path):
        entries, metadata = _read_header(file, size)
        return SafetensorsFile({entry.name: _read_array(file, entry) for entry in entries}, metadata)


def read_header(path: str | os.PathLike) -> Header:
    """Read the names of the tensors and the metadata of a file; see :func:`read`."""
    with open_weight_file(path) as (file, size), _one_line_errors(path):
        entries, metadata = _read_header(file, size)
        return Header(tuple(entry.name for entry in entries), metadata)


@contextlib.contextmanager
def _one_line_errors(path: str | os.PathLike) -> Iterator[None]:
    """Replace the errors of a damaged file by one line."""
    try:
        yield
    except ValueError as error:
        raise WeightFileError(path, f'is not a safetensors file, or damaged: {error}') from None


def _read_header(file: BinaryIO, size: int) -> tuple[list[_Entry], dict[str, str]]:
    """Return the tensors in the order of their values, and the metadata; the values are next in the file."""
    length = int.from_bytes(file.read(8), 'little')
    if not 2 <= length <= min(MAX_HEADER, size - 8):
        raise ValueError(f'a header of {counted(length, "byte")} in a file of {size} (at most {MAX_HEADER})')
    try:
        header = json.loads(file.read(length), object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError('its header is nested too deeply') from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'its header is not JSON text: {to_printable_ascii(str(error))}') from None
    if not isinstance(header, dict):
        raise ValueError('its header is not an object')
    metadata = header.pop(METADATA, {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise ValueError(f'{METADATA} is not an object of strings')
    if len(header) > _MAX_TENSORS:
        raise ValueError(f'more than {_MAX_TENSORS} tensors')
    entries = sorted(itertools.starmap(_parse_entry, header.items()), key=lambda entry: (entry.start, entry.end))
    _check_ranges(entries, size - 8 - length)
    return entries, metadata


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, whose keys must differ."""
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError('its header has two entries of one name')
    return values


def _parse_entry(name: str, value: Any) -> _Entry:
    shown = to_printable_ascii(name)
    if not (isinstance(value, Mapping) and set(value) == {'dtype', 'shape', 'data_offsets'}):
        raise ValueError(f'{shown} does not have dtype, shape and data_offsets')
    kind, shape, offsets = value['dtype'], value['shape'], value['data_offsets']
    if not isinstance(kind, str) or kind not in _DTYPES:
        raise ValueError(f'{shown} has the type {to_printable_ascii(str(kind))}, not one of {", ".join(_DTYPES)}')
    if not _are_sizes(shape) or not is_array_shape(shape):
        raise ValueError(f'{shown} has no valid shape')
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f'{shown} has no valid data_offsets')
    start, end = offsets
    n_bytes = math.prod(shape) * np.dtype(_DTYPES[kind]).itemsize
    if end - start != n_bytes:
        raise ValueError(f'{shown} has {end - start} bytes; its shape and type need {n_bytes}')
    return _Entry(name, kind, tuple(shape), start, end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(n) is int and 0 <= n < 1 << 48 for n in values)


def _check_ranges(entries: list[_Entry], n_bytes: int) -> None:
    """Check that the ranges of the tensors follow each other and cover the rest of the file."""
    position = 0
    for entry in entries:
        if entry.start != position:
            relation = 'overlaps with another tensor' if entry.start < position else 'does not follow another tensor'
            raise ValueError(f'{to_printable_ascii(entry.name)} at byte {entry.start} {relation}')
        position = entry.end
    if position != n_bytes:
        raise ValueError(f'its tensors have {counted(position, "byte")}, but {n_bytes} follow the header')


def _read_array(file: BinaryIO, entry: _Entry) -> np.ndarray:
    array = np.empty(entry.shape, _DTYPES[entry.kind])
    if array.nbytes and file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:  # type: ignore[attr-defined]
        raise ValueError('it is truncated')
    return (array.astype('<u4') << 16).view('<f4') if entry.kind == 'BF16' else array
