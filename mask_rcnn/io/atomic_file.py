"""Opening weight files for reading and writing, the same way for every format."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO

from mask_rcnn.weights.errors import WeightFileError


@contextlib.contextmanager
def open_for_reading(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file; yields ``(file, size in bytes)``.

    Directories, pipes and devices are refused before they are opened (opening a pipe would wait for a
    writer).  Every ``OSError``, here or in the body, becomes a :class:`WeightFileError`.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise WeightFileError(path, 'is a folder, not a file')
        if not stat.S_ISREG(mode):
            raise WeightFileError(path, 'is not a regular file')
        with open(path, 'rb') as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise WeightFileError(path, error.strerror or str(error)) from error


@contextlib.contextmanager
def open_for_writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete.

    The body writes to a temporary file in the same folder, which replaces ``path`` at the end.  If the
    body or the disk fails, the temporary file is removed and an older ``path`` stays as it was.

    Raises:
        WeightFileError: The file cannot be written (no such folder, no permission, disk full).
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise WeightFileError(path, 'is a folder, not a file')
    if path.exists() and not path.is_file():
        raise WeightFileError(path, 'is not a regular file')  # a device would be replaced
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with open(temporary, 'wb') as file:
            yield file
        os.replace(temporary, path)
    except OSError as error:
        raise WeightFileError(path, f'cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open_for_reading(path) as (file, _):
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
