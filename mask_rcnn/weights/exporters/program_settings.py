"""The settings of a network by their names in another program, whose files do not contain them.

The names of most settings are those of the tables with which they are read
(:mod:`~mask_rcnn.weights.converters.detectron2_cfg`, :mod:`~mask_rcnn.weights.converters.torchvision_cfg`); the others
describe the layers, which readers take from the arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mask_rcnn.config import RESNET_GROUPS, Config, Dialect
from mask_rcnn.weights.converters import detectron2_cfg, torchvision_cfg
from mask_rcnn.weights.converters.mapping import resnet_depth
from mask_rcnn.weights.converters.settings import Setting, yxhw

_Settings = dict[str, Any]


def detectron2_settings(config: Config, dialect: Dialect) -> _Settings:
    """Return the settings of detectron2's configuration.

    Args:
        config: The network.
        dialect: The conventions of its file: detectron2's, with another input or another place of the stride.

    Returns:
        Values by dotted name, such as ``{'MODEL.RESNETS.DEPTH': 50}``.
    """
    groups, group_width = RESNET_GROUPS[config.backbone]
    settings = {
        **_mapped(config, dialect, detectron2_cfg.SETTINGS),
        'MODEL.MASK_ON': config.masks,
        'MODEL.KEYPOINT_ON': bool(config.n_keypoint),
        'MODEL.ROI_HEADS.NUM_CLASSES': config.n_fg_class,
        'MODEL.RESNETS.DEPTH': resnet_depth(config.backbone),
        'MODEL.RESNETS.NUM_GROUPS': groups,
        'MODEL.RESNETS.WIDTH_PER_GROUP': group_width,
        'MODEL.RESNETS.STRIDE_IN_1X1': not dialect.backbone.stride_in_3x3,
        'MODEL.RESNETS.NORM': 'GN' if config.norm == 'gn' else 'FrozenBN',
        'MODEL.PROPOSAL_GENERATOR.MIN_SIZE': config.rpn_min_size,
        **_pooling_of_detectron2(config),
    }
    in_channels = config.fpn_channels if config.has_fpn else 1024
    settings['MODEL.RPN.CONV_DIMS'] = (-1 if config.rpn_channels in (0, in_channels) else config.rpn_channels,)
    if config.has_fpn:
        norm = 'GN' if config.head_norm == 'gn' else ''
        settings |= {
            'MODEL.FPN.OUT_CHANNELS': config.fpn_channels,
            'MODEL.FPN.NORM': norm,
            'MODEL.ROI_BOX_HEAD.NUM_CONV': config.box_convs,
            'MODEL.ROI_BOX_HEAD.NUM_FC': config.box_fcs,
            'MODEL.ROI_BOX_HEAD.FC_DIM': config.head_channels,
            'MODEL.ROI_BOX_HEAD.NORM': norm,
            'MODEL.ROI_BOX_HEAD.CONV_DIM': config.fpn_channels if config.box_convs else 256,
        }
        if config.masks:
            settings |= {'MODEL.ROI_MASK_HEAD.NUM_CONV': config.mask_convs, 'MODEL.ROI_MASK_HEAD.NORM': norm}
    if config.masks:
        settings['MODEL.ROI_MASK_HEAD.CONV_DIM'] = config.mask_channels
    if config.n_keypoint:
        settings['MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS'] = config.n_keypoint
    return settings


def _pooling_of_detectron2(config: Config) -> _Settings:
    """Return the settings of the RoI pooling of every head; a C4 network has one for all heads."""
    heads = ['BOX']
    if config.has_fpn:
        heads += ['MASK'] * config.masks + ['KEYPOINT'] * bool(config.n_keypoint)
    settings: _Settings = {}
    for head in heads:
        section = f'MODEL.ROI_{head}_HEAD'
        settings[f'{section}.POOLER_TYPE'] = 'ROIAlignV2' if config.roi_align else 'ROIPool'
        settings[f'{section}.POOLER_SAMPLING_RATIO'] = config.sampling_ratio
        settings[f'{section}.POOLER_RESOLUTION'] = config.roi_size if head == 'BOX' else config.mask_roi_size
    return settings


def detectron2_defaults(reference: Config) -> _Settings:
    """Return the values in detectron2's ``Base-RCNN-FPN.yaml`` or ``Base-RCNN-C4.yaml`` (``configs``).

    Args:
        reference: detectron2's own network with the same heads.
    """
    extractor = 'resnet50_fpn' if reference.has_fpn else 'resnet50'
    n_keypoint = 17 if reference.n_keypoint else 0
    base = reference.replace(extractor=extractor, n_fg_class=80, n_keypoint=n_keypoint)
    return detectron2_settings(base, base.dialect) | {'MODEL.MASK_ON': False, 'MODEL.KEYPOINT_ON': False}


def torchvision_settings(config: Config, dialect: Dialect) -> _Settings:
    """Return the arguments of torchvision's models; see :func:`detectron2_settings`.

    Returns:
        Values by the name of the argument; others have the name of an assignment, such
        as ``'model.rpn.min_size'``, or of the argument in the call that makes a part.
    """
    settings = {
        **_mapped(config, dialect, torchvision_cfg.SETTINGS),
        'num_classes': config.n_fg_class + 1,
        'model.rpn.min_size': config.rpn_min_size,
        'BackboneWithFPN.out_channels': config.fpn_channels,
        'representation_size': config.head_channels,
        'MultiScaleRoIAlign.sampling_ratio': config.sampling_ratio,
        'MultiScaleRoIAlign.canonical_scale': config.roi_canonical_size,
        'box_roi_pool.output_size': config.roi_size,
    }
    settings['AnchorGenerator.sizes'] = settings.pop('anchor_sizes')
    settings['AnchorGenerator.aspect_ratios'] = settings.pop('aspect_ratios')
    if config.rpn_channels not in (0, config.fpn_channels):
        settings['RPNHead.in_channels'] = config.rpn_channels
    if config.masks:
        settings['mask_roi_pool.output_size'] = config.mask_roi_size
        settings['MaskRCNNHeads.layers'] = (config.mask_channels,) * config.mask_convs
        settings['MaskRCNNPredictor.dim_reduced'] = config.mask_channels
    if config.n_keypoint:
        settings['num_keypoints'] = config.n_keypoint
        settings['keypoint_roi_pool.output_size'] = config.mask_roi_size
    return settings


def torchvision_defaults(reference: Config) -> _Settings:
    """Return the default arguments of torchvision's models, given its own network with the same heads."""
    n_fg_class, n_keypoint = (1, 17) if reference.n_keypoint else (90, 0)
    base = reference.replace(n_fg_class=n_fg_class, n_keypoint=n_keypoint)
    return torchvision_settings(base, base.dialect)


def format_detectron2(settings: _Settings) -> list[str]:
    """Return settings as in detectron2's command line, such as ``'MODEL.PIXEL_STD [1, 1, 1]'``."""
    return [f'{name} {_text(value)}' for name, value in settings.items()]


def format_torchvision(settings: _Settings) -> list[str]:
    """Return settings as Python's arguments, such as ``'min_size=512'``, and the call that changes the epsilon."""
    arguments = {name: value for name, value in settings.items() if name != 'bn_eps'}
    texts = [f'{name}={_text(value)}' for name, value in arguments.items()]
    if 'bn_eps' in settings:
        texts.append(f'overwrite_eps(model, {settings["bn_eps"]})')
    return texts


def _mapped(config: Config, dialect: Dialect, table: Iterable[Setting]) -> _Settings:
    """Return the values of a reader's table by name.  Losses are not settings of inference."""
    settings: _Settings = {}
    for name, field, convert in table:
        group, _, convention = field.rpartition('.')
        if group == 'losses':
            continue
        value = getattr(getattr(dialect, group) if group else config, convention)
        settings[name] = yxhw(value) if convert is yxhw else value  # the function is its own inverse
    return settings


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return f'[{", ".join(map(_text, value))}]'
    if value == '':
        return "''"
    return f'{value:g}' if isinstance(value, float) else str(value)
