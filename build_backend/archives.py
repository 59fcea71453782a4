"""Wheels and source archives whose bytes depend on nothing but the contents of their files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

#: The time of all files: the earliest that a zip archive can contain.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_TAR_TIME = 315532800
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755


def write_wheel(path: Path, files: dict[str, bytes]) -> None:
    """Write a wheel, without a ``RECORD`` in `files`, in the order that the format recommends: metadata at the end.

    Args:
        path: The file to write.
        files: Path in the wheel -> content; one folder has the suffix ``.dist-info``.
    """
    (metadata,) = {name.split('/')[0] for name in files if name.split('/')[0].endswith('.dist-info')}
    record = f'{metadata}/RECORD'
    files = {**files, record: _record(files, record)}
    _write_zip(path, {name: files[name] for name in sorted(files, key=lambda name: (metadata in name, name))})


def is_intact(path: Path, expected: dict[str, bytes]) -> bool:
    """Return whether a wheel that :func:`write_wheel` has written is complete and unchanged.

    Args:
        path: The file, which may be missing.
        expected: Path in the wheel -> content, for some of its files; one of them is in the folder ``.dist-info``.
    """
    (metadata,) = {name.split('/')[0] for name in expected if name.split('/')[0].endswith('.dist-info')}
    record = f'{metadata}/RECORD'
    try:
        with zipfile.ZipFile(path) as wheel:
            files = {name: wheel.read(name) for name in wheel.namelist()}
    except Exception:  # damage raises errors of many types
        return False
    return files.pop(record, None) == _record(files, record) and expected.items() <= files.items()


def _record(files: dict[str, bytes], name: str) -> bytes:
    """Return the file ``RECORD``, whose path is given, of the other files of a wheel."""
    lines = [f'{name},sha256={_digest(content)},{len(content)}\n' for name, content in sorted(files.items())]
    return ''.join([*lines, f'{name},,\n']).encode()


def normalise_wheel(path: Path) -> None:
    """Remove the times and permissions of a wheel, which depend on the checkout and on the user's umask."""
    with zipfile.ZipFile(path) as wheel:
        files = {name: wheel.read(name) for name in wheel.namelist()}
    _write_zip(path, files)


def normalise_sdist(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Remove the times, permissions and owners of a source archive (``.tar.gz``), and sort it.

    Args:
        path: The archive.
        change: Returns the new content of a file from its name and content.
    """
    tar = io.BytesIO()
    with tarfile.open(path) as source, tarfile.open(fileobj=tar, mode='w', format=tarfile.PAX_FORMAT) as target:
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            normal = tarfile.TarInfo(member.name)
            normal.type, normal.mtime = member.type, _TAR_TIME
            normal.mode = _FOLDER_MODE if member.isdir() else _FILE_MODE
            file = source.extractfile(member)
            content = change(member.name, file.read()) if file else b''
            normal.size = len(content)
            target.addfile(normal, io.BytesIO(content))
    path.write_bytes(gzip.compress(tar.getvalue(), mtime=_TAR_TIME))


def _write_zip(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _ZIP_TIME)
            entry.create_system, entry.external_attr = 3, _FILE_MODE << 16  # 3: Unix, also on Windows
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()
