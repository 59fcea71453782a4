"""Convert the ``.npz`` files of DeNA's Chainer_Mask_R-CNN, the predecessor of this library.

That program writes two kinds of files with the same names, shapes and types: ``utils/detectron_parser.py`` converts
Detectron's R-50-C4 model, and ``train.py`` saves a trained R-50-C4 or R-101-C4 model as ``snapshot_model.npz``.

=======================================  ==============================================================
``extractor/res<k>/{a, b1, b2, ...}``    the blocks of a stage; native: ``block0``, ``block1``, ...
``conv1`` ... ``conv3``, ``conv4``       the convolutions of a block, and its shortcut
``bn<i>/{gamma, beta, avg_mean, ...}``   batch normalisation after ``conv<i>``
``head/res5``                            native: in the box head
``rpn/loc``, ``head/cls_loc``            ``(dy, dx, dh, dw)`` of each anchor or class, as in the native network
``head/convm2``                          the first channel is the unused background; native: none
=======================================  ==============================================================

The statistics of batch normalisation belong to the network in files of ``train.py``.  In files of
``utils/detectron_parser.py`` they are left over from an ImageNet model, and ``gamma`` and ``beta`` are Detectron's
affine channels.  Nothing in a file distinguishes the two kinds; the user does, with ``--bn2affine``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

import numpy as np

from mask_rcnn.config import DENA, PRESETS, RESNET_BLOCKS, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.converters.mapping import (
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    batch_counter,
    check_arrays,
    drop_background,
    group_names,
    resnet_convolutions,
)
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import sha256
from mask_rcnn.weights.readers import npz

#: Name of the format in the metadata of converted files.
FORMAT = 'dena-npz'

#: Beginnings of the names that only this program uses.
_SIGNATURE = ('head/res5/', 'head/deconvm1/', 'head/convm2/')

#: The backbones of the program.
_BACKBONES = ('resnet50', 'resnet101')

#: Numbers of the convolutions in a block.
_NUMBERS = {'conv1': 1, 'conv2': 2, 'conv3': 3, 'shortcut': 4}

#: Number of anchors per location, and of the channels of res4, res5 and the mask head.
_N_ANCHORS, _WIDTH_RES4, _WIDTH_RES5, _WIDTH_MASK = 15, 1024, 2048, 256

#: Statistics of a batch normalisation without effect, which ``train.py --bn2affine`` writes.
_NEUTRAL_VARIANCE, _MAX_DEVIATION = 1 - DENA.backbone.bn_eps, 1e-6

#: Beginning of the name that the program's ``utils/detectron_parser.py`` gives its file.
_PARSER_NAME = 'e2e_mask_rcnn_R-50-C4_1x_d2c'

_Path = str | os.PathLike
_Arrays = Mapping[str, np.ndarray]


def matches(members: frozenset[str]) -> bool:
    """Return whether an archive with these members is a file of this program."""
    return any(name.startswith(_SIGNATURE) for name in members)


def read(path: _Path, *, bn2affine: bool = False) -> ConvertedWeights:
    """Read and convert a weight file of DeNA's program.

    Args:
        path: The file.
        bn2affine: Whether to use ``gamma`` and ``beta`` as affine channels and to ignore the statistics, as the
            original does with its ``--bn2affine``; otherwise batch normalisation uses the statistics.

    Raises:
        WeightFileError: The file cannot be read or is damaged, it has the layout of before 2018-05-30, or arrays are
            missing or have the wrong shape (the message lists all of them).
    """
    arrays = npz.read(path)
    _check_layout(path, arrays)
    config = _detect_network(path, arrays, norm='affine' if bn2affine else 'bn')
    # All arrays, also statistics that are ignored: without them a file is damaged, and the original refuses it.
    shapes = _expected_shapes(config)
    check_arrays(path, arrays, shapes)
    native, taken, warnings = apply_mappings(path, arrays, _mappings(config))
    is_neutral = _has_neutral_statistics({name: arrays[name] for name in shapes})
    assumptions = () if is_neutral else (_describe_reading(path, bn2affine),)
    skipped = group_names(set(arrays) - set(taken), _group_of)
    report = ConversionReport(taken, skipped, (), tuple(warnings), assumptions)
    return ConvertedWeights('model', FORMAT, config, native, report, sha256(path))


def _describe_reading(path: _Path, bn2affine: bool) -> str:
    """Return the line that names the assumed kind of file for the user."""
    if bn2affine:
        return (
            'read with --bn2affine: gamma and beta are affine channels, and the statistics are ignored, which is right '
            'for files of the old utils/detectron_parser.py; for models of the old train.py, omit --bn2affine'
        )
    named = ', as the name suggests,' if _PARSER_NAME in os.path.basename(path) else ','
    return (
        'read without --bn2affine: batch normalisation uses the statistics, which is right for models of the old '
        f'train.py; for files of the old utils/detectron_parser.py{named} give --bn2affine'
    )


def _expected_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's arrays by name, without the batch counters."""
    mappings = _mappings(config.replace(norm='bn'))
    return {name: shape for mapping in mappings for name, shape in mapping.inputs.items()}


def _has_neutral_statistics(arrays: _Arrays) -> bool:
    """Return whether the statistics have no effect, so that both readings are the same."""
    return all(
        np.abs(array - neutral).max(initial=0) <= _MAX_DEVIATION
        for kind, neutral in (('avg_mean', 0), ('avg_var', _NEUTRAL_VARIANCE))
        for name, array in arrays.items()
        if name.endswith(f'/{kind}')
    )


def _group_of(name: str) -> str:
    """Return the group of an array that is not converted."""
    match = re.fullmatch(r'.*/bn\d/(?:(avg_mean|avg_var)|N)', name)
    return 'unknown' if match is None else 'statistics' if match[1] else 'batch counters'


# The network


def _check_layout(path: _Path, arrays: _Arrays) -> None:
    """Raise an error for a file of an earlier version of the program, whose network was another."""
    shapes = {name: array.shape for name, array in arrays.items()}
    signs = [
        'extractor/conv1/b exists' if 'extractor/conv1/b' in shapes else '',
        _describe_shape(shapes, 'rpn/score/W', lambda shape: shape[0] == 2 * _N_ANCHORS),
        _describe_shape(shapes, 'head/convm2/W', lambda shape: shape[2:] == (3, 3)),
    ]
    if any(signs):
        raise WeightFileError(
            path,
            f'has the layout of Chainer_Mask_R-CNN before 2018-05-30 ({", ".join(filter(None, signs))}), which is not '
            'supported; its network was another one, and later versions of that program cannot read it either',
        )


def _describe_shape(shapes: Mapping[str, tuple], name: str, is_old: Callable[[tuple], bool]) -> str:
    shape = shapes.get(name, ())
    return f'{name} has the shape {shape}' if len(shape) == 4 and is_old(shape) else ''


def _detect_network(path: _Path, arrays: _Arrays, *, norm: str) -> Config:
    """Determine the backbone from the number of blocks in res4, and the number of classes from the box head."""
    blocks = {match[1] for name in arrays if (match := re.match(r'extractor/res4/(\w+)/', name))}
    # If blocks are missing, the smallest network that has all the others: its missing arrays are reported.
    backbone = min(
        (name for name in _BACKBONES if RESNET_BLOCKS[name][2] >= len(blocks)),
        key=lambda name: RESNET_BLOCKS[name][2],
        default=None,
    )
    if backbone is None:
        supported = ' or '.join(str(RESNET_BLOCKS[name][2]) for name in _BACKBONES)
        raise WeightFileError(path, f'has {counted(len(blocks), "block")} in extractor/res4, expected {supported}')
    if 'head/score/W' not in arrays:
        raise WeightFileError(path, 'missing arrays: head/score/W')
    shape = arrays['head/score/W'].shape
    if len(shape) != 2 or shape[0] < 2:
        raise WeightFileError(path, f'head/score/W has the shape {shape}, expected (classes + 1, {_WIDTH_RES5})')
    return PRESETS[backbone].in_dialect(DENA).replace(norm=norm, n_fg_class=shape[0] - 1)


# Parameter mappings


def _mappings(config: Config) -> list[ParamMapping]:
    mappings = _conv_and_norm('extractor/conv1', 'extractor/bn1', 'extractor/conv1', (64, 3, 7, 7), config.norm)
    for stage, block, name, shape in resnet_convolutions(config.backbone):
        source, native = ('head', 'box_head') if stage == 5 else ('extractor', 'extractor')
        prefix = f'{source}/res{stage}/{f"b{block}" if block else "a"}'
        path = f'{native}/res{stage}/block{block}/{name}'
        number = _NUMBERS[name]
        mappings += _conv_and_norm(f'{prefix}/conv{number}', f'{prefix}/bn{number}', path, shape, config.norm)
    n_classes = config.n_fg_class + 1
    return [
        *mappings,
        *_weight_and_bias('rpn/conv1', 'rpn/conv', (_WIDTH_RES4, _WIDTH_RES4, 3, 3)),
        *_weight_and_bias('rpn/score', 'rpn/objectness', (_N_ANCHORS, _WIDTH_RES4, 1, 1)),
        *_weight_and_bias('rpn/loc', 'rpn/delta', (4 * _N_ANCHORS, _WIDTH_RES4, 1, 1)),
        *_weight_and_bias('head/score', 'box_head/score', (n_classes, _WIDTH_RES5)),
        *_weight_and_bias('head/cls_loc', 'box_head/delta', (4 * n_classes, _WIDTH_RES5)),
        *_weight_and_bias('head/deconvm1', 'mask_head/deconv', (_WIDTH_RES5, _WIDTH_MASK, 2, 2), out=1),
        *_weight_and_bias('head/convm2', 'mask_head/score', (n_classes, _WIDTH_MASK, 1, 1), drop_background),
    ]


def _conv_and_norm(conv: str, bn: str, path: str, shape: tuple[int, ...], norm: str) -> list[ParamMapping]:
    """Map a convolution without bias and its batch normalisation, or only the scale and the offset of the latter."""
    channels = shape[:1]
    weight = ParamMapping(f'{path}/conv/W', {f'{conv}/W': shape})
    if norm == 'affine':
        return [
            weight,
            ParamMapping(f'{path}/norm/scale', {f'{bn}/gamma': channels}),
            ParamMapping(f'{path}/norm/bias', {f'{bn}/beta': channels}),
        ]
    names = ('gamma', 'beta', 'avg_mean', 'avg_var')
    return [
        weight,
        *(ParamMapping(f'{path}/norm/{name}', {f'{bn}/{name}': channels}) for name in names),
        batch_counter(f'{path}/norm'),
    ]


def _weight_and_bias(
    layer: str, path: str, shape: tuple[int, ...], convert: Callable | None = None, *, out: int = 0
) -> list[ParamMapping]:
    """Map a layer with a weight and a bias; ``out`` is the axis of the weight's output channels."""
    return [
        ParamMapping(f'{path}/W', {f'{layer}/W': shape}, convert),
        ParamMapping(f'{path}/b', {f'{layer}/b': (shape[out],)}, convert),
    ]
