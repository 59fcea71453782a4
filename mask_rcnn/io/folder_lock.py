"""Locks of output folders, so that two processes do not write the same files."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mask_rcnn.io.errors import OneLineError
from mask_rcnn.io.unfinished import unfinished


class FolderInUseError(OneLineError):
    """Another process has locked the folder; ``str()`` is one line that names the folder and the process."""


@contextlib.contextmanager
def lock_folder(folder: str | os.PathLike, *, user: str, warn: Callable[[str], None]) -> Iterator[None]:
    """Lock a folder within the context.

    The operating system holds the lock, so that it ends with the process, even if the process is killed.  On a file
    system without locks the context is entered with a warning.

    Args:
        folder: An existing folder.
        user: The program that writes to the folder, as a noun (``'training'``); locks of other programs in the same
            folder are independent.
        warn: Called with one line if the folder cannot be locked.

    Raises:
        FolderInUseError: Another process has locked the folder.
    """
    path = Path(folder, f'.{user}.lock')
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise FolderInUseError(f'{folder} is in use by another {user}{_read_holder(path)}') from None
    except OSError as error:
        reason = error.strerror or error
        warn(f'{folder} cannot be locked ({reason}): no other {user} may use it at the same time')
        yield
        return
    try:
        with contextlib.suppress(OSError):
            path.write_text(f'pid {os.getpid()} on {socket.gethostname()}', encoding='utf-8')
        with unfinished(path):
            yield
    finally:
        # Remove the file first: a process that opens it afterwards gets a new file, and filelock opens the file again
        # if the one that it has locked is removed.
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            lock.release()


def _read_holder(path: Path) -> str:
    """Return the process in a lock file as text in brackets, or nothing if the file cannot be read."""
    try:
        text = path.read_bytes()[:200].decode('utf-8', 'replace')
    except OSError:  # Windows does not let other processes read a locked file
        return ''
    text = ''.join(character for character in text if character.isprintable())
    return f' ({text})' if text else ''
