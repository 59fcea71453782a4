"""Convert detectron2's weight files of Faster, Mask and Keypoint R-CNN with a ResNet or ResNeXt, C4 or FPN.

Two kinds of files are supported: pickles of NumPy arrays (``.pkl`` of the model zoo) and PyTorch's checkpoints
(``.pth`` of the trainer).  Names are those of ``detectron2/modeling`` (``backbone/resnet.py``, ``backbone/fpn.py``,
``proposal_generator/rpn.py``, ``roi_heads``).  Conventions, and the native ones where they differ:

=====================================  ==============================================================
``anchor_deltas``, ``bbox_pred``       ``(dx, dy, dw, dh)`` of each anchor or class; native:
                                       ``(dy, dx, dh, dw)``
``cls_score``                          the last row is the background; native: the first
``bbox_pred``                          has no rows of the background; native: zeros, which are never used
``predictor`` of the mask head         has no background, as the native layer
``norm`` of the backbone               may lack its running statistics: mean 0, variance 1
=====================================  ==============================================================

A file does not contain the place of the stride in the bottleneck blocks (``STRIDE_IN_1X1``).  The zoo's ResNets have it
in the 1x1 convolution, its ResNeXts and all networks that began with torchvision's ImageNet weights in the 3x3
convolution.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import DETECTRON2, PRESETS, RESNET_GROUPS, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.converters import detectron2_cfg
from mask_rcnn.weights.converters.mapping import (
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    group_names,
    person_class,
    resnet_convolutions,
    swap_xy,
)
from mask_rcnn.weights.converters.torch_layers import (
    Arrays,
    LayerMapper,
    Path,
    count_layers,
    find_resnet,
    layer_size,
)
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import open_weight_file, sha256
from mask_rcnn.weights.readers import inert_pickle, safe_pickle, state_dict_file, state_dicts, torch_file

#: Name of the format in the metadata of converted files.
FORMAT = 'detectron2'

_SUPPORTED = 'Faster, Mask and Keypoint R-CNN with a ResNet or ResNeXt, C4 or FPN'

#: Beginnings of names that only detectron2 writes.
_PREFIXES = ('backbone.bottom_up.', 'backbone.stem.', 'backbone.fpn_lateral', 'proposal_generator.')

#: Regular expressions of names in the state dicts of unsupported networks, and the parts that they belong to.
_OTHER_PARTS = (
    (r'sem_seg_head\.', 'a semantic segmentation head (Panoptic FPN)'),
    (r'head\.cls_subnet\.', 'a RetinaNet head'),
    (r'roi_heads\.box_(?:head|predictor)\.\d+\.', 'the three box heads of Cascade R-CNN'),
    (r'roi_heads\.mask_(?:point_head|coarse_head|head\.(?:point_head|coarse_head))\.', 'the mask head of PointRend'),
    (r'backbone\.(?:bottom_up\.)?res\d\.\d+\.conv2_offset\.', 'deformable convolutions'),
    (r'backbone\.res5\.', 'a dilated res5 in the backbone (DC5)'),
    (r'roi_heads\.keypoint_head\.conv_fcn9\.', 'a keypoint head of more than 8 convolutions'),
)

#: The settings of ``Base-RCNN-C4.yaml`` and ``Base-RCNN-FPN.yaml`` that no array determines.
_BASE_C4 = PRESETS['resnet50'].replace(dialect=DETECTRON2, norm='bn')
_BASE_FPN = PRESETS['resnet50_fpn'].replace(dialect=DETECTRON2, norm='bn', sampling_ratio=0)

#: ``PIXEL_STD`` of the zoo's ResNeXts, in the order BGR.
_RESNEXT_STD = (57.375, 57.12, 58.395)

#: ``SMOOTH_L1_BETA`` of the box head in the zoo's keypoint models.
_KEYPOINT_BETA = 0.5

#: ``POST_NMS_TOPK_TRAIN`` of the RPN in the zoo's keypoint models.
_KEYPOINT_PROPOSALS = 1500

#: Arrays that describe the input; files of the model zoo have them.
_INPUT_ARRAYS = ('pixel_mean', 'pixel_std')

#: Input of networks that began with torchvision's ImageNet weights; ``pixel_mean`` in a file determines it.
_RGB_INPUT = {'channel_order': 'RGB'}

_PICKLE = re.compile(rb'\x80[\x02-\x05]')
_AUTHOR = '__author__'


def matches(names: Iterable[str]) -> bool:
    """Return whether a state dict with these names is that of a detector of detectron2."""
    return any(name.startswith(_PREFIXES) for name in names)


def is_pickle(start: bytes) -> bool:
    """Return whether a file that begins with these bytes is a pickle of detectron2, as opposed to Detectron's."""
    signs = (_AUTHOR, *_PREFIXES)
    return _PICKLE.match(start) is not None and any(sign.encode() in start for sign in signs)


def read(path: Path, settings: Mapping[str, Any] | None = None) -> ConvertedWeights:
    """Read and convert a weight file.  Nothing in the file is executed.

    Args:
        path: A pickle, or a PyTorch file of either format.
        settings: Settings that the file does not contain, by their dotted names in detectron2's configuration; see
            :mod:`mask_rcnn.weights.converters.detectron2_cfg`.

    Raises:
        WeightFileError: The file is not such a file, is damaged, has an unsupported network, or arrays are missing or
            have the wrong shape (the message lists all of them).
        ValueError: A setting is not valid.
    """
    arrays, notes = _read_arrays(path)
    settings = settings or {}
    layers = _Layers(path, arrays)
    config, assumptions = _assume_conventions(layers.detect_network(settings), arrays, settings)
    config, warnings = detectron2_cfg.apply(settings, config)
    native, taken, broken = apply_mappings(path, arrays, layers.param_mappings(config))
    taken += _INPUT_ARRAYS if _stored_input(arrays) else ()
    report = ConversionReport(
        taken, group_names(set(arrays) - set(taken), _group_of), notes, (*warnings, *broken), tuple(assumptions)
    )
    return ConvertedWeights('model', FORMAT, config, native, report, sha256(path), *person_class(config))


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Return the arrays of a pickle or a PyTorch file, and notes about their choice."""
    with open_weight_file(path) as (file, _):
        start = file.read(4096)
    if not _PICKLE.match(start) or torch_file.is_legacy(start):
        state = state_dict_file.read(path)
        return state, state.notes
    try:
        data = safe_pickle.load(path)
    except WeightFileError as refusal:
        try:
            data = inert_pickle.load(path)
        except WeightFileError:
            raise refusal from None
        if not state_dicts.find_state_dict(data, state_dicts.array_shape)[0]:
            raise
    arrays, _ = state_dicts.find_state_dict(data, state_dicts.array_shape)
    if not arrays:
        raise WeightFileError(path, "is a detectron2 file, but has no arrays under 'model'")
    return arrays, ()


def _assume_conventions(config: Config, arrays: Arrays, settings: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """Return the configuration with the conventions that the zoo's models of this kind have, and the assumptions."""
    is_resnext = RESNET_GROUPS[config.backbone][0] > 1
    input_changes: dict[str, Any] = _stored_input(arrays)
    assumptions = []
    if not input_changes:
        if is_resnext:
            input_changes = {'pixel_std': _RESNEXT_STD}
        if settings.get('MODEL.PIXEL_STD') is None:
            std = input_changes.get('pixel_std', config.dialect.input.pixel_std)
            assumptions.append(f'the input is divided by {std}, PIXEL_STD of the zoo (convert --config)')
    stride_in_3x3 = is_resnext or config.norm == 'gn' or _is_rgb(input_changes)
    if settings.get('MODEL.RESNETS.STRIDE_IN_1X1') is None:
        kernel = '3x3' if stride_in_3x3 else '1x1'
        assumptions.append(
            f'the stride is in the {kernel} convolution of a block, as in such models of the zoo (convert --config '
            'with MODEL.RESNETS.STRIDE_IN_1X1)'
        )
    dialect = config.dialect.replace(
        input=input_changes,
        backbone={'stride_in_3x3': stride_in_3x3},
        losses={'box_smooth_l1_beta': _KEYPOINT_BETA} if config.n_keypoint else {},
        training={
            'freeze_norms': not any(name.endswith('.num_batches_tracked') for name in arrays),
            'fpn_proposals': _KEYPOINT_PROPOSALS if config.n_keypoint else config.dialect.training.fpn_proposals,
        },
    )
    return config.replace(dialect=dialect), assumptions


def _stored_input(arrays: Arrays) -> dict[str, Any]:
    """Return the mean, the standard deviation and the order of the channels in a file of the zoo, if it has them."""
    found = {name: arrays.get(name) for name in _INPUT_ARRAYS}
    values = {
        name: tuple(float(f'{x:.6g}') for x in array.ravel())
        for name, array in found.items()
        if array is not None and array.size == 3 and array.dtype.kind == 'f'
    }
    if len(values) < 2 or not all(0 < x < 1e4 for numbers in values.values() for x in numbers):
        return {}
    return {**values, **(_RGB_INPUT if _is_rgb(values) else {})}


def _is_rgb(input_changes: Mapping[str, Any]) -> bool:
    """Return whether a mean is that of RGB: photos have more red than blue."""
    mean = input_changes.get('pixel_mean')
    return mean is not None and mean[0] > mean[2]


def param_mappings(config: Config) -> list[ParamMapping]:
    """Return the mapping of each array of a network from detectron2's arrays."""
    return _Layers('', {}).param_mappings(config)


class _Layers:
    """The layers of a state dict: detection of the network, and the mappings of its parameters.

    Args:
        path: The file, for errors.
        arrays: Its arrays by name.
    """

    def __init__(self, path: Path, arrays: Arrays) -> None:
        self._path = path
        self._arrays = arrays
        self._mapper = LayerMapper(arrays)
        self._body = 'backbone.bottom_up' if 'backbone.bottom_up.stem.conv1.weight' in arrays else 'backbone'

    def _size(self, name: str, axis: int = 0, n_axes: int = 4, minimum: int = 1) -> int:
        return layer_size(self._path, self._arrays, name, axis, n_axes, minimum)

    def _has(self, pattern: str) -> bool:
        return any(re.match(pattern, name) for name in self._arrays)

    def _check_parts(self) -> None:
        """Raise an error if the network lacks a part, or has one that is not supported."""
        found = [part for pattern, part in _OTHER_PARTS if self._has(pattern)]
        has_heads, has_rpn = self._has(r'roi_heads\.'), self._has(r'proposal_generator\.rpn_head\.')
        if not found and not has_heads:
            found = ['no RoI heads (a network of proposals only)' if has_rpn else 'neither RoI heads nor an RPN']
        elif not found and not has_rpn:
            found = ['no RPN (Fast R-CNN, which needs a file of proposals)']
        if not found and f'{self._body}.stem.conv1.weight' not in self._arrays:
            found = ['a backbone other than a ResNet']
        if not found and f'{self._body}.res2.0.conv3.weight' not in self._arrays:
            found = ['a ResNet of basic blocks (ResNet-18, ResNet-34)']
        if found:
            raise WeightFileError(
                self._path,
                f'is a detectron2 file with {" and ".join(found)}, which is not supported (supported: {_SUPPORTED})',
            )

    def detect_network(self, settings: Mapping[str, Any]) -> Config:
        """Return the network that the arrays determine, with the zoo's settings.

        Args:
            settings: Settings by name, of which the number of anchors depends.
        """
        self._check_parts()
        has_fpn = self._body != 'backbone'
        base = _BASE_FPN if has_fpn else _BASE_C4
        backbone = find_resnet(
            self._path,
            self._arrays,
            re.escape(self._body) + r'\.res4\.(\d+)\.conv1\.weight',
            f'{self._body}.res2.0.conv2.weight',
        )
        n_classes = self._size('roi_heads.box_predictor.cls_score.weight', n_axes=2, minimum=2)
        changes: dict[str, Any] = {
            'extractor': f'{backbone}_fpn' if has_fpn else backbone,
            'n_fg_class': n_classes - 1,
            'masks': self._has(r'roi_heads\.mask_head\.predictor\.'),
            'norm': 'bn',
        }
        if changes['masks']:
            changes['mask_channels'] = self._size('roi_heads.mask_head.predictor.weight', 1)
        if has_fpn:
            changes |= self._fpn_fields()
            if changes['head_norm'] == 'gn':  # otherwise, a norm without statistics is a FrozenBN, not GN
                changes['norm'] = self._norm_of(f'{self._body}.stem.conv1.norm') or 'bn'
        self._check_class_specific(changes)
        config = base.replace(**changes)
        self._check_anchors(config, settings)
        return config

    def _norm_of(self, name: str) -> str | None:
        """Return the kind of a normalisation, ``None`` if there is none: ``'gn'`` has no statistics."""
        if f'{name}.weight' not in self._arrays:
            return None
        return 'bn' if f'{name}.running_mean' in self._arrays else 'gn'

    def _fpn_fields(self) -> dict[str, Any]:
        """Return the fields of the configuration that the layers of an FPN and its heads determine."""
        dim, keypoints = self._size('backbone.fpn_lateral2.weight'), 'roi_heads.keypoint_head.score_lowres.weight'
        n_inputs = self._size('roi_heads.box_head.fc1.weight', 1, n_axes=2)
        fields = {
            'head_norm': self._norm_of('backbone.fpn_lateral2.norm') or 'none',
            'fpn_channels': dim,
            'rpn_channels': self._size('proposal_generator.rpn_head.objectness_logits.weight', 1),
            'box_convs': count_layers(self._arrays, r'roi_heads\.box_head\.conv(\d+)\.weight'),
            'box_fcs': count_layers(self._arrays, r'roi_heads\.box_head\.fc(\d+)\.weight'),
            'head_channels': self._size('roi_heads.box_head.fc1.weight', n_axes=2),
            'roi_size': 14 if n_inputs == dim * 14**2 else 7,
            'n_keypoint': self._size(keypoints, 1) if keypoints in self._arrays else 0,
        }
        n_convs = count_layers(self._arrays, r'proposal_generator\.rpn_head\.conv\.conv(\d+)\.weight')
        mask_convs = count_layers(self._arrays, r'roi_heads\.mask_head\.mask_fcn(\d+)\.weight')
        return fields | ({'rpn_convs': n_convs} if n_convs else {}) | ({'mask_convs': mask_convs} if mask_convs else {})

    def _check_class_specific(self, fields: Mapping[str, Any]) -> None:
        """Raise an error if a head predicts one box or mask for all classes together."""
        outputs = [('boxes', 4 * fields['n_fg_class'], 'roi_heads.box_predictor.bbox_pred.weight')]
        if fields['masks']:
            outputs.append(('masks', fields['n_fg_class'], 'roi_heads.mask_head.predictor.weight'))
        for title, n_outputs, name in outputs:
            shape = self._arrays[name].shape if name in self._arrays else (n_outputs,)
            if fields['n_fg_class'] > 1 and shape[:1] == (n_outputs // fields['n_fg_class'],):
                raise WeightFileError(self._path, f'has class-agnostic {title}, which are not supported')

    def _check_anchors(self, config: Config, settings: Mapping[str, Any]) -> None:
        config, _ = detectron2_cfg.apply(settings, config)
        expected = len(config.anchor_ratios) * (1 if config.has_fpn else len(config.anchor_sizes))
        n_anchors = self._size('proposal_generator.rpn_head.objectness_logits.weight')
        if n_anchors != expected:
            raise WeightFileError(
                self._path,
                f'has {counted(n_anchors, "anchor")} per location, which does not match the sizes '
                f'{config.anchor_sizes} and the ratios {config.anchor_ratios}; --config FILE with '
                'MODEL.ANCHOR_GENERATOR names others',
            )

    def param_mappings(self, config: Config) -> list[ParamMapping]:
        """Return the mapping of each array of the native network."""
        heads = self._map_fpn_heads(config) if config.has_fpn else self._map_c4_heads(config)
        return [*self._map_backbone(config), *self._map_rpn(config), *heads]

    def _map_backbone(self, config: Config) -> list[ParamMapping]:
        """Map conv1 to res5; in a C4 network, res5 belongs to the heads."""
        body, native = ('backbone.bottom_up', 'extractor/body') if config.has_fpn else ('backbone', 'extractor')
        stem, mappings = f'{body}.stem.conv1', []
        mappings += self._mapper.conv_norm(stem, f'{stem}.norm', f'{native}/conv1', (64, 3, 7, 7), config.norm)
        for stage, block, name, shape in resnet_convolutions(config.backbone):
            is_head = stage == 5 and not config.has_fpn
            conv = f'{"roi_heads" if is_head else body}.res{stage}.{block}.{name}'
            path = f'{"box_head" if is_head else native}/res{stage}/block{block}/{name}'
            mappings += self._mapper.conv_norm(conv, f'{conv}.norm', path, shape, config.norm)
        return mappings

    def _map_rpn(self, config: Config) -> list[ParamMapping]:
        plain, head = self._mapper.plain, 'proposal_generator.rpn_head'
        width_in = config.fpn_channels if config.has_fpn else 1024
        width = config.rpn_channels or width_in
        n_anchors = len(config.anchor_ratios) * (1 if config.has_fpn else len(config.anchor_sizes))
        mappings = []
        for i in range(config.rpn_convs):
            conv = f'{head}.conv' if config.rpn_convs == 1 else f'{head}.conv.conv{i}'
            path = f'rpn/conv{i + 1}' if i else 'rpn/conv'
            mappings += plain(conv, path, (width, width if i else width_in, 3, 3))
        return [
            *mappings,
            *plain(f'{head}.objectness_logits', 'rpn/objectness', (n_anchors, width, 1, 1)),
            *plain(f'{head}.anchor_deltas', 'rpn/delta', (4 * n_anchors, width, 1, 1), swap_xy),
        ]

    def _map_c4_heads(self, config: Config) -> list[ParamMapping]:
        """Map the outputs of the heads that share res5."""
        return [*self._map_box_outputs(config, 2048), *(self._map_mask_outputs(config, 2048) if config.masks else ())]

    def _map_fpn_heads(self, config: Config) -> list[ParamMapping]:
        """Map the feature pyramid, the box head and the heads for masks and keypoints."""
        dim, hidden = config.fpn_channels, config.head_channels
        mappings = []
        for stage in range(2, 6):
            mappings += self._conv(f'backbone.fpn_lateral{stage}', f'extractor/lateral{stage}', 64 << stage, 1, config)
            mappings += self._conv(f'backbone.fpn_output{stage}', f'extractor/output{stage}', dim, 3, config)
        for i in range(1, config.box_convs + 1):
            mappings += self._conv(f'roi_heads.box_head.conv{i}', f'box_head/conv{i}', dim, 3, config)
        for i in range(config.box_fcs):
            width_in = hidden if i else dim * config.roi_size**2
            mappings += self._mapper.plain(f'roi_heads.box_head.fc{i + 1}', f'box_head/fc{6 + i}', (hidden, width_in))
        mappings += self._map_box_outputs(config, hidden)
        if config.masks:
            for i in range(1, config.mask_convs + 1):
                shape = (config.mask_channels, config.mask_channels if i > 1 else dim, 3, 3)
                name = f'roi_heads.mask_head.mask_fcn{i}'
                mappings += self._mapper.conv(name, f'{name}.norm', f'mask_head/conv{i}', shape, config.head_norm)
            mappings += self._map_mask_outputs(config, config.mask_channels)
        return mappings + (self._map_keypoint_head(config) if config.n_keypoint else [])

    def _conv(self, name: str, path: str, width_in: int, size: int, config: Config) -> list[ParamMapping]:
        """Map a convolution with ``fpn_channels`` outputs and the normalisation of the heads."""
        return self._mapper.conv(
            name, f'{name}.norm', path, (config.fpn_channels, width_in, size, size), config.head_norm
        )

    def _map_box_outputs(self, config: Config, width: int) -> list[ParamMapping]:
        n_classes, predictor = config.n_fg_class, 'roi_heads.box_predictor'
        return [
            *self._mapper.plain(f'{predictor}.cls_score', 'box_head/score', (n_classes + 1, width), background_first),
            *self._mapper.plain(
                f'{predictor}.bbox_pred', 'box_head/delta', (4 * n_classes, width), add_background_deltas
            ),
        ]

    def _map_mask_outputs(self, config: Config, width: int) -> list[ParamMapping]:
        head, dim = 'roi_heads.mask_head', config.mask_channels
        return [
            *self._mapper.plain(f'{head}.deconv', 'mask_head/deconv', (width, dim, 2, 2), out=1),
            *self._mapper.plain(f'{head}.predictor', 'mask_head/score', (config.n_fg_class, dim, 1, 1)),
        ]

    def _map_keypoint_head(self, config: Config) -> list[ParamMapping]:
        head, mappings = 'roi_heads.keypoint_head', []
        for i in range(1, 9):
            shape = (512, 512 if i > 1 else config.fpn_channels, 3, 3)
            mappings += self._mapper.plain(f'{head}.conv_fcn{i}', f'keypoint_head/conv{i}', shape)
        deconv = (512, config.n_keypoint, 4, 4)
        return mappings + self._mapper.plain(f'{head}.score_lowres', 'keypoint_head/deconv', deconv, out=1)


def background_first(array: np.ndarray) -> np.ndarray:
    """Move the last row, the background, to the front."""
    return np.roll(array, 1, axis=0)


def add_background_deltas(array: np.ndarray) -> np.ndarray:
    """Put four rows of zeros, the background's, before the deltas ``(dy, dx, dh, dw)`` of the classes."""
    return np.concatenate([np.zeros((4, *array.shape[1:]), array.dtype), swap_xy(array)])


def _group_of(name: str) -> str:
    """Return the group of an array that is not converted."""
    if name.endswith('.num_batches_tracked'):
        return 'batch counters'
    is_constant = re.fullmatch(r'pixel_(mean|std)|proposal_generator\.anchor_generator\.cell_anchors\.\d+', name)
    return 'constants' if is_constant else 'unknown'
