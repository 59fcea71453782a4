"""The network of Matterport's Mask R-CNN, layer by layer: how our arrays are made of its.

The Keras program and its ports to PyTorch have the same layers under other names, so their readers share this
table.  It calls the layers by their Keras names (``mrcnn/model.py``) and wants every array in our order:
convolutions ``(out, in, kh, kw)``, the transposed one ``(in, out, kh, kw)``, linear layers ``(out, in)``.

What differs from our network without changing what it computes is folded (:mod:`mask_rcnn.weights.folding`):

- a convolution's bias in the backbone goes into the running mean of the normalisation behind it;
- the heads' normalisations go into the convolutions and linear layers before them;
- the RPN's pair of logits (background, foreground) becomes one;
- of the masks' channels, the background's is dropped, which is never used.
"""

from __future__ import annotations

import functools
import os
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import MATTERPORT, RESNET_BLOCKS, Config
from mask_rcnn.weights import folding
from mask_rcnn.weights.converters import matterport_cfg
from mask_rcnn.weights.converters.mapping import (
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    batch_counter,
    drop_background,
)
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import sha256

#: Takes a layer's Keras name and one of ``'kernel'``, ``'bias'``, ``'gamma'``, ``'beta'``, ``'mean'`` and
#: ``'var'``; returns the file's name for the array.
NameOf = Callable[[str, str], str]

#: The numbers of ``mrcnn/config.py`` that no array tells.
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
    """Translate a file's arrays and the settings that belong to them.

    Args:
        path: The file.
        format: Name of its format.
        arrays: Its arrays by its own names, in our order.
        name_of: Maps names.
        settings: What the file cannot say, by the names of Matterport's ``Config``
            (:mod:`mask_rcnn.weights.converters.matterport_cfg`).
        group_skipped: Groups the names of the arrays that were not taken by what they are.

    Raises:
        WeightFileError: Arrays are missing or have another shape than they should (all of them are named), or
            the settings contradict them.
        ValueError: A setting has no valid value.
    """
    base, warnings = matterport_cfg.apply(settings, _BASE)
    config = network(path, arrays, name_of, base)
    matterport_cfg.check(path, settings, config)
    native, taken, broken = apply_mappings(path, arrays, param_mappings(config, name_of))
    native.update(matterport_cfg.rescale_delta_layers(settings, native))
    missing = matterport_cfg.missing_settings(settings)
    if missing:
        warnings.append(f"the file cannot say {', '.join(missing)}; Matterport's defaults are used")
    report = ConversionReport(taken, group_skipped(set(arrays) - set(taken)), (), (*warnings, *broken))
    return ConvertedWeights('model', format, config, native, report, sha256(path))


def network(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], name_of: NameOf, base: Config) -> Config:
    """Tell the network by the arrays of a file.

    Args:
        path: The file, for errors.
        arrays: Its arrays by its own names, in our order.
        name_of: Maps names.
        base: Supplies what the arrays do not say.

    Raises:
        WeightFileError: Layers that tell the sizes are missing, or the backbone is none of ours.
    """
    count = sum(name_of(f'res4{letter}_branch2a', 'kernel') in arrays for letter in string.ascii_lowercase)
    backbone = next((name for name, blocks in RESNET_BLOCKS.items() if blocks[2] == count), None)
    if backbone is None:
        raise WeightFileError(
            path, f'has a ResNet with {count} blocks in its fourth stage, which is none of {", ".join(RESNET_BLOCKS)}'
        )

    def shape(layer: str, n_axis: int) -> tuple[int, ...]:
        name = name_of(layer, 'kernel')
        found = arrays[name].shape if name in arrays else None
        if found is None or len(found) != n_axis or 0 in found:
            raise WeightFileError(
                path,
                f'{name} is missing'
                if found is None
                else f'{name} has the shape {found}, which is not that of such a layer',
            )
        return found

    fc6 = shape('mrcnn_class_conv1', 4)
    n_class = shape('mrcnn_class_logits', 2)[0]
    if n_class < 2:
        raise WeightFileError(path, 'knows no class but the background')
    n_anchor = shape('rpn_class_raw', 4)[0] // 2
    if n_anchor != len(base.anchor_ratios):
        raise WeightFileError(
            path, f'has {n_anchor} anchors a location, which does not go with the ratios {base.anchor_ratios}'
        )
    try:
        return base.replace(
            extractor=f'{backbone}_fpn',
            n_fg_class=n_class - 1,
            fpn_channels=fc6[1],
            head_channels=fc6[0],
            roi_size=fc6[2],
            rpn_channels=shape('rpn_conv_shared', 4)[0],
            mask_channels=shape('mrcnn_mask_deconv', 4)[0],
        )
    except ValueError as error:
        raise WeightFileError(path, f'its sizes are not supported: {error}') from None


def param_mappings(config: Config, name_of: NameOf) -> list[ParamMapping]:
    """Return how each array of our network is made.

    Args:
        config: As :func:`network` returns it.
        name_of: Maps names.
    """
    layers = _Layers(name_of, config.dialect.backbone.bn_eps)
    made = [*_body(config, layers), *_pyramid(config, layers)]
    dim, hidden, width = config.fpn_channels, config.head_channels, config.rpn_channels
    n_anchor, n_class = len(config.anchor_ratios), config.n_fg_class + 1
    made += layers.plain('rpn_conv_shared', 'rpn/conv', (width, dim, 3, 3))
    made += layers.plain('rpn_class_raw', 'rpn/objectness', (2 * n_anchor, width, 1, 1), folding.softmax_pair_to_logit)
    made += layers.plain('rpn_bbox_pred', 'rpn/delta', (4 * n_anchor, width, 1, 1))
    made += layers.conv_folded_bn(
        'mrcnn_class_conv1',
        'mrcnn_class_bn1',
        'box_head/fc6',
        (hidden, dim, config.roi_size, config.roi_size),
        linear=True,
    )
    made += layers.conv_folded_bn(
        'mrcnn_class_conv2', 'mrcnn_class_bn2', 'box_head/fc7', (hidden, hidden, 1, 1), linear=True
    )
    made += layers.plain('mrcnn_class_logits', 'box_head/score', (n_class, hidden))
    made += layers.plain('mrcnn_bbox_fc', 'box_head/delta', (4 * n_class, hidden))
    return made + _mask_head(config, layers)


def _body(config: Config, layers: _Layers) -> Iterator[ParamMapping]:
    """conv1 to res5; Keras counts a stage's blocks with letters."""
    yield from layers.conv_bn('conv1', 'bn_conv1', 'extractor/body/conv1', (64, 3, 7, 7))
    width_in = 64
    for stage, n_block in enumerate(RESNET_BLOCKS[config.backbone], start=2):
        width = 64 << stage - 2
        for block in range(n_block):
            convs = {
                'branch2a': ('conv1', (width, width_in, 1, 1)),
                'branch2b': ('conv2', (width, width, 3, 3)),
                'branch2c': ('conv3', (4 * width, width, 1, 1)),
            }
            if block == 0:
                convs['branch1'] = ('shortcut', (4 * width, width_in, 1, 1))
            source = f'{stage}{string.ascii_lowercase[block]}'
            for branch, (native, shape) in convs.items():
                yield from layers.conv_bn(
                    f'res{source}_{branch}',
                    f'bn{source}_{branch}',
                    f'extractor/body/res{stage}/block{block}/{native}',
                    shape,
                )
            width_in = 4 * width


def _pyramid(config: Config, layers: _Layers) -> Iterator[ParamMapping]:
    dim = config.fpn_channels
    for stage in range(2, 6):
        yield from layers.plain(f'fpn_c{stage}p{stage}', f'extractor/lateral{stage}', (dim, 64 << stage, 1, 1))
        yield from layers.plain(f'fpn_p{stage}', f'extractor/output{stage}', (dim, dim, 3, 3))


def _mask_head(config: Config, layers: _Layers) -> list[ParamMapping]:
    dim = config.mask_channels
    made = []
    for i in range(1, 5):
        made += layers.conv_folded_bn(
            f'mrcnn_mask_conv{i}',
            f'mrcnn_mask_bn{i}',
            f'mask_head/conv{i}',
            (dim, config.fpn_channels if i == 1 else dim, 3, 3),
        )
    made += layers.plain('mrcnn_mask_deconv', 'mask_head/deconv', (dim, dim, 2, 2))
    return made + layers.plain('mrcnn_mask', 'mask_head/score', (config.n_fg_class + 1, dim, 1, 1), drop_background)


class _Layers:
    """Makes the translations of one layer and its normalisation.

    Args:
        name_of: Maps names.
        eps: What the normalisations add to the variance.
    """

    def __init__(self, name_of: NameOf, eps: float):
        self._name_of = name_of
        self._eps = eps

    def plain(
        self, layer: str, path: str, shape: tuple[int, ...], convert: Callable[[np.ndarray], np.ndarray] | None = None
    ) -> list[ParamMapping]:
        """A layer as it is (square transposed convolutions have as many outputs as inputs)."""
        return [
            ParamMapping(f'{path}/W', {self._name_of(layer, 'kernel'): shape}, convert),
            ParamMapping(f'{path}/b', {self._name_of(layer, 'bias'): shape[:1]}, convert),
        ]

    def conv_bn(self, conv: str, norm: str, path: str, shape: tuple[int, ...]) -> list[ParamMapping]:
        """A convolution of the backbone, which keeps its batch normalisation."""

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
        """A layer of the heads, which takes in its normalisation; ``linear``: it becomes a linear layer."""

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
