"""Convert ImageNet backbones of Caffe, Chainer and TensorFlow.

- the ``.caffemodel`` of He et al.'s ResNets (:mod:`mask_rcnn.weights.readers.caffemodel`),
- an ``.npz`` of their arrays under Caffe's names: ``res2a_branch2a/W``, ``bn2a_branch2a/gamma`` ...,
- the ``.npz`` to which Chainer converts them for ``chainer.links.ResNet50Layers``: ``res2/a/conv1/W`` ...,
- an ``.npz`` of TensorFlow's MobileNetV1 under TensorFlow's names: ``Conv2d_0/weights``,
  ``Conv2d_1_depthwise/depthwise_weights``, ``Conv2d_1_pointwise/BatchNorm/gamma`` ..., weights as (O, I, H, W).
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Callable, Mapping

import numpy as np

from mask_rcnn.config import DETECTRON, MOBILENET, RESNET_BLOCKS, Config, Dialect
from mask_rcnn.weights.converters.mapping import CAFFE_BRANCHES, ConversionReport, ConvertedWeights, resnet_convolutions
from mask_rcnn.weights.errors import WeightFileError, summarize_names
from mask_rcnn.weights.files import sha256
from mask_rcnn.weights.folding import fold_bias_into_mean
from mask_rcnn.weights.readers import caffemodel, npz

#: Names of the formats.
CAFFEMODEL, CAFFE_NPZ, CHAINER_NPZ, MOBILENET_NPZ = 'caffemodel', 'caffe-npz', 'chainer-npz', 'mobilenet-npz'

#: Number of depthwise separable blocks of a MobileNetV1.
_MOBILENET_BLOCKS = 13

#: Chainer's index of each convolution in a block.
_CHAINER_INDICES = {'conv1': 1, 'conv2': 2, 'conv3': 3, 'shortcut': 4}

_Path = str | os.PathLike


def read_caffemodel(path: _Path) -> ConvertedWeights:
    """Read and convert the ``.caffemodel`` of a Caffe ResNet.

    Raises:
        WeightFileError: The file cannot be read, is damaged, or does not contain a ResNet.
    """
    return _from_caffe(path, CAFFEMODEL, caffemodel.read(path))


def read_caffe_npz(path: _Path) -> ConvertedWeights:
    """Read and convert an ``.npz`` of the arrays of a Caffe ResNet under Caffe's names.

    Raises:
        WeightFileError: The file cannot be read or is damaged, or arrays are missing.
    """
    return _from_caffe(path, CAFFE_NPZ, _read_members(path, lambda name: not name.startswith('fc')))


def read_chainer_npz(path: _Path) -> ConvertedWeights:
    """Read and convert the ``.npz`` that Chainer writes for a Caffe ResNet, whose blocks are ``a b1 b2``.

    Raises:
        WeightFileError: The file cannot be read or is damaged, or arrays are missing.
    """
    arrays = _read_members(path, lambda name: not name.startswith('fc'))
    extractor = _detect_resnet(
        path, [len({name.split('/')[1] for name in arrays if name.startswith(f'res{stage}/')}) for stage in range(2, 6)]
    )
    layers = [('conv1', 'bn1', 'extractor/conv1')]
    for stage, block, name, _ in resnet_convolutions(extractor):
        source = f'res{stage}/{f"b{block}" if block else "a"}'
        index = _CHAINER_INDICES[name]
        layers.append((f'{source}/conv{index}', f'{source}/bn{index}', f'{_block_path(stage, block)}/{name}'))
    statistics = {name: name for name in ('gamma', 'beta', 'avg_mean', 'avg_var')}
    return _convert(path, CHAINER_NPZ, arrays, layers, statistics, extractor, DETECTRON)


def read_mobilenet_npz(path: _Path) -> ConvertedWeights:
    """Read and convert an ``.npz`` of a MobileNetV1 under TensorFlow's names (``slim/nets/mobilenet_v1.py``).

    Raises:
        WeightFileError: The file cannot be read or is damaged, or arrays are missing.
    """
    arrays = _read_members(path, lambda name: name.startswith('Conv2d'))
    blocks = [
        (f'Conv2d_{i}_{kind}', f'block{i}/{kind}')
        for i in range(1, _MOBILENET_BLOCKS + 1)
        for kind in ('depthwise', 'pointwise')
    ]
    layers = [
        (name, f'{name}/BatchNorm', f'extractor/body/{native}') for name, native in [('Conv2d_0', 'conv0'), *blocks]
    ]
    renamed = {re.sub('/(depthwise_)?weights$', '/W', name): array for name, array in arrays.items()}
    statistics = {'gamma': 'gamma', 'beta': 'beta', 'moving_mean': 'avg_mean', 'moving_variance': 'avg_var'}
    return _convert(path, MOBILENET_NPZ, renamed, layers, statistics, 'mobilenet_v1_fpn', MOBILENET)


def _from_caffe(path: _Path, format: str, arrays: Mapping[str, np.ndarray]) -> ConvertedWeights:
    """Convert arrays with Caffe's names, whose blocks are ``2a 2b 2c``, in ResNet-101 also ``3a 3b1 3b2`` ..."""
    extractor = _detect_resnet(
        path,
        [
            len({name.partition('_')[0] for name in arrays if re.match(rf'res{stage}[a-z]\d*_', name)})
            for stage in range(2, 6)
        ],
    )
    long_names = any(re.match(r'res\d[a-z]\d', name) for name in arrays)
    layers = [('conv1', 'bn_conv1', 'extractor/conv1')]
    for stage, block, name, _ in resnet_convolutions(extractor):
        is_numbered = long_names and block and stage in (3, 4)
        source = f'{stage}b{block}' if is_numbered else f'{stage}{string.ascii_lowercase[block]}'
        branch = CAFFE_BRANCHES[name]
        layers.append((f'res{source}_{branch}', f'bn{source}_{branch}', f'{_block_path(stage, block)}/{name}'))
    statistics = {'gamma': 'gamma', 'beta': 'beta', 'mean': 'avg_mean', 'var': 'avg_var'}
    return _convert(path, format, arrays, layers, statistics, extractor, DETECTRON)


def _block_path(stage: int, block: int) -> str:
    return f'{"box_head" if stage == 5 else "extractor"}/res{stage}/block{block}'


def _detect_resnet(path: _Path, n_blocks: list[int]) -> str:
    """Return the extractor whose four stages have the given numbers of blocks."""
    for extractor, expected in RESNET_BLOCKS.items():
        if list(expected) == n_blocks:
            return extractor
    raise WeightFileError(
        path,
        f'has a ResNet of {" + ".join(map(str, n_blocks))} blocks, supported are {", ".join(RESNET_BLOCKS)}',
    )


def _convert(
    path: _Path,
    format: str,
    arrays: Mapping[str, np.ndarray],
    layers: list[tuple[str, str, str]],
    statistics: Mapping[str, str],
    extractor: str,
    dialect: Dialect,
) -> ConvertedWeights:
    """Rename convolutions and their batch normalisations.

    Args:
        path: The file.
        format: Name of its format.
        arrays: Its arrays by name.
        layers: Names of each convolution and of its batch normalisation, and the native path of both.
        statistics: Native name of each array of a batch normalisation, by the file's name.
        extractor: The native extractor.
        dialect: The dialect of the weights.
    """
    names = {f'{conv}/W': f'{native}/conv/W' for conv, _, native in layers}
    names |= {
        f'{bn}/{source}': f'{native}/norm/{name}' for _, bn, native in layers for source, name in statistics.items()
    }
    missing = [name for name in names if name not in arrays]
    if missing:
        raise WeightFileError(path, f'lacks {summarize_names(missing)}')
    renamed = {native: np.asarray(arrays[source], np.float32) for source, native in names.items()}
    for conv, _, native in layers:
        bias, mean = arrays.get(f'{conv}/b'), f'{native}/norm/avg_mean'
        if bias is not None:
            if bias.shape != renamed[mean].shape:
                raise WeightFileError(path, f'{conv}/b has the shape {bias.shape}, expected {renamed[mean].shape}')
            renamed[mean] = fold_bias_into_mean(bias, renamed[mean])
    config = Config(extractor=extractor, dialect=dialect, norm='bn')
    return ConvertedWeights('backbone', format, config, renamed, ConversionReport(tuple(names), {}), sha256(path))


def _read_members(path: _Path, is_needed: Callable[[str], bool]) -> dict[str, np.ndarray]:
    """Read the needed arrays of floats in an ``.npz``."""
    return {name: array for name, array in npz.read(path, is_needed).items() if array.dtype.kind == 'f'}
