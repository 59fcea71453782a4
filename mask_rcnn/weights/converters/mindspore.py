"""Convert MindSpore's checkpoints (``.ckpt``) of the model zoo's Mask R-CNN without MindSpore.

A checkpoint is one protocol buffer message (``mindspore/ccsrc/utils/checkpoint.proto``,
:mod:`mask_rcnn.weights.readers.protobuf`):

==============  ==================================================================================
``Checkpoint``  ``value`` = 1, repeated
``Value``       ``tag`` = 1, the parameter's name; ``tensor`` = 2
``TensorProto`` ``dims`` = 1, ``tensor_type`` = 2 such as ``Float32``, ``tensor_content`` = 3, the bytes
==============  ==================================================================================

Two networks of the zoo are supported, ``maskrcnn`` (ResNet-50) and ``maskrcnn_mobilenetv1``.  MindSpore's names and the
native ones:

========================================================  ===========================================
``backbone.conv1``, ``backbone.bn1``                       ``extractor/body/conv1``
``backbone.layer1.0.conv1``, ``.bn1``                      ``extractor/body/res2/block0/conv1``
``backbone.layer1.0.conv_down_sample``, ``.bn_down_..``    ``extractor/body/res2/block0/shortcut``
``backbone.mobilenet_v1.network.0.0`` (``.1``: its norm)   ``extractor/body/conv0``
``backbone.mobilenet_v1.network.1.0``, ``.2.0``            ``extractor/body/block1/depthwise``, ``pointwise``
``fpn_ncek.lateral_convs_list.0`` (or ``fpn_neck``)        ``extractor/lateral2``
``fpn_ncek.fpn_convs_list.0``                              ``extractor/output2``
``rpn_with_loss.rpn_convs_list.0.rpn_conv``                ``rpn/conv``; all levels share it
``rpn_with_loss.rpn_convs_list.0.rpn_cls``, ``.rpn_reg``   ``rpn/objectness``, ``rpn/delta``
``rcnn_cls.fpn_cls.shared_fc_0``, ``shared_fc_1``          ``box_head/fc6``, ``fc7``; stored ``(in, out)``
``rcnn_cls.fpn_cls.cls_scores``, ``reg_scores``            ``box_head/score``, ``delta``; stored ``(in, out)``
``rcnn_mask.fpn_mask.mask_conv1`` ... ``4``                ``mask_head/conv1`` ... ``4``
``rcnn_mask.fpn_mask.mask_deconv5``, ``mask_conv6``        ``mask_head/deconv``, ``score``
========================================================  ===========================================

Deltas are ``(dx, dy, dw, dh)`` in MindSpore and ``(dy, dx, dh, dw)`` in the native network.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mask_rcnn.config import MINDSPORE, PRESETS, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.converters.mapping import (
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    batch_counter,
    drop_background,
    group_names,
    resnet_convolutions,
    swap_xy,
)
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.files import open_weight_file, sha256
from mask_rcnn.weights.readers.protobuf import (
    Budget,
    BytesField,
    CorruptMessageError,
    VarintField,
    fields,
    packed,
    varint,
)

#: Name of the format in the metadata of converted files.
FORMAT = 'mindspore'

_DTYPES = {
    'Float16': '<f2',
    'Float32': '<f4',
    'Float64': '<f8',
    'Int8': '|i1',
    'Int16': '<i2',
    'Int32': '<i4',
    'Int64': '<i8',
    'UInt8': '|u1',
    'UInt16': '<u2',
    'UInt32': '<u4',
    'UInt64': '<u8',
    'Bool': '|b1',
}

#: Maximum size of a file in bytes and maximum dimension of a tensor: the limit of protocol buffers.
_MAX_SIZE = 1 << 31

_MAX_DIMENSIONS = 8

#: The networks of the zoo have a few hundred tensors, and as many again for an optimizer.
_MAX_TENSORS = 20_000

#: MindSpore's and Chainer's names of the parameters of a batch normalisation.
_NORM = {'gamma': 'gamma', 'beta': 'beta', 'moving_mean': 'avg_mean', 'moving_variance': 'avg_var'}

#: The native name of each convolution of a bottleneck block, and MindSpore's names of it and its normalisation.
_BLOCK = {
    'conv1': ('conv1', 'bn1'),
    'conv2': ('conv2', 'bn2'),
    'conv3': ('conv3', 'bn3'),
    'shortcut': ('conv_down_sample', 'bn_down_sample'),
}

#: Output channels of the 13 blocks of MobileNetV1 (Howard et al. 2017, table 1).
_MOBILENET = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)

#: Names of the state of optimizers and schedules.
_OPTIMIZER = re.compile(
    r'(moments|accum|moment[12]|learning_rate|momentum|global_step|epoch_num|step_num|'
    r'loss_scale)\b'
)


def is_checkpoint(start: bytes) -> bool:
    """Return whether a file with these first bytes may be a checkpoint: it begins with a ``Value`` with a tag."""
    data = memoryview(start)
    try:
        if data[:1] != b'\n':
            return False
        _, at = varint(data, 1)
        if data[at : at + 1] != b'\n':
            return False
        length, at = varint(data, at + 1)
        tag, rest = data[at : at + length], data[at + length :]
        return re.fullmatch(rb'[\w./:-]+', tag) is not None and rest[:1] == b'\x12'
    except CorruptMessageError:
        return False


def read(path: str | os.PathLike) -> ConvertedWeights:
    """Read and convert a checkpoint.  Nothing in the file is executed.

    Args:
        path: A ``.ckpt`` file.

    Raises:
        WeightFileError: The file is not such a file, is damaged, has an unsupported network, or arrays are missing or
            have the wrong shape (the message lists all of them).
    """
    arrays = read_arrays(path)
    config = _detect_network(path, arrays)
    native, taken, warnings = apply_mappings(path, arrays, _param_mappings(config, arrays))
    warnings.append("MindSpore's feature pyramid upsamples bilinearly; the nearest value is used, as Detectron does")
    report = ConversionReport(taken, group_names(set(arrays) - set(taken), _group_of), (), tuple(warnings))
    return ConvertedWeights('model', FORMAT, config, native, report, sha256(path))


# The file


def read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Read the tensors of a checkpoint by name, as read-only views of the file's bytes.

    Raises:
        WeightFileError: The file cannot be read or is damaged.
    """
    with open_weight_file(path) as (file, size):
        if size > _MAX_SIZE:
            raise WeightFileError(path, f'is larger ({size / 1e9:.1f} GB) than any checkpoint of Mask R-CNN')
        data = file.read()
    budget = Budget()
    arrays: dict[str, np.ndarray] = {}
    try:
        for field in fields(memoryview(data), budget):
            match field:
                case BytesField(1, message):
                    name, array = _value(message, budget)
                    if name in arrays:
                        raise CorruptMessageError(f'two tensors are called {to_printable_ascii(name)}')
                    if len(arrays) == _MAX_TENSORS:
                        raise CorruptMessageError(f'more than {_MAX_TENSORS} tensors')
                    arrays[name] = array
    except (CorruptMessageError, UnicodeDecodeError) as error:
        raise WeightFileError(path, f'is not a MindSpore checkpoint, or damaged: {error}') from None
    if not arrays:
        raise WeightFileError(path, 'is not a MindSpore checkpoint: it has no tensors')
    return arrays


def _value(data: memoryview, budget: Budget) -> tuple[str, np.ndarray]:
    """Decode ``Value``: a name and a tensor."""
    name, tensor = None, None
    for field in fields(data, budget):
        match field:
            case BytesField(1, text):
                name = bytes(text[:1000]).decode()
            case BytesField(2, message):
                tensor = message
    if name is None or tensor is None:
        raise CorruptMessageError('a tensor without a name or a name without a tensor')
    return name, _tensor(name, tensor, budget)


def _tensor(name: str, data: memoryview, budget: Budget) -> np.ndarray:
    """Decode ``TensorProto``: shape, type and bytes."""
    dims: list[int] = []
    kind, content = '', memoryview(b'')
    for field in fields(data, budget):
        match field:
            case VarintField(1, value):
                dims.append(value)
            case BytesField(1, values):
                dims.extend(packed(values, budget))
            case BytesField(2, text):
                kind = bytes(text[:100]).decode()
            case BytesField(3, values):
                content = values
    if kind not in _DTYPES:
        raise CorruptMessageError(f'{to_printable_ascii(name)} is of the unknown type {to_printable_ascii(kind)}')
    dtype = np.dtype(_DTYPES[kind])
    if dims == [0] and len(content) == dtype.itemsize:
        dims = []  # MindSpore writes a scalar like this
    # A dimension of 0 makes the product 0, even if NumPy cannot represent the other dimensions.
    if (
        len(dims) > _MAX_DIMENSIONS
        or any(n >= _MAX_SIZE for n in dims)
        or math.prod(dims) * dtype.itemsize != len(content)
    ):
        shape = tuple(dims[:_MAX_DIMENSIONS])
        raise CorruptMessageError(
            f'{to_printable_ascii(name)} has {counted(len(content), "byte")}, which does not match its shape {shape}'
        )
    return np.frombuffer(content, dtype).reshape(dims)


# The network


def _detect_network(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> Config:
    """Determine the network from the names of its arrays."""
    if 'backbone.mobilenet_v1.network.0.0.weight' in arrays:
        extractor = 'mobilenet_v1_fpn'
    elif 'backbone.layer1.0.conv1.weight' in arrays:
        extractor = 'resnet50_fpn'
    else:
        raise WeightFileError(
            path,
            'is a MindSpore checkpoint, but neither of maskrcnn nor of '
            f'maskrcnn_mobilenetv1: it begins with {to_printable_ascii(next(iter(arrays)))}',
        )
    score = arrays.get('rcnn_cls.fpn_cls.cls_scores.weight')
    if score is None or score.ndim != 2 or score.shape[1] < 2:
        raise WeightFileError(path, 'has no layer rcnn_cls.fpn_cls.cls_scores with at least two classes')
    return PRESETS[extractor].replace(
        dialect=MINDSPORE, norm='bn', n_fg_class=score.shape[1] - 1, min_size=768, max_size=1280
    )


def _param_mappings(config: Config, arrays: Mapping[str, np.ndarray]) -> list[ParamMapping]:
    backbone, widths = (
        (_mobilenet(), (128, 256, 512, 1024))
        if config.backbone == 'mobilenet_v1'
        else (_resnet(config), (256, 512, 1024, 2048))
    )
    neck = 'fpn_ncek' if 'fpn_ncek.fpn_convs_list.0.weight' in arrays else 'fpn_neck'
    copies = [f'rpn_with_loss.rpn_convs_list.{level}' for level in range(5)]  # the levels share their weights
    rpn = next((copy for copy in copies if f'{copy}.rpn_conv.weight' in arrays), copies[0])
    return [*backbone, *_pyramid(config, neck, widths), *_rpn(config, rpn), *_box_head(config), *_mask_head(config)]


def _convolution(conv: str, norm: str, path: str, shape: tuple[int, ...]) -> Iterator[ParamMapping]:
    """Map a convolution without bias and its batch normalisation."""
    yield ParamMapping(f'{path}/conv/W', {f'{conv}.weight': shape})
    for source, native in _NORM.items():
        yield ParamMapping(f'{path}/norm/{native}', {f'{norm}.{source}': shape[:1]})
    yield batch_counter(f'{path}/norm')


def _resnet(config: Config) -> Iterator[ParamMapping]:
    yield from _convolution('backbone.conv1', 'backbone.bn1', 'extractor/body/conv1', (64, 3, 7, 7))
    for stage, block, name, shape in resnet_convolutions(config.backbone):
        source = f'backbone.layer{stage - 1}.{block}'
        conv, norm = _BLOCK[name]
        path = f'extractor/body/res{stage}/block{block}/{name}'
        yield from _convolution(f'{source}.{conv}', f'{source}.{norm}', path, shape)


def _mobilenet() -> Iterator[ParamMapping]:
    def layer(index: int, path: str, shape: tuple[int, ...]) -> Iterator[ParamMapping]:
        source = f'backbone.mobilenet_v1.network.{index}'
        return _convolution(f'{source}.0', f'{source}.1', f'extractor/body/{path}', shape)

    yield from layer(0, 'conv0', (32, 3, 3, 3))
    width_in = 32
    for block, width in enumerate(_MOBILENET, start=1):
        yield from layer(2 * block - 1, f'block{block}/depthwise', (width_in, 1, 3, 3))
        yield from layer(2 * block, f'block{block}/pointwise', (width, width_in, 1, 1))
        width_in = width


def _weight_and_bias(
    source: str, native: str, shape: tuple[int, ...], convert: Callable[[np.ndarray], np.ndarray] | None = None
) -> list[ParamMapping]:
    """Map a convolution with a bias."""
    return [
        ParamMapping(f'{native}/W', {f'{source}.weight': shape}, convert),
        ParamMapping(f'{native}/b', {f'{source}.bias': shape[:1]}, convert),
    ]


def _linear(
    source: str, native: str, n_in: int, n_out: int, convert: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> list[ParamMapping]:
    """Map a linear layer, which MindSpore's ``DenseNoTranpose`` stores as ``(in, out)``."""
    source = f'rcnn_cls.fpn_cls.{source}'
    return [
        ParamMapping(f'{native}/W', {f'{source}.weight': (n_in, n_out)}, lambda weight: convert(weight.T)),
        ParamMapping(f'{native}/b', {f'{source}.bias': (n_out,)}, convert),
    ]


def _pyramid(config: Config, neck: str, widths: tuple[int, ...]) -> Iterator[ParamMapping]:
    dim = config.fpn_channels
    for level, width in enumerate(widths):
        for source, native, shape in (
            ('lateral_convs_list', 'lateral', (dim, width, 1, 1)),
            ('fpn_convs_list', 'output', (dim, dim, 3, 3)),
        ):
            yield from _weight_and_bias(f'{neck}.{source}.{level}', f'extractor/{native}{level + 2}', shape)


def _rpn(config: Config, rpn: str) -> list[ParamMapping]:
    width, n_anchors = config.rpn_channels, len(config.anchor_ratios)
    return [
        *_weight_and_bias(f'{rpn}.rpn_conv', 'rpn/conv', (width, config.fpn_channels, 3, 3)),
        *_weight_and_bias(f'{rpn}.rpn_cls', 'rpn/objectness', (n_anchors, width, 1, 1)),
        *_weight_and_bias(f'{rpn}.rpn_reg', 'rpn/delta', (4 * n_anchors, width, 1, 1), swap_xy),
    ]


def _box_head(config: Config) -> list[ParamMapping]:
    hidden, n_classes = config.head_channels, config.n_fg_class + 1
    return [
        *_linear('shared_fc_0', 'box_head/fc6', config.fpn_channels * config.roi_size**2, hidden),
        *_linear('shared_fc_1', 'box_head/fc7', hidden, hidden),
        *_linear('cls_scores', 'box_head/score', hidden, n_classes),
        *_linear('reg_scores', 'box_head/delta', hidden, 4 * n_classes, swap_xy),
    ]


def _mask_head(config: Config) -> list[ParamMapping]:
    dim, source = config.mask_channels, 'rcnn_mask.fpn_mask'
    widths = [config.fpn_channels] + 4 * [dim]
    convs = [
        mapping
        for i in range(1, 5)
        for mapping in _weight_and_bias(f'{source}.mask_conv{i}', f'mask_head/conv{i}', (dim, widths[i - 1], 3, 3))
    ]
    return [
        *convs,
        *_weight_and_bias(f'{source}.mask_deconv5', 'mask_head/deconv', (dim, dim, 2, 2)),
        *_weight_and_bias(
            f'{source}.mask_conv6', 'mask_head/score', (config.n_fg_class + 1, dim, 1, 1), drop_background
        ),
    ]


def _group_of(name: str) -> str:
    """Return the group of a tensor that is not converted."""
    if _OPTIMIZER.match(name):
        return 'optimizer state'
    return 'copies of the RPN' if name.startswith('rpn_with_loss.rpn_convs_list.') else 'unknown'
