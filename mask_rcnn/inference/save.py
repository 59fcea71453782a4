"""From a network to a weight file."""

from __future__ import annotations

import os
from collections.abc import Iterable

import chainer
import numpy as np

from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.weights import ModelMeta, write_weights


def save(path: str | os.PathLike, model: MaskRCNN, *, notes: Iterable[str] = ()) -> None:
    """Write a model to a file from which :func:`mask_rcnn.load` makes it again.

    The file holds every parameter and running statistic, the configuration (dialect, sizes, thresholds,
    normalisation), the class names and the category numbers.  Classes without names become ``class_1``,
    ``class_2`` ..., categories without numbers 1, 2 ...  The same model makes the same bytes.

    Args:
        path: The file to write, usually ``*.npz``; it appears under its name when it is complete.
        model: The model, on the CPU or a GPU; it is not changed.
        notes: Lines that the next reader of the file should see.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be written; an older one stays as it was.
    """
    numbers = range(1, model.config.n_fg_class + 1)
    meta = ModelMeta(
        kind='model',
        config=model.config,
        class_names=tuple(model.class_names or (f'class_{i}' for i in numbers)),
        category_ids=tuple(int(i) for i in model.category_ids or numbers),
        notes=tuple(notes),
    )
    write_weights(path, arrays_of(model), meta)


def arrays_of(chain: chainer.Link) -> dict[str, np.ndarray]:
    """Return a link's parameters and persistent values on the host, by path without the first slash.

    The inverse of :func:`mask_rcnn.weights.load_arrays`.  Arrays of a link on the CPU are not copied.
    """
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(chain)
    return serializer.target
