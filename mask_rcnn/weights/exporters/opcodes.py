"""Values as opcodes of pickle protocol 2 and 3 (``pickletools`` documents them).

Python's own pickler cannot write these files: it needs the classes of PyTorch, names NumPy's modules as the installed
version does, and has no byte strings of Python 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

#: The end of a pickle.
STOP = b'.'

NONE, FALSE, TRUE = b'N', b'\x89', b'\x88'

#: ``collections.OrderedDict()``.
ORDERED_DICT = b'ccollections\nOrderedDict\n)R'


def start(protocol: int) -> bytes:
    """Return the beginning of a pickle."""
    return b'\x80' + bytes([protocol])


def name(module: str, attribute: str) -> bytes:
    """Return a global."""
    return f'c{module}\n{attribute}\n'.encode()


def integer(value: int) -> bytes:
    """Return an integer of at most 32 bits, or a longer one of at most 63 bits."""
    if -(1 << 31) <= value < 1 << 31:
        return b'J' + struct.pack('<i', value)
    return b'\x8a\x08' + struct.pack('<q', value)


def text(value: str) -> bytes:
    """Return text."""
    encoded = value.encode()
    return b'X' + struct.pack('<I', len(encoded)) + encoded


def byte_string(value: str) -> bytes:
    """Return Python 2's ``str``, which Python 3 reads as text with ``encoding='latin1'``."""
    encoded = value.encode('latin-1')
    return python2_data_start(len(encoded)) + encoded


def python2_data_start(length: int) -> bytes:
    """Return the opcode before the bytes of Python 2's ``str``."""
    return b'U' + bytes([length]) if length < 256 else b'T' + struct.pack('<i', length)


def data_start(length: int) -> bytes:
    """Return the opcode before the bytes of Python 3's ``bytes`` (protocol 3)."""
    return b'C' + bytes([length]) if length < 256 else b'B' + struct.pack('<I', length)


def sequence(*parts: bytes) -> bytes:
    """Return a tuple of encoded values."""
    return b'(' + b''.join(parts) + b't'


def integers(values: Iterable[int]) -> bytes:
    """Return a tuple of integers."""
    return sequence(*map(integer, values))


def call(function: bytes, *arguments: bytes) -> bytes:
    """Return the result of a global that is called with encoded values."""
    return function + sequence(*arguments) + b'R'
