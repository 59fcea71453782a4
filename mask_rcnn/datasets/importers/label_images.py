"""Importer of label images: one file for each image, in which pixel value ``n`` belongs to instance ``n``.

The label images lie in a folder beside that of the images (``images/NAME.tif`` with ``labels/NAME.tif`` or
``masks/NAME.tif``), or in the folder of the images with a suffix (``NAME_masks.tif``, as in Cellpose).  0 is the
background.  In files of colours, black is the background and each other colour is an instance.

A label image with a single value in several separate areas is refused: it is a mask of foreground and background.  Its
connected components are not the instances, because objects that touch would become one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.folders import has_image_suffix, images_in, list_folder, list_images
from mask_rcnn.datasets.importers.mask_files import (
    LABEL_SUFFIXES,
    check_size,
    index_by_stem,
    is_label_file,
    name_without_image_suffix,
    name_without_label_suffix,
)
from mask_rcnn.datasets.importers.parts import refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.masks.rle import encode_labels
from mask_rcnn.preprocessing.image_io import read_image_size
from mask_rcnn.preprocessing.label_image import LabelImage, read_label_image

NAME = 'label images'

_IMAGE_FOLDERS, _LABEL_FOLDERS = ('images', 'image'), ('labels', 'masks', 'label', 'mask')
#: More values than any picture has objects; photos have more colours.
_MAX_INSTANCES = 1 << 16


class _Files(NamedTuple):
    """Label images by the name of their image, images by name, and the folder of the images."""

    labels: dict[str, Path]
    images: dict[str, Path]
    folder: Path


def recognises(source: Path, image_folder: Path | None = None) -> bool:
    """Return whether a folder contains label images with the names of images, in it or in the folder of the images."""
    try:
        files = _find_files(source, image_folder)
    except AnnotationFileError:
        return False
    return any(name in files.images and is_label_file(path) for name, path in files.labels.items())


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read the label images; see :class:`mask_rcnn.datasets.importers.records.Importer`."""
    refuse_part(options.part, source)
    labels, images, folder = _find_files(source, options.image_folder)
    if not labels:
        raise AnnotationFileError(source, 'has neither folders images and labels (or masks) nor files NAME_masks.png')
    report = ImportReport(skip_broken=options.skip_broken)
    names = {path: name for name, path in labels.items()}

    def read_image(path: Path) -> ImportedImage:
        if names[path] not in images:
            raise AnnotationFileError(path, f'its image {names[path]} does not exist in {folder}')
        return _read_image(images[names[path]], path, options.default_class)

    read_in = report.read_images(labels.values(), read_image)
    for name, path in images.items():
        if name not in labels:
            report.omissions.add('images without a label image', path.name, one='image without a label image')
    return ImportedDataset(NAME, read_in, (options.default_class,), report.omissions)


def _find_files(source: Path, image_folder: Path | None) -> _Files:
    _, subfolders = list_folder(source)
    names = [folder.name for folder in subfolders]
    labels = next((source / name for name in _LABEL_FOLDERS if name in names and images_in(source / name)), None)
    images = image_folder or next((source / name for name in _IMAGE_FOLDERS if name in names), None)
    if images is not None:
        image_index = index_by_stem(list_images(images), name_without_image_suffix)
        if labels is None and image_folder is not None and not _is_same(image_folder, source):
            labels = source
        if labels is not None:
            return _Files(
                index_by_stem(images_in(labels), lambda path: _label_name(path, image_index)), image_index, images
            )
    files = [path for path in list_folder(source)[0] if has_image_suffix(path)]
    labelled = [path for path in files if path.stem.endswith(LABEL_SUFFIXES)]
    others = [path for path in files if not path.stem.endswith(LABEL_SUFFIXES)]
    image_index = index_by_stem(others, name_without_image_suffix)
    return _Files(index_by_stem(labelled, lambda path: _label_name(path, image_index)), image_index, source)


def _is_same(folder: Path, other: Path) -> bool:
    return os.path.realpath(folder) == os.path.realpath(other)


def _label_name(path: Path, images: dict[str, Path]) -> str:
    """Return the name of the image that belongs to a label image."""
    return path.stem if path.stem in images else name_without_label_suffix(path)


def _read_image(path: Path, label_path: Path, class_name: str) -> ImportedImage:
    size = read_image_size(path)
    label = read_label_image(label_path)
    check_size(label_path, label.values.shape, path, size)
    _check_values(label, label_path)
    objects = (
        ImportedObject(class_name, rle, label.describe(value)) for value, rle in encode_labels(label.values).items()
    )
    return ImportedImage(path, size, tuple(objects))


def _check_values(label: LabelImage, path: Path) -> None:
    """Refuse masks of foreground and background, and photos."""
    values = np.unique(label.values)
    values = values[values > 0]
    if len(values) > _MAX_INSTANCES:
        raise AnnotationFileError(
            path, f'contains {counted(len(values), "value")}; it is not a label image, but a photo or a drawing'
        )
    if len(values) == 1:
        n_areas = cv2.connectedComponents((label.values > 0).astype(np.uint8), connectivity=8)[0] - 1
        if n_areas > 1:
            raise AnnotationFileError(
                path,
                f'contains the single {label.describe(int(values[0]))} in {counted(n_areas, "separate area")}: it is '
                'a mask of foreground and background; give each object its own value',
            )
