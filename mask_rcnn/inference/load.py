"""From a weight file to a model that is ready to use."""

from __future__ import annotations

import os

from mask_rcnn.models.builder import build, convert_norm
from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.weights import WeightFileError, load_arrays, read_weights

#: Fields that the arrays of a weight file decide; asking for another value is an error.
_DECIDED_BY_ARRAYS = ('extractor', 'n_fg_class', 'dialect')


def load(path: str | os.PathLike, *, gpu: int = -1, bn2affine: bool = False, **changes) -> MaskRCNN:
    """Return the model in one of our weight files, ready to use.

    Args:
        path: An ``.npz`` that ``mask-rcnn convert`` (or training) wrote.
        gpu: Number of the CUDA device to put it on; -1 for the CPU.
        bn2affine: Turn every batch normalisation into the affine channel that equals it.  The same as
            ``norm='affine'``; ``norm='bn'`` goes the other way.
        **changes: Fields of :class:`~mask_rcnn.config.Config` to use instead of the file's, such as
            ``min_size=600`` or ``roi_size=7``.

    Returns:
        MaskRCNN: The model.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be read or holds something else.
        ValueError: A change contradicts the file's arrays or is no valid value; no such GPU.
        TypeError: A change names an unknown field.
    """
    device = get_device(gpu)
    weights = read_weights(path)
    meta = weights.meta
    if meta.kind != 'model':
        raise WeightFileError(path, f'holds a {meta.kind}, from which one can train, but no whole model')
    for name in _DECIDED_BY_ARRAYS:
        if name in changes and changes[name] != getattr(meta.config, name):
            raise ValueError(f'{path}: its {name} is {getattr(meta.config, name)!r}, not {changes[name]!r}')
    norm = 'affine' if bn2affine else changes.pop('norm', meta.config.norm)
    config = meta.config.replace(**changes)
    model = build(config, class_names=meta.class_names, category_ids=meta.category_ids)
    load_arrays(model, weights.arrays, source=path)
    convert_norm(model, norm)
    model.to_device(device)
    return model
