"""Zip archives of weights, whose members are checked before any is unpacked."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

#: Errors that reading a damaged archive raises (``RuntimeError``: encrypted or of unknown compression; the last four:
#: NumPy's parser, for the header of a damaged array).
CORRUPT_FILE_ERRORS = (
    ValueError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    struct.error,
    OverflowError,
    MemoryError,
    SyntaxError,
    tokenize.TokenError,
    TypeError,
    IndexError,
)

#: Maximum size of an archive's directory in bytes; that of a network with 2000 arrays has about 200 kB.
_MAX_DIRECTORY = 1 << 22


def open_stored(file: BinaryIO, size: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open an archive whose members are not compressed.

    Compressed or overlapping members could unpack to any size, and a directory becomes ten times its size in memory.
    Members are only read by name; nothing is written to a path from an archive.

    Args:
        file: The archive.
        size: Its size in bytes.

    Returns:
        The archive and its members by name.

    Raises:
        zipfile.BadZipFile: The file is not a zip archive, or damaged.
        ValueError: The archive has compressed, overlapping or duplicate members, or a huge directory.
    """
    return _checked(_open(file, size), (zipfile.ZIP_STORED,), size)


def open_deflated(file: BinaryIO, size: int, growth: float) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    """Open an archive whose members may be deflated, the only compression that is unpacked in bounded pieces.

    A single piece of bzip2 or LZMA data can unpack to any size, regardless of the size that the archive declares.

    Args:
        file: The archive.
        size: Its size in bytes.
        growth: Maximum ratio of the unpacked members' total size to ``size``.

    Returns:
        The archive and its members by name.

    Raises:
        zipfile.BadZipFile: The file is not a zip archive, or damaged.
        ValueError: The archive has members with another compression, oversized or duplicate members, or a huge
            directory.
    """
    return _checked(_open(file, size), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), growth * size)


def _checked(
    archive: zipfile.ZipFile, methods: tuple[int, ...], limit: float
) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
    members = archive.infolist()
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise ValueError('it has two members of one name')
    if any(member.compress_type not in methods for member in members):
        raise ValueError('its members are compressed with an unsupported method')
    if sum(member.file_size for member in members) > limit:
        raise ValueError('its members are larger than the file can hold')
    return archive, by_name


def read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read a member that is an ``.npy`` file as NumPy writes it; nothing is unpickled.

    A damaged member raises one of :data:`CORRUPT_FILE_ERRORS`.
    """
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def member_names(file: BinaryIO, size: int) -> frozenset[str]:
    """Return the names of an archive's members, compressed or not.

    Raises:
        zipfile.BadZipFile: The file is not a zip archive, or damaged.
        ValueError: The archive has a huge directory.
    """
    return frozenset(_open(file, size).namelist())


def _open(file: BinaryIO, size: int) -> zipfile.ZipFile:
    guard = _DirectoryGuard(file)
    archive = zipfile.ZipFile(guard)
    guard.limit = size
    return archive


class _DirectoryGuard:
    """A file that refuses the single long read with which :mod:`zipfile` reads a directory."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.limit = _MAX_DIRECTORY

    def read(self, count: int = -1) -> bytes:
        if count > self.limit:
            raise ValueError('its directory is too large')
        return self._file.read(count)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def seekable(self) -> bool:
        return True
