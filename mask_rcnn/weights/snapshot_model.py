"""Read the model in a training snapshot (:mod:`mask_rcnn.training.snapshot`), so that it can be used like a model file.

The names of the arrays are those of Chainer's serializers; those of the model begin with :data:`PREFIX`.
"""

from __future__ import annotations

import json
import os

from mask_rcnn.weights.converters.mapping import ConversionReport, ConvertedWeights
from mask_rcnn.weights.errors import corruption_error, to_printable_ascii
from mask_rcnn.weights.files import CORRUPT_FILE_ERRORS, open_stored_zip, open_weight_file, read_npy_member
from mask_rcnn.weights.native import ModelMeta

#: Name of the format.
FORMAT = 'mask-rcnn-snapshot'

#: The member of the archive that identifies a snapshot.
HEADER = 'snapshot.npy'

#: Beginning of the names of the model's arrays.
PREFIX = 'updater/model:main/model/'


def read(path: str | os.PathLike) -> ConvertedWeights:
    """Read the model in a snapshot; the rest of the snapshot is not read.

    Raises:
        WeightFileError: The file cannot be read, is damaged or is not a snapshot.
    """
    with open_weight_file(path) as (file, size):
        try:
            archive, members = open_stored_zip(file, size)
            header = json.loads(read_npy_member(archive, members[HEADER]).tobytes())
            meta = ModelMeta.from_json(json.dumps(header['model']))
            arrays = {
                name.removeprefix(PREFIX).removesuffix('.npy'): read_npy_member(archive, member)
                for name, member in members.items()
                if name.startswith(PREFIX)
            }
        except (*CORRUPT_FILE_ERRORS, RecursionError) as error:
            raise corruption_error(path, 'is a damaged training snapshot', error) from None
    notes = ('the model of a training snapshot; "mask-rcnn train --resume" continues the training',)
    others = tuple(to_printable_ascii(name) for name in members if not name.startswith(PREFIX))
    report = ConversionReport(tuple(arrays), {'training state': others}, notes)
    return ConvertedWeights(meta.kind, FORMAT, meta.config, arrays, report, '', meta.class_names, meta.category_ids)
