"""The mapping of PyTorch's layers: names, normalisations and sizes that torchvision and detectron2 share.

PyTorch's orders of axes are the native ones: convolutions ``(out, in / groups, kh, kw)``, transposed ones
``(in, out, kh, kw)``, linear layers ``(out, in)``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from mask_rcnn.weights.converters import mapping
from mask_rcnn.weights.converters.mapping import ParamMapping, batch_counter
from mask_rcnn.weights.errors import WeightFileError

Arrays = Mapping[str, np.ndarray]

Path = str | os.PathLike

#: Maximum length of a layer's number.
_MAX_DIGITS = 4


class LayerMapper:
    """Builds the mappings of layers.

    Args:
        arrays: The arrays of the file by name; empty for the names in a complete file.
        name_of: Returns the name of an array in the file, which may be that of an older version of the program.
    """

    def __init__(self, arrays: Arrays, name_of: Callable[[str], str] = str) -> None:
        self._arrays = arrays
        self._name_of = name_of

    def plain(
        self, layer: str, path: str, shape: tuple[int, ...], convert: Callable | None = None, *, out: int = 0
    ) -> list[ParamMapping]:
        """Map a layer with a weight and a bias; ``out`` is the axis of the weight's output channels."""
        return [
            ParamMapping(f'{path}/W', {self._name_of(f'{layer}.weight'): shape}, convert),
            ParamMapping(f'{path}/b', {self._name_of(f'{layer}.bias'): (shape[out],)}, convert),
        ]

    def conv_norm(self, conv: str, norm: str, path: str, shape: tuple[int, ...], kind: str) -> list[ParamMapping]:
        """Map a convolution without bias and its normalisation.

        Args:
            conv: Name of the convolution.
            norm: Name of the normalisation.
            path: Native path of both.
            shape: Shape of the weight.
            kind: ``'bn'`` or ``'gn'``.  A batch normalisation without statistics has mean 0 and variance 1.
        """
        mappings = [
            ParamMapping(f'{path}/conv/W', {self._name_of(f'{conv}.weight'): shape}),
            ParamMapping(f'{path}/norm/gamma', {self._name_of(f'{norm}.weight'): shape[:1]}),
            ParamMapping(f'{path}/norm/beta', {self._name_of(f'{norm}.bias'): shape[:1]}),
        ]
        if kind == 'gn':
            return mappings
        return [
            *mappings,
            self._statistic(f'{norm}.running_mean', f'{path}/norm/avg_mean', shape[:1], 0),
            self._statistic(f'{norm}.running_var', f'{path}/norm/avg_var', shape[:1], 1),
            batch_counter(f'{path}/norm'),
        ]

    def conv(
        self, conv: str, norm: str, path: str, shape: tuple[int, ...], kind: str, convert: Callable | None = None
    ) -> list[ParamMapping]:
        """Map a convolution with a normalisation, or with a bias if ``kind`` is ``'none'``."""
        if kind == 'none':
            return self.plain(conv, path, shape, convert)
        return self.conv_norm(conv, norm, path, shape, kind)

    def _statistic(self, source: str, path: str, shape: tuple[int, ...], value: float) -> ParamMapping:
        """Map a running statistic; a file may lack all statistics, but not a single one."""
        name = self._name_of(source)
        if not self._arrays or name in self._arrays or any(other.endswith('.running_mean') for other in self._arrays):
            return ParamMapping(path, {name: shape})
        return ParamMapping(path, {}, lambda: np.full(shape, value, np.float32))


def layer_size(path: Path, arrays: Arrays, name: str, axis: int = 0, n_axes: int = 4, minimum: int = 1) -> int:
    """Return the size of an array along an axis, which determines a setting of the network.

    Raises:
        WeightFileError: The array does not exist, or its shape is not valid for such a layer.
    """
    if name not in arrays:
        raise WeightFileError(path, f'missing arrays: {name}')
    shape = arrays[name].shape
    if len(shape) != n_axes or 0 in shape or shape[axis] < minimum:
        raise WeightFileError(path, f'{name} has the shape {shape}, which is not valid for such a layer')
    return shape[axis]


def count_layers(arrays: Iterable[str], pattern: str) -> int:
    """Return the number of layers up to the last one.

    Args:
        arrays: Names of arrays.
        pattern: Regular expression of the name of a layer's array, whose group is its number, counted from 0 or 1.
    """
    found = (re.fullmatch(pattern, name) for name in arrays)
    numbers = {int(match[1]) for match in found if match and len(match[1]) <= _MAX_DIGITS}
    return max(numbers) + (0 in numbers) if numbers else 0


def find_resnet(path: Path, arrays: Arrays, stage4: str, conv2: str) -> str:
    """Return the backbone, a key of :data:`mask_rcnn.config.RESNET_BLOCKS`.

    Args:
        path: The file, for errors.
        arrays: Its arrays by name.
        stage4: Regular expression of the name of a weight in each block of res4, whose group is the block.
        conv2: Name of the weight of the first 3x3 convolution, whose shape determines the groups.

    Raises:
        WeightFileError: The backbone is not supported; the message describes it.
    """
    width, group_width = (layer_size(path, arrays, conv2, axis) for axis in (0, 1))
    return mapping.find_resnet(path, count_layers(arrays, stage4), width, group_width)
