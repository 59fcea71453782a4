"""Convert torchvision's state dicts (``.pth``) of Faster, Mask and Keypoint R-CNN with a ResNet or ResNeXt and FPN.

The names are those of ``torchvision/models/detection`` (``faster_rcnn.py``, ``mask_rcnn.py``, ``keypoint_rcnn.py``,
``rpn.py``) and ``torchvision/ops/feature_pyramid_network.py``.  Published files have older names
(:data:`_OLD_NAMES`).  Conventions, and the native ones where they differ:

=====================================  ==============================================================
``bbox_pred``                          ``(dx, dy, dw, dh)`` of each anchor or class; native:
                                       ``(dy, dx, dh, dw)``
``mask_fcn_logits``                    the first channel is the unused background; native: none
``inner_blocks.<i>``                   the lateral convolution of res ``i + 2``; ``layer_blocks``: output
``..._v2`` models                      batch normalisations in the FPN and the heads, four convolutions
                                       and one linear layer in the box head, two in the RPN
=====================================  ==============================================================

A state dict does not contain the epsilon of its normalisations.  torchvision replaces 1e-5 by 0 when it loads its own
published files of the first version (``overwrite_eps``), whose frozen normalisations have no ``num_batches_tracked``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mask_rcnn.config import PRESETS, TORCHVISION, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights.converters import torchvision_cfg
from mask_rcnn.weights.converters.mapping import (
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    drop_background,
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
from mask_rcnn.weights.files import sha256
from mask_rcnn.weights.readers import state_dict_file

#: Name of the format in the metadata of converted files.
FORMAT = 'torchvision'

_SUPPORTED = 'Faster, Mask and Keypoint R-CNN with a ResNet or ResNeXt and FPN'

#: Names in torchvision since 0.13, and before, of the same layers.
_OLD_NAMES = (
    (re.compile(r'(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.0\.'), r'\1.'),
    (re.compile(r'(rpn\.head\.conv)\.0\.0\.'), r'\1.'),
    (re.compile(r'(roi_heads\.mask_head)\.(\d+)\.0\.'), lambda match: f'{match[1]}.mask_fcn{int(match[2]) + 1}.'),
)

#: Beginnings of names in the state dicts of torchvision's other models, the most specific ones first.
_OTHER_MODELS = (
    ('head.regression_head.bbox_ctrness.', 'FCOS'),
    ('head.classification_head.module_list.', 'SSD'),
    ('head.classification_head.', 'RetinaNet'),
    ('classifier.', 'a segmentation model'),
    ('backbone.body.0.', 'a Faster R-CNN with a MobileNetV3'),
)

#: Name of the backbone's convolutions and normalisations in a block.
_BLOCK = {
    'conv1': ('conv1', 'bn1'),
    'conv2': ('conv2', 'bn2'),
    'conv3': ('conv3', 'bn3'),
    'shortcut': ('downsample.0', 'downsample.1'),
}

#: The settings of ``faster_rcnn.py`` that no array determines.
_BASE = PRESETS['resnet50_fpn'].replace(dialect=TORCHVISION, norm='bn', rpn_min_size=1e-3)

#: Number of classes of the COCO models, which have an output for each category id.
_N_COCO_IDS = 90

#: Epsilon of the normalisations in published files, and in all others.
_PUBLISHED_EPS, _USUAL_EPS = 0.0, TORCHVISION.backbone.bn_eps


def matches(names: Iterable[str]) -> bool:
    """Return whether a state dict with these names is torchvision's: of one of its detection or segmentation models."""
    names = tuple(names)
    if any(name.startswith('backbone.body.') for name in names):
        return not any(name.startswith('backbone.body.stem.') for name in names)  # maskrcnn-benchmark
    return any(name.startswith('backbone.') for name in names) and any(
        name.startswith(('head.classification_head.', 'classifier.')) for name in names
    )


def read(path: Path, settings: Mapping[str, Any] | None = None) -> ConvertedWeights:
    """Read and convert a state dict.  Nothing in the file is executed.

    Args:
        path: A ``.pth`` file in the zip format or the legacy format.
        settings: Settings that the file does not contain; see :mod:`mask_rcnn.weights.converters.torchvision_cfg`.

    Raises:
        WeightFileError: The file is not such a file, is damaged, has an unsupported network, or arrays are missing or
            have the wrong shape (the message lists all of them).
        ValueError: A setting is not valid.
    """
    state, settings = state_dict_file.read(path), settings or {}
    layers = _Layers(path, state)
    base, warnings = torchvision_cfg.apply(settings, _BASE)
    if settings.get('bn_eps') is None:
        base = base.replace(dialect=base.dialect.replace(backbone={'bn_eps': layers.default_epsilon}))
    # Frozen normalisations do not count batches.
    base = base.replace(dialect=base.dialect.replace(training={'freeze_norms': not layers.counts_batches}))
    config = layers.detect_network(base)
    torchvision_cfg.check(settings, config)
    native, taken, broken = apply_mappings(path, state, layers.param_mappings(config))
    report = ConversionReport(
        taken,
        group_names(set(state) - set(taken), _group_of),
        state.notes,
        (*warnings, *broken),
        tuple(_assumptions(settings, config)),
    )
    return ConvertedWeights('model', FORMAT, config, native, report, sha256(path), *_classes(config))


def _classes(config: Config) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the names of the classes, if they are known, and their category ids, those of COCO for 90 classes."""
    if config.n_fg_class == _N_COCO_IDS:
        return (), tuple(range(1, _N_COCO_IDS + 1))
    return person_class(config)


def _assumptions(settings: Mapping[str, Any], config: Config) -> Iterable[str]:
    """Yield a line about the epsilon if it was not given."""
    if settings.get('bn_eps') is None:
        eps = config.dialect.backbone.bn_eps
        reason = "torchvision's published files" if eps == _PUBLISHED_EPS else 'models with BatchNorm2d'
        other = f'; networks trained from ImageNet need --bn-eps {_USUAL_EPS:g}' if eps == _PUBLISHED_EPS else ''
        yield f'the epsilon of the normalisations is {eps:g}, as in {reason} (convert --bn-eps){other}'


def param_mappings(config: Config) -> list[ParamMapping]:
    """Return the mapping of each array of a network from torchvision's arrays, under their present names."""
    return _Layers('', {}).param_mappings(config)


class _Layers:
    """The layers of a state dict: detection of the network, and the mappings of its parameters.

    Args:
        path: The file, for errors.
        arrays: Its arrays by name.
    """

    def __init__(self, path: Path, arrays: Arrays) -> None:
        for prefix, model in _OTHER_MODELS:
            if any(name.startswith(prefix) for name in arrays):
                raise WeightFileError(
                    path,
                    f'is a state dict of torchvision with {model}, which is not supported (supported: {_SUPPORTED})',
                )
        self._path = path
        self._arrays = arrays
        self._mapper = LayerMapper(arrays, self._name_of)

    def _name_of(self, name: str) -> str:
        """Return the name of an array in the file, given torchvision's present name."""
        if name not in self._arrays:
            for pattern, old in _OLD_NAMES:
                if pattern.match(name) and (old_name := pattern.sub(old, name)) in self._arrays:
                    return old_name
        return name

    @property
    def default_epsilon(self) -> float:
        """The epsilon of the normalisations, unless it is given."""
        return _USUAL_EPS if self.counts_batches else _PUBLISHED_EPS

    @property
    def counts_batches(self) -> bool:
        """True if the normalisations are those of ``BatchNorm2d``, False for ``FrozenBatchNorm2d``."""
        return any(name.endswith('.num_batches_tracked') for name in self._arrays)

    def _size(self, name: str, axis: int = 0, n_axes: int = 4, minimum: int = 1) -> int:
        return layer_size(self._path, self._arrays, self._name_of(name), axis, n_axes, minimum)

    def _count(self, pattern: str, old_pattern: str | None = None) -> int:
        return max(count_layers(self._arrays, text) for text in (pattern, old_pattern or pattern))

    def _has(self, name: str) -> bool:
        return self._name_of(name) in self._arrays

    def detect_network(self, base: Config) -> Config:
        """Return the network that the arrays determine, with the other settings of ``base``."""
        self._check_parts()
        backbone = find_resnet(
            self._path,
            self._arrays,
            r'backbone\.body\.layer3\.(\d+)\.conv1\.weight',
            'backbone.body.layer1.0.conv2.weight',
        )
        n_ratios, ratios = self._size('rpn.head.cls_logits.weight'), base.anchor_ratios
        if n_ratios != len(ratios):
            raise WeightFileError(
                self._path,
                f'has {counted(n_ratios, "anchor")} per location, which does not match the ratios {ratios}; '
                '--config FILE with aspect_ratios names others',
            )
        changes = self._box_head() | self._mask_head() | self._keypoint_head()
        try:
            return base.replace(
                extractor=f'{backbone}_fpn',
                fpn_channels=self._size('backbone.fpn.inner_blocks.0.0.weight'),
                rpn_channels=self._size('rpn.head.conv.0.0.weight'),
                rpn_convs=self._count(r'rpn\.head\.conv\.(\d+)\.0\.weight') or 1,
                head_norm='bn' if self._has('backbone.fpn.inner_blocks.0.1.weight') else 'none',
                **changes,
            )
        except ValueError as error:
            raise WeightFileError(self._path, f'its sizes are not supported: {error}') from None

    def _check_parts(self) -> None:
        """Raise an error if the network lacks a part, or has one that is not supported."""
        n_levels = self._count(
            r'backbone\.fpn\.inner_blocks\.(\d+)\.0\.weight', r'backbone\.fpn\.inner_blocks\.(\d+)\.weight'
        )
        parts = {
            'no RPN': not self._has('rpn.head.cls_logits.weight'),
            'no box head': not self._has('roi_heads.box_predictor.cls_score.weight'),
            'no FPN': not n_levels,
            f'{counted(n_levels, "level")} of the FPN instead of 4': n_levels not in (0, 4),
            'a ResNet of basic blocks (ResNet-18, ResNet-34)': 'backbone.body.layer1.0.conv2.weight' in self._arrays
            and 'backbone.body.layer1.0.conv3.weight' not in self._arrays,
            'additional levels of the FPN': any(name.startswith('backbone.fpn.extra_blocks.') for name in self._arrays),
        }
        found = [part for part, present in parts.items() if present]
        if found:
            raise WeightFileError(
                self._path,
                f'is a state dict of torchvision with {" and ".join(found)}, which is not supported '
                f'(supported: {_SUPPORTED})',
            )

    def _box_head(self) -> dict[str, Any]:
        """Return the fields of the configuration that the box head determines."""
        n_classes = self._size('roi_heads.box_predictor.cls_score.weight', n_axes=2, minimum=2)
        n_convs = self._count(r'roi_heads\.box_head\.(\d+)\.0\.weight')
        linear = self._linear_layers(n_convs)
        n_inputs = self._size(f'{linear[0]}.weight', 1, n_axes=2)
        channels = self._size('backbone.fpn.inner_blocks.0.0.weight')
        return {
            'n_fg_class': n_classes - 1,
            'box_convs': n_convs,
            'box_fcs': len(linear),
            'head_channels': self._size(f'{linear[0]}.weight', n_axes=2),
            'roi_size': 14 if n_inputs == channels * 14**2 else 7,
        }

    def _linear_layers(self, n_convs: int) -> list[str]:
        """Return the names of the box head's linear layers.

        Those of ``TwoMLPHead`` have names.  Those of ``FastRCNNConvFCHead`` are numbered after the convolutions, with
        a flattening layer before the first and an activation after each.
        """
        if not n_convs:
            return ['roi_heads.box_head.fc6', 'roi_heads.box_head.fc7']
        numbers = {
            int(match[1])
            for name in self._arrays
            if (match := re.fullmatch(r'roi_heads\.box_head\.(\d{1,4})\.weight', name))
        }
        return [f'roi_heads.box_head.{number}' for number in sorted(numbers or {n_convs + 1})]

    def _mask_head(self) -> dict[str, Any]:
        if not self._has('roi_heads.mask_predictor.mask_fcn_logits.weight'):
            return {'masks': False}
        return {
            'masks': True,
            'mask_channels': self._size('roi_heads.mask_predictor.mask_fcn_logits.weight', 1),
            'mask_convs': self._count(
                r'roi_heads\.mask_head\.(\d+)\.0\.weight', r'roi_heads\.mask_head\.mask_fcn(\d+)\.weight'
            ),
        }

    def _keypoint_head(self) -> dict[str, Any]:
        name = 'roi_heads.keypoint_predictor.kps_score_lowres.weight'
        return {'n_keypoint': self._size(name, 1) if self._has(name) else 0}

    def param_mappings(self, config: Config) -> list[ParamMapping]:
        """Return the mapping of each array of the native network."""
        return [
            *self._map_backbone(config),
            *self._map_pyramid(config),
            *self._map_rpn(config),
            *self._map_box_head(config),
            *(self._map_mask_head(config) if config.masks else ()),
            *(self._map_keypoint_head(config) if config.n_keypoint else ()),
        ]

    def _map_backbone(self, config: Config) -> list[ParamMapping]:
        body, native = 'backbone.body', 'extractor/body'
        mappings = self._mapper.conv_norm(f'{body}.conv1', f'{body}.bn1', f'{native}/conv1', (64, 3, 7, 7), config.norm)
        for stage, block, name, shape in resnet_convolutions(config.backbone):
            conv, norm = (f'{body}.layer{stage - 1}.{block}.{layer}' for layer in _BLOCK[name])
            path = f'{native}/res{stage}/block{block}/{name}'
            mappings += self._mapper.conv_norm(conv, norm, path, shape, config.norm)
        return mappings

    def _map_pyramid(self, config: Config) -> list[ParamMapping]:
        dim, mappings = config.fpn_channels, []
        for stage in range(2, 6):
            for layer, path, shape in (
                ('inner', 'lateral', (dim, 64 << stage, 1, 1)),
                ('layer', 'output', (dim, dim, 3, 3)),
            ):
                block = f'backbone.fpn.{layer}_blocks.{stage - 2}'
                mappings += self._mapper.conv(
                    f'{block}.0', f'{block}.1', f'extractor/{path}{stage}', shape, config.head_norm
                )
        return mappings

    def _map_rpn(self, config: Config) -> list[ParamMapping]:
        width, n_anchors, plain = config.rpn_channels, len(config.anchor_ratios), self._mapper.plain
        mappings = []
        for i in range(config.rpn_convs):
            width_in = width if i else config.fpn_channels
            path = f'rpn/conv{i + 1}' if i else 'rpn/conv'
            mappings += plain(f'rpn.head.conv.{i}.0', path, (width, width_in, 3, 3))
        return [
            *mappings,
            *plain('rpn.head.cls_logits', 'rpn/objectness', (n_anchors, width, 1, 1)),
            *plain('rpn.head.bbox_pred', 'rpn/delta', (4 * n_anchors, width, 1, 1), swap_xy),
        ]

    def _map_box_head(self, config: Config) -> list[ParamMapping]:
        dim, hidden, n_classes = config.fpn_channels, config.head_channels, config.n_fg_class + 1
        plain, mappings = self._mapper.plain, []
        for i in range(config.box_convs):
            layer = f'roi_heads.box_head.{i}'
            mappings += self._mapper.conv(
                f'{layer}.0', f'{layer}.1', f'box_head/conv{i + 1}', (dim, dim, 3, 3), config.head_norm
            )
        for i, layer in enumerate(self._linear_layers(config.box_convs)):
            mappings += plain(layer, f'box_head/fc{6 + i}', (hidden, hidden if i else dim * config.roi_size**2))
        predictor = 'roi_heads.box_predictor'
        return [
            *mappings,
            *plain(f'{predictor}.cls_score', 'box_head/score', (n_classes, hidden)),
            *plain(f'{predictor}.bbox_pred', 'box_head/delta', (4 * n_classes, hidden), swap_xy),
        ]

    def _map_mask_head(self, config: Config) -> list[ParamMapping]:
        dim, mappings = config.mask_channels, []
        for i in range(config.mask_convs):
            layer, width_in = f'roi_heads.mask_head.{i}', dim if i else config.fpn_channels
            mappings += self._mapper.conv(
                f'{layer}.0', f'{layer}.1', f'mask_head/conv{i + 1}', (dim, width_in, 3, 3), config.head_norm
            )
        predictor, shape = 'roi_heads.mask_predictor', (config.n_fg_class + 1, dim, 1, 1)
        return [
            *mappings,
            *self._mapper.plain(f'{predictor}.conv5_mask', 'mask_head/deconv', (dim, dim, 2, 2), out=1),
            *self._mapper.plain(f'{predictor}.mask_fcn_logits', 'mask_head/score', shape, drop_background),
        ]

    def _map_keypoint_head(self, config: Config) -> list[ParamMapping]:
        plain, mappings = self._mapper.plain, []
        for i in range(8):  # an activation follows each convolution
            shape = (512, 512 if i else config.fpn_channels, 3, 3)
            mappings += plain(f'roi_heads.keypoint_head.{2 * i}', f'keypoint_head/conv{i + 1}', shape)
        layer, shape = 'roi_heads.keypoint_predictor.kps_score_lowres', (512, config.n_keypoint, 4, 4)
        return mappings + plain(layer, 'keypoint_head/deconv', shape, out=1)


def _group_of(name: str) -> str:
    """Return the group of an array that is not converted."""
    return 'batch counters' if name.endswith('.num_batches_tracked') else 'unknown'
