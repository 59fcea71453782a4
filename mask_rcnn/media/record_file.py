"""Files that grow by one record after the other and can be read at any time."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import BinaryIO

from mask_rcnn.io.atomic_file import FileError, open_growing


class RecordFile:
    """A file of records, such as lines, that contains only complete ones after each call.

    It is created, or emptied, before the first record.  If a record cannot be written because the disk is full, its
    first part is removed.

    Args:
        path: The file; a pipe or ``/dev/stdout`` is written to.
        header: The bytes before the first record.
    """

    def __init__(self, path: str | os.PathLike, header: bytes = b''):
        self._path = path
        self._header = header
        self._file: BinaryIO | None = None
        self._size = 0
        self._is_closed = False

    def write(self, record: bytes) -> None:
        """Append a record.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The record cannot be written; no other one can be written after it.
            ValueError: The file is closed.
        """
        if self._is_closed:
            raise ValueError(f'{os.fspath(self._path)}: the file is closed')
        if self._file is None:
            self._file = open_growing(self._path)
            record = self._header + record
        try:
            self._file.write(record)
            self._file.flush()
        except OSError as error:
            self._abandon()
            reason = f'cannot be written: {error.strerror or error}'
            raise FileError(error.errno or errno.EIO, reason, os.fspath(self._path)) from error
        self._size += len(record)

    def close(self) -> None:
        """Close the file; without a record, it is created with its header.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """
        if not self._is_closed and self._file is None:
            self.write(b'')
        self._is_closed = True
        if self._file is not None:
            self._file.close()

    def _abandon(self) -> None:
        """Remove the first part of a record and close the file."""
        self._is_closed = True
        file, self._file = self._file, None
        raw = getattr(file, 'raw', None)
        if raw is None:
            return
        # Closing the buffered file would write the rest of the record again.
        with contextlib.suppress(OSError):
            if raw.seekable():
                raw.truncate(self._size)
        with contextlib.suppress(OSError):
            raw.close()
