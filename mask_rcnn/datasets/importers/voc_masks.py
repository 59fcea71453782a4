"""Importer of instance masks in the format of Pascal VOC, as CVAT and labelme also write it.

``SegmentationObject`` contains a label image of the instances, and ``SegmentationClass`` one of the classes, for each
image of ``JPEGImages``.  ``ImageSets/Segmentation/*.txt`` list the images of each part.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import numpy as np

from mask_rcnn.datasets.annotation_values import shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError
from mask_rcnn.datasets.importers.folders import images_in, list_folder
from mask_rcnn.datasets.importers.mask_files import check_size, is_label_file
from mask_rcnn.datasets.importers.parts import choose_part, refuse_part
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.importers.source_files import read_lines
from mask_rcnn.datasets.importers.voc_classes import VOID, VOCClasses, read_voc_classes, voc_color
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.ops.masks.rle import encode_labels
from mask_rcnn.preprocessing.image_formats import IMAGE_SUFFIXES
from mask_rcnn.preprocessing.image_io import read_image_size
from mask_rcnn.preprocessing.label_image import LabelImage, read_label_image

NAME = 'Pascal VOC masks'

#: Folders of the masks; earlier versions of labelme wrote the second one and arrays into the first.
_OBJECTS, _CLASSES = ((f'Segmentation{kind}PNG', f'Segmentation{kind}') for kind in ('Object', 'Class'))
_IMAGE_FOLDERS = ('JPEGImages', 'images')
_LISTS = Path('ImageSets', 'Segmentation')


def recognises(source: Path) -> bool:
    """Return whether a folder, or the folder of a list of images, contains label images of instances."""
    try:
        root, _ = _find_root(source)
        folder = _find_folder(root, _OBJECTS)
        return folder is not None and any(is_label_file(path) for path in images_in(folder)[:1] or _nested(folder))
    except AnnotationFileError:
        return False


def read(source: Path, options: ImportOptions) -> ImportedDataset:
    """Read the masks; see :class:`mask_rcnn.datasets.importers.records.Importer`.

    The class of an instance is the most frequent one among its pixels, without background and void.
    """
    root, chosen = _find_root(source)
    objects, classes = _find_folder(root, _OBJECTS), _find_folder(root, _CLASSES)
    if objects is None:
        raise AnnotationFileError(source, f'has no folder {_OBJECTS[-1]} with label images of the instances')
    images = options.image_folder or next((root / name for name in _IMAGE_FOLDERS if os.path.isdir(root / name)), None)
    if images is None:
        raise AnnotationFileError(root, f'has no folder {_IMAGE_FOLDERS[0]}; --images names the folder of the images')
    names = _image_names(root, objects, chosen, options)
    table, report = read_voc_classes(root), ImportReport(skip_broken=options.skip_broken)

    def read_image(path: Path) -> ImportedImage | None:
        name = os.fspath(path)
        mask = _find_file(objects, name)
        if mask is None:
            report.omissions.add('images without masks', name, one='image without masks')
            return None
        reader = _Reader(mask, None if classes is None else _existing(classes, name), table, options.default_class)
        return reader.read(_existing(images, name), report.omissions)

    read_in = report.read_images(names, read_image)
    class_names = (options.default_class,) if classes is None else table.names
    return ImportedDataset(NAME, read_in, class_names, report.omissions)


def _find_root(source: Path) -> tuple[Path, Path | None]:
    """Return the folder of the dataset, and the list of images if the source is one."""
    if os.path.isfile(source):
        path = Path(os.path.abspath(source))
        if path.suffix != '.txt' or Path(*path.parts[-3:-1]) != _LISTS:
            raise AnnotationFileError(source, f'is not a list in {_LISTS}')
        return path.parents[2], source
    _, subfolders = list_folder(source)
    inner = [folder for folder in subfolders if _find_folder(folder, _OBJECTS) is not None]
    if _find_folder(source, _OBJECTS) is None and len(inner) == 1:  # VOCdevkit/VOC2012
        return inner[0], None
    return source, None


def _find_folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if os.path.isdir(root / name)), None)


def _nested(folder: Path) -> list[Path]:
    """Return an image of each subfolder: CVAT's tasks may have images in folders."""
    return [path for group in list_folder(folder)[1] for path in images_in(group)[:1]]


def _image_names(root: Path, objects: Path, chosen: Path | None, options: ImportOptions) -> list[Path]:
    """Return the names of the images without suffix: those of a list, or of all masks if there is no list."""
    files = list_folder(root / _LISTS)[0] if chosen is None and os.path.isdir(root / _LISTS) else []
    lists = {path.stem: path for path in files if path.suffix == '.txt'}
    if lists:
        chosen = lists[choose_part(lists, options.part, root)]
    else:
        refuse_part(options.part, chosen or root)
    if chosen is None:
        return [Path(path.stem) for path in images_in(objects)]
    names = []
    for number, line in read_lines(chosen):
        name = PurePosixPath(line.strip('"'))  # Datumaro quotes names with spaces
        if name.is_absolute() or '..' in name.parts or '\0' in line:
            raise AnnotationFileError(chosen, f'line {number} is {shorten(line)}, not the name of an image')
        names.append(Path(name))
    return names


def _find_file(folder: Path, name: str) -> Path | None:
    """Return the image with a name that has no suffix."""
    paths = (folder / f'{name}{spelling}' for suffix in IMAGE_SUFFIXES for spelling in (suffix, suffix.upper()))
    return next((path for path in paths if os.path.isfile(path)), None)


def _existing(folder: Path, name: str) -> Path:
    path = _find_file(folder, name)
    if path is None:
        raise AnnotationFileError(folder, f'contains no image named {name}')
    return path


class _Reader:
    """Reads the instances of one image.

    Args:
        path: The label image of the instances.
        class_path: The label image of the classes, or ``None`` if there is none.
        table: The classes.
        default_class: The class of all instances if there is no label image of the classes.
    """

    def __init__(self, path: Path, class_path: Path | None, table: VOCClasses, default_class: str):
        self.path, self.class_path, self.table, self.default_class = path, class_path, table, default_class

    def read(self, image: Path, omissions: Omissions) -> ImportedImage:
        """Read the instances; add those without a class to the omissions."""
        size = read_image_size(image)
        label = read_label_image(self.path)
        check_size(self.path, label.values.shape, image, size)
        values = np.where(label.values == (voc_color(VOID) if label.is_color else VOID), 0, label.values)
        names = self._read_classes(values, image, size)
        objects = []
        for value, rle in encode_labels(values).items():
            name = self.default_class if names is None else names.get(value)
            if name is None:
                place = f'{self.path.name}, {label.describe(value)}'
                omissions.add('instances without a class', place, one='instance without a class')
            else:
                objects.append(ImportedObject(name, rle, label.describe(value)))
        return ImportedImage(image, size, tuple(objects))

    def _read_classes(self, instances: np.ndarray, image: Path, size: tuple[int, int]) -> dict[int, str] | None:
        """Return the name of the most frequent class of each instance."""
        if self.class_path is None:
            return None
        label = read_label_image(self.class_path)
        check_size(self.class_path, label.values.shape, image, size)
        inside = instances > 0
        pairs = instances[inside].astype(np.int64) << 32 | label.values[inside]
        found, counts = np.unique(pairs, return_counts=True)
        best: dict[int, tuple[int, str]] = {}
        for pair, count in zip(found.tolist(), counts.tolist(), strict=True):
            instance, value = pair >> 32, pair & 0xFFFFFFFF
            name = self._class_name(label, value)
            if name and count > best.get(instance, (0, ''))[0]:
                best[instance] = count, name
        return {instance: name for instance, (_, name) in best.items()}

    def _class_name(self, label: LabelImage, value: int) -> str:
        name = self.table.find(label, value)
        if name is None:
            origin = 'Pascal VOC' if self.table.source is None else self.table.source.name
            raise AnnotationFileError(
                Path(self.class_path or ''),
                f'{label.describe(value)} is not a class of {origin}; declare it in labelmap.txt',
            )
        return name
