"""Caffe's ``.caffemodel`` of the ResNets (He et al. 2016), read without Caffe or protocol buffer code.

The file is one ``NetParameter`` message of ``caffe/proto/caffe.proto`` (:mod:`mask_rcnn.weights.readers.protobuf`).
Only these fields are looked at:

=====================  ==========================================================================
``NetParameter``       ``layers`` = 2 (before 2015: ``V1LayerParameter``), ``layer`` = 100
``V1LayerParameter``   ``name`` = 4, ``blobs`` = 6
``LayerParameter``     ``name`` = 1, ``blobs`` = 7, ``batch_norm_param`` = 139 with ``eps`` = 3
``BlobProto``          ``num, channels, height, width`` = 1 to 4 (before 2015), ``shape`` = 7 with
                       ``dim`` = 1; ``data`` = 5 (float), ``double_data`` = 8
=====================  ==========================================================================

A damaged or hostile file cannot do more than raise: lengths are checked against what is there, and nothing
is allocated but copies of the file's own numbers.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file
from mask_rcnn.weights.readers.protobuf import (
    FIXED32,
    FIXED64,
    LENGTH,
    VARINT,
    Budget,
    CorruptMessageError,
    fields,
    numbers,
    packed,
)

#: Caffe's default ``eps`` of batch normalisation, and that of our networks.
EPS = 1e-5

#: Bytes of a file and sides of a blob; protocol buffers end there, and the ResNets have at most 240 MB.
_MAX_SIZE = 1 << 31

_CONV = re.compile(r'conv1|res\d[a-z]\d{0,2}_branch\d[a-c]?')


@dataclass(frozen=True)
class _Layer:
    """A layer's undecoded blobs, and the epsilon of a batch normalisation."""

    blobs: tuple[memoryview, ...]
    eps: float = EPS


def read(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the convolutions and batch normalisations of a Caffe ResNet.

    Caffe's ``BatchNorm`` (sums and how much was summed) and the ``Scale`` after it become one batch
    normalisation ``y = gamma * (x - mean) / sqrt(var + 1e-5) + beta``.

    Args:
        path: A ``.caffemodel``.

    Returns:
        dict: float32 arrays: ``conv1/W`` ``(64, 3, 7, 7)``, which takes BGR; ``conv1/b`` if the file has
        it; ``bn_conv1/gamma``, ``.../beta``, ``.../mean``, ``.../var``; ``res2a_branch2a/W``,
        ``bn2a_branch2a/gamma`` and so on.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or holds no ResNet.
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
        raise WeightFileError(path, 'holds no ResNet of He et al.: no layers conv1, res2a_branch2a, ...')
    return arrays


# The network


def _convolution(name: str, layers: Mapping[str, _Layer], budget: Budget) -> dict[str, np.ndarray]:
    """Return a convolution's weights and its batch normalisation."""
    suffix = '_conv1' if name == 'conv1' else name.removeprefix('res')
    weight, *bias = _blobs(name, layers, budget, (1, 2))
    arrays = {f'{name}/W': weight}
    if bias:
        arrays[f'{name}/b'] = bias[0].reshape(-1)
    bn = f'bn{suffix}'
    mean, var, factor = _blobs(bn, layers, budget, (3,))
    gamma, beta = _blobs(f'scale{suffix}', layers, budget, (2,))
    if factor.size != 1:
        raise CorruptMessageError(f'{bn} has {factor.size} scale factors')
    # BatchNormLayer::Forward_cpu: the blobs are sums; a factor of 0 says that nothing was summed.
    factor = np.float64(factor.item())
    share = 1 / factor if factor else 0.0
    return arrays | {
        f'{bn}/gamma': gamma.reshape(-1),
        f'{bn}/beta': beta.reshape(-1),
        f'{bn}/mean': np.float32(mean.reshape(-1) * share),
        f'{bn}/var': np.float32(var.reshape(-1) * share + (layers[bn].eps - EPS)),
    }


def _blobs(name: str, layers: Mapping[str, _Layer], budget: Budget, counts: tuple[int, ...]) -> list[np.ndarray]:
    if name not in layers:
        raise CorruptMessageError(f'the layer {name} is missing')
    blobs = layers[name].blobs
    if len(blobs) not in counts:
        raise CorruptMessageError(f'{name} has {len(blobs)} blobs, not {" or ".join(map(str, counts))}')
    return [_blob(name, blob, budget) for blob in blobs]


# The messages


def _layers(data: memoryview, budget: Budget) -> dict[str, _Layer]:
    """NetParameter: the layers that have blobs, by name."""
    layers = {}
    for number, wire, value in fields(data, budget):
        if wire == LENGTH and number == 100:
            name, layer = _layer(value, budget, name_field=1, blobs_field=7)
        elif wire == LENGTH and number == 2:
            name, layer = _layer(value, budget, name_field=4, blobs_field=6)
        else:
            continue
        if layer.blobs:
            if name in layers:
                raise CorruptMessageError(f'two layers {to_printable_ascii(name)}')
            layers[name] = layer
    return layers


def _layer(data: memoryview, budget: Budget, name_field: int, blobs_field: int) -> tuple[str, _Layer]:
    name, blobs, eps = '', [], EPS
    for number, wire, value in fields(data, budget):
        if wire == LENGTH and number == name_field:
            name = bytes(value[:1000]).decode()
        elif wire == LENGTH and number == blobs_field:
            blobs.append(value)
        elif wire == LENGTH and number == 139:
            eps = _batch_norm_eps(value, budget)
    return name, _Layer(tuple(blobs), eps)


def _batch_norm_eps(data: memoryview, budget: Budget) -> float:
    eps = EPS
    for number, wire, value in fields(data, budget):
        if wire == FIXED32 and number == 3:
            stored = np.frombuffer(value, '<f4')[-1]
            eps = EPS if stored == np.float32(EPS) else float(stored)
    return eps


def _blob(name: str, data: memoryview, budget: Budget) -> np.ndarray:
    """BlobProto: a float32 array."""
    old_shape, shape, parts = {1: 1, 2: 1, 3: 1, 4: 1}, None, []
    n_old = 0
    for number, wire, value in fields(data, budget):
        if wire == VARINT and number in old_shape:
            old_shape[number] = value
            n_old += 1
        elif wire == LENGTH and number == 7:
            shape = _blob_shape(value, budget)
        elif number == 5 and wire in (LENGTH, FIXED32):
            parts.append(numbers(value, '<f4'))
        elif number == 8 and wire in (LENGTH, FIXED64):
            parts.append(numbers(value, '<f8').astype('<f4'))
    array = np.concatenate([np.empty(0, '<f4'), *parts]).astype(np.float32, copy=False)
    if shape is None:
        shape = tuple(old_shape.values()) if n_old else array.shape
    # A side of 0 goes with any other one, also with those that NumPy cannot count.
    if len(shape) > 8 or any(n >= _MAX_SIZE for n in shape) or math.prod(shape) != array.size:
        raise CorruptMessageError(f'a blob of {name} has {array.size} numbers, which is not the shape {shape[:8]}')
    return array.reshape(shape)


def _blob_shape(data: memoryview, budget: Budget) -> tuple[int, ...]:
    """BlobShape: the sizes, packed or one by one."""
    dims: list[int] = []
    for number, wire, value in fields(data, budget):
        if number == 1 and wire == VARINT:
            dims.append(value)
        elif number == 1 and wire == LENGTH:
            dims.extend(packed(value, budget))
    return tuple(dims)
