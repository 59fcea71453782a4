"""Opening of files for reading and writing, with one-line errors and atomic replacement."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pathlib
import re
import stat
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from mask_rcnn.io.console import escape
from mask_rcnn.io.errors import OneLineError
from mask_rcnn.io.temporary_file import HAS_LOCKS, locked_temporary
from mask_rcnn.io.unfinished import unfinished

#: The path of the standard output, also on systems without such a file.
STANDARD_OUTPUT = pathlib.Path('/dev/stdout')
#: Files that processes have open, by number; Linux has them as links to pipes without names.
_OPEN_FILE = re.compile(r'(?:/proc/(\d+)(?:/task/\d+)?|/dev)/fd/(\d+)')
#: Maximum length of a chain of symbolic links, as in Linux.
_MAX_LINKS = 40


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


@contextlib.contextmanager
def path_for_writing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield the path of an empty temporary file, for a program or a library that writes a file by its name.

    As with :func:`open_for_writing`, it replaces ``path`` after the ``with`` block, or is removed after an error.

    Raises:
        FileError: The file cannot be written, or is a pipe or a device.
    """
    try:
        target = _follow_links(path)
        if _is_stream(target):
            raise _file_error(path, errno.EINVAL, 'is not a regular file')
        with locked_temporary(target) as (file, temporary):
            with contextlib.suppress(FileNotFoundError):
                _copy_permissions(os.stat(target), file.fileno())
            if not HAS_LOCKS:  # Windows writes and renames closed files only
                file.close()
            yield temporary
            if HAS_LOCKS:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except FileError:
        raise
    except OSError as error:
        raise _file_error(path, error.errno, f'cannot be written: {error.strerror or error}') from error


def open_growing(path: str | os.PathLike) -> BinaryIO:
    """Open a file that appears at once and that other programs can read while it grows; an older one is emptied.

    In contrast to :func:`open_for_writing`, the file is not replaced when it is complete, so it is for formats whose
    first part is useful by itself.  Links, pipes, devices and open files are treated as there.

    Raises:
        FileError: The file cannot be written.
    """
    try:
        target = _follow_links(path)
        return _open_stream(target) if _is_stream(target) else open(target, 'wb')
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
        descriptor = _own_descriptor(target)
        if descriptor is not None:
            os.write(descriptor, b'')  # fails if it is closed or only for reading
        elif not _is_stream(target):
            with locked_temporary(target):
                pass
        elif not os.access(target, os.W_OK):
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
        with locked_temporary(folder / 'check'):
            pass
    except OSError as error:
        reason = 'is a file, not a folder' if isinstance(error, FileExistsError) else error.strerror or str(error)
        raise _file_error(folder, error.errno, f'cannot be written: {reason}') from error


@contextlib.contextmanager
def removing_empty_folder(folder: str | os.PathLike) -> Iterator[None]:
    """Remove a folder after the context, and its parents, if they did not exist before it and are empty."""
    folder = pathlib.Path(folder)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        with contextlib.ExitStack() as stack:
            for path in reversed(missing):
                stack.enter_context(unfinished(path))
            yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # a folder that is not empty stays, and a name may be too long for one
                path.rmdir()


@contextlib.contextmanager
def created_folders(folders: Iterable[str | os.PathLike]) -> Iterator[None]:
    """Create folders within the context, and remove those that it leaves empty; see the two functions above.

    Raises:
        FileError: A folder cannot be created or written.
    """
    with contextlib.ExitStack() as stack:
        for folder in sorted(map(pathlib.Path, folders)):  # a folder is removed after those that it contains
            stack.enter_context(removing_empty_folder(folder))
            check_writable_folder(folder)
        yield


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
    if target == STANDARD_OUTPUT:  # Windows would make it a file in a folder of the current drive
        return target
    for _ in range(_MAX_LINKS):
        target = pathlib.Path(os.path.realpath(target.parent), target.name)
        if target.name in ('', '..') or not target.is_symlink() or _OPEN_FILE.fullmatch(os.fspath(target)):
            return target
        target = target.parent / os.readlink(target)
    raise _file_error(path, errno.ELOOP, 'is a symbolic link that leads to itself')


def _own_descriptor(target: pathlib.Path) -> int | None:
    """Return the number of an open file of this process for ``/dev/stdout`` and the like, otherwise ``None``."""
    if target == STANDARD_OUTPUT:
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
    with locked_temporary(target) as (file, temporary):
        with contextlib.suppress(FileNotFoundError):
            _copy_permissions(os.stat(target), file.fileno())
        yield file
        file.flush()
        os.fsync(file.fileno())  # after a power cut, the file has the old or the new contents
        if not HAS_LOCKS:  # Windows renames closed files only
            file.close()
        os.replace(temporary, target)


def _copy_permissions(status: os.stat_result, descriptor: int) -> None:
    """Give an open file the owner, as far as the process may, and the mode of another file."""
    if HAS_LOCKS:
        with contextlib.suppress(OSError):
            os.fchown(descriptor, status.st_uid, status.st_gid)
        with contextlib.suppress(OSError):
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))


def _file_error(path: str | os.PathLike, number: int | None, reason: str) -> FileError:
    return FileError(number or errno.EIO, reason, os.fspath(path))
