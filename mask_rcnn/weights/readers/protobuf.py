"""The wire format of protocol buffers: a sequence of fields, each a key (field number and wire type) and a value.

See https://protobuf.dev/programming-guides/encoding.  A damaged or hostile message can only raise an error: lengths are
checked against the remaining bytes, and nothing is allocated except views of bytes in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

from mask_rcnn.io.wording import counted

#: Wire types.
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5

#: Maximum number of fields; files of networks have a few thousand.
_MAX_FIELDS = 1_000_000

#: A list that is not packed is read in groups of at most this many values.
_MAX_GROUP = 4096


class CorruptMessageError(ValueError):
    """The bytes are not a valid message."""


class VarintField(NamedTuple):
    """A field with an integer of variable length."""

    number: int
    value: int


class BytesField(NamedTuple):
    """A field with bytes: text, a message or a packed list."""

    number: int
    data: memoryview


class FixedField(NamedTuple):
    """Consecutive fields with one field number and values of ``width`` (4 or 8) bytes each."""

    number: int
    width: int
    data: bytes


Field: TypeAlias = VarintField | BytesField | FixedField


@dataclass
class Budget:
    """The number of fields that may still be read: millions of tiny fields would take minutes."""

    left: int = _MAX_FIELDS

    def spend(self) -> None:
        """Count one field.

        Raises:
            CorruptMessageError: The file has too many fields.
        """
        self.left -= 1
        if self.left < 0:
            raise CorruptMessageError(f'more than {_MAX_FIELDS} fields')


def fields(data: memoryview, budget: Budget) -> Iterator[Field]:
    """Yield the fields of a message.

    Raises:
        CorruptMessageError: The bytes are not a message.
    """
    at = 0
    while at < len(data):
        budget.spend()
        start = at
        key, at = varint(data, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == _VARINT:
            value, at = varint(data, at)
            yield VarintField(number, value)
        elif wire_type == _LENGTH:
            length, at = varint(data, at)
            if length > len(data) - at:
                raise CorruptMessageError(
                    f'a field of {counted(length, "byte")} where {counted(len(data) - at, "is", "are")} left'
                )
            at += length
            yield BytesField(number, data[at - length : at])
        elif wire_type in (_FIXED32, _FIXED64):
            width = 4 if wire_type == _FIXED32 else 8
            values, at = _read_fixed(data, start, at, width)
            yield FixedField(number, width, values)
        else:
            raise CorruptMessageError(f'unknown wire type {wire_type}')


def packed(data: memoryview, budget: Budget) -> Iterator[int]:
    """Yield the integers of a packed list of varints."""
    at = 0
    while at < len(data):
        budget.spend()
        value, at = varint(data, at)
        yield value


def numbers(data: memoryview | bytes, dtype: str) -> np.ndarray:
    """Return the values of a packed list of fixed width as a view."""
    if len(data) % np.dtype(dtype).itemsize:
        raise CorruptMessageError('a packed list ends within a value')
    return np.frombuffer(data, dtype)


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the integer of at most 64 bits at position ``at``, seven bits per byte, and the position after it."""
    if at < len(data) and data[at] < 0x80:  # most keys and values have one byte
        return data[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise CorruptMessageError('it ends within a field')
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CorruptMessageError('a varint of more than 64 bits')


def _read_fixed(data: memoryview, start: int, at: int, width: int) -> tuple[bytes, int]:
    """Return the bytes of the value at ``at`` and of those that follow under the same key, and the end position.

    A list that is not packed repeats the key, which begins at ``start``, before each value.
    """
    step = at - start + width
    count = min((len(data) - start) // step, _MAX_GROUP)
    if count == 0:
        raise CorruptMessageError('it ends within a field')
    records = np.frombuffer(data, np.uint8, count * step, start).reshape(count, step)
    same = (records[:, : at - start] == records[0, : at - start]).all(axis=1)
    n_same = count if same.all() else int(same.argmin())
    return records[:n_same, at - start :].tobytes(), start + n_same * step
