"""Models in safetensors files: native arrays, with their metadata as JSON text under :data:`METADATA_KEY`.

Without that metadata, a file is a state dict of another program (:mod:`mask_rcnn.weights.readers.state_dict_file`).
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from mask_rcnn.weights.errors import corruption_error
from mask_rcnn.weights.exporters import safetensors_file as writer
from mask_rcnn.weights.files import sha256
from mask_rcnn.weights.native import ModelMeta
from mask_rcnn.weights.readers import safetensors_file as reader

#: Name of the format.
FORMAT = 'safetensors'

#: Key of the native metadata in the file's ``__metadata__``.
METADATA_KEY = 'mask_rcnn'


def is_model(path: str | os.PathLike) -> bool:
    """Return whether a safetensors file is a model of this program.

    Raises:
        WeightFileError: The file cannot be read or is damaged.
    """
    return METADATA_KEY in reader.read_header(path).metadata


def read(path: str | os.PathLike) -> ConvertedWeights:
    """Read a model.  Nothing in the file is executed.

    Raises:
        WeightFileError: The file cannot be read or is damaged.
    """
    arrays, metadata = reader.read(path)
    try:
        meta = ModelMeta.from_json(metadata[METADATA_KEY])
    except (KeyError, ValueError) as error:
        raise corruption_error(path, 'is a damaged model of this program', error, 200) from None
    origin = (f'converted from {meta.source.file} ({meta.source.format})',) if meta.source else ()
    report = ConversionReport(tuple(arrays), {}, origin + meta.notes)
    return ConvertedWeights(
        meta.kind, FORMAT, meta.config, arrays, report, sha256(path), meta.class_names, meta.category_ids
    )


def write(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], meta: ModelMeta) -> None:
    """Write a model.

    Raises:
        WeightFileError: The file cannot be written; an existing one stays unchanged.
    """
    writer.write(path, arrays, {METADATA_KEY: meta.to_json()})
