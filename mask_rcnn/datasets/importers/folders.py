"""Folders of images and annotation files: listing, pairs of files, text, and sizes, with errors of one line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.records import ImportedImage, ImportOptions
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.io.file_kinds import N_KIND_BYTES, describe_kind
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.preprocessing.image_errors import ImageFileError, UnsupportedImageError, os_reason
from mask_rcnn.preprocessing.image_formats import IMAGE_SUFFIXES, N_MAGIC_BYTES, detect_format

#: Text files are lists of names or of coordinates; a file that is larger is another one.
_MAX_TEXT_BYTES = 1 << 26
#: Suffixes of the names of label images, the longest first; Cellpose's graphical program writes the first one.
LABEL_SUFFIXES = ('_cp_masks', '_masks', '_mask', '_labels', '_label')


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


def index_by_stem(paths: Iterable[Path], name_of: Callable[[Path], str] = lambda path: path.stem) -> dict[str, Path]:
    """Return the files by their names without suffix.

    Args:
        paths: The files.
        name_of: Returns the name of a file; empty to leave it out.

    Raises:
        AnnotationFileError: Two files have the same name.
    """
    index: dict[str, Path] = {}
    for path in paths:
        name = name_of(path)
        if name in index:
            raise AnnotationFileError(path, f'has the same name as {index[name].name}; rename one of them')
        if name:
            index[name] = path
    return index


def name_without_label_suffix(path: Path) -> str:
    """Return the name of a label image without its suffixes: ``NAME`` for ``NAME_masks.png``."""
    suffix = next((suffix for suffix in LABEL_SUFFIXES if path.stem.endswith(suffix)), '')
    return path.stem.removesuffix(suffix)


def name_without_image_suffix(path: Path) -> str:
    """Return the name of an image without its suffixes: ``NAME`` for ``NAME_img.png``."""
    return path.stem.removesuffix('_img')


def is_label_file(path: Path) -> bool:
    """Return whether a file begins like an image of a format in which label images are stored."""
    try:
        with open_for_reading(path) as (file, _):
            return detect_format(file.read(N_MAGIC_BYTES)) in ('PNG', 'TIFF', 'BMP')
    except (OSError, ValueError, UnsupportedImageError):
        return False


def read_text(path: Path, *, max_bytes: int = _MAX_TEXT_BYTES) -> str:
    """Return the content of a text file.

    Args:
        path: The file, in UTF-8 with or without a byte order mark.
        max_bytes: The maximum size of the file.

    Raises:
        AnnotationFileError: The file is missing, unreadable, too large, or is not a text.
    """
    try:
        with open_for_reading(path) as (file, n_bytes):
            if n_bytes > max_bytes:
                raise AnnotationFileError(path, f'has {n_bytes} bytes, too many for a text file of annotations')
            data = file.read()
    except AnnotationFileError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the name
        raise AnnotationFileError(path, os_reason(error)) from error
    try:
        text = data.decode('utf-8-sig')
    except UnicodeDecodeError as error:
        kind = describe_kind(data[:N_KIND_BYTES])
        raise AnnotationFileError(path, f'not a text file in UTF-8{f": it is {kind}" if kind else ""}') from error
    if '\0' in text:
        raise AnnotationFileError(path, 'not a text file: it contains NUL characters')
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the lines of a text file that are not empty, with their numbers; see :func:`read_text`."""
    numbered = enumerate(read_text(path).splitlines(), 1)
    return [(number, line.strip()) for number, line in numbered if line.strip()]


def read_images(
    paths: Iterable[Path], read: Callable[[Path], ImportedImage | None], options: ImportOptions, omissions: Omissions
) -> tuple[ImportedImage, ...]:
    """Read images one by one; leave out and count broken ones if ``options.skip_broken`` is set.

    Args:
        paths: The images or annotation files.
        read: Reads one of them; returns ``None`` for an image that it has left out itself.
        options: The settings of the import.
        omissions: Receives the images that are left out.

    Raises:
        AnnotationFileError, ImageFileError: A file is broken.
    """
    images = []
    for path in paths:
        try:
            image = read(path)
        except (AnnotationFileError, ImageFileError) as error:
            if not options.skip_broken:
                raise
            omissions.add('images that cannot be read', str(error))
            continue
        if image is not None:
            images.append(image)
    return tuple(images)


def check_size(path: Path, size: tuple[int, ...], image: Path, image_size: tuple[int, int]) -> None:
    """Check that a mask is as large as its image.

    Raises:
        AnnotationFileError: The sizes differ.
    """
    if tuple(size) != image_size:
        mask, other = (' x '.join(map(str, sides)) for sides in (size, image_size))
        raise AnnotationFileError(path, f'has {mask} pixels (height x width), but its image {image.name} has {other}')
