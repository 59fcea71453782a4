"""Opening of files for reading and writing, with one-line errors and atomic replacement."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import pathlib
import re
import stat
import threading
import time
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from mask_rcnn.io.console import escape
from mask_rcnn.io.errors import OneLineError

try:
    import fcntl

    _HAS_LOCKS = True
except ImportError:  # Windows
    _HAS_LOCKS = False

#: Files that processes have open, by number; Linux has them as links to pipes without names.
_OPEN_FILE = re.compile(r'(?:/proc/(\d+)(?:/task/\d+)?|/dev)/fd/(\d+)')
#: Maximum length of a chain of symbolic links, as in Linux.
_MAX_LINKS = 40
#: Attempts to get the shared temporary file of a target; other processes can rename it in between.
_MAX_LOCK_ATTEMPTS = 3
#: A temporary file whose name contains its process, as earlier versions always wrote them.
_PROCESS_FILE = re.compile(r'\.(.+)\.(\d+)(?:-\d+)?\.part', re.DOTALL)
#: Seconds after which a temporary file that is not written belongs to no process of another machine or container.
_ABANDONED_AFTER = 3600
_OPEN_FLAGS = getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)


class FileError(OneLineError, OSError):
    """A file cannot be read or written; ``str()`` is one line, ``path: reason``.

    Constructed as ``FileError(errno, reason, path)``, with the attributes of ``OSError``: ``errno``, ``strerror`` (the
    reason) and ``filename`` (the path).
    """

    def __str__(self) -> str:
        return escape(f'{self.filename}: {self.strerror}')


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

    The ``with`` block writes to a temporary file in the same folder, which replaces ``path`` at the end, with the
    permissions of the replaced file.  If the block or the disk fails, the temporary file is removed and an existing
    ``path`` stays unchanged.  If ``path`` is a symbolic link, it remains one, and the file that it leads to is written.
    Pipes, devices and open files (``/dev/stdout``) are not replaced; the block writes to them.

    Raises:
        FileError: The file cannot be written: no such folder, no permission, disk full.
    """
    try:
        target = _follow_links(path)
        with _open_stream(target) if _is_stream(target) else _open_replacement(target) as file:
            yield file
    except FileError:
        raise
    except OSError as error:
        raise _file_error(path, error.errno, f'cannot be written: {error.strerror or error}') from error


def check_writable(path: str | os.PathLike) -> None:
    """Try to create the temporary file of :func:`open_for_writing`, and remove it; pipes and devices are not opened.

    Raises:
        FileError: The file cannot be written.
    """
    try:
        target = _follow_links(path)
        if not _is_stream(target):
            with _locked_temporary(target):
                pass
        elif not _own_descriptor(target) and not os.access(target, os.W_OK):
            raise _file_error(path, errno.EACCES, f'cannot be written: {os.strerror(errno.EACCES)}')
    except FileError:
        raise
    except OSError as error:
        raise _file_error(path, error.errno, f'cannot be written: {error.strerror or error}') from error


def check_writable_folder(folder: str | os.PathLike) -> None:
    """Create a folder with its parents, and check that files can be created in it.

    Raises:
        FileError: The folder cannot be created or written.
    """
    folder = pathlib.Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked_temporary(folder / 'check'):
            pass
    except OSError as error:
        reason = 'is a file, not a folder' if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise _file_error(folder, error.errno, f'cannot be written: {reason}') from error


def is_same_file(first: str | os.PathLike, second: str | os.PathLike) -> bool:
    """Return whether two paths lead to one file, also through links, hard links and ``..``."""
    try:
        return os.path.samefile(first, second)
    except OSError:
        return os.path.realpath(first) == os.path.realpath(second)


def is_standard_output(path: str | os.PathLike) -> bool:
    """Return whether a path leads to the standard output of this process."""
    try:
        return _own_descriptor(_follow_links(path)) == 1
    except OSError:
        return False


def is_replaced(path: str | os.PathLike) -> bool:
    """Return whether :func:`open_for_writing` replaces a regular file, as opposed to a pipe, device or open file."""
    try:
        target = _follow_links(path)
        return not _is_stream(target) and target.is_file()
    except OSError:
        return False


def _follow_links(path: str | os.PathLike) -> pathlib.Path:
    """Return the path to which symbolic links lead; it may not exist.  Links to open files are not followed."""
    target = pathlib.Path(path)
    for _ in range(_MAX_LINKS):
        target = pathlib.Path(os.path.realpath(target.parent), target.name)
        if target.name in ('', '..') or not target.is_symlink() or _OPEN_FILE.fullmatch(os.fspath(target)):
            return target
        target = target.parent / os.readlink(target)
    raise _file_error(path, errno.ELOOP, 'is a symbolic link that leads to itself')


def _own_descriptor(target: pathlib.Path) -> int | None:
    """Return the number of an open file of this process for ``/dev/stdout`` and the like, otherwise ``None``."""
    if os.fspath(target) == '/dev/stdout':  # on a system without links in /dev
        return 1
    match = _OPEN_FILE.fullmatch(os.fspath(target))
    return int(match[2]) if match and match[1] in (None, str(os.getpid())) else None


def _is_stream(target: pathlib.Path) -> bool:
    """Return whether a target is written to directly: a pipe, a device or an open file.

    Raises:
        FileError: The target is a folder or a socket.
    """
    if _own_descriptor(target) is not None:
        return True
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise _file_error(target, errno.EISDIR, 'is a folder, not a file')
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or _OPEN_FILE.fullmatch(os.fspath(target)):
        return True
    if not stat.S_ISREG(mode):
        raise _file_error(target, errno.EINVAL, 'is not a regular file')
    return False


class _Stream(io.FileIO):
    """An open file that is only appended to: ``>> file`` moves to the end before each write, also after a seek."""

    def seekable(self) -> bool:
        return False

    def seek(self, *arguments: object) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def _open_stream(target: pathlib.Path) -> BinaryIO:
    descriptor = _own_descriptor(target)
    descriptor = os.dup(descriptor) if descriptor is not None else os.open(target, os.O_WRONLY)
    return io.BufferedWriter(_Stream(descriptor, 'wb'))


@contextlib.contextmanager
def _open_replacement(target: pathlib.Path) -> Iterator[BinaryIO]:
    with _locked_temporary(target) as (file, temporary):
        with contextlib.suppress(FileNotFoundError):
            _copy_permissions(os.stat(target), file.fileno())
        yield file
        file.flush()
        os.fsync(file.fileno())  # after a power cut, the file has the old or the new contents
        if not _HAS_LOCKS:  # Windows renames closed files only
            file.close()
        os.replace(temporary, target)


def _copy_permissions(status: os.stat_result, descriptor: int) -> None:
    """Give an open file the owner, as far as the process may, and the mode of another file."""
    if _HAS_LOCKS:
        with contextlib.suppress(OSError):
            os.fchown(descriptor, status.st_uid, status.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


@contextlib.contextmanager
def _locked_temporary(target: pathlib.Path) -> Iterator[tuple[BinaryIO, pathlib.Path]]:
    """Create the temporary file of a target, lock it while the block runs, and remove it unless it is renamed."""
    file, temporary = _create_temporary(target)
    status = os.fstat(file.fileno())
    try:
        yield file, temporary
    finally:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(temporary), status):  # not that of another process, after the renaming
                if not _HAS_LOCKS:
                    file.close()
                temporary.unlink()
        with contextlib.suppress(OSError):  # the disk is full; the block has raised this error
            file.close()


def _create_temporary(target: pathlib.Path) -> tuple[BinaryIO, pathlib.Path]:
    """Create and lock a temporary file.

    Its name is the same for all processes: a file without a lock was left by a process that has ended, and is used
    again.  If another process writes the target now, or the file system has no locks, the name contains the process.
    """
    # File systems limit names to 255 bytes.
    name = target.name if len(os.fsencode(target.name)) <= 200 else f'{zlib.crc32(os.fsencode(target.name)):08x}'
    shared = target.with_name(f'.{name}.part')
    if _HAS_LOCKS:
        _remove_abandoned(target.parent, name)
    for _ in range(_MAX_LOCK_ATTEMPTS if _HAS_LOCKS else 0):
        with contextlib.suppress(PermissionError, IsADirectoryError):  # the file of another user
            file = _open_temporary(shared)
            if _lock(file, shared):
                return file, shared
            file.close()
    unshared = target.with_name(f'.{name}.{os.getpid()}-{threading.get_ident()}.part')
    file = _open_temporary(unshared)
    file.truncate(0)
    return file, unshared


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


def _file_error(path: str | os.PathLike, number: int | None, reason: str) -> FileError:
    return FileError(number or errno.EIO, reason, os.fspath(path))
