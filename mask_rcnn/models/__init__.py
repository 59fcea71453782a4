"""The network, in the order in which the data flows through it."""

from mask_rcnn.models.backbones.fpn import FPN
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.box_head import LinearBoxHead, Res5BoxHead
from mask_rcnn.models.builder import build
from mask_rcnn.models.keypoint_head import KeypointHead
from mask_rcnn.models.layers.normalization import AffineChannel2D, affine_to_bn, bn_to_affine
from mask_rcnn.models.mask_head import MaskHead
from mask_rcnn.models.mask_rcnn import MaskRCNN
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
]
