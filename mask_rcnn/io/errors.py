"""Base classes of errors whose messages name files: one printable line, whatever the names contain."""

from __future__ import annotations

import os

from mask_rcnn.io.console import escape


class OneLineError(Exception):
    """An error whose ``str()`` is one printable line.

    The attributes and ``args`` contain the names as they are; :func:`mask_rcnn.io.console.escape` makes the line.
    """

    def __str__(self) -> str:
        return escape(super().__str__())


class BadFileError(OneLineError, ValueError):
    """The content of a file cannot be used; ``str()`` is one line, ``path: reason``.

    Args:
        path: The file, as the caller named it.
        reason: The problem, without the file's name.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(os.fspath(path), reason)
        self.reason = reason

    def __str__(self) -> str:
        return escape(f'{self.args[0]}: {self.reason}')
