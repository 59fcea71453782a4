"""The importers, and the recognition of the format of a source by its content."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from mask_rcnn.datasets.annotation_signposts import describe_bytes
from mask_rcnn.datasets.annotation_values import shorten
from mask_rcnn.datasets.coco_json import AnnotationFileError, read_json
from mask_rcnn.datasets.importers.folders import sample
from mask_rcnn.datasets.importers.records import Importer
from mask_rcnn.io.atomic_file import open_for_reading
from mask_rcnn.io.file_kinds import N_KIND_BYTES
from mask_rcnn.preprocessing.image_errors import os_reason

#: Format for ``--format`` -> the module of its importer and the description in messages.
FORMATS: dict[str, tuple[str, str]] = {
    'via': ('via', 'VGG Image Annotator 1 and 2 (JSON, project or CSV)'),
    'labelme': ('labelme', 'labelme (JSON)'),
    'labelme-xml': ('labelme_xml', "LabelMe of MIT and CVAT's LabelMe (XML)"),
    'coco': ('coco', 'COCO of CVAT, Roboflow, Label Studio, COCO Annotator (JSON)'),
    'yolo': ('yolo', 'YOLO segmentation of Ultralytics, Roboflow, CVAT (TXT, data.yaml)'),
    'voc-masks': ('voc_masks', 'Pascal VOC masks, also of CVAT and labelme (PNG)'),
    'instance-masks': ('instance_masks', 'one mask file for each instance (Data Science Bowl 2018)'),
    'label-images': ('label_images', 'one label image for each image, value n = instance n (Cellpose, StarDist)'),
}


def get_importer(name: str) -> Importer:
    """Return the importer of a format.

    Args:
        name: A key of :data:`FORMATS`.

    Raises:
        ValueError: The name is unknown.
    """
    if name not in FORMATS:
        raise ValueError(f'unknown format {name!r}; known are {", ".join(FORMATS)}')
    return cast(Importer, importlib.import_module(f'mask_rcnn.datasets.importers.{FORMATS[name][0]}'))


def recognise(source: Path, image_folder: Path | None = None) -> Importer:
    """Return the importer that recognises a file or a folder.

    Args:
        source: The file or the folder.
        image_folder: The folder of the images; ``None`` for the place that the source implies.

    Raises:
        AnnotationFileError: The source does not exist, or no importer or several ones recognise it.
    """
    try:
        source.stat()
    except (OSError, ValueError) as error:
        raise AnnotationFileError(source, os_reason(error)) from error
    names = _find_formats(source, image_folder)
    if len(names) == 1:
        return get_importer(names[0])
    if names:
        raise AnnotationFileError(source, f'may have the formats {" and ".join(names)}; --format selects one')
    known = '; '.join(f'{name}: {description}' for name, (_, description) in FORMATS.items())
    raise AnnotationFileError(
        source, f'{_explain(source, image_folder)}; known are: {known} (--format NAME selects one)'
    )


def _find_formats(source: Path, image_folder: Path | None) -> list[str]:
    """Return the formats that a source has.

    Only label images are recognised by their images, because every other format has files of its own.  The user's
    folder of images is considered last: pictures beside files of another format may have the names of its images.
    """
    names = [name for name in FORMATS if get_importer(name).recognises(source)]
    if not names and image_folder is not None:
        from mask_rcnn.datasets.importers import label_images  # late, as in get_importer: it imports OpenCV

        names = ['label-images'] if label_images.recognises(source, image_folder) else []
    return names


def _first_subfolders(folder: Path) -> list[Path]:
    try:
        return sample(sorted(path for path in folder.iterdir() if path.is_dir()))
    except OSError as error:
        raise AnnotationFileError(folder, os_reason(error)) from error


def _explain(source: Path, image_folder: Path | None) -> str:
    """Return the reason why no importer recognises a source.

    Raises:
        AnnotationFileError: The source is damaged JSON.
    """
    if source.is_dir():
        folders = [folder for folder in _first_subfolders(source) if _find_formats(folder, image_folder)]
        names = ', '.join(map(str, folders))
        return 'the folder has no annotations of a known format' + (f', but subfolders have: {names}' if names else '')
    try:
        with open_for_reading(source) as (file, _):
            start = file.read(N_KIND_BYTES)
    except OSError as error:
        raise AnnotationFileError(source, os_reason(error)) from error
    if start.lstrip(b'\xef\xbb\xbf \t\r\n')[:1] in (b'{', b'['):
        content = read_json(source)
        keys = shorten(list(content)) if isinstance(content, dict) else 'no names'
        return f'not annotations of a known format: it is JSON with {keys}'
    kind = describe_bytes(start).split(';')[0].split(', ')[0]
    return 'not annotations of a known format' + (f': it is {kind}' if kind else '')
