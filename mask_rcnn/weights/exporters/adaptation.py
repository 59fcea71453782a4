"""Conversion of native arrays to the conventions of another program, where the outputs stay the same.

===============================  ======================================================================================
frozen normalisations            affine channels become batch normalisations and vice versa, with the program's epsilon
order of the colour channels     conv1's input channels are reversed
``input.pixel_std``              conv1's weight is multiplied by the ratio
``input.pixel_mean``             the difference moves into the normalisation after conv1: exact except at zero padding
weights of the box deltas        the layers that predict deltas are multiplied by the ratio
order of a C4 network's anchors  the RPN's outputs are permuted
===============================  ======================================================================================

Arrays of a network that already has the program's conventions stay as they are, bit by bit.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping

import numpy as np

from mask_rcnn.config import DENA, DETECTRON, Config, Dialect
from mask_rcnn.config.conventions import InputConventions
from mask_rcnn.weights.converters.mapping import scale_outputs
from mask_rcnn.weights.exporters.compatibility import target_dialect
from mask_rcnn.weights.exporters.programs import Program
from mask_rcnn.weights.norm_arrays import convert_norm_arrays

_Arrays = Mapping[str, np.ndarray]


def adapt(
    path: str | os.PathLike, config: Config, arrays: _Arrays, program: Program
) -> tuple[Config, dict[str, np.ndarray]]:
    """Return the configuration and the arrays of a network in a program's conventions.

    Args:
        path: The file, for errors.
        config: The network, for which :func:`~mask_rcnn.weights.exporters.compatibility.find_obstacles` finds none.
        arrays: Its arrays by parameter path.
        program: The program.

    Raises:
        WeightFileError: Arrays of a normalisation are missing or have different shapes.
    """
    before = config.dialect
    dialect = target_dialect(config, program)
    norm = config.norm if config.norm in program.norms else program.norms[0]
    converted = dict(arrays)
    if norm != 'gn':
        converted = convert_norm_arrays(path, arrays, norm, before.backbone.bn_eps, dialect.backbone.bn_eps)
    _convert_input(converted, config, dialect)
    for layer, name in (('rpn/delta', 'rpn_delta_weights'), ('box_head/delta', 'box_delta_weights')):
        factors = np.divide(getattr(dialect.boxes, name), getattr(before.boxes, name))
        if (factors != 1).any():
            _replace(converted, layer, functools.partial(scale_outputs, factors=factors))
    if not config.has_fpn and (order := _anchor_order(config, before, dialect)) is not None:
        _replace(converted, 'rpn/objectness', lambda array: array[order])
        _replace(
            converted, 'rpn/delta', lambda array: array.reshape(-1, 4, *array.shape[1:])[order].reshape(array.shape)
        )
    if before.name == DENA.name:
        config = config.in_dialect(DETECTRON)  # with the settings of Detectron
    head_norm = norm if config.head_norm in ('affine', 'bn') else config.head_norm
    return config.replace(dialect=dialect, norm=norm, head_norm=head_norm), converted


def _replace(arrays: dict[str, np.ndarray], layer: str, convert: Callable[[np.ndarray], np.ndarray]) -> None:
    """Convert the weight and the bias of a layer."""
    for name in (f'{layer}/W', f'{layer}/b'):
        arrays[name] = np.asarray(convert(arrays[name]), np.float32, order='C')


def _convert_input(arrays: dict[str, np.ndarray], config: Config, dialect: Dialect) -> None:
    """Convert conv1 and the normalisation after it to another input."""
    before, after = config.dialect.input, dialect.input
    layer = 'extractor/body/conv1' if config.has_fpn else 'extractor/conv1'
    name = f'{layer}/conv/W'
    weight, shift = fold_input(arrays[name], before, after)
    arrays[name] = weight
    if not shift.any():
        return
    if f'{layer}/norm/avg_mean' in arrays:
        mean = arrays[f'{layer}/norm/avg_mean']
        arrays[f'{layer}/norm/avg_mean'] = (mean - shift).astype(np.float32)
    elif f'{layer}/norm/scale' in arrays:
        scale, bias = arrays[f'{layer}/norm/scale'], arrays[f'{layer}/norm/bias']
        arrays[f'{layer}/norm/bias'] = (bias + scale.astype(np.float64) * shift).astype(np.float32)


def fold_input(weight: np.ndarray, before: InputConventions, after: InputConventions) -> tuple[np.ndarray, np.ndarray]:
    """Convert the first convolution to another input of the network.

    Args:
        weight: ``(O, 3, h, w)`` for the input ``before``.
        before: Order, mean and standard deviation of the channels.
        after: The same of the new input.

    Returns:
        The weight for the input ``after``, of the same shape and type, and ``(O,)`` float64 that the output of the old
        weight exceeds that of the new one by.
    """
    mean, std = np.asarray(before.pixel_mean), np.asarray(before.pixel_std)
    if before.channel_order != after.channel_order:
        weight, mean, std = weight[:, ::-1], mean[::-1], std[::-1]
    shift = (weight.sum(axis=(2, 3), dtype=np.float64) * (np.subtract(after.pixel_mean, mean) / std)).sum(axis=1)
    factors = np.divide(after.pixel_std, std)
    if (factors != 1).any():
        weight = (weight * factors[:, None, None]).astype(np.float32)
    return np.ascontiguousarray(weight), shift


def _anchor_order(config: Config, before: Dialect, after: Dialect) -> np.ndarray | None:
    """Return the index of each of the program's anchors in a C4 network; ``None`` if the orders are equal.

    detectron2 has sizes in its outer loop and ratios in its inner loop, the other programs the other way round.
    """
    if (before.rpn.anchors == 'detectron2') == (after.rpn.anchors == 'detectron2'):
        return None
    index = np.arange(len(config.anchor_sizes) * len(config.anchor_ratios))
    n_outer = len(config.anchor_ratios) if after.rpn.anchors == 'detectron2' else len(config.anchor_sizes)
    return index.reshape(n_outer, -1).T.reshape(-1)
