"""The other program of ``convert_weights.ipynb``: it writes a model as MindSpore's model zoo stores one.

The zoo's ``maskrcnn_mobilenetv1`` has more channels than the small models of this repository, and two more convolutions
in its mask head.  The additional channels are zero and the additional convolutions change nothing, so that the stored
network computes the same values.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mask_rcnn.config import MINDSPORE
from mask_rcnn.weights import read_weights

_CHANNELS, _UNITS = 256, 1024  # of the zoo's pyramid and heads
_SWAP = [1, 0, 3, 2]  # (dy, dx, dh, dw) of this library, (dx, dy, dw, dh) of MindSpore


def write_checkpoint(path: Path, model_file: Path) -> dict[str, np.ndarray]:
    """Write a bundled model as a checkpoint of MindSpore; returns the arrays by MindSpore's names."""
    file = read_weights(model_file)
    weights = {name: np.asarray(array, np.float32) for name, array in file.arrays.items()}
    arrays = dict([*_backbone(weights, file.meta.config.dialect.input), *_pyramid(weights), *_heads(weights)])
    path.write_bytes(b''.join(_field(1, _parameter(name, array)) for name, array in arrays.items()))
    return arrays


def _backbone(weights: dict[str, np.ndarray], native) -> Iterator[tuple[str, np.ndarray]]:
    names = ['conv0', *(f'block{i}/{kind}' for i in range(1, 14) for kind in ('depthwise', 'pointwise'))]
    for index, name in enumerate(names):
        kernel = weights[f'extractor/body/{name}/conv/W']
        mean = np.zeros(len(kernel), np.float32)
        if index == 0:  # the programs normalise pixels differently; the first convolution compensates for it
            std = np.array(native.pixel_std)[:, None, None]
            shift = (np.array(MINDSPORE.input.pixel_mean) - native.pixel_mean)[:, None, None] / std
            mean -= (kernel * shift).sum(axis=(1, 2, 3))
            kernel = kernel * np.array(MINDSPORE.input.pixel_std)[:, None, None] / std
        source = f'backbone.mobilenet_v1.network.{index}'
        yield f'{source}.0.weight', kernel
        yield f'{source}.1.gamma', weights[f'extractor/body/{name}/norm/scale']
        yield f'{source}.1.beta', weights[f'extractor/body/{name}/norm/bias']
        yield f'{source}.1.moving_mean', mean
        yield f'{source}.1.moving_variance', np.full_like(mean, 1 - MINDSPORE.backbone.bn_eps)


def _pyramid(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for level, width in enumerate((128, 256, 512, 1024)):
        lateral, output = f'extractor/lateral{level + 2}', f'extractor/output{level + 2}'
        yield from _layer(weights, lateral, f'fpn_neck.lateral_convs_list.{level}', (_CHANNELS, width, 1, 1))
        yield from _layer(weights, output, f'fpn_neck.fpn_convs_list.{level}', (_CHANNELS, _CHANNELS, 3, 3))


def _heads(weights: dict[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    rpn, box, mask = 'rpn_with_loss.rpn_convs_list.0', 'rcnn_cls.fpn_cls', 'rcnn_mask.fpn_mask'
    n_classes = len(weights['box_head/score/b'])
    for name in ('rpn/delta', 'box_head/delta'):
        for kind in 'Wb':
            array = weights[f'{name}/{kind}']
            weights[f'{name}/{kind}'] = array.reshape(-1, 4, *array.shape[1:])[:, _SWAP].reshape(array.shape)
    for kind in 'Wb':  # MindSpore also stores a mask of the background
        array = weights[f'mask_head/score/{kind}']
        weights[f'mask_head/score/{kind}'] = np.concatenate([np.zeros_like(array[:1]), array])
    yield from _layer(weights, 'rpn/conv', f'{rpn}.rpn_conv', (_CHANNELS, _CHANNELS, 3, 3))
    yield from _layer(weights, 'rpn/objectness', f'{rpn}.rpn_cls', (3, _CHANNELS, 1, 1))
    yield from _layer(weights, 'rpn/delta', f'{rpn}.rpn_reg', (12, _CHANNELS, 1, 1))
    weights['box_head/fc6/W'] = weights['box_head/fc6/W'].reshape(len(weights['box_head/fc6/b']), -1, 7, 7)
    for name, source, shape in (
        ('fc6', 'shared_fc_0', (_UNITS, _CHANNELS, 7, 7)),
        ('fc7', 'shared_fc_1', (_UNITS, _UNITS)),
        ('score', 'cls_scores', (n_classes, _UNITS)),
        ('delta', 'reg_scores', (4 * n_classes, _UNITS)),
    ):
        for full_name, array in _layer(weights, f'box_head/{name}', f'{box}.{source}', shape):
            yield full_name, array.reshape(len(array), -1).T if array.ndim > 1 else array
    identity = np.zeros((_CHANNELS, _CHANNELS, 3, 3), np.float32)
    identity[range(_CHANNELS), range(_CHANNELS), 1, 1] = 1
    for i in range(1, 5):
        weights.setdefault(f'mask_head/conv{i}/W', identity)
        weights.setdefault(f'mask_head/conv{i}/b', np.zeros(_CHANNELS, np.float32))
        yield from _layer(weights, f'mask_head/conv{i}', f'{mask}.mask_conv{i}', identity.shape)
    yield from _layer(weights, 'mask_head/deconv', f'{mask}.mask_deconv5', (_CHANNELS, _CHANNELS, 2, 2))
    yield from _layer(weights, 'mask_head/score', f'{mask}.mask_conv6', (n_classes, _CHANNELS, 1, 1))


def _layer(
    weights: dict[str, np.ndarray], name: str, source: str, shape: tuple[int, ...]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a layer's weight and bias under MindSpore's names, padded with zeros to MindSpore's shape."""
    for kind, source_kind, padded_shape in (('W', 'weight', shape), ('b', 'bias', shape[:1])):
        array = weights[f'{name}/{kind}']
        padding = [(0, n - m) for n, m in zip(padded_shape, array.shape, strict=True)]
        yield f'{source}.{source_kind}', np.pad(array, padding)


def _parameter(name: str, array: np.ndarray) -> bytes:
    """Encode a name and an array as the message ``Value`` of ``checkpoint.proto``."""
    shape = b''.join(_number(1 << 3) + _number(n) for n in array.shape)
    tensor = shape + _field(2, b'Float32') + _field(3, np.ascontiguousarray(array, '<f4').tobytes())
    return _field(1, name.encode()) + _field(2, tensor)


def _field(number: int, content: bytes) -> bytes:
    """Encode a field of a protocol buffer: its number, its length and its bytes."""
    return _number(number << 3 | 2) + _number(len(content)) + content


def _number(value: int) -> bytes:
    """Encode an integer as a protocol buffer does: seven bits in each byte."""
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + _number(value >> 7)
