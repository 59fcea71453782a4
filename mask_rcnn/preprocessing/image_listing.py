"""Listing of the images in folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from mask_rcnn.io.console import escape
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.preprocessing.image_errors import ImageFileError, UnsupportedImageError, os_reason
from mask_rcnn.preprocessing.image_formats import IMAGE_SUFFIXES, N_MAGIC_BYTES, detect_format

_logger = logging.getLogger(__name__)

#: Suffixes of files that accompany images: annotations, notes, programs, archives, lists of a file manager.
_SIDECAR_SUFFIXES = {
    *('.json', '.jsonl', '.xml', '.txt', '.csv', '.tsv', '.yaml', '.yml', '.toml', '.ini', '.cfg', '.log', '.md'),
    *('.rst', '.html', '.htm', '.css', '.js', '.py', '.ipynb', '.sh', '.bat', '.npy', '.npz', '.pkl', '.h5', '.pth'),
    *('.zip', '.tar', '.gz', '.tgz', '.7z', '.xmp', '.db', '.lnk', '.url', '.md5', '.sha256'),
}

#: Suffixes of images that are always omitted: formats without a reader, and camera raw files, whose first image
#: is a thumbnail.
_UNSUPPORTED_SUFFIXES = {
    *('.heic', '.heif', '.hif', '.jxl', '.jxr', '.psd', '.svg', '.ico', '.tga', '.exr', '.hdr', '.pfm', '.eps'),
    *('.raw', '.dng', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2', '.raf', '.pef', '.srw', '.dcm', '.fits'),
}


def list_images(
    paths: Iterable[str | os.PathLike], *, omissions: Omissions | None = None, recursive: bool = False
) -> list[Path]:
    """Return the given files and the images in the given folders.

    A folder is replaced by its images, sorted by name: the files with one of
    :data:`~mask_rcnn.preprocessing.image_formats.IMAGE_SUFFIXES` (in upper or lower case), and the files with an
    unknown suffix or without a suffix whose first bytes are those of an image.  Hidden files and files that usually
    accompany images (``.json``, ``.txt``, ``.xml``, ...) are ignored.  Everything else that is left out is reported:
    files in another format, dangling links, pipes and subfolders.

    Args:
        paths: Files and folders.  Files are kept with any suffix.
        omissions: Receives what was left out of the folders.  By default, one line for each folder is logged as a
            warning.
        recursive: Also list the images in subfolders, after those of the folder itself; hidden subfolders and links to
            folders are ignored.

    Returns:
        The files, at least one.

    Raises:
        ImageFileError: A path does not exist, or a folder cannot be read or contains no image.
        ValueError: ``paths`` is empty.
    """
    files = []
    for path in map(Path, paths):
        if not path.is_dir():
            files.append(_existing(path))
            continue
        images, left_out = _scan_tree(path) if recursive else _scan_folder(path)
        files.extend(images)
        if omissions is not None:
            omissions.extend(left_out)
        elif left_out:
            _logger.warning('%s: %s', escape(path), left_out)
    if not files:
        raise ValueError('no image was given')
    return files


def _existing(path: Path) -> Path:
    try:
        path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        if path.is_symlink():
            reason = f'the link leads to a missing file ({os.readlink(path)})'
        elif isinstance(error, FileNotFoundError):
            reason = 'no such file or folder'
        else:
            reason = os_reason(error)
        raise ImageFileError(path, reason) from error
    return path


def _scan_folder(folder: Path) -> tuple[list[Path], Omissions]:
    """Return the images of a folder, and what is left out."""
    images, omissions, _ = _scan(folder)
    if not images:
        raise _no_image(folder, omissions)
    return images, omissions


def _scan_tree(folder: Path) -> tuple[list[Path], Omissions]:
    """Return the images of a folder and its subfolders, and what is left out."""
    images, omissions = [], Omissions('files')
    pending = [folder]
    while pending:
        current = pending.pop()
        found, left_out, subfolders = _scan(current, recursive=True, root=folder)
        images += found
        omissions.extend(left_out)
        pending += reversed(subfolders)
    if not images:
        raise _no_image(folder, omissions)
    return images, omissions


def _no_image(folder: Path, omissions: Omissions) -> ImageFileError:
    return ImageFileError(folder, 'the folder contains no image' + (f' ({omissions})' if omissions else ''))


def _scan(
    folder: Path, *, recursive: bool = False, root: Path | None = None
) -> tuple[list[Path], Omissions, list[Path]]:
    """Return the images of a folder, what is left out, and, if ``recursive`` is set, the subfolders."""
    images, omissions, subfolders = [], Omissions('files'), []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise ImageFileError(folder, os_reason(error)) from error
    for path in entries:
        if path.name.startswith('.'):
            continue
        if recursive and path.is_dir():
            if not path.is_symlink():  # a link can lead to a folder above
                subfolders.append(path)
            continue
        reason = _reason_to_omit(path)
        if reason is None:
            images.append(path)
        elif reason:
            omissions.add(reason, path.relative_to(root or folder))
    return images, omissions, subfolders


def _reason_to_omit(path: Path) -> str | None:
    """Return the reason to omit a folder's entry: ``None`` for an image, and '' if the omission needs no report."""
    suffix = path.suffix.lower()
    if path.is_dir():
        return 'in the form of a subfolder'
    if not path.exists():
        return 'with a dangling link'
    if not path.is_file():
        return 'without content (pipes, sockets or devices)'
    if suffix in IMAGE_SUFFIXES:
        return None
    if suffix in _UNSUPPORTED_SUFFIXES:
        return 'in an unsupported format'
    if suffix in _SIDECAR_SUFFIXES:
        return ''
    return _reason_by_content(path)


def _reason_by_content(path: Path) -> str | None:
    try:
        with open(path, 'rb') as file:
            name = detect_format(file.read(N_MAGIC_BYTES))
    except UnsupportedImageError:
        return 'in an unsupported format'
    except OSError:
        return 'that cannot be opened'
    return None if name else 'with an unknown suffix'
