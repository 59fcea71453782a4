"""Open weight files and the zip archives in them.

Every error of opening a file is a :class:`~mask_rcnn.weights.errors.WeightFileError`.  The members of an archive are
checked before anything is unpacked; a damaged archive raises one of :data:`CORRUPT_FILE_ERRORS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from mask_rcnn.io.atomic_file import FileError, open_for_reading, open_for_writing
from mask_rcnn.weights.errors import WeightFileError

#: Maximum size in bytes of the files of :func:`read_text_file`.
_MAX_TEXT_SIZE = 1 << 22

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

#: Maximum number of axes of an array, and maximum product of those other than 0: NumPy refuses larger ones even in
#: arrays without elements.
_MAX_AXES, _MAX_PRODUCT = 32, 1 << 59


@contextlib.contextmanager
def open_weight_file(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading and yield ``(file, size in bytes)``.

    Raises:
        WeightFileError: The file cannot be opened or read.
    """
    with _weight_file_errors(), open_for_reading(path) as file_and_size:
        yield file_and_size


def read_text_file(path: str | os.PathLike) -> str:
    """Return the text of a file of class names or settings, without a byte order mark.

    Raises:
        WeightFileError: The file cannot be read, is larger than 4 MiB, or is not UTF-8.
    """
    with open_weight_file(path) as (file, size):
        if size > _MAX_TEXT_SIZE:
            raise WeightFileError(path, f'has {size} bytes, too many for names or settings (at most {_MAX_TEXT_SIZE})')
        try:
            return file.read().decode('utf-8-sig')
        except UnicodeDecodeError:
            raise WeightFileError(path, 'is not UTF-8 text') from None


@contextlib.contextmanager
def create_weight_file(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only when it is complete.

    Raises:
        WeightFileError: The file cannot be written; an existing one stays unchanged.
    """
    with _weight_file_errors(), open_for_writing(path) as file:
        yield file


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits.

    Raises:
        WeightFileError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with open_weight_file(path) as (file, _):
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def _weight_file_errors() -> Iterator[None]:
    try:
        yield
    except FileError as error:
        raise WeightFileError(error.filename, error.strerror or str(error)) from error


def open_stored_zip(file: BinaryIO, size: int) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
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
    return _check_members(_open_zip(file, size), (zipfile.ZIP_STORED,), size)


def open_deflated_zip(file: BinaryIO, size: int, growth: float) -> tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]:
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
    return _check_members(_open_zip(file, size), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED), growth * size)


def _check_members(
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


def read_npy_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Read a member that is an ``.npy`` file as NumPy writes it; nothing is unpickled.

    A damaged member raises one of :data:`CORRUPT_FILE_ERRORS`.
    """
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def is_array_shape(shape: Sequence[int]) -> bool:
    """Return whether NumPy has arrays of a shape, whose sizes are not negative."""
    return len(shape) <= _MAX_AXES and math.prod(filter(None, shape)) <= _MAX_PRODUCT


def zip_member_names(file: BinaryIO, size: int) -> frozenset[str]:
    """Return the names of an archive's members, compressed or not.

    Raises:
        zipfile.BadZipFile: The file is not a zip archive, or damaged.
        ValueError: The archive is truncated or has a huge directory.
    """
    if not zipfile.is_zipfile(file):
        raise ValueError('its end is missing or damaged; copy or download it again')
    return frozenset(_open_zip(file, size).namelist())


def _open_zip(file: BinaryIO, size: int) -> zipfile.ZipFile:
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
