"""Importer of folders with one mask file for each instance, as in the Data Science Bowl 2018.

Two layouts are read: ``ID/images/NAME.png`` with ``ID/masks/*.png`` for each image (the source is the folder of the
IDs, or one of them), and ``images/NAME.png`` with ``masks/NAME/*.png``.  In both, the masks may lie in subfolders named
after their classes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.folders import has_image_suffix, images_in, list_folder, list_images
from mask_rcnn.datasets.importers.mask_files import (
    check_size,
    index_by_stem,
    is_label_file,
    name_without_image_suffix,
    name_without_label_suffix,
)
from mask_rcnn.datasets.importers.parts import refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.masks.rle import encode_labels
from mask_rcnn.preprocessing.image_io import read_image_size
from mask_rcnn.preprocessing.label_image import read_label_image

NAME = 'instance masks'

_IMAGES, _MASKS = 'images', 'masks'


class _Mask(NamedTuple):
    """A mask file and its class, ``None`` if no folder names it."""

    path: Path
    class_name: str | None


def recognises(source: Path) -> bool:
    """Return whether a folder contains one mask file for each instance."""
    try:
        for folder in _mask_folders(source).values():
            if masks := _list_masks(folder):
                return is_label_file(masks[0].path)
    except AnnotationFileError:
        pass
    return False


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read the masks; see :class:`mask_rcnn.datasets.importers.records.Importer`.

    The pixels of an instance are those of its mask file that are not 0.  Instances may overlap.
    """
    refuse_part(options.part, source)
    folders = _mask_folders(source)
    if not folders:
        raise AnnotationFileError(
            source, 'has neither folders ID/images and ID/masks nor folders images and masks/NAME'
        )
    report = ImportReport(skip_broken=options.skip_broken)
    images = {} if options.image_folder is None else index_by_stem(list_images(options.image_folder))
    pairs = {_find_image(source, name, folder, images): folder for name, folder in folders.items()}

    def read_image(path: Path) -> ImportedImage:
        return _read_image(path, pairs[path], options.default_class, report.omissions)

    read_in = report.read_images(pairs, read_image)
    for path in _other_images(source, options, pairs):
        report.omissions.add('images without a folder of masks', path.name, one='image without a folder of masks')
    classes = {item.class_name for image in read_in for item in image.objects}
    return ImportedDataset(NAME, read_in, tuple(sorted(classes)) or (options.default_class,), report.omissions)


def _mask_folders(source: Path) -> dict[str, Path]:
    """Return the folder of the masks of each image, by the name of the image."""
    _, subfolders = list_folder(source)
    names = {folder.name for folder in subfolders}
    if _MASKS in names:
        files, groups = list_folder(source / _MASKS)
        images = images_in(source / _IMAGES)
        stems = {path.stem for path in images}
        if any(group.name in stems for group in groups) or _IMAGES not in names:
            return {group.name: group for group in groups}
        names = {name_without_image_suffix(path) for path in images}
        is_label = any(path.stem in stems or name_without_label_suffix(path) in names for path in files)
        return {source.name: source / _MASKS} if len(images) == 1 and not is_label else {}
    return {folder.name: folder / _MASKS for folder in subfolders if os.path.isdir(folder / _MASKS)}


def _find_image(source: Path, name: str, masks: Path, images: dict[str, Path]) -> Path:
    """Return the image of a folder of masks.

    Args:
        source: The source.
        name: The name of the image or of its folder.
        masks: The folder of its masks.
        images: The images of another folder by name, if the user named one.
    """
    if images:
        if name not in images:
            raise AnnotationFileError(masks, f'its image {name} does not exist in {next(iter(images.values())).parent}')
        return images[name]
    folder = masks.parent / _IMAGES if masks.name == _MASKS else source / _IMAGES
    files = images_in(folder)
    if masks.name != _MASKS:
        files = [path for path in files if path.stem == name]
    if len(files) != 1:
        raise AnnotationFileError(masks, f'has {counted(len(files), "image")} in {folder}; one is expected')
    return files[0]


def _other_images(source: Path, options: ImportOptions, known: dict[Path, Path]) -> list[Path]:
    """Return the images without a folder of masks."""
    if options.image_folder is not None:
        return []
    folders = [source / _IMAGES, *(folder / _IMAGES for folder in list_folder(source)[1])]
    return [path for folder in folders for path in images_in(folder) if path not in known]


def _list_masks(folder: Path) -> list[_Mask]:
    """Return the mask files of an image."""
    files, classes = list_folder(folder)
    masks = [_Mask(path, None) for path in files if has_image_suffix(path)]
    return masks + [_Mask(path, group.name) for group in classes for path in list_images(group)]


def _read_image(path: Path, folder: Path, default_class: str, omissions: Omissions) -> ImportedImage:
    size = read_image_size(path)
    objects = []
    for mask in _list_masks(folder):
        is_object = read_label_image(mask.path).values != 0
        check_size(mask.path, is_object.shape, path, size)
        rle = encode_labels(is_object).get(1)
        if rle is None:
            omissions.add('empty masks', mask.path.name, one='empty mask')
        else:
            objects.append(ImportedObject(mask.class_name or default_class, rle, f'mask {mask.path.name}'))
    return ImportedImage(path, size, tuple(objects))
