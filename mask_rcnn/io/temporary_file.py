"""Temporary files beside the files that they will replace; those of processes that have ended are used or removed."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import re
import threading
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from mask_rcnn.io.unfinished import unfinished

try:
    import fcntl

    #: True if the system has the locks that show whether a temporary file is being written.
    HAS_LOCKS = True
except ImportError:  # Windows
    HAS_LOCKS = False

#: Attempts to get the shared temporary file of a target; other processes can rename it in between.
_MAX_LOCK_ATTEMPTS = 3
#: A temporary file whose name contains its process, as earlier versions always wrote them.
_PROCESS_FILE = re.compile(r'\.(.+)\.(\d+)(?:-\d+)?\.part', re.DOTALL)
#: Seconds after which a temporary file that is not written belongs to no process of another machine or container.
_ABANDONED_AFTER = 3600
_OPEN_FLAGS = getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)


@contextlib.contextmanager
def locked_temporary(target: pathlib.Path) -> Iterator[tuple[BinaryIO, pathlib.Path]]:
    """Create the temporary file of a target, lock it while the block runs, and remove it unless it is renamed.

    Args:
        target: The file that the temporary one will replace, in the same folder.

    Yields:
        The open, empty file and its path.

    Raises:
        OSError: The file cannot be created.
    """
    with contextlib.ExitStack() as stack:
        for path in _possible_paths(target):  # before one is created
            stack.enter_context(unfinished(path))
        yield from _locked_temporary(target)


def _locked_temporary(target: pathlib.Path) -> Iterator[tuple[BinaryIO, pathlib.Path]]:
    file, temporary = _create_temporary(target)
    status = os.fstat(file.fileno())
    try:
        yield file, temporary
    finally:
        if not HAS_LOCKS:  # Windows removes closed files only
            _close(file)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(temporary), status):  # not that of another process, after the renaming
                temporary.unlink()
        _close(file)


def _close(file: BinaryIO) -> None:
    with contextlib.suppress(OSError):  # the disk is full; the block has raised this error
        file.close()


def _create_temporary(target: pathlib.Path) -> tuple[BinaryIO, pathlib.Path]:
    """Create and lock a temporary file.

    Its name is the same for all processes: a file without a lock was left by a process that has ended, and is used
    again.  If another process writes the target now, or the file system has no locks, the name contains the process.
    """
    shared, unshared = _possible_paths(target)
    if HAS_LOCKS:
        _remove_abandoned(target.parent, shared.name[1:].removesuffix('.part'))
    for _ in range(_MAX_LOCK_ATTEMPTS if HAS_LOCKS else 0):
        with contextlib.suppress(PermissionError, IsADirectoryError):  # the file of another user
            file = _open_temporary(shared)
            if _lock(file, shared):
                return file, shared
            file.close()
    file = _open_temporary(unshared)
    file.truncate(0)
    return file, unshared


def _possible_paths(target: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    """Return the temporary file of a target that all processes use, and that of this process."""
    # File systems limit names to 255 bytes.
    name = target.name if len(os.fsencode(target.name)) <= 200 else f'{zlib.crc32(os.fsencode(target.name)):08x}'
    process = f'{os.getpid()}-{threading.get_ident()}'
    return target.with_name(f'.{name}.part'), target.with_name(f'.{name}.{process}.part')


def _remove_abandoned(folder: pathlib.Path, name: str) -> None:
    """Remove temporary files of a target whose names contain a process that has ended."""
    for process, path in _find_process_files(folder).get(name, ()):
        with contextlib.suppress(OSError):
            if not _is_running(process) and time.time() - path.lstat().st_mtime > _ABANDONED_AFTER:
                path.unlink()


@functools.lru_cache(maxsize=64)
def _find_process_files(folder: pathlib.Path) -> dict[str, list[tuple[int, pathlib.Path]]]:
    """Return the temporary files with processes in their names, by target; a folder is listed once per process."""
    files: dict[str, list[tuple[int, pathlib.Path]]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if match := _PROCESS_FILE.fullmatch(entry.name):
                files.setdefault(match[1], []).append((int(match[2]), folder / entry.name))
    return files


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # the process of another user
        return True
    return True


def _open_temporary(path: pathlib.Path) -> BinaryIO:
    # Without O_TRUNC: another process may be writing this file.
    return open(path, 'wb', opener=lambda name, _: os.open(name, os.O_RDWR | os.O_CREAT | _OPEN_FLAGS, 0o666))


def _lock(file: BinaryIO, path: pathlib.Path) -> bool:
    """Lock and empty an open file; returns whether no other process has it."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks, so that no process uses this name
        with contextlib.suppress(OSError):
            path.unlink()
        return False
    try:
        if not os.path.samestat(os.lstat(path), os.fstat(file.fileno())):  # renamed since it was opened
            return False
    except FileNotFoundError:
        return False
    file.truncate(0)
    return True
