"""Backbones and feature pyramids in ONNX graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mask_rcnn.models.backbones.fpn import FPN
from mask_rcnn.models.backbones.mobilenet_v1 import SeparableBlock
from mask_rcnn.models.backbones.resnet import Bottleneck, ResNetStage, Stem
from mask_rcnn.models.layers import Backbone
from mask_rcnn.onnx_export.graph import Tensor
from mask_rcnn.onnx_export.layers import convolve, relu, upsample_nearest_2x

#: Upper limit of ReLU6.
_RELU6_MAX = 6


def extract_features(x: Tensor, extractor: FPN | Backbone) -> list[Tensor]:
    """Return the feature maps of a network's extractor, from the finest level.

    Args:
        x: The network input, ``(1, 3, H, W)`` float32.
        extractor: The link.
    """
    return _pyramid(x, extractor) if isinstance(extractor, FPN) else _stages(x, extractor)


def _pyramid(x: Tensor, fpn: FPN) -> list[Tensor]:
    """Return P2 to P6."""
    graph = x.graph
    with graph.scope('body'):
        bottom_up = _stages(x, fpn.body)
    features: list[Tensor] = []
    coarser = None
    for level, h in reversed(list(enumerate(bottom_up, start=2))):
        with graph.scope(f'lateral{level}'):
            h = convolve(h, fpn[f'lateral{level}'])
            coarser = h if coarser is None else h + upsample_nearest_2x(coarser)
        with graph.scope(f'output{level}'):
            features.insert(0, convolve(coarser, fpn[f'output{level}']))
    with graph.scope('output6'):
        return [*features, features[-1].slice(0, axis=2, step=2).slice(0, axis=3, step=2)]


def _stages(x: Tensor, backbone: Backbone) -> list[Tensor]:
    """Return the outputs of a backbone's stages that it returns."""
    names = {id(child): str(child.name) for child in backbone.children()}
    features = []
    for number, stage in enumerate(backbone.stages, start=1):
        with x.graph.scope(names[id(stage)]):
            if isinstance(stage, Stem):
                x = _stem(x, stage)
            elif isinstance(stage, ResNetStage):
                x = resnet_stage(x, stage)
            else:
                x = _mobilenet_stage(x, stage)
        if number in backbone.outputs:
            features.append(x)
    return features


def _stem(x: Tensor, stem: Stem) -> Tensor:
    h = relu(convolve(x, stem))
    return x.graph.op(
        'MaxPool',
        h,
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[stem.pool_pad] * 4,
        ceil_mode=int(stem.pool_pad == 0),
    )


def resnet_stage(x: Tensor, stage: ResNetStage) -> Tensor:
    """Return the output of a ResNet's stage."""
    for i in range(stage.n_blocks):
        with x.graph.scope(f'block{i}'):
            x = bottleneck(x, stage[f'block{i}'])
    return x


def bottleneck(x: Tensor, block: Bottleneck, before_conv2: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return the output of a block of a ResNet.

    Args:
        x: ``(N, C, H, W)`` float32.
        block: The link.
        before_conv2: Applied to the input of the 3x3 convolution.
    """
    graph = x.graph
    with graph.scope('conv1'):
        h = relu(convolve(x, block.conv1))
    with graph.scope('conv2'):
        h = relu(convolve(h if before_conv2 is None else before_conv2(h), block.conv2))
    with graph.scope('conv3'):
        h = convolve(h, block.conv3)
    with graph.scope('shortcut'):
        residual = convolve(x, block.shortcut) if block.project else x
        return relu(h + residual)


def _mobilenet_stage(x: Tensor, stage: Any) -> Tensor:
    """Return the output of the first convolution or of a block of a MobileNet."""
    if not isinstance(stage, SeparableBlock):
        return _relu6(convolve(x, stage, same_pad=True))
    with x.graph.scope('depthwise'):
        h = _relu6(convolve(x, stage.depthwise, same_pad=True, depthwise=True))
    with x.graph.scope('pointwise'):
        return _relu6(convolve(h, stage.pointwise))


def _relu6(x: Tensor) -> Tensor:
    return x.graph.op('Clip', x, x.like(0), x.like(_RELU6_MAX))
