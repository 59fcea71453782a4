"""The steps that importers share: check the images of a source, read their objects, and join them into a dataset."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.datasets.image_files import explain_size
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage, ImportedObject
from mask_rcnn.datasets.importers.report import ImportReport
from mask_rcnn.datasets.segmentations import outline_area
from mask_rcnn.io.omissions import Omissions
from mask_rcnn.preprocessing.image_errors import image_file_errors
from mask_rcnn.preprocessing.image_header import read_header
from mask_rcnn.preprocessing.image_io import ImageFileError, read_image_sizes
from mask_rcnn.preprocessing.orientation import upright_size


@dataclass(frozen=True)
class ImageEntry:
    """An image of a source before its file and its objects are read.

    Args:
        source: The annotation file.
        path: The image file.
        read_objects: Returns the objects for the height and width of the image.
        declared_size: Height and width in the annotations; ``None`` for an unknown one.
        read_data: See :class:`~mask_rcnn.datasets.importers.records.ImportedImage`.
    """

    source: Path
    path: Path
    read_objects: Callable[[tuple[int, int]], Iterable[ImportedObject]]
    declared_size: tuple[int | None, int | None] = (None, None)
    read_data: Callable[[], bytes] | None = None


def measure_images(entries: Sequence[ImageEntry], report: ImportReport) -> list[tuple[ImageEntry, tuple[int, int]]]:
    """Return the entries whose image can be read and has the declared size, with height and width."""
    files = [entry.path for entry in entries if entry.read_data is None]
    sizes = dict(zip(files, read_image_sizes(files), strict=True))
    measured = []
    for entry in entries:
        size = sizes[entry.path] if entry.read_data is None else _embedded_size(entry.path, entry.read_data)
        if not isinstance(size, ImageFileError):
            height, width = (declared or side for declared, side in zip(entry.declared_size, size, strict=True))
            size = explain_size(str(entry.path), size, (height, width)) or size
        if isinstance(size, ImageFileError):
            report.reject(size)
        else:
            measured.append((entry, size))
    return measured


def _embedded_size(path: Path, read_data: Callable[[], bytes]) -> tuple[int, int] | ImageFileError:
    try:
        with image_file_errors(path):
            header = read_header(io.BytesIO(read_data()))
    except ImageFileError as error:
        return error
    return upright_size(header.size, header.orientation)


def assemble(
    format_name: str,
    images: Iterable[tuple[ImageEntry, tuple[int, int]]],
    report: ImportReport,
    class_names: Sequence[str] | None = None,
) -> ImportedDataset:
    """Read the objects of images and return the dataset.

    Args:
        format_name: See :class:`~mask_rcnn.datasets.importers.records.ImportedDataset`.
        images: The result of :func:`measure_images`.
        report: The report of the import.
        class_names: The classes that the source declares, in its order; those that objects have in addition follow.
    """
    records = []
    for entry, size in images:
        objects = [obj for obj in entry.read_objects(size) if _has_pixels(obj, entry, size, report)]
        records.append(ImportedImage(entry.path, size, tuple(objects), entry.read_data))
    joined = join_images(records, report.omissions)
    found = {obj.class_name for image in joined for obj in image.objects}
    declared = dict.fromkeys(class_names or ())
    names = (*declared, *sorted(found - set(declared)))
    return ImportedDataset(format_name, tuple(joined), names, report.omissions, report.doubts)


def _has_pixels(obj: ImportedObject, entry: ImageEntry, size: tuple[int, int], report: ImportReport) -> bool:
    if not obj.segmentation and obj.box is not None:
        return True
    if outline_area(obj.segmentation, size) > 0:
        return True
    report.omissions.add('without a pixel in the image', f'{obj.place} of {entry.path.name}')
    return False


def join_images(images: Iterable[ImportedImage], omissions: Omissions) -> list[ImportedImage]:
    """Return images without repetitions: an image that occurs again adds its objects to the first occurrence.

    Objects that an image already has are left out.

    Args:
        images: The images.
        omissions: Receives the repeated objects.
    """
    joined: dict[str, ImportedImage] = {}
    seen: dict[str, set] = {}
    for image in images:
        key = os.path.abspath(image.path)
        keys = seen.setdefault(key, set())
        objects = []
        for obj in image.objects:
            identity = (obj.class_name, obj.is_crowd, obj.box, _identity(obj.segmentation))
            if identity in keys:
                omissions.add('repeated objects', f'{obj.place} of {image.path.name}', one='repeated object')
            else:
                keys.add(identity)
                objects.append(obj)
        first = joined.get(key)
        joined[key] = replace(first or image, objects=(*(first.objects if first else ()), *objects))
    return list(joined.values())


def _identity(segmentation: Segmentation) -> object:
    if isinstance(segmentation, dict):
        return segmentation['counts']
    return tuple(polygon.tobytes() for polygon in segmentation)


def clean_name(text: str) -> str:
    """Return the name of a class without white space around it, with composed accents."""
    return unicodedata.normalize('NFC', ' '.join(text.split()))


def clean_class_names(dataset: ImportedDataset) -> ImportedDataset:
    """Return a dataset whose class names are those of :func:`clean_name`; macOS decomposes accents in folder names."""
    names = dict.fromkeys(map(clean_name, dataset.class_names))
    if tuple(names) == dataset.class_names:
        return dataset
    images = tuple(
        replace(image, objects=tuple(replace(obj, class_name=clean_name(obj.class_name)) for obj in image.objects))
        for image in dataset.images
    )
    return replace(dataset, images=images, class_names=tuple(names))
