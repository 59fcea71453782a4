"""Files that are written part by part and appear under their names when they are complete."""

from __future__ import annotations

import contextlib
import os
from typing import BinaryIO

from mask_rcnn.io.atomic_file import FileError, open_for_writing


class PendingFile:
    """A file that :func:`mask_rcnn.io.atomic_file.open_for_writing` opens before its first part.

    Args:
        path: The file; a pipe or ``/dev/stdout`` is written to at once.
    """

    def __init__(self, path: str | os.PathLike):
        self._path = path
        self._stack = contextlib.ExitStack()
        self._file: BinaryIO | None = None
        self._error: FileError | None = None

    def write(self, part: bytes) -> None:
        """Append a part.

        Raises:
            mask_rcnn.io.atomic_file.FileError: This part or an earlier one cannot be written.  The file is removed; an
                older file of its name remains.
        """
        if self._error is not None:
            raise self._error
        if self._file is None:
            self._file = self._stack.enter_context(open_for_writing(self._path))
        try:
            self._file.write(part)
        except OSError as error:
            try:
                self._abort(error)
            except FileError as named:
                self._error = named
            raise (self._error or error) from error

    def complete(self) -> None:
        """Let the file appear under its name.

        Raises:
            mask_rcnn.io.atomic_file.FileError: The file cannot be written.
        """
        self._stack.close()

    def abort(self) -> None:
        """Remove the file; an older file of its name remains."""
        with contextlib.suppress(FileError):
            self._abort(InterruptedError())

    def _abort(self, error: OSError) -> None:
        """Leave the context of the file with an error, which becomes a ``FileError`` that names it."""
        self._stack.__exit__(type(error), error, error.__traceback__)
