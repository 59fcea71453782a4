"""Importers: annotations of other tools, read into the records of :mod:`mask_rcnn.datasets.importers.records`."""

from __future__ import annotations

import os
from pathlib import Path

from mask_rcnn.datasets.importers.assembly import clean_class_names
from mask_rcnn.datasets.importers.merging import merge_datasets
from mask_rcnn.datasets.importers.records import ImportedDataset, ImportedImage, ImportedObject, ImportOptions
from mask_rcnn.datasets.importers.registry import FORMATS, get_importer, recognise
from mask_rcnn.datasets.importers.source_files import forget_json

__all__ = [
    'FORMATS',
    'ImportOptions',
    'ImportedDataset',
    'ImportedImage',
    'ImportedObject',
    'import_annotations',
    'merge_datasets',
]


def import_annotations(
    source: str | os.PathLike, options: ImportOptions | None = None, *, format_name: str | None = None
) -> ImportedDataset:
    """Read the annotations of a labelling tool.

    Args:
        source: A file or a folder.
        options: The settings; ``None`` for the defaults.
        format_name: A key of :data:`FORMATS`; ``None`` to recognise the format by the content.

    Raises:
        AnnotationFileError: The source is damaged or of an unknown format.
        ImageFileError: An image is missing or broken.
    """
    path, options = Path(source), options or ImportOptions()
    try:
        importer = recognise(path, options.image_folder) if format_name is None else get_importer(format_name)
        return clean_class_names(importer.read(path, options))
    finally:
        forget_json()
