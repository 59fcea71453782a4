"""Files of masks and label images: their names, kinds and sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.preprocessing.image_errors import UnsupportedImageError
from mask_rcnn.preprocessing.image_formats import N_MAGIC_BYTES, detect_format

#: Suffixes of the names of label images, the longest first; Cellpose's graphical program writes the first one.
LABEL_SUFFIXES = ('_cp_masks', '_masks', '_mask', '_labels', '_label')


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


def check_size(path: Path, size: tuple[int, ...], image: Path, image_size: tuple[int, int]) -> None:
    """Check that a mask is as large as its image.

    Raises:
        AnnotationFileError: The sizes differ.
    """
    if tuple(size) != image_size:
        mask, other = (' x '.join(map(str, sides)) for sides in (size, image_size))
        raise AnnotationFileError(path, f'has {mask} pixels (height x width), but its image {image.name} has {other}')
