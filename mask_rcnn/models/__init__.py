"""The network, in data-flow order: backbones, RPN, box head, mask head and keypoint head.

The backbone is the trunk (ResNet, MobileNetV1).  The extractor is the part that feeds the RPN: a backbone, or a
backbone with a feature pyramid.
"""

from mask_rcnn.models.backbones.fpn import FPN
from mask_rcnn.models.backbones.registry import register_backbone
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.box_head import LinearBoxHead, Res5BoxHead
from mask_rcnn.models.builder import build, load
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.models.mask_head import MaskHead
from mask_rcnn.models.mask_rcnn import MaskRCNN
from mask_rcnn.models.norm_conversion import affine_to_bn, bn_to_affine
from mask_rcnn.models.norms import AffineChannel2D
from mask_rcnn.models.rpn import RPN

__all__ = [
    'FPN',
    'RPN',
    'AffineChannel2D',
    'KeypointHead',
    'LinearBoxHead',
    'MaskHead',
    'MaskRCNN',
    'Res5BoxHead',
    'ResNet',
    'affine_to_bn',
    'bn_to_affine',
    'build',
    'load',
    'register_backbone',
]
