"""The error of this package, and the formatting of text from files in its messages."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from mask_rcnn.io.errors import BadFileError

_MAX_LISTED = 5


class WeightFileError(BadFileError):
    """A weight file cannot be used; ``str()`` is one line, ``path: reason``.

    Args:
        path: The file, as the caller named it.
        reason: The problem, without the file's name.
    """

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(path, reason)
        self.path = os.fspath(path)


class UnregisteredNameError(ValueError):
    """A file names a backbone or a dialect that its user's program registers; the message is a whole reason.

    Args:
        kind: ``'extractor'`` or ``'dialect'``.
        name: Its name.
        function: The function that registers it.
        page: The page of the documentation that describes it.
    """

    def __init__(self, kind: str, name: str, function: str, page: str) -> None:
        super().__init__(
            f'the {kind} {to_printable_ascii(name)!r} is not registered in this process: before loading, import the '
            f'module that calls {function} ("{page}" in the documentation)'
        )


def corruption_error(path: str | os.PathLike, problem: str, error: Exception, limit: int = 300) -> WeightFileError:
    """Return the error of a file of this program that cannot be read.

    Args:
        path: The file, as the caller named it.
        problem: The reason if the file is damaged, such as ``'is a damaged training snapshot'``.
        error: The error of the reader; an :class:`UnregisteredNameError` is reported instead of the problem.
        limit: Maximum number of characters of the error.
    """
    if isinstance(error, UnregisteredNameError):
        return WeightFileError(path, str(error))
    return WeightFileError(path, f'{problem}: {to_printable_ascii(str(error), limit) or type(error).__name__}')


def to_printable_ascii(text: str, limit: int = 80) -> str:
    """Return text from a file as at most ``limit`` printable ASCII characters of one line."""
    shown = ascii(text[: limit + 1])[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 3] + '...'


def format_value(value: Any) -> str:
    """Return a value from a file for a message: text without quotes, everything else as Python writes it."""
    try:
        return to_printable_ascii(value if isinstance(value, str) else repr(value))
    except (ValueError, RecursionError):  # an integer of thousands of digits; deeply nested lists
        return f'a value of the type {type(value).__name__}'


def summarize_names(names: Sequence[str]) -> str:
    """Return the first five names and the number of the others, such as ``'a, b, c, d, e and 7 more'``."""
    n_others = len(names) - _MAX_LISTED
    others = f' and {n_others} more' if n_others > 0 else ''
    return ', '.join(map(to_printable_ascii, names[:_MAX_LISTED])) + others
