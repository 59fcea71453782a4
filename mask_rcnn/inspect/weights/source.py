"""The weights of a file of any format, of a model or of a mapping, in one form."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import chainer
import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.inference.save import collect_arrays
from mask_rcnn.inspect.weights.network_order import network_order
from mask_rcnn.weights import formats
from mask_rcnn.weights.converters.mapping import backbone_name, network_name
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii

#: The fields of a network's configuration that the weights of a backbone determine.
_BACKBONE_FIELDS = ('extractor', 'dialect', 'norm', 'width')


@dataclass(frozen=True, eq=False)
class NetworkWeights:
    """The arrays of a network, and the description that its file contains.

    Args:
        title: The network in words, such as ``'R-50-FPN Mask R-CNN'``.
        arrays: Array by parameter path, such as ``'extractor/conv1/conv/W'``, in the order of the layers.
        config: The configuration; ``None`` for arrays without one.
        description: The contents of the file beside the configuration, such as its format and its class names.
    """

    title: str
    arrays: Mapping[str, np.ndarray]
    config: Config | None = None
    description: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """The description and the fields of the configuration that affect the network, as JSON-compatible values."""
        if self.config is None:
            return dict(self.description)
        # Not with Config.to_dict(), which refuses the dialects that a file cannot name.
        fields = {item.name: getattr(self.config, item.name) for item in dataclasses.fields(self.config)}
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
        values['dialect'] = self.config.dialect.name
        if self.description.get('kind') == 'backbone':
            values = {name: values[name] for name in _BACKBONE_FIELDS}
        used = {name: value for name, value in values.items() if name not in self.config.unused_fields}
        return {**self.description, **used}


#: The weights that the functions of this package accept: a file of any format, a model, or arrays by parameter path.
WeightSource = str | os.PathLike | chainer.Link | Mapping[str, np.ndarray] | NetworkWeights


def read_network_weights(source: WeightSource, *, bn2affine: bool = False) -> NetworkWeights:
    """Return the weights of a file, of a model or of a mapping.

    The arrays of a file of another program are those of the converted network: names, layouts and types are the native
    ones, so that files of different programs can be compared.

    Args:
        source: A weight file of any format that :func:`mask_rcnn.weights.formats.read` reads, a model such as
            :class:`mask_rcnn.MaskRCNN`, or arrays by parameter path.
        bn2affine: Convert batch normalisations in a file to the affine channels with the same output.

    Raises:
        mask_rcnn.weights.WeightFileError: The file cannot be read.
        TypeError: An array does not contain numbers.
    """
    if isinstance(source, NetworkWeights):
        return source
    if isinstance(source, (str, os.PathLike)):
        return _from_file(source, bn2affine)
    if isinstance(source, chainer.Link):
        config = getattr(source, 'config', None)
        title = 'network' if config is None else network_name(config)
        details: dict[str, Any] = {'kind': 'model'}
        for name in ('class_names', 'category_ids'):
            details[name] = list(getattr(source, name, None) or ())
        return NetworkWeights(title, _in_order(collect_arrays(source)), config, details)
    return NetworkWeights('arrays', _in_order(source))


def _from_file(path: str | os.PathLike, bn2affine: bool) -> NetworkWeights:
    file = formats.read(path, bn2affine=bn2affine)
    is_backbone = file.kind == 'backbone'
    title = f'{backbone_name(file.config)} backbone' if is_backbone else network_name(file.config)
    details = {
        'kind': file.kind,
        'format': file.format,
        'class_names': list(file.class_names),
        'category_ids': list(file.category_ids),
    }
    try:
        arrays = _in_order(file.arrays)
    except TypeError as error:
        raise WeightFileError(path, to_printable_ascii(str(error), 200)) from None
    return NetworkWeights(title, arrays, file.config, details)


def _in_order(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ordered = {name: np.asarray(arrays[name]) for name in network_order(arrays)}
    for name, array in ordered.items():
        if array.dtype.kind not in 'fiub':
            raise TypeError(f'{name} is {array.dtype}, not numbers')
    return ordered
