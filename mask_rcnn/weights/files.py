"""Open weight files; every error is a :class:`~mask_rcnn.weights.errors.WeightFileError`."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import BinaryIO

from mask_rcnn.io.atomic_file import FileError, open_for_reading, open_for_writing
from mask_rcnn.weights.errors import WeightFileError


@contextlib.contextmanager
def open_weight_file(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file for reading and yield ``(file, size in bytes)``.

    Raises:
        WeightFileError: The file cannot be opened or read.
    """
    with _weight_file_errors(), open_for_reading(path) as file_and_size:
        yield file_and_size


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
