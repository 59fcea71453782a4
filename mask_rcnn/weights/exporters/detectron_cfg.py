"""Write the ``cfg`` of Detectron's weight files: the YAML text that its ``core/config.py`` reads.

Detectron takes ``MODEL.BBOX_REG_WEIGHTS`` from the text, and this program all settings of a network
(:mod:`mask_rcnn.weights.converters.detectron_cfg`).  Every section is an object of Detectron's class ``AttrDict``, as
PyYAML dumps it.
"""

from __future__ import annotations

from typing import Any

import yaml

from mask_rcnn.config import FPN_STRIDES, RESNET_GROUPS, Config
from mask_rcnn.weights.converters.mapping import resnet_depth

_TAG = 'tag:yaml.org,2002:python/object/new:detectron.utils.collections.AttrDict'


class _Section(dict):
    """A section of the configuration."""


class _Dumper(yaml.SafeDumper):
    """Writes sections as objects, and each value in full (no aliases)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_section(dumper: yaml.SafeDumper, section: _Section) -> yaml.Node:
    return dumper.represent_mapping(_TAG, {'dictitems': dict(section), 'state': {'__immutable__': False}})


_Dumper.add_representer(_Section, _represent_section)


def dump(config: Config) -> str:
    """Return the text for a network in Detectron's dialect."""
    sections = {
        'BBOX_XFORM_CLIP': config.dialect.boxes.max_log_scale,
        'FAST_RCNN': _Section(_box_head(config)),
        'FPN': _Section(_pyramid(config)),
        'MODEL': _Section(_model(config)),
        'PIXEL_MEANS': [[list(config.dialect.input.pixel_mean)]],
        'RESNETS': _Section(_backbone(config)),
        'RPN': _Section(_rpn(config)),
        'TEST': _Section(_test(config)),
    }
    if config.norm == 'gn':
        backbone = config.dialect.backbone
        sections['GROUP_NORM'] = _Section(DIM_PER_GP=-1, NUM_GROUPS=backbone.gn_groups, EPSILON=backbone.gn_eps)
    if config.masks:
        sections['MRCNN'] = _Section(_mask_head(config))
    if config.n_keypoint:
        sections['KRCNN'] = _Section(_keypoint_head(config))
    return yaml.dump(_Section(sections), Dumper=_Dumper, default_flow_style=False, width=120)


def _model(config: Config) -> dict[str, Any]:
    y, x, h, w = config.dialect.boxes.box_delta_weights
    depth = resnet_depth(config.backbone)
    body = f'FPN.add_fpn_ResNet{depth}_conv5_body' if config.has_fpn else f'ResNet.add_ResNet{depth}_conv4_body'
    return {
        'TYPE': 'generalized_rcnn',
        'CONV_BODY': body,
        'NUM_CLASSES': config.n_fg_class + 1,
        'FASTER_RCNN': True,
        'MASK_ON': config.masks,
        'KEYPOINTS_ON': bool(config.n_keypoint),
        'BBOX_REG_WEIGHTS': [x, y, w, h],
        'CLS_AGNOSTIC_BBOX_REG': False,
    }


def _backbone(config: Config) -> dict[str, Any]:
    groups, group_width = RESNET_GROUPS[config.backbone]
    settings: dict[str, Any] = {
        'NUM_GROUPS': groups,
        'WIDTH_PER_GROUP': group_width,
        'STRIDE_1X1': not config.dialect.backbone.stride_in_3x3,
        'RES5_DILATION': 1,
    }
    if config.norm == 'gn':
        functions = {'STEM': 'basic_gn_stem', 'SHORTCUT': 'basic_gn_shortcut', 'TRANS': 'bottleneck_gn_transformation'}
        settings |= {f'{name}_FUNC': function for name, function in functions.items()}
    else:
        settings['TRANS_FUNC'] = 'bottleneck_transformation'
    return settings


def _pyramid(config: Config) -> dict[str, Any]:
    if not config.has_fpn:
        return {'FPN_ON': False}
    return {
        'FPN_ON': True,
        'MULTILEVEL_ROIS': True,
        'MULTILEVEL_RPN': True,
        'DIM': config.fpn_channels,
        'USE_GN': config.head_norm == 'gn',
        'RPN_ANCHOR_START_SIZE': _number(config.anchor_sizes[0]),
        'RPN_ASPECT_RATIOS': list(map(_number, config.anchor_ratios)),
        'ROI_CANONICAL_SCALE': _number(config.roi_canonical_size),
    }


def _rpn(config: Config) -> dict[str, Any]:
    settings: dict[str, Any] = {'RPN_ON': True}
    if not config.has_fpn:
        settings |= {
            'SIZES': list(map(_number, config.anchor_sizes)),
            'ASPECT_RATIOS': list(map(_number, config.anchor_ratios)),
            'STRIDE': FPN_STRIDES[2],
        }
    return settings


def _box_head(config: Config) -> dict[str, Any]:
    head = 'ResNet.add_ResNet_roi_conv5_head'
    if config.has_fpn:
        head = 'fast_rcnn_heads.add_roi_2mlp_head'
    if config.box_convs:
        head = 'fast_rcnn_heads.add_roi_Xconv1fc_gn_head'
    settings = {'ROI_BOX_HEAD': head, 'ROI_XFORM_RESOLUTION': config.roi_size, **_pooling(config)}
    if config.has_fpn:
        settings['MLP_HEAD_DIM'] = config.head_channels
    if config.box_convs:
        settings |= {'CONV_HEAD_DIM': config.fpn_channels, 'NUM_STACKED_CONVS': config.box_convs}
    return settings


def _pooling(config: Config) -> dict[str, Any]:
    method = 'RoIAlign' if config.roi_align else 'RoIPoolF'
    return {'ROI_XFORM_METHOD': method, 'ROI_XFORM_SAMPLING_RATIO': config.sampling_ratio}


def _mask_head(config: Config) -> dict[str, Any]:
    head = 'mask_rcnn_heads.mask_rcnn_fcn_head_v0upshare'
    if config.has_fpn:
        head = f'mask_rcnn_heads.mask_rcnn_fcn_head_v1up4convs{"_gn" if config.head_norm == "gn" else ""}'
    return {
        'ROI_MASK_HEAD': head,
        'RESOLUTION': 2 * config.mask_roi_size if config.has_fpn else 14,
        'ROI_XFORM_RESOLUTION': config.mask_roi_size if config.has_fpn else config.roi_size,
        'DIM_REDUCED': config.mask_channels,
        'DILATION': 1,
        'CLS_SPECIFIC_MASK': True,
        **_pooling(config),
    }


def _keypoint_head(config: Config) -> dict[str, Any]:
    return {
        'ROI_KEYPOINTS_HEAD': 'keypoint_rcnn_heads.add_roi_pose_head_v1convX',
        'NUM_KEYPOINTS': config.n_keypoint,
        'NUM_STACKED_CONVS': 8,
        'CONV_HEAD_DIM': 512,
        'DILATION': 1,
        'USE_DECONV': False,
        'USE_DECONV_OUTPUT': True,
        'UP_SCALE': 2,
        'HEATMAP_SIZE': 4 * config.mask_roi_size,
        'ROI_XFORM_RESOLUTION': config.mask_roi_size,
        **_pooling(config),
    }


def _test(config: Config) -> dict[str, Any]:
    return {
        'SCALE': config.min_size,
        'MAX_SIZE': config.max_size,
        'RPN_PRE_NMS_TOP_N': config.rpn_pre_nms,
        'RPN_POST_NMS_TOP_N': config.rpn_post_nms,
        'RPN_NMS_THRESH': config.rpn_nms_threshold,
        'RPN_MIN_SIZE': _number(config.rpn_min_size),
        'SCORE_THRESH': config.score_threshold,
        'NMS': config.nms_threshold,
        'DETECTIONS_PER_IM': config.max_detections,
    }


def _number(value: float) -> float | int:
    """Return a whole number as an integer, as Detectron's sizes are."""
    return int(value) if value == int(value) else float(value)
