"""From a preset or a weight file to a network."""

from __future__ import annotations

from mask_rcnn.config import PRESETS, Config
from mask_rcnn.models.backbones.fpn import FPN
from mask_rcnn.models.backbones.mobilenet_v1 import MobileNetV1
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.box_head import LinearBoxHead, Res5BoxHead
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.models.layers.normalization import affine_to_bn, bn_to_affine, set_epsilon
from mask_rcnn.models.layers.roi_pooling import RoIPooling
from mask_rcnn.models.mask_head import MaskHead
from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.models.rpn import RPN


def build(preset: str | Config = 'resnet50', *, class_names=None, category_ids=None, **changes) -> MaskRCNN:
    """Return a new network with random weights, on the CPU.

    Args:
        preset: Name of a preset (``mask_rcnn.PRESETS``) or a whole configuration.
        class_names: Names of the classes, or ``None``.
        category_ids: Numbers of the classes in COCO files, or ``None``.
        **changes: Fields of :class:`~mask_rcnn.config.Config` that differ from the preset's, such as
            ``n_fg_class=3``.

    Returns:
        MaskRCNN: The network.

    Raises:
        ValueError: For an unknown preset or a bad value.
        TypeError: For an unknown field.
    """
    if not isinstance(preset, Config):
        if preset not in PRESETS:
            raise ValueError(f'unknown preset {preset!r}; there are {", ".join(PRESETS)}')
        preset = PRESETS[preset]
    config = preset.replace(**changes)
    extractor = _extractor(config)
    rpn = RPN(extractor.out_channels[0], strides=extractor.strides, config=config)
    heads = (_fpn_heads if config.has_fpn else _c4_heads)(extractor, config)
    model = MaskRCNN(extractor, rpn, *heads, config=config, class_names=class_names, category_ids=category_ids)
    set_epsilon(model, config.dialect.backbone.bn_eps)
    return model


def _extractor(config: Config):
    if not config.has_fpn:
        return ResNet(config.backbone, norm=config.norm, outputs=(4,), pool_pad=config.dialect.backbone.stem_pool_pad)
    if config.backbone == 'mobilenet_v1':
        backbone = MobileNetV1(width=config.width, norm=config.norm)
    else:
        backbone = ResNet(
            config.backbone,
            norm=config.norm,
            outputs=(2, 3, 4, 5),
            pool_pad=config.dialect.backbone.stem_pool_pad,
            stride_in_3x3=config.dialect.backbone.stride_in_3x3,
        )
    return FPN(backbone, config.fpn_channels)


def _c4_heads(extractor, config: Config):
    """Both look at res5's output (He et al. 2017, figure 4, left)."""
    box_head = Res5BoxHead(extractor.out_channels[0], strides=extractor.strides, config=config)
    return box_head, MaskHead(box_head.out_channels, config=config) if config.masks else None


def _fpn_heads(extractor, config: Config):
    """Each pools for itself (He et al. 2017, figure 4, right)."""
    box_head = LinearBoxHead(config.fpn_channels, strides=extractor.strides, config=config)
    pool = RoIPooling(extractor.strides, config.mask_roi_size, config=config)
    mask_head = keypoint_head = None
    if config.masks:
        mask_head = MaskHead(config.fpn_channels, n_conv=config.mask_convs, pool=pool, config=config)
    if config.n_keypoint:
        keypoint_head = KeypointHead(config.fpn_channels, pool=pool, config=config)
    return box_head, mask_head, keypoint_head


def convert_norm(model: MaskRCNN, norm: str) -> None:
    """Turn all normalisation links of a model into ``'affine'`` or ``'bn'`` ones with equal output."""
    model.config = model.config.replace(norm=norm)  # refuses anything else
    if norm == 'affine':
        bn_to_affine(model)
    else:
        affine_to_bn(model, eps=model.config.dialect.backbone.bn_eps)
