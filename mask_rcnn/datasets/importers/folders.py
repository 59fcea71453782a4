"""Listings of the folders of a source."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.preprocessing.image_errors import os_reason
from mask_rcnn.preprocessing.image_formats import IMAGE_SUFFIXES

#: Number of files by which the format of a folder is recognised.
N_SAMPLED_FILES = 8


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the files and the subfolders of a folder, sorted by name, without hidden ones.

    Dangling links, pipes and devices are ignored.

    Raises:
        AnnotationFileError: The folder cannot be read.
    """
    try:
        entries = sorted(folder.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise AnnotationFileError(folder, os_reason(error)) from error
    entries = [entry for entry in entries if not entry.name.startswith('.')]
    # In contrast to Path's methods, these two return False for every error, such as a loop of links.
    return [path for path in entries if os.path.isfile(path)], [path for path in entries if os.path.isdir(path)]


def has_image_suffix(path: Path) -> bool:
    """Return whether a file's name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def list_images(folder: Path) -> list[Path]:
    """Return the files of a folder whose names are those of images, sorted by name.

    Raises:
        AnnotationFileError: The folder cannot be read.
    """
    return [path for path in list_folder(folder)[0] if has_image_suffix(path)]


def images_in(folder: Path) -> list[Path]:
    """Return :func:`list_images`, empty if the folder does not exist."""
    return list_images(folder) if os.path.isdir(folder) else []


def list_files(folder: Path, suffix: str, *, recursive: bool = True) -> list[Path]:
    """Return the files of a folder with a suffix in lower or upper case, sorted, without hidden ones.

    Raises:
        AnnotationFileError: The folder cannot be read.
    """
    files: list[Path] = []

    def fail(error: OSError) -> None:
        raise AnnotationFileError(error.filename or folder, os_reason(error)) from error

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith('.'))
        files += [Path(parent, name) for name in sorted(names) if _has_suffix(name, suffix)]
    return files


def _has_suffix(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and not name.startswith('.')


def sample(files: Iterable[Path]) -> list[Path]:
    """Return the first files of a folder, by which its format is recognised."""
    return list(files)[:N_SAMPLED_FILES]
