"""The layers of Matterport's Mask R-CNN, and their mapping to the native network.

The Keras program and its ports to PyTorch have the same layers under other names, so their converters share this table.
It uses the Keras names (``mrcnn/model.py``) and expects every array in the native order of axes: convolutions
``(out, in, kh, kw)``, the transposed one ``(in, out, kh, kw)``, linear layers ``(out, in)``.

Differences that do not change the network's output are folded (:mod:`mask_rcnn.weights.folding`):

- the bias of a convolution in the backbone is folded into the running mean of the normalisation after it;
- the normalisations of the heads are folded into the convolutions and linear layers before them;
- the RPN's pair of logits (background, foreground) becomes one;
- the background channel of the masks, which is never used, is dropped.
"""

from __future__ import annotations

import functools
import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import MATTERPORT, RESNET_BLOCKS, Config
from mask_rcnn.io.wording import counted
from mask_rcnn.weights import folding
from mask_rcnn.weights.converters import matterport_cfg
from mask_rcnn.weights.converters.mapping import (
    CAFFE_BRANCHES,
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    batch_counter,
    drop_background,
    resnet_convolutions,
)
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import sha256

#: A function from a layer's Keras name and one of ``'kernel'``, ``'bias'``, ``'gamma'``, ``'beta'``, ``'mean'`` and
#: ``'var'`` to the name of the array in a file.
NameOf = Callable[[str, str], str]

#: The backbones of the program (``mrcnn/config.py``, ``BACKBONE``).
_BACKBONES = ('resnet50', 'resnet101')

#: The settings of ``mrcnn/config.py`` that no array determines.
_BASE = Config(
    extractor='resnet50_fpn',
    dialect=MATTERPORT,
    norm='bn',
    rpn_channels=512,
    roi_size=7,
    min_size=800,
    max_size=1024,
    anchor_sizes=(32, 64, 128, 256, 512),
    anchor_ratios=matterport_cfg.RATIOS,
    rpn_pre_nms=6000,
    rpn_post_nms=1000,
    rpn_nms_threshold=0.7,
    score_threshold=0.7,
    nms_threshold=0.3,
    max_detections=100,
)


def convert_weights(
    path: str | os.PathLike,
    format: str,
    arrays: Mapping[str, np.ndarray],
    name_of: NameOf,
    settings: Mapping[str, Any],
    group_skipped: Callable[[Iterable[str]], Mapping[str, tuple[str, ...]]],
) -> ConvertedWeights:
    """Convert the arrays of a file and apply the settings that belong to them.

    Args:
        path: The file.
        format: Name of its format.
        arrays: Arrays by their names in the file, in the native order of axes.
        name_of: Returns the file's name of an array.
        settings: Settings that the file does not contain, under the names of Matterport's ``Config``
            (:mod:`mask_rcnn.weights.converters.matterport_cfg`).
        group_skipped: Groups the names of the arrays that are not converted.

    Raises:
        WeightFileError: Arrays are missing or have the wrong shape (the message lists all of them), or the settings
            contradict them.
        ValueError: A setting is not valid.
    """
    base, warnings = matterport_cfg.apply(settings, _BASE)
    config = detect_network(path, arrays, name_of, base)
    matterport_cfg.check(path, settings, config)
    native, taken, broken = apply_mappings(path, arrays, param_mappings(config, name_of))
    native.update(matterport_cfg.rescale_delta_layers(settings, native))
    missing = matterport_cfg.missing_settings(settings)
    if missing:
        warnings.append(f"the file does not contain {', '.join(missing)}; Matterport's defaults are used")
    report = ConversionReport(taken, group_skipped(set(arrays) - set(taken)), (), (*warnings, *broken))
    return ConvertedWeights('model', format, config, native, report, sha256(path))


def detect_network(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], name_of: NameOf, base: Config) -> Config:
    """Determine the network from the arrays of a file.

    Args:
        path: The file, for errors.
        arrays: Arrays by their names in the file, in the native order of axes.
        name_of: Returns the file's name of an array.
        base: The settings that the arrays do not determine.

    Raises:
        WeightFileError: Layers that determine sizes are missing, or the backbone is not supported.
    """
    count = sum(name_of(f'res4{letter}_branch2a', 'kernel') in arrays for letter in string.ascii_lowercase)
    backbone = next((name for name in _BACKBONES if RESNET_BLOCKS[name][2] == count), None)
    if backbone is None:
        raise WeightFileError(
            path,
            f'has a ResNet with {counted(count, "block")} in its fourth stage, supported are {", ".join(_BACKBONES)}',
        )

    def shape(layer: str, n_axes: int) -> tuple[int, ...]:
        name = name_of(layer, 'kernel')
        if name not in arrays:
            raise WeightFileError(path, f'{name} is missing')
        found = arrays[name].shape
        if len(found) != n_axes or 0 in found:
            raise WeightFileError(path, f'{name} has the shape {found}, which is not valid for such a layer')
        return found

    fc6 = shape('mrcnn_class_conv1', 4)
    n_classes = shape('mrcnn_class_logits', 2)[0]
    if n_classes < 2:
        raise WeightFileError(path, 'has no class except the background')
    n_anchors = shape('rpn_class_raw', 4)[0] // 2
    if n_anchors != len(base.anchor_ratios):
        raise WeightFileError(
            path,
            f'has {counted(n_anchors, "anchor")} per location, which does not match the ratios {base.anchor_ratios}',
        )
    try:
        return base.replace(
            extractor=f'{backbone}_fpn',
            n_fg_class=n_classes - 1,
            fpn_channels=fc6[1],
            head_channels=fc6[0],
            roi_size=fc6[2],
            rpn_channels=shape('rpn_conv_shared', 4)[0],
            mask_channels=shape('mrcnn_mask_deconv', 4)[0],
        )
    except ValueError as error:
        raise WeightFileError(path, f'its sizes are not supported: {error}') from None


def param_mappings(config: Config, name_of: NameOf) -> list[ParamMapping]:
    """Return the mapping of each array of the native network.

    Args:
        config: A network that :func:`detect_network` returns.
        name_of: Returns the file's name of an array.
    """
    layers = _LayerMapper(name_of, config.dialect.backbone.bn_eps)
    return [
        *_backbone(config, layers),
        *_pyramid(config, layers),
        *_rpn(config, layers),
        *_box_head(config, layers),
        *_mask_head(config, layers),
    ]


def _backbone(config: Config, layers: _LayerMapper) -> Iterator[ParamMapping]:
    """Map conv1 to res5; Keras numbers the blocks of a stage with letters."""
    yield from layers.conv_bn('conv1', 'bn_conv1', 'extractor/body/conv1', (64, 3, 7, 7))
    for stage, block, name, shape in resnet_convolutions(config.backbone):
        suffix = f'{stage}{string.ascii_lowercase[block]}_{CAFFE_BRANCHES[name]}'
        path = f'extractor/body/res{stage}/block{block}/{name}'
        yield from layers.conv_bn(f'res{suffix}', f'bn{suffix}', path, shape)


def _pyramid(config: Config, layers: _LayerMapper) -> Iterator[ParamMapping]:
    dim = config.fpn_channels
    for stage in range(2, 6):
        yield from layers.plain(f'fpn_c{stage}p{stage}', f'extractor/lateral{stage}', (dim, 64 << stage, 1, 1))
        yield from layers.plain(f'fpn_p{stage}', f'extractor/output{stage}', (dim, dim, 3, 3))


def _rpn(config: Config, layers: _LayerMapper) -> list[ParamMapping]:
    width, n_anchors = config.rpn_channels, len(config.anchor_ratios)
    return [
        *layers.plain('rpn_conv_shared', 'rpn/conv', (width, config.fpn_channels, 3, 3)),
        *layers.plain('rpn_class_raw', 'rpn/objectness', (2 * n_anchors, width, 1, 1), folding.softmax_pair_to_logit),
        *layers.plain('rpn_bbox_pred', 'rpn/delta', (4 * n_anchors, width, 1, 1)),
    ]


def _box_head(config: Config, layers: _LayerMapper) -> list[ParamMapping]:
    hidden, size, n_classes = config.head_channels, config.roi_size, config.n_fg_class + 1
    fc6, fc7 = (hidden, config.fpn_channels, size, size), (hidden, hidden, 1, 1)
    return [
        *layers.conv_folded_bn('mrcnn_class_conv1', 'mrcnn_class_bn1', 'box_head/fc6', fc6, linear=True),
        *layers.conv_folded_bn('mrcnn_class_conv2', 'mrcnn_class_bn2', 'box_head/fc7', fc7, linear=True),
        *layers.plain('mrcnn_class_logits', 'box_head/score', (n_classes, hidden)),
        *layers.plain('mrcnn_bbox_fc', 'box_head/delta', (4 * n_classes, hidden)),
    ]


def _mask_head(config: Config, layers: _LayerMapper) -> Iterator[ParamMapping]:
    dim = config.mask_channels
    for i in range(1, 5):
        yield from layers.conv_folded_bn(
            f'mrcnn_mask_conv{i}',
            f'mrcnn_mask_bn{i}',
            f'mask_head/conv{i}',
            (dim, config.fpn_channels if i == 1 else dim, 3, 3),
        )
    yield from layers.plain('mrcnn_mask_deconv', 'mask_head/deconv', (dim, dim, 2, 2))
    yield from layers.plain('mrcnn_mask', 'mask_head/score', (config.n_fg_class + 1, dim, 1, 1), drop_background)


class _LayerMapper:
    """Builds the mappings of one layer and its normalisation.

    Args:
        name_of: Returns the file's name of an array.
        eps: Constant that the normalisations add to the variance.
    """

    def __init__(self, name_of: NameOf, eps: float) -> None:
        self._name_of = name_of
        self._eps = eps

    def plain(
        self, layer: str, path: str, shape: tuple[int, ...], convert: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> list[ParamMapping]:
        """Map a layer without normalisation (a transposed convolution must have equal input and output channels)."""
        return [
            ParamMapping(f'{path}/W', {self._name_of(layer, 'kernel'): shape}, convert),
            ParamMapping(f'{path}/b', {self._name_of(layer, 'bias'): shape[:1]}, convert),
        ]

    def conv_bn(self, conv: str, norm: str, path: str, shape: tuple[int, ...]) -> list[ParamMapping]:
        """Map a convolution of the backbone, which keeps its batch normalisation."""

        def inputs(*kinds: str) -> dict[str, tuple[int, ...]]:
            return {self._name_of(conv if kind == 'bias' else norm, kind): shape[:1] for kind in kinds}

        return [
            ParamMapping(f'{path}/conv/W', {self._name_of(conv, 'kernel'): shape}),
            ParamMapping(f'{path}/norm/gamma', inputs('gamma')),
            ParamMapping(f'{path}/norm/beta', inputs('beta')),
            ParamMapping(f'{path}/norm/avg_mean', inputs('bias', 'mean'), folding.fold_bias_into_mean),
            ParamMapping(f'{path}/norm/avg_var', inputs('var')),
            batch_counter(f'{path}/norm'),
        ]

    def conv_folded_bn(
        self, conv: str, norm: str, path: str, shape: tuple[int, ...], *, linear: bool = False
    ) -> list[ParamMapping]:
        """Map a layer of the heads and fold its normalisation in; if ``linear`` is set, it becomes a linear layer."""

        def fold(weight: np.ndarray, gamma: np.ndarray, var: np.ndarray) -> np.ndarray:
            weight = folding.fold_norm_into_weight(weight, gamma, var, self._eps)
            return weight.reshape(len(weight), -1) if linear else weight

        names = {kind: self._name_of(norm, kind) for kind in ('gamma', 'beta', 'mean', 'var')}
        kernel, bias = self._name_of(conv, 'kernel'), self._name_of(conv, 'bias')
        sizes = dict.fromkeys([bias, *names.values()], shape[:1])
        factors = {names['gamma']: shape[:1], names['var']: shape[:1]}
        return [
            ParamMapping(f'{path}/W', {kernel: shape, **factors}, fold),
            ParamMapping(f'{path}/b', sizes, functools.partial(folding.fold_norm_into_bias, eps=self._eps)),
        ]
