"""The folder of the images of an imported dataset, and copies of the images."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage
from mask_rcnn.io.atomic_file import (
    FileError,
    check_writable_folder,
    is_same_file,
    open_for_reading,
    open_for_writing,
    removing_empty_folder,
)
from mask_rcnn.io.paths import deepest_folder, relative_name
from mask_rcnn.preprocessing.image_io import ImageFileError


def common_folder(images: Sequence[ImportedImage], preferred: Path | None = None) -> Path:
    """Return the deepest folder that contains all images.

    Args:
        images: At least one image.
        preferred: A folder that is returned if it contains all images.

    Raises:
        ImageFileError: The images are on several drives.
    """
    folder = deepest_folder([image.path.parent for image in images])
    if folder is None:
        raise ImageFileError(images[0].path, 'other images are on another drive; import the sources of each drive')
    if preferred is not None and Path(folder).is_relative_to(os.path.abspath(preferred)):
        return preferred
    if all(not image.path.is_absolute() for image in images):
        return Path(relative_name(folder, os.curdir))
    return Path(folder)


def copy_images(dataset: ImportedDataset, source_folder: Path, folder: Path) -> ImportedDataset:
    """Copy the images to a folder, and return the dataset with the copies.

    Subfolders are kept.  An image that the folder already has is not copied.  After an error, the copies and their
    folders are removed.

    Args:
        dataset: The dataset.
        source_folder: A folder that contains all images.
        folder: The folder of the copies, which is created.

    Raises:
        FileError: An image cannot be read or written, or a file with its name and another content exists.
    """
    copies: list[ImportedImage] = []
    with contextlib.ExitStack() as stack:  # the files are removed before their folders
        parents = [folder, *{_copy_path(image, source_folder, folder).parent for image in dataset.images}]
        for parent in sorted(parents):
            stack.enter_context(removing_empty_folder(parent))
        check_writable_folder(folder)
        written = stack.enter_context(_removing_after_error())
        for image in dataset.images:
            target = _copy_path(image, source_folder, folder)
            data = image.read_data() if image.read_data else None
            if not _exists(image, target, data):
                check_writable_folder(target.parent)
                _write(image.path, target, data)
                written.append(target)
            copies.append(replace(image, path=target, read_data=None))
    return replace(dataset, images=tuple(copies))


def _copy_path(image: ImportedImage, source_folder: Path, folder: Path) -> Path:
    return folder / unicodedata.normalize('NFC', relative_name(image.path, source_folder))


@contextlib.contextmanager
def _removing_after_error() -> Iterator[list[Path]]:
    """Yield a list, and remove the files that are appended to it if the context raises an error."""
    written: list[Path] = []
    try:
        yield written
    except BaseException:
        for path in written:
            with contextlib.suppress(OSError):
                path.unlink()
        raise


def _exists(image: ImportedImage, target: Path, data: bytes | None) -> bool:
    """Return whether a copy exists.

    Raises:
        FileError: The file is another one.
    """
    if not os.path.lexists(target):
        return False
    if data is None and is_same_file(image.path, target):
        return True
    if data is None:
        with open_for_reading(image.path) as (file, _):
            data = file.read()
    with open_for_reading(target) as (file, _):
        if file.read() == data:
            return True
    raise FileError(errno.EEXIST, 'exists and is another file; name another folder to copy to', os.fspath(target))


def _write(source: Path, target: Path, data: bytes | None) -> None:
    with open_for_writing(target) as file:
        if data is not None:
            file.write(data)
            return
        with open_for_reading(source) as (original, _):
            shutil.copyfileobj(original, file)
