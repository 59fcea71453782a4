"""Save a network to a weight file."""

from __future__ import annotations

import os
from collections.abc import Iterable

import chainer
import numpy as np

from mask_rcnn.weights import ModelMeta, write_weights


def save(path: str | os.PathLike, model, *, notes: Iterable[str] = ()) -> None:
    """Save a model to a weight file in the native format; :func:`mask_rcnn.load` loads it again.

    The file contains every parameter and running statistic, the configuration (dialect, sizes, thresholds,
    normalisation), the class names and the category ids.  The same model gives the same bytes.

    Args:
        path: The file to write, usually ``*.npz``.  It appears under its name only when it is complete.
        model (mask_rcnn.MaskRCNN): The model, on the CPU or a GPU; it is not changed.
        notes: Lines of text for the file's readers.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be written; an older file stays unchanged.
    """
    write_weights(path, collect_arrays(model), model_meta(model, notes))


def model_meta(model, notes: Iterable[str] = ()) -> ModelMeta:
    """Return the description of a model that its weight file contains.

    Missing class names become ``class_1``, ``class_2`` ..., and missing category ids become 1, 2 ...

    Args:
        model (mask_rcnn.MaskRCNN): The model.
        notes: Lines of text for the file's readers.
    """
    default_ids = range(1, model.config.n_fg_class + 1)
    return ModelMeta(
        kind='model',
        config=model.config,
        class_names=tuple(model.class_names or (f'class_{i}' for i in default_ids)),
        category_ids=tuple(model.category_ids or default_ids),
        notes=tuple(notes),
    )


def collect_arrays(chain: chainer.Link) -> dict[str, np.ndarray]:
    """Return a link's parameters and persistent values on the host, by path without the first slash.

    The inverse of :func:`mask_rcnn.weights.load_arrays`.  Arrays of a link on the CPU are not copied.
    """
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(chain)
    return serializer.target
