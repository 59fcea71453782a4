"""Read Caffe's ``.caffemodel`` of the ResNets (He et al. 2016) without Caffe or protocol buffer code.

The file is one ``NetParameter`` message of ``caffe/proto/caffe.proto`` (:mod:`mask_rcnn.weights.readers.protobuf`).
Only these fields are read:

=====================  ==========================================================================
``NetParameter``       ``layers`` = 2 (before 2015: ``V1LayerParameter``), ``layer`` = 100
``V1LayerParameter``   ``name`` = 4, ``blobs`` = 6
``LayerParameter``     ``name`` = 1, ``blobs`` = 7, ``batch_norm_param`` = 139 with ``eps`` = 3
``BlobProto``          ``num, channels, height, width`` = 1 to 4 (before 2015), ``shape`` = 7 with
                       ``dim`` = 1; ``data`` = 5 (float), ``double_data`` = 8
=====================  ==========================================================================

A damaged or hostile file can only raise an error: lengths are checked against the remaining bytes, and nothing is
allocated except copies of values in the file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file
from mask_rcnn.weights.readers.protobuf import (
    Budget,
    BytesField,
    CorruptMessageError,
    FixedField,
    VarintField,
    fields,
    numbers,
    packed,
)

#: Epsilon of batch normalisation: Caffe's default and the native network's.
EPS = 1e-5

#: Maximum size of a file in bytes and maximum dimension of a blob: the limit of protocol buffers (the ResNets have
#: 240 MB).
_MAX_SIZE = 1 << 31

_MAX_DIMENSIONS = 8

_CONV = re.compile(r'conv1|res\d[a-z]\d{0,2}_branch\d[a-c]?')


@dataclass(frozen=True)
class _Layer:
    """The undecoded blobs of a layer, and the epsilon of a batch normalisation."""

    blobs: tuple[memoryview, ...]
    eps: float = EPS


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the convolutions and batch normalisations of a Caffe ResNet.

    Caffe's ``BatchNorm`` (sums and their count) and the ``Scale`` after it become one batch normalisation
    ``y = gamma * (x - mean) / sqrt(var + 1e-5) + beta``.

    Args:
        path: A ``.caffemodel``.

    Returns:
        dict: float32 arrays: ``conv1/W`` ``(64, 3, 7, 7)``, which expects BGR; ``conv1/b`` if the file has it;
        ``bn_conv1/gamma``, ``.../beta``, ``.../mean``, ``.../var``; ``res2a_branch2a/W``, ``bn2a_branch2a/gamma`` and
        so on.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or does not contain a ResNet.
    """
    with open_weight_file(path) as (file, size):
        if size > _MAX_SIZE:
            raise WeightFileError(path, f'is larger ({size / 1e9:.1f} GB) than any .caffemodel')
        data = file.read()
    budget = Budget()
    try:
        layers = _layers(memoryview(data), budget)
        arrays: dict[str, np.ndarray] = {}
        for name in filter(_CONV.fullmatch, layers):
            arrays |= _convolution(name, layers, budget)
    except (CorruptMessageError, UnicodeDecodeError) as error:
        raise WeightFileError(path, f'is not a .caffemodel, or damaged: {error}') from None
    if not arrays:
        raise WeightFileError(
            path, 'does not contain a ResNet of He et al.: the layers conv1, res2a_branch2a, ... are missing'
        )
    return arrays


# The network


def _convolution(name: str, layers: Mapping[str, _Layer], budget: Budget) -> dict[str, np.ndarray]:
    """Return the weights of a convolution and the parameters of its batch normalisation."""
    suffix = '_conv1' if name == 'conv1' else name.removeprefix('res')
    weight, *bias = _blobs(name, layers, budget, (1, 2))
    arrays = {f'{name}/W': weight}
    if bias:
        arrays[f'{name}/b'] = bias[0].reshape(-1)
    bn = f'bn{suffix}'
    mean, var, factor = _blobs(bn, layers, budget, (3,))
    gamma, beta = _blobs(f'scale{suffix}', layers, budget, (2,))
    if factor.size != 1:
        raise CorruptMessageError(f'{bn} has {counted(factor.size, "scale factor")}')
    # BatchNormLayer::Forward_cpu: the blobs are sums; a factor of 0 means that they are empty sums.
    count = np.float64(factor.item())
    scale = 1 / count if count else 0.0
    return arrays | {
        f'{bn}/gamma': gamma.reshape(-1),
        f'{bn}/beta': beta.reshape(-1),
        f'{bn}/mean': np.float32(mean.reshape(-1) * scale),
        f'{bn}/var': np.float32(var.reshape(-1) * scale + (layers[bn].eps - EPS)),
    }


def _blobs(name: str, layers: Mapping[str, _Layer], budget: Budget, counts: tuple[int, ...]) -> list[np.ndarray]:
    if name not in layers:
        raise CorruptMessageError(f'the layer {name} is missing')
    blobs = layers[name].blobs
    if len(blobs) not in counts:
        raise CorruptMessageError(f'{name} has {counted(len(blobs), "blob")}, not {" or ".join(map(str, counts))}')
    return [_blob(name, blob, budget) for blob in blobs]


# The messages


def _layers(data: memoryview, budget: Budget) -> dict[str, _Layer]:
    """Decode ``NetParameter``: the layers that have blobs, by name."""
    layers = {}
    for field in fields(data, budget):
        match field:
            case BytesField(100, message):
                name, layer = _layer(message, budget, name_field=1, blobs_field=7)
            case BytesField(2, message):
                name, layer = _layer(message, budget, name_field=4, blobs_field=6)
            case _:
                continue
        if layer.blobs:
            if name in layers:
                raise CorruptMessageError(f'two layers {to_printable_ascii(name)}')
            layers[name] = layer
    return layers


def _layer(data: memoryview, budget: Budget, name_field: int, blobs_field: int) -> tuple[str, _Layer]:
    name, blobs, eps = '', [], EPS
    for field in fields(data, budget):
        if isinstance(field, BytesField):
            if field.number == name_field:
                name = bytes(field.data[:1000]).decode()
            elif field.number == blobs_field:
                blobs.append(field.data)
            elif field.number == 139:
                eps = _batch_norm_eps(field.data, budget)
    return name, _Layer(tuple(blobs), eps)


def _batch_norm_eps(data: memoryview, budget: Budget) -> float:
    eps = EPS
    for field in fields(data, budget):
        match field:
            case FixedField(3, 4, values):
                stored = np.frombuffer(values, '<f4')[-1]
                eps = EPS if stored == np.float32(EPS) else float(stored)
    return eps


def _blob(name: str, data: memoryview, budget: Budget) -> np.ndarray:
    """Decode ``BlobProto``: a float32 array."""
    legacy_shape, shape, parts = {1: 1, 2: 1, 3: 1, 4: 1}, None, []
    has_legacy_shape = False
    for field in fields(data, budget):
        match field:
            case VarintField(1 | 2 | 3 | 4 as axis, value):
                legacy_shape[axis] = value
                has_legacy_shape = True
            case BytesField(7, message):
                shape = _blob_shape(message, budget)
            case BytesField(5, values) | FixedField(5, 4, values):
                parts.append(numbers(values, '<f4'))
            case BytesField(8, values) | FixedField(8, 8, values):
                parts.append(numbers(values, '<f8').astype('<f4'))
    array = np.concatenate([np.empty(0, '<f4'), *parts]).astype(np.float32, copy=False)
    if shape is None:
        shape = tuple(legacy_shape.values()) if has_legacy_shape else array.shape
    # A dimension of 0 makes the product 0 whatever the others are, even if NumPy cannot represent them.
    if len(shape) > _MAX_DIMENSIONS or any(n >= _MAX_SIZE for n in shape) or math.prod(shape) != array.size:
        shown = shape[:_MAX_DIMENSIONS]
        raise CorruptMessageError(
            f'a blob of {name} has {counted(array.size, "value")}, which does not match its shape {shown}'
        )
    return array.reshape(shape)


def _blob_shape(data: memoryview, budget: Budget) -> tuple[int, ...]:
    """Decode ``BlobShape``: the dimensions, packed or one by one."""
    dims: list[int] = []
    for field in fields(data, budget):
        match field:
            case VarintField(1, value):
                dims.append(value)
            case BytesField(1, values):
                dims.extend(packed(values, budget))
    return tuple(dims)
