"""The one error of this package, and how its messages show what comes from files."""

from __future__ import annotations

import os
from collections.abc import Sequence


class WeightFileError(ValueError):
    """A file that cannot be used as weights; ``str()`` is one line, ``path: reason``.

    Args:
        path: The file, as the caller named it.
        reason: What is wrong with it, without the name.
    """

    def __init__(self, path: str | os.PathLike, reason: str):
        super().__init__(os.fspath(path), reason)
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f'{self.path}: {self.reason}'


def to_printable_ascii(text: str, limit: int = 80) -> str:
    """Return foreign text as at most ``limit`` printable ASCII characters of one line."""
    shown = ascii(text[: limit + 1])[1:-1]
    return shown if len(shown) <= limit else shown[: limit - 3] + '...'


def summarize_names(names: Sequence[str]) -> str:
    """Return the first five of some names, and how many there are besides."""
    more = f' and {len(names) - 5} more' if len(names) > 5 else ''
    return ', '.join(map(to_printable_ascii, names[:5])) + more
