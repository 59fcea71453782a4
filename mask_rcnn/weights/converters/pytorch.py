"""Convert PyTorch's state dicts of Matterport's network: detect the program and resolve its names.

Two programs wrote such files, either by converting Matterport's Keras weights (``mask_rcnn_coco.h5``) or by training
initialised with them:

- ``mask_rcnn_coco.pth`` of multimodallearning/pytorch-mask-rcnn: ``fpn.C1.0`` is conv1, ``fpn.C2.0.conv1`` is the first
  convolution of the second stage's first block, and ``classifier``, ``mask`` and ``rpn`` are the heads;
- ``mrcnn.pth`` of the program Pytorch_Mask_RCNN: ``resnet_graph.layer1.0.conv1``, and Keras' names after ``rpn_class``,
  ``rpn_mask`` and ``rpn``.

The layers are Matterport's (:mod:`mask_rcnn.weights.converters.matterport_layers`), and the network uses the
``matterport`` dialect.
"""

from __future__ import annotations

import dataclasses
import os
import re
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from mask_rcnn.weights.converters import matterport_layers
from mask_rcnn.weights.converters.mapping import ConvertedWeights, group_names
from mask_rcnn.weights.errors import WeightFileError, to_printable_ascii
from mask_rcnn.weights.readers import state_dict_file, torch_file

#: Name of the format in the metadata of converted files.
FORMAT = 'pytorch'

_SUPPORTED = (
    'torchvision, detectron2, multimodallearning/pytorch-mask-rcnn (mask_rcnn_coco.pth) and Pytorch_Mask_RCNN '
    '(mrcnn.pth)'
)

_KINDS = {
    'kernel': 'weight',
    'bias': 'bias',
    'gamma': 'weight',
    'beta': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}

#: A convolution or normalisation of the backbone, such as ``res2a_branch2b`` or ``bn4w_branch1``.
_BACKBONE_LAYER = re.compile(r'(?P<kind>res|bn)(?P<stage>[2-5])(?P<block>[a-z])_branch(?P<branch>1|2[abc])')

#: pytorch-mask-rcnn's names of the other layers, by their Keras names.
_MULTIMODAL = {
    'conv1': 'fpn.C1.0',
    'bn_conv1': 'fpn.C1.1',
    **{f'fpn_c{i}p{i}': f'fpn.P{i}_conv1' for i in range(2, 6)},
    **{f'fpn_p{i}': f'fpn.P{i}_conv2.1' for i in range(2, 6)},
    'rpn_conv_shared': 'rpn.conv_shared',
    'rpn_class_raw': 'rpn.conv_class',
    'rpn_bbox_pred': 'rpn.conv_bbox',
    'mrcnn_class_conv1': 'classifier.conv1',
    'mrcnn_class_bn1': 'classifier.bn1',
    'mrcnn_class_conv2': 'classifier.conv2',
    'mrcnn_class_bn2': 'classifier.bn2',
    'mrcnn_class_logits': 'classifier.linear_class',
    'mrcnn_bbox_fc': 'classifier.linear_bbox',
    **{f'mrcnn_mask_{layer}': f'mask.{layer}' for i in range(1, 5) for layer in (f'conv{i}', f'bn{i}')},
    'mrcnn_mask_deconv': 'mask.deconv',
    'mrcnn_mask': 'mask.conv5',
}

#: Prefixes in the state dicts of unsupported programs.
_OTHER_PROGRAMS = (
    ('backbone.body.stem.', 'maskrcnn-benchmark'),
    ('neck.lateral_convs.', 'MMDetection'),
    ('backbone.0.body.', 'DETR'),
    ('backbone.layer4.', 'MMDetection'),
    ('roi_head.', 'MMDetection'),
    ('stem.conv1.', 'detectron2 (ImageNet weights)'),
    ('0.conv.', 'YOLO'),
)

#: Names of an optimizer's tensors.
_OPTIMIZER_NAMES = {'exp_avg', 'exp_avg_sq', 'max_exp_avg_sq', 'momentum_buffer', 'square_avg', 'step', 'sum'}


def read(path: str | os.PathLike, settings: Mapping[str, Any] | None = None) -> ConvertedWeights:
    """Read and convert a state dict.  Nothing in the file is executed.

    Args:
        path: A ``.pth`` file in the zip format or the legacy format.
        settings: Settings that the file does not contain, under the names of Matterport's ``Config``, such as
            ``IMAGE_MAX_DIM``; see :mod:`mask_rcnn.weights.converters.matterport_cfg`.

    Raises:
        WeightFileError: The file is not such a file, is damaged, has an unsupported network, arrays are missing or have
            the wrong shape (the message lists all of them), or the settings contradict it.
        ValueError: A setting is not valid.
    """
    state = state_dict_file.read(path)
    file = matterport_layers.convert_weights(
        path, FORMAT, state, _find_names(path, state), settings or {}, lambda names: group_names(names, _group_of)
    )
    notes = state.notes if isinstance(state, torch_file.StateDict) else ()
    return dataclasses.replace(file, report=dataclasses.replace(file.report, notes=(*notes, *file.report.notes)))


def _find_names(path: str | os.PathLike, state: Mapping[str, np.ndarray]) -> matterport_layers.NameOf:
    """Return the naming function of the program that wrote the state dict, which a characteristic name identifies."""
    for name_of in (_multimodal_name, _graph_name):
        if name_of('conv1', 'kernel') in state:
            return name_of
    if set(state) <= _OPTIMIZER_NAMES:
        raise WeightFileError(path, 'contains the state of an optimizer, but no weights; give the file of the model')
    if any(name.startswith('layer4.') for name in state):
        raise WeightFileError(
            path,
            'is a state dict of a ResNet classifier, which is not supported; training starts from a detection model, '
            "from Detectron's R-50.pkl, or from a ResNet of Caffe or Chainer",
        )
    for prefix, program in _OTHER_PROGRAMS:
        if any(name.startswith(prefix) for name in state):
            raise WeightFileError(
                path, f'is a state dict of {program}, which is not supported (supported: {_SUPPORTED})'
            )
    raise WeightFileError(
        path,
        f'is a state dict, but not of a supported Mask R-CNN ({_SUPPORTED}): it '
        f'begins with {to_printable_ascii(next(iter(state)))}',
    )


def _multimodal_name(layer: str, kind: str) -> str:
    """Return pytorch-mask-rcnn's name of an array."""
    if match := _BACKBONE_LAYER.fullmatch(layer):
        return f'fpn.C{match["stage"]}.{_in_block(match)}.{_KINDS[kind]}'
    return f'{_MULTIMODAL[layer]}.{_KINDS[kind]}'


def _graph_name(layer: str, kind: str) -> str:
    """Return Pytorch_Mask_RCNN's name of an array."""
    if match := _BACKBONE_LAYER.fullmatch(layer):
        return f'resnet_graph.layer{int(match["stage"]) - 1}.{_in_block(match)}.{_KINDS[kind]}'
    stem = {'conv1': 'resnet_graph.conv1', 'bn_conv1': 'resnet_graph.bn1'}
    heads = {'rpn_': 'rpn.', 'mrcnn_class': 'rpn_class.', 'mrcnn_bbox': 'rpn_class.', 'mrcnn_mask': 'rpn_mask.'}
    module = next((module for prefix, module in heads.items() if layer.startswith(prefix)), '')
    return f'{stem.get(layer, module + layer)}.{_KINDS[kind]}'


def _in_block(match: re.Match) -> str:
    """Return a layer's name within its stage, the same in both programs: ``0.conv1``, ``0.bn1``, ``0.downsample.0``."""
    block = string.ascii_lowercase.index(match['block'])
    if match['branch'] == '1':
        return f'{block}.downsample.{("res", "bn").index(match["kind"])}'
    conv = 'abc'.index(match['branch'][1]) + 1
    return f'{block}.{"conv" if match["kind"] == "res" else "bn"}{conv}'


def _group_of(name: str) -> str:
    """Return the group of an array that is not converted."""
    return 'batch counters' if name.endswith('.num_batches_tracked') else 'unknown'
