"""Opening of files for reading and writing, with one-line errors and atomic replacement."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import stat
from collections.abc import Iterator
from typing import BinaryIO


class FileError(OSError):
    """A file cannot be read or written; ``str()`` is one line, ``path: reason``.

    Constructed as ``FileError(errno, reason, path)``, with the attributes of ``OSError``: ``errno``, ``strerror`` (the
    reason) and ``filename`` (the path).
    """

    def __str__(self) -> str:
        return f'{self.filename}: {self.strerror}'


@contextlib.contextmanager
def open_for_reading(path: str | os.PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file and yield ``(file, size in bytes)``.

    Directories, pipes and devices are refused before they are opened (opening a pipe would wait for a writer).

    Raises:
        FileError: The file cannot be opened, or the ``with`` block raised another ``OSError``.
    """
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise _file_error(path, errno.EISDIR, 'is a folder, not a file')
        if not stat.S_ISREG(mode):
            raise _file_error(path, errno.EINVAL, 'is not a regular file')
        with open(path, 'rb') as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileError:
        raise
    except OSError as error:
        raise _file_error(path, error.errno, error.strerror or str(error)) from error


@contextlib.contextmanager
def open_for_writing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete.

    The ``with`` block writes to a temporary file in the same folder, which replaces ``path`` at the end.  If the block
    or the disk fails, the temporary file is removed and an existing ``path`` stays unchanged.

    Raises:
        FileError: The file cannot be written: no such folder, no permission, disk full.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise _file_error(path, errno.EISDIR, 'is a folder, not a file')
    if path.exists() and not path.is_file():  # a device would be replaced
        raise _file_error(path, errno.EINVAL, 'is not a regular file')
    temporary = path.with_name(f'.{path.name}.{os.getpid()}.part')
    try:
        with open(temporary, 'wb') as file:
            yield file
        os.replace(temporary, path)
    except FileError:
        raise
    except OSError as error:
        raise _file_error(path, error.errno, f'cannot be written: {error.strerror or error}') from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _file_error(path: str | os.PathLike, number: int | None, reason: str) -> FileError:
    return FileError(number or errno.EIO, reason, os.fspath(path))
