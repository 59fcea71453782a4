"""The archive of the original programs' outputs, with which ``tests/golden`` compares this project.

The archive is a zip file of plain files and of their list, ``SHA256SUMS``, in the format of ``sha256sum``.
``tests/golden/archive.json`` contains the SHA-256 of that list: it determines every byte that is unpacked, which
matters because the tests run the scripts in the archive that rebuild weight files.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from mask_rcnn.io.atomic_file import FileError, open_for_reading, open_for_writing
from mask_rcnn.io.errors import BadFileError
from mask_rcnn.io.wording import counted

ROOT = Path(__file__).resolve().parents[1]
#: The file that names the archive and the SHA-256 of its list.
PIN = ROOT / 'tests' / 'golden' / 'archive.json'
#: The list of the files, in the archive and in the folder.
LIST = 'SHA256SUMS'

#: Limits of an archive; the present one has 75 files and 22 MB.
MAX_FILES, MAX_BYTES = 2000, 1 << 30
_MAX_LIST_BYTES = 1 << 20
_BLOCK = 1 << 20
#: A relative path in portable characters: no drive, no ``..``, no hidden file, no name that Windows shortens.
_NAME = re.compile(r'(?:\w[\w.+-]*(?<!\.)/)*\w[\w.+-]*(?<!\.)', re.ASCII)


class Pin(NamedTuple):
    """The archive that belongs to this version of the project.

    Args:
        name: Its name without the suffix, and the tag of the release that it is attached to.
        sha256: The SHA-256 of its list, in hexadecimal digits.
    """

    name: str
    sha256: str


def read_pin(path: Path = PIN) -> Pin:
    """Read the name of the archive and the SHA-256 of its list.

    Raises:
        BadFileError: The file does not contain them.
        FileError: The file cannot be read.
    """
    with open_for_reading(path) as (file, _):
        try:
            pin = Pin(**json.load(file))
        except (ValueError, TypeError):
            raise BadFileError(path, f'is not a JSON object of {" and ".join(Pin._fields)}') from None
    if not (isinstance(pin.name, str) and re.fullmatch(r'golden-\d+', pin.name)):
        raise BadFileError(path, f'name is {pin.name!r}, expected "golden-" and a number')
    if not (isinstance(pin.sha256, str) and re.fullmatch('[0-9a-f]{64}', pin.sha256)):
        raise BadFileError(path, 'sha256 is not 64 hexadecimal digits')
    return pin


def pack(folder: Path, path: Path) -> str:
    """Write an archive of a folder, whose bytes depend on the names and the contents of the files only.

    Hidden files, ``__pycache__`` and an earlier list are left out.

    Args:
        folder: The folder of the outputs.
        path: The archive to write.

    Returns:
        The SHA-256 of the list.

    Raises:
        BadFileError: The folder contains links, names that are not portable, or no file.
        FileError: A file cannot be read or written.
    """
    names = sorted(_names_in(folder))
    if not names:
        raise BadFileError(folder, 'contains no files')
    _check_names(folder, names)
    contents = {name: _read(folder / name) for name in names}
    listed = ''.join(f'{hashlib.sha256(content).hexdigest()}  {name}\n' for name, content in contents.items()).encode()
    with open_for_writing(path) as file, zipfile.ZipFile(file, 'w') as archive:
        for name, content in {LIST: listed, **contents}.items():
            info = zipfile.ZipInfo(name)  # of 1980-01-01
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16  # the same on Windows
            archive.writestr(info, content)  # stored: the arrays are compressed already
    return hashlib.sha256(listed).hexdigest()


def unpack(path: Path, folder: Path, sha256: str) -> int:
    """Unpack an archive into a folder, in place of an earlier one; the folder appears when it is complete.

    Args:
        path: The archive.
        folder: The folder to write.
        sha256: The SHA-256 of the archive's list.

    Returns:
        The number of files.

    Raises:
        BadFileError: The archive is damaged, is another one, or contains anything other than plain files within the
            limits; or the folder was not written by this function.
        FileError: A file cannot be read or written.
    """
    check_replaceable(folder)
    temporary = folder.with_name(f'{folder.name}.part')
    try:
        with open_for_reading(path) as (file, _), zipfile.ZipFile(file) as archive:
            digests = _check_archive(path, archive, sha256)
            shutil.rmtree(temporary, ignore_errors=True)
            for name, digest in digests.items():
                _unpack_file(path, archive, name, temporary / name, digest)
            (temporary / LIST).write_bytes(archive.read(LIST))
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise BadFileError(path, f'is not an intact zip archive ({error})') from error
    except OSError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(error.errno, f'cannot be written: {error.strerror}', str(error.filename or folder)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return len(digests)


def check_replaceable(folder: Path) -> None:
    """Check that a folder does not exist or contains the files of an archive only, of this or an earlier version.

    Raises:
        BadFileError: The folder has no list, or contains files that are not in it: those of another program.
        FileError: The list cannot be read.
    """
    if not folder.exists():
        return
    advice = 'move it away, or choose another folder'
    if folder.is_symlink() or not (folder / LIST).is_file():
        raise BadFileError(folder, f'exists and has no {LIST}; {advice}')
    unlisted = set(_names_in(folder)) - _parse_list(folder / LIST, _read(folder / LIST)).keys()
    if unlisted:
        raise BadFileError(folder, f'contains {min(unlisted)}, which is not in its {LIST}; {advice}')


def is_complete(folder: Path, sha256: str) -> bool:
    """Return whether a folder contains every file of a list with a SHA-256, unchanged."""
    try:
        listed = _read(folder / LIST)
        return hashlib.sha256(listed).hexdigest() == sha256 and all(
            hashlib.sha256(_read(folder / name)).hexdigest() == digest
            for name, digest in _parse_list(folder / LIST, listed).items()
        )
    except FileError:
        return False


def _names_in(folder: Path) -> Iterator[str]:
    for path in folder.rglob('*'):
        name = path.relative_to(folder)
        if name.as_posix() == LIST or any(part.startswith('.') or part == '__pycache__' for part in name.parts):
            continue
        if path.is_symlink():
            raise BadFileError(path, 'is a link; the archive contains plain files only')
        if not path.is_dir():
            yield name.as_posix()


def _read(path: Path) -> bytes:
    with open_for_reading(path) as (file, _):
        return file.read()


def _check_names(place: Path, names: Iterable[str]) -> None:
    """Refuse names outside of the folder, names that some systems do not have, and two names of one file."""
    seen = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise BadFileError(place, f'contains {name!r}, which is not a relative path of letters, digits and ._+-')
        if name.lower() in seen:
            raise BadFileError(place, f'contains {name!r} twice')
        seen.add(name.lower())
    for name in seen:
        for parent in Path(name).parents:
            if parent.as_posix() in seen:
                raise BadFileError(place, f'contains {parent.as_posix()!r} as a file and as a folder')


def _check_archive(path: Path, archive: zipfile.ZipFile, sha256: str) -> dict[str, str]:
    """Check the list and the entries of an archive before anything is written; return name -> SHA-256."""
    entries = archive.infolist()
    _check_names(path, (entry.filename for entry in entries))
    for entry in entries:
        if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG):
            raise BadFileError(path, f'{entry.filename} is not a plain file')
    if len(entries) > MAX_FILES:
        raise BadFileError(path, f'contains {counted(len(entries), "file")}, at most {MAX_FILES} are expected')
    n_bytes = sum(entry.file_size for entry in entries)
    if n_bytes > MAX_BYTES:
        raise BadFileError(path, f'unpacks to {counted(n_bytes, "byte")}, at most {MAX_BYTES} are expected')
    sizes = {entry.filename: entry.file_size for entry in entries}
    if not 0 < sizes.get(LIST, 0) <= _MAX_LIST_BYTES:
        raise BadFileError(path, f'contains no {LIST}; scripts/pack_golden.py writes one')
    listed = archive.read(LIST)
    found = hashlib.sha256(listed).hexdigest()
    if found != sha256:
        raise BadFileError(path, f'{LIST} has the SHA-256 {found}, expected {sha256}')
    digests = _parse_list(path, listed)
    if sizes.keys() - {LIST} != digests.keys():
        name = min((sizes.keys() - {LIST}) ^ digests.keys())
        raise BadFileError(path, f'{name} is {"not in the archive" if name in digests else f"not in {LIST}"}')
    return digests


def _parse_list(path: Path, listed: bytes) -> dict[str, str]:
    digests = {}
    for number, line in enumerate(listed.decode('ascii', 'replace').splitlines(), 1):
        match = re.fullmatch(r'([0-9a-f]{64})  (.+)', line)
        if match is None:
            raise BadFileError(path, f'{LIST}, line {number}: is not a SHA-256, two spaces and a name')
        digests[match[2]] = match[1]
    _check_names(path, digests)
    return digests


def _unpack_file(path: Path, archive: zipfile.ZipFile, name: str, target: Path, digest: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    remaining, found = archive.getinfo(name).file_size, hashlib.sha256()
    with archive.open(name) as source, open(target, 'xb') as file:
        while remaining and (block := source.read(min(_BLOCK, remaining))):
            remaining -= len(block)
            found.update(block)
            file.write(block)
    if found.hexdigest() != digest:
        raise BadFileError(path, f'{name} has the SHA-256 {found.hexdigest()}, expected {digest}')
