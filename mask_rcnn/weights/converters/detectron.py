"""Convert Detectron's ``.pkl`` weight files: names, shapes and the order of axes and channels.

Two kinds of files are supported: Faster, Mask and Keypoint R-CNN models with a ResNet or ResNeXt backbone, C4 (no
keypoints) or FPN, with or without group normalisation (``model_final.pkl``), and the ImageNet files that Detectron's
training starts from (``R-50.pkl``, ``X-101-32x8d.pkl``, ``R-50-GN.pkl``).  Blob names are those of
``detectron/modeling/ResNet.py``, ``FPN.py``, ``rpn_heads.py``, ``fast_rcnn_heads.py``, ``mask_rcnn_heads.py`` and
``keypoint_rcnn_heads.py``.

Detectron's conventions, and the native ones where they differ:

======================================  ===============================================================
``rpn_bbox_pred``, ``bbox_pred``        ``(dx, dy, dw, dh)`` of each anchor or class; native:
                                        ``(dy, dx, dh, dw)``
``mask_fcn_logits``                     the first channel is the unused background; native: none
``conv5_mask_w``, ``kps_score_..._w``   ``(in, out, kh, kw)``, as in Chainer's deconvolution
``fc6_w``                               inputs in C, H, W order, as in the native network
``conv1_w``                             expects BGR, as the input of the Detectron dialect
``.._fpn2``                             RPN weights, shared by all levels under the finest level's name
``kps_score_w``                         fixed bilinear upsampling; native: no weight
``.._gn_s``, ``.._gn_b``                group normalisation after a convolution, which then has no bias;
                                        ``_mask_fcn1`` is then the name of ``_[mask]_fcn1``
======================================  ===============================================================
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mask_rcnn.config import DETECTRON, PRESETS, RESNET_BLOCKS, Config
from mask_rcnn.weights.converters import detectron_cfg
from mask_rcnn.weights.converters.mapping import (
    CAFFE_BRANCHES,
    ConversionReport,
    ConvertedWeights,
    ParamMapping,
    apply_mappings,
    drop_background,
    find_resnet,
    group_names,
    person_class,
    resnet_convolutions,
    scale_outputs,
    swap_xy,
)
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import sha256
from mask_rcnn.weights.readers import inert_pickle, safe_pickle

#: Name of the format in the metadata of converted files.
FORMAT = 'detectron-pickle'

_SUPPORTED = 'Faster and Mask R-CNN with C4 or FPN; Keypoint R-CNN with FPN; their ImageNet files'

_Path = str | os.PathLike
_Blobs = Mapping[str, np.ndarray]

#: Detectron's default for files whose ``cfg`` is older than the setting (``utils/net.py``,
#: ``configure_bbox_reg_weights``).
_OLD_BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


def read(path: _Path) -> ConvertedWeights:
    """Read and convert a weight file of Detectron.  Nothing in the file is executed.

    Args:
        path: A ``.pkl`` file.

    Raises:
        WeightFileError: The file is not such a file, is damaged, has an unsupported network, or blobs are missing or
            have the wrong shape (the message lists all of them).
    """
    blobs, cfg, warnings = _parse_contents(path, _load(path))
    kind = _detect_kind(path, blobs)
    config = _detect_network(path, blobs)
    if cfg is not None:
        config, cfg_warnings = detectron_cfg.apply(cfg, config)
        warnings += cfg_warnings
    notes: list[str] = []
    if kind == 'backbone':
        mappings = _backbone(config)
    else:
        box_weights = _box_weights(cfg)
        mappings = param_mappings(config, box_weights)
        if box_weights != DETECTRON.boxes.box_delta_weights:
            notes.append(
                f'MODEL.BBOX_REG_WEIGHTS {box_weights}: bbox_pred is rescaled for '
                f'{DETECTRON.boxes.box_delta_weights}, with the same boxes as result'
            )
    arrays, taken, broken = apply_mappings(path, blobs, mappings, noun='blobs')
    warnings += broken + _upsampling_warnings(blobs)
    report = ConversionReport(taken, group_names(set(blobs) - set(taken), _group_of), tuple(notes), tuple(warnings))
    return ConvertedWeights(kind, FORMAT, config, arrays, report, sha256(path), *person_class(config))


# Contents of the file


def _load(path: _Path) -> Any:
    """Return the data of the file; unknown objects are accepted only beside the blobs of a network."""
    try:
        return safe_pickle.load(path)
    except WeightFileError as refusal:
        try:
            data = inert_pickle.load(path)
        except WeightFileError:
            raise refusal from None
        blobs = data.get('blobs') if isinstance(data, dict) else None
        if not isinstance(blobs, dict) or not isinstance(blobs.get('conv1_w'), np.ndarray):
            raise
        return data


def _parse_contents(path: _Path, data: Any) -> tuple[dict[str, np.ndarray], dict | None, list[str]]:
    """Return the blobs, the parsed ``cfg`` if there is one, and warnings."""
    if not isinstance(data, dict):
        raise WeightFileError(path, f'is not a Detectron weight file: it is a {type(data).__name__}, not a dictionary')
    if '__author__' in data or (isinstance(data.get('model'), dict) and 'blobs' not in data):
        raise WeightFileError(path, 'is a detectron2 file, but not of a supported network: it has no RPN and RoI heads')
    blobs = data.get('blobs', data)  # ImageNet files are the dictionary of blobs itself
    if not isinstance(blobs, dict):
        raise WeightFileError(path, "is not a Detectron weight file: its 'blobs' are not a dictionary")
    arrays = {name: blob for name, blob in blobs.items() if isinstance(name, str) and isinstance(blob, np.ndarray)}
    text = data.get('cfg')
    if text is None:
        warnings = [] if 'blobs' not in data else ["the file has no 'cfg'; Detectron's defaults are used"]
        return arrays, None, warnings
    try:
        if not isinstance(text, str):
            raise ValueError('not text')
        return arrays, detectron_cfg.parse(text), []
    except ValueError as error:
        raise WeightFileError(path, f"its 'cfg' is damaged: {error}") from None


def _detect_kind(path: _Path, blobs: _Blobs) -> str:
    """Return ``'model'`` or ``'backbone'``, and raise an error for an unsupported network."""
    parts = _unsupported_parts(blobs)
    if parts:
        raise WeightFileError(
            path,
            f'is a Detectron file with {" and ".join(parts)}, which is not supported (supported: {_SUPPORTED})',
        )
    if 'conv1_w' not in blobs or 'res2_0_branch2a_w' not in blobs:
        raise WeightFileError(
            path, 'is not a Detectron weight file: the blobs of a ResNet (conv1_w, res2_0_branch2a_w, ...) are missing'
        )
    return 'model' if 'cls_score_w' in blobs else 'backbone'


def _unsupported_parts(blobs: _Blobs) -> list[str]:
    """Return descriptions of unsupported parts of the network and of required parts that are missing."""
    keypoints, fpn = _has_keypoints(blobs), _has_fpn(blobs)
    parts = {
        'a VGG backbone': _has(blobs, 'conv1_1_w'),
        'a RetinaNet head': _has(blobs, 'retnet_'),
        'a keypoint head but no FPN': keypoints and not fpn,
        'a separate res5 for masks': _has(blobs, r'_\[mask\]_res5'),
    }
    found = [name for name, present in parts.items() if present]
    if not found and _has(blobs, 'conv_rpn|cls_score_w|mask_fcn_logits_w|kps_score|fpn_'):
        required = {
            'no box head (a network of proposals only)': 'cls_score_w',
            'no RPN (Fast R-CNN, which needs a file of proposals)': 'conv_rpn_fpn2_w' if fpn else 'conv_rpn_w',
        }
        found = [part for part, blob in required.items() if blob not in blobs]
    return found


def _has(blobs: _Blobs, pattern: str) -> bool:
    return any(re.match(pattern, name) for name in blobs)


def _has_fpn(blobs: _Blobs) -> bool:
    return _has(blobs, r'fpn_|.*_fpn\d')


def _has_keypoints(blobs: _Blobs) -> bool:
    return _has(blobs, r'kps_score|conv_fcn\d')


def _has_masks(blobs: _Blobs) -> bool:
    return _has(blobs, r'mask_fcn_logits|conv5_mask|_\[?mask\]?_fcn')


def _detect_network(path: _Path, blobs: _Blobs) -> Config:
    """Determine the network from its blobs: the backbone from res2 and res4, the other parts from their presence."""
    blocks = {match[1] for name in blobs if (match := re.fullmatch(r'res4_(\d+)_branch2a_w', name))}
    width, group_width = (_size(path, blobs, 'res2_0_branch2b_w', axis) for axis in (0, 1))
    backbone = find_resnet(path, len(blocks), width, group_width)
    config = PRESETS[f'{backbone}_fpn' if _has_fpn(blobs) else backbone]
    if 'conv1_gn_s' in blobs:
        config = config.replace(norm='gn')
    if 'cls_score_w' not in blobs:
        return config
    if config.has_fpn:
        config = _fpn_network(blobs, config)
    return config.replace(
        n_fg_class=_size(path, blobs, 'cls_score_w', 0) - 1,
        masks=_has_masks(blobs),
        n_keypoint=_size(path, blobs, 'kps_score_lowres_w', 1) if _has_keypoints(blobs) else 0,
    )


def _fpn_network(blobs: _Blobs, config: Config) -> Config:
    """Return the configuration with the layers of the heads of a network with a feature pyramid."""
    head_norm = 'gn' if _has(blobs, r'fpn_res\d_\d+_sum_gn_s') else 'none'
    if 'gn' in (config.norm, head_norm):  # as in all such models of the zoo
        config = config.replace(dialect=config.dialect.replace(backbone={'stride_in_3x3': True}))
    return config.replace(
        head_norm=head_norm,
        box_convs=len([name for name in blobs if re.fullmatch(r'head_conv\d+_w', name)]),
        box_fcs=2 if 'fc7_w' in blobs or not _has(blobs, r'head_conv\d') else 1,
    )


def _size(path: _Path, blobs: _Blobs, name: str, axis: int) -> int:
    """Return the size of a blob along an axis, which determines a setting of the network."""
    if name not in blobs:
        raise WeightFileError(path, f'missing blobs: {name}')
    shape = blobs[name].shape
    if len(shape) < 2 or 0 in shape or shape[axis] < 2 - axis:
        raise WeightFileError(path, f'{name} has the shape {shape}, which is not valid for such a layer')
    return shape[axis]


def _box_weights(cfg: dict | None) -> tuple[float, ...]:
    """Return ``BBOX_REG_WEIGHTS`` in the native order ``(y, x, h, w)``."""
    if cfg is None:
        return DETECTRON.boxes.box_delta_weights
    weights = detectron_cfg.lookup(cfg, 'MODEL.BBOX_REG_WEIGHTS')
    if (
        isinstance(weights, list)
        and len(weights) == 4
        and all(isinstance(w, (int, float)) and 0 < w < 1e6 for w in weights)
    ):
        x, y, w, h = map(float, weights)
        return (y, x, h, w)
    return _OLD_BOX_WEIGHTS


# Parameter mappings


def param_mappings(
    config: Config, box_weights: tuple[float, ...] = DETECTRON.boxes.box_delta_weights
) -> list[ParamMapping]:
    """Return the mapping of each array of a network.

    Args:
        config: The network.
        box_weights: Weights of ``(dy, dx, dh, dw)`` of the box head in the file.
    """
    return _backbone(config) + (_fpn_heads if config.has_fpn else _c4_heads)(config, box_weights)


def _rescale_box_deltas(array: np.ndarray, weights: tuple[float, ...]) -> np.ndarray:
    """Convert a layer that predicts deltas for ``weights`` to the dialect's weights: both decode ``delta / weight``."""
    return scale_outputs(swap_xy(array), np.divide(DETECTRON.boxes.box_delta_weights, weights))


def _norm_conv(blob: str, path: str, shape: tuple[int, ...], norm: str, norm_blob: str = '') -> list[ParamMapping]:
    """Map a convolution without bias and its AffineChannel or GroupNorm."""
    scale, bias = ('gamma', 'beta') if norm == 'gn' else ('scale', 'bias')
    norm_blob = norm_blob or f'{blob}_{"gn" if norm == "gn" else "bn"}'
    return [
        ParamMapping(f'{path}/conv/W', {f'{blob}_w': shape}),
        ParamMapping(f'{path}/norm/{scale}', {f'{norm_blob}_s': shape[:1]}),
        ParamMapping(f'{path}/norm/{bias}', {f'{norm_blob}_b': shape[:1]}),
    ]


def _backbone(config: Config) -> list[ParamMapping]:
    """Map conv1 to res5; in a C4 network, ``res5_*`` belong to the native box head."""
    backbone = 'extractor/body' if config.has_fpn else 'extractor'
    stem_norm = 'conv1_gn' if config.norm == 'gn' else 'res_conv1_bn'
    mappings = _norm_conv('conv1', f'{backbone}/conv1', (64, 3, 7, 7), config.norm, stem_norm)
    for stage, block, name, shape in resnet_convolutions(config.backbone):
        prefix = 'box_head' if stage == 5 and not config.has_fpn else backbone
        blob = f'res{stage}_{block}_{CAFFE_BRANCHES[name]}'
        mappings += _norm_conv(blob, f'{prefix}/res{stage}/block{block}/{name}', shape, config.norm)
    return mappings


def _weight_and_bias(
    blob: str, path: str, shape: tuple[int, ...], convert: Callable | None = None, *, out: int = 0
) -> list[ParamMapping]:
    """Map a layer with a weight and a bias; ``out`` is the axis of the weight's output channels."""
    return [
        ParamMapping(f'{path}/W', {f'{blob}_w': shape}, convert),
        ParamMapping(f'{path}/b', {f'{blob}_b': (shape[out],)}, convert),
    ]


def _head_conv(blob: str, path: str, shape: tuple[int, ...], config: Config) -> list[ParamMapping]:
    """Map a convolution of the feature pyramid or a head, with a bias or the normalisation of the heads."""
    if config.head_norm == 'none':
        return _weight_and_bias(blob, path, shape)
    return _norm_conv(blob, path, shape, config.head_norm)


def _c4_heads(config: Config, box_weights: tuple[float, ...]) -> list[ParamMapping]:
    """Map RPN, box head and mask head on res4 and res5."""
    n_anchors = len(config.anchor_sizes) * len(config.anchor_ratios)
    return [
        *_rpn(n_anchors, 1024, 1024, ''),
        *_box_outputs(config, 2048, box_weights),
        *(_mask_outputs(config, 2048) if config.masks else ()),
    ]


def _fpn_heads(config: Config, box_weights: tuple[float, ...]) -> list[ParamMapping]:
    """Map the feature pyramid, the RPN, the box head and the heads for masks and keypoints."""
    dim, hidden = config.fpn_channels, config.head_channels
    return [
        *_pyramid(config),
        *_rpn(len(config.anchor_ratios), dim, config.rpn_channels, '_fpn2'),
        *_box_layers(config),
        *_box_outputs(config, hidden, box_weights),
        *(_fpn_mask_head(config) if config.masks else ()),
        *(_keypoint_head(config) if config.n_keypoint else ()),
    ]


def _pyramid(config: Config) -> list[ParamMapping]:
    """Map the 1x1 lateral convolutions, named after the sums that they feed, and the 3x3 output convolutions."""
    mappings = []
    for stage, n_blocks in enumerate(RESNET_BLOCKS[config.backbone], start=2):
        name = f'res{stage}_{n_blocks - 1}_sum'
        lateral = f'fpn_inner_{name}' if stage == 5 else f'fpn_inner_{name}_lateral'
        dim = config.fpn_channels
        mappings += _head_conv(lateral, f'extractor/lateral{stage}', (dim, 64 << stage, 1, 1), config)
        mappings += _head_conv(f'fpn_{name}', f'extractor/output{stage}', (dim, dim, 3, 3), config)
    return mappings


def _box_layers(config: Config) -> list[ParamMapping]:
    """Map the hidden layers of the box head: convolutions (``add_roi_Xconv1fc_head``) and linear layers."""
    dim, hidden, mappings = config.fpn_channels, config.head_channels, []
    for i in range(1, config.box_convs + 1):
        mappings += _head_conv(f'head_conv{i}', f'box_head/conv{i}', (dim, dim, 3, 3), config)
    for i in range(config.box_fcs):
        shape = (hidden, hidden if i else dim * config.roi_size**2)
        mappings += _weight_and_bias(f'fc{6 + i}', f'box_head/fc{6 + i}', shape)
    return mappings


def _rpn(n_anchors: int, width_in: int, width: int, suffix: str) -> list[ParamMapping]:
    return [
        *_weight_and_bias(f'conv_rpn{suffix}', 'rpn/conv', (width, width_in, 3, 3)),
        *_weight_and_bias(f'rpn_cls_logits{suffix}', 'rpn/objectness', (n_anchors, width, 1, 1)),
        *_weight_and_bias(f'rpn_bbox_pred{suffix}', 'rpn/delta', (4 * n_anchors, width, 1, 1), swap_xy),
    ]


def _box_outputs(config: Config, width: int, box_weights: tuple[float, ...]) -> list[ParamMapping]:
    n_classes = config.n_fg_class + 1
    is_usual = box_weights == DETECTRON.boxes.box_delta_weights
    rescale = swap_xy if is_usual else functools.partial(_rescale_box_deltas, weights=box_weights)
    return [
        *_weight_and_bias('cls_score', 'box_head/score', (n_classes, width)),
        *_weight_and_bias('bbox_pred', 'box_head/delta', (4 * n_classes, width), rescale),
    ]


def _mask_outputs(config: Config, width: int) -> list[ParamMapping]:
    n_classes, dim = config.n_fg_class + 1, config.mask_channels
    return [
        *_weight_and_bias('conv5_mask', 'mask_head/deconv', (width, dim, 2, 2), out=1),
        *_weight_and_bias('mask_fcn_logits', 'mask_head/score', (n_classes, dim, 1, 1), drop_background),
    ]


def _fpn_mask_head(config: Config) -> list[ParamMapping]:
    """Map four convolutions (``mask_rcnn_fcn_head_v1up4convs``) and the layers that C4 networks also have."""
    widths = [config.fpn_channels] + 4 * [config.mask_channels]
    prefix = '_mask_fcn' if config.head_norm == 'gn' else '_[mask]_fcn'
    convs = [
        mapping
        for i in range(1, 5)
        for mapping in _head_conv(f'{prefix}{i}', f'mask_head/conv{i}', (widths[i], widths[i - 1], 3, 3), config)
    ]
    return convs + _mask_outputs(config, config.mask_channels)


def _keypoint_head(config: Config) -> list[ParamMapping]:
    """Map eight convolutions and a deconvolution (``add_roi_pose_head_v1convX``)."""
    widths = [config.fpn_channels] + 8 * [512]
    convs = [
        mapping
        for i in range(1, 9)
        for mapping in _weight_and_bias(f'conv_fcn{i}', f'keypoint_head/conv{i}', (widths[i], widths[i - 1], 3, 3))
    ]
    return convs + _weight_and_bias('kps_score_lowres', 'keypoint_head/deconv', (512, config.n_keypoint, 4, 4), out=1)


def bilinear_upsampling(n_keypoint: int) -> np.ndarray:
    """Return the fixed weight ``(K, K, 4, 4)`` of the layer ``kps_score``."""
    row = np.array([0.25, 0.75, 0.75, 0.25], np.float32)
    return np.eye(n_keypoint, dtype=np.float32)[:, :, None, None] * np.outer(row, row)


def _upsampling_warnings(blobs: _Blobs) -> list[str]:
    """Return a warning if ``kps_score_w`` is not the bilinear interpolation that Detectron leaves untrained."""
    weight, bias = blobs.get('kps_score_w'), blobs.get('kps_score_b')
    if weight is None:
        return []
    bilinear = bilinear_upsampling(len(weight))
    if weight.shape == bilinear.shape and (weight == bilinear).all() and (bias is None or not bias.any()):
        return []
    return ['kps_score_w is not a bilinear upsampling; bilinear upsampling is used']


def _group_of(name: str) -> str:
    """Return the group of a blob that is not converted."""
    if name.endswith('_momentum'):
        return 'momentum'
    if re.fullmatch(r'(fc1000|pred)_[wb]', name):
        return 'ImageNet classifier'
    if re.fullmatch(r'kps_score_[wb]', name):
        return 'fixed upsampling'
    return 'unused convolution biases' if re.fullmatch(r'conv1_b|res\d+_\d+_branch\w+_b', name) else 'unknown'
