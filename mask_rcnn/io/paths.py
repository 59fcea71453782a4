"""Relations between paths, also on Windows, where no relative path leads from one drive to another."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path


def relative_name(path: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Return a path relative to a folder, with slashes; the absolute path if it is on another drive."""
    try:
        relative = os.path.relpath(path, folder)
    except ValueError:
        relative = os.path.abspath(path)
    return Path(relative).as_posix()


def deepest_folder(folders: Sequence[str | os.PathLike]) -> str | None:
    """Return the absolute path of the deepest folder that contains all folders; ``None`` for several drives.

    Args:
        folders: At least one folder.
    """
    try:
        return os.path.commonpath([os.path.abspath(folder) for folder in folders])
    except ValueError:
        return None


def spelling_key(path: str | os.PathLike) -> str:
    """Return a text that is equal for paths that lead to one file on some file system.

    File systems of Windows and macOS ignore case; that of macOS also ignores how accents are composed.
    """
    return unicodedata.normalize('NFC', os.fspath(path)).casefold()
