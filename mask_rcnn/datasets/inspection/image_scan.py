"""Reading of all image files of a dataset, and the search for equal ones."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mask_rcnn.datasets.coco_json import ImageRecord
from mask_rcnn.datasets.image_files import find_image_file
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.io.progress import Progress, no_progress
from mask_rcnn.preprocessing.image_io import ImageFileError, load_image, read_image_header, read_image_size
from mask_rcnn.preprocessing.orientation import UPRIGHT

_HEADER_THREADS = 16
_MAX_DECODING_THREADS = 4  # each holds an image
_HASHED_BYTES = 1 << 20  # at a time


@dataclass(frozen=True)
class ScannedImage:
    """The file of an image.

    Args:
        path: The file.
        size: Upright height and width, or ``None`` if the file cannot be read.
        is_upright: False if the file has an orientation that changes the stored pixels.
        error: The reason why the file cannot be read, or an empty string.
        pixels: Digest of the decoded pixels; empty if they were not decoded.
    """

    path: str
    size: tuple[int, int] | None
    is_upright: bool = True
    error: str = ''
    pixels: bytes = b''


def scan_images(
    records: Sequence[ImageRecord], folder: Path, *, decode: bool, progress: Progress = no_progress
) -> list[ScannedImage]:
    """Read the file of each image in several threads.

    Args:
        records: The images of an annotation file.
        folder: Folder to which their names refer.
        decode: Whether to decode the images, which finds damaged pixels, or to read their headers only.
        progress: Shows the progress.
    """
    paths = [os.path.join(folder, find_image_file(folder, record.file_name)) for record in records]
    n_threads = min(os.cpu_count() or 1, _MAX_DECODING_THREADS) if decode else _HEADER_THREADS
    with ThreadPoolExecutor(n_threads) as pool:
        return list(progress(pool.map(partial(_scan_image, decode=decode), paths), len(paths), 'image'))


def _scan_image(path: str, *, decode: bool) -> ScannedImage:
    try:
        is_upright = read_image_header(path).orientation == UPRIGHT
        if not decode:
            return ScannedImage(path, read_image_size(path), is_upright)
        image = load_image(path)
    except ImageFileError as error:
        return ScannedImage(path, None, error=error.reason)
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return ScannedImage(path, (image.shape[0], image.shape[1]), is_upright, pixels=digest.digest())


def group_equal_images(images: Sequence[ScannedImage]) -> list[list[int]]:
    """Return the indices of each group of two or more images with equal pixels, or with equal files.

    Pixels are compared where they were decoded, so that copies in other lossless formats or with other metadata are
    found.  Images that cannot be read are in no group.
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    headers = []
    for i, image in enumerate(images):
        if image.pixels:
            groups[image.pixels].append(i)
        elif not image.error:
            headers.append(i)
    equal = [group for group in groups.values() if len(group) > 1]
    return equal + [[headers[i] for i in group] for group in group_equal_files([images[i].path for i in headers])]


def group_equal_files(paths: Sequence[str | os.PathLike]) -> list[list[int]]:
    """Return the indices of each group of two or more files with equal contents.

    Only files of equal length are read.

    Raises:
        mask_rcnn.io.atomic_file.FileError: A file cannot be read.
    """
    by_length: dict[int, list[int]] = defaultdict(list)
    for i, path in enumerate(paths):
        with open_for_reading(path) as (_, n_bytes):
            by_length[n_bytes].append(i)
    groups: list[list[int]] = []
    for candidates in by_length.values():
        if len(candidates) > 1:
            by_content: dict[bytes, list[int]] = defaultdict(list)
            for i in candidates:
                by_content[_hash_file(paths[i])].append(i)
            groups += [group for group in by_content.values() if len(group) > 1]
    return sorted(groups)


def _hash_file(path: str | os.PathLike) -> bytes:
    digest = hashlib.sha256()
    with open_for_reading(path) as (file, _):
        while block := file.read(_HASHED_BYTES):
            digest.update(block)
    return digest.digest()
