"""Protocol buffers' wire format: a sequence of fields, each a key (number and wire type) and a value.

See https://protobuf.dev/programming-guides/encoding.  A damaged or hostile message cannot do more than raise:
lengths are checked against what is there, and nothing is allocated but views of the file's own bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

#: The networks' files have some thousand fields.
_MAX_FIELDS = 1_000_000


class CorruptMessageError(ValueError):
    """The bytes are no such message."""


@dataclass
class Budget:
    """How many fields may still be read: tiny fields by the million would take minutes."""

    left: int = _MAX_FIELDS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise CorruptMessageError(f'more than {_MAX_FIELDS} fields')


def fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, int, int | memoryview | bytes]]:
    """Yield ``(number, wire type, value)``; neighbouring numbers of one field come together."""
    at = 0
    while at < len(data):
        budget.spend()
        start = at
        key, at = varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == VARINT:
            value, at = varint(data, at)
        elif wire == LENGTH:
            length, at = varint(data, at)
            if length > len(data) - at:
                raise CorruptMessageError(f'a field of {length} bytes where {len(data) - at} are left')
            value, at = data[at : at + length], at + length
        elif wire in (FIXED32, FIXED64):
            value, at = _fixed(data, start, at, 4 if wire == FIXED32 else 8)
        else:
            raise CorruptMessageError(f'unknown wire type {wire}')
        yield number, wire, value


def packed(data: memoryview, budget: Budget) -> Iterator[int]:
    """Yield the numbers of a packed list of varints."""
    at = 0
    while at < len(data):
        budget.spend()
        value, at = varint(data, at)
        yield value


def numbers(data: memoryview | bytes, dtype: str) -> np.ndarray:
    """Return the numbers of a packed list of fixed-width ones, a view."""
    if len(data) % np.dtype(dtype).itemsize:
        raise CorruptMessageError('a list of numbers ends within one')
    return np.frombuffer(data, dtype)


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return a number of at most 64 bits, seven in each byte, and where it ends."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise CorruptMessageError('it ends within a field')
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise CorruptMessageError('a number of more than 64 bits')


def _fixed(data: memoryview, start: int, at: int, width: int) -> tuple[bytes, int]:
    """Return a fixed-width number at ``at``, with those that follow under the same key.

    A list that is not packed repeats the key, which begins at ``start``, before each number.
    """
    step = at - start + width
    count = min((len(data) - start) // step, 4096)
    if count == 0:
        raise CorruptMessageError('it ends within a field')
    records = np.frombuffer(data, np.uint8, count * step, start).reshape(count, step)
    same = (records[:, : at - start] == records[0, : at - start]).all(axis=1)
    n_same = count if same.all() else int(same.argmin())
    return records[:n_same, at - start :].tobytes(), start + n_same * step
