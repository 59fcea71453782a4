"""RPN, box head, mask head and keypoint head in ONNX graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mask_rcnn.models.box_head import BoxHead, LinearBoxHead, Res5BoxHead
from mask_rcnn.models.keypoint_head import KeypointHead, bilinear_weight, border_factors
from mask_rcnn.models.mask_head import MaskHead
from mask_rcnn.models.norms import GroupNormalization
from mask_rcnn.models.rpn import RPN
from mask_rcnn.onnx_export.backbones import bottleneck, resnet_stage
from mask_rcnn.onnx_export.graph import Tensor
from mask_rcnn.onnx_export.joined_rois import convolve_joined
from mask_rcnn.onnx_export.layers import convolve, deconvolve, linear, parameters, relu
from mask_rcnn.onnx_export.roi_pooling import pool_rois, run_in_chunks

#: Maximum number of RoIs that a loop passes at a time through res5: 14 x 14 bins of 1024 channels take 0.8 MB per RoI.
_RES5_CHUNK = 100


def predict_anchors(features: Sequence[Tensor], rpn: RPN) -> tuple[list[Tensor], list[Tensor]]:
    """Predict objectness and deltas of all anchors.

    Args:
        features: The extractor's feature maps, ``(1, C, H, W)`` float32.
        rpn: The link.

    Returns:
        tuple: Logits ``(1, A, H, W)`` and deltas ``(1, 4 * A, H, W)`` of each feature map.
    """
    logits, deltas = [], []
    for i, h in enumerate(features):
        with h.graph.scope(f'level{i}'):
            for name in ('conv', *(f'conv{k}' for k in range(2, rpn.config.rpn_convs + 1))):
                h = relu(convolve(h, rpn[name]))
            logits.append(convolve(h, rpn.objectness))
            deltas.append(convolve(h, rpn.delta))
    return logits, deltas


def classify_rois(features: Sequence[Tensor], rois: Tensor, head: BoxHead) -> tuple[Tensor, Tensor]:
    """Classify RoIs and regress their boxes.

    Args:
        features: The extractor's feature maps, ``(1, C, H, W)`` float32.
        rois: ``(K, 4)`` float32 boxes in the network input.
        head: The link.

    Returns:
        tuple: Probabilities ``(K, 1 + C)`` and deltas ``(K, 4 * (1 + C))``, float32.
    """

    def run(rois: Tensor) -> list[Tensor]:
        h = _res5_average(features, rois, head) if isinstance(head, Res5BoxHead) else _hidden(features, rois, head)
        with rois.graph.scope('score'):
            probs = rois.graph.op('Softmax', linear(h, head.score), axis=1)
        with rois.graph.scope('delta'):
            return [probs, linear(h, head.delta)]

    if isinstance(head, LinearBoxHead) and not head.config.box_convs:
        probs, deltas = run(rois)  # the activations of a linear layer are small
    else:
        probs, deltas = run_in_chunks(run, _box_chunk(head), rois)
    return probs, deltas


def _box_chunk(head: BoxHead) -> int:
    return _RES5_CHUNK if isinstance(head, Res5BoxHead) else head.cpu_chunk_size


def _res5_features(features: Sequence[Tensor], rois: Tensor, head: Res5BoxHead) -> Tensor:
    """Return the RoIs' features after res5, ``(R, 2048, 7, 7)``."""
    with rois.graph.scope('pool'):
        pooled = pool_rois(features, rois, head.pool)
    with rois.graph.scope('res5'):
        return _res5(pooled, head)


def _res5(x: Tensor, head: Res5BoxHead) -> Tensor:
    """Apply res5 to pooled RoIs."""
    graph, stage = x.graph, head.res5
    blocks = [(f'block{i}', stage[f'block{i}']) for i in range(stage.n_blocks)]
    if isinstance(stage.block0.conv1.norm, GroupNormalization):
        return resnet_stage(x, stage)
    if head.pool.bin_step < head.config.roi_size // 7:  # the first block has a stride of 2
        with graph.scope('block0'):
            x = bottleneck(x, stage.block0)
        blocks = blocks[1:]

    def layers(h: Tensor, clear_gaps: Callable[[Tensor], Tensor]) -> Tensor:
        for name, block in blocks:
            with graph.scope(name):
                h = bottleneck(h, block, clear_gaps)
        return h

    return convolve_joined(x, 7, layers)


def _res5_average(features: Sequence[Tensor], rois: Tensor, head: Res5BoxHead) -> Tensor:
    """Return the average of the RoIs' features, ``(R, 2048)``."""
    h, size = _res5_features(features, rois, head), head.average_size
    if size < 7:
        h = h.slice(0, size, axis=2).slice(0, size, axis=3)
    return rois.graph.op('GlobalAveragePool', h).squeeze(2, 3)


def _hidden(features: Sequence[Tensor], rois: Tensor, head: LinearBoxHead) -> Tensor:
    """Return the output of the last hidden layer, ``(R, channels)``."""
    graph, config = rois.graph, head.config
    with graph.scope('pool'):
        h = pool_rois(features, rois, head.pool)
    for name in (f'conv{i}' for i in range(1, config.box_convs + 1)):
        with graph.scope(name):
            h = relu(convolve(h, head[name]))
    h = graph.op('Flatten', h, axis=1)
    for name in (f'fc{i}' for i in range(6, 6 + config.box_fcs)):
        with graph.scope(name):
            h = relu(linear(h, head[name]))
    return h


def predict_masks(
    features: Sequence[Tensor], rois: Tensor, labels: Tensor, head: MaskHead, box_head: BoxHead
) -> Tensor:
    """Predict the mask of each detection's class.

    Args:
        features: The extractor's feature maps, ``(1, C, H, W)`` float32.
        rois: ``(R, 4)`` float32 boxes of the detections in the network input.
        labels: ``(R,)`` int64.
        head: The link.
        box_head: The box head, with which the mask head of a C4 network shares res5.

    Returns:
        Tensor: Probabilities ``(R, M, M)`` float32.
    """

    def run(rois: Tensor, labels: Tensor) -> list[Tensor]:
        graph = rois.graph
        if isinstance(box_head, Res5BoxHead):
            h = _res5_features(features, rois, box_head)
        else:
            pooling: Any = head.pool  # not a function of the box head
            with graph.scope('pool'):
                h = pool_rois(features, rois, pooling)
        for name in (f'conv{i}' for i in range(1, head.n_conv + 1)):
            with graph.scope(name):
                h = relu(convolve(h, head[name]))
        with graph.scope('deconv'):
            h = relu(deconvolve(h, head.deconv))
        with graph.scope('score'):
            return [_class_masks(h, labels, head)]

    return run_in_chunks(run, min(head.cpu_chunk_size, _box_chunk(box_head)), rois, labels)[0]


def _class_masks(h: Tensor, labels: Tensor, head: MaskHead) -> Tensor:
    """Apply the row of the last layer's weight that belongs to the class of each RoI, and the sigmoid function."""
    graph = h.graph
    score: Any = head.score
    weight, bias = (array.reshape(head.config.n_fg_class, 1, -1) for array in (score.W.array, score.b.array))
    weights, biases = (tensor.take(labels) for tensor in parameters(graph, weight, bias))
    pixels = h.reshape(h.size(0), h.size(1), -1)
    logits = weights @ pixels + biases
    return graph.op('Sigmoid', logits.reshape(h.size(0), h.size(2), h.size(3)))


def predict_heat_maps(features: Sequence[Tensor], rois: Tensor, head: KeypointHead) -> Tensor:
    """Predict the heat maps of the detections' keypoints, ``(R, K, M, M)`` float32 logits.

    Args:
        features: The extractor's feature maps, ``(1, C, H, W)`` float32.
        rois: ``(R, 4)`` float32 boxes of the detections in the network input.
        head: The link.
    """

    def run(rois: Tensor) -> list[Tensor]:
        graph = rois.graph
        with graph.scope('pool'):
            h = pool_rois(features, rois, head.pool)
        for name in (f'conv{i}' for i in range(1, head.n_conv + 1)):
            with graph.scope(name):
                h = relu(convolve(h, head[name]))
        with graph.scope('deconv'):
            h = deconvolve(h, head.deconv)
        with graph.scope('upsample'):
            side, border = 2 * head.pool.roi_size, head.config.dialect.keypoints.upsample_border
            return [upsample_bilinear_2x(h, head.config.n_keypoint, side, side, border=border)]

    return run_in_chunks(run, head.cpu_chunk_size, rois)[0]


def upsample_bilinear_2x(x: Tensor, n_maps: int, height: int, width: int, *, border: str) -> Tensor:
    """Upsample heat maps as :func:`mask_rcnn.models.keypoint_head.upsample_bilinear_2x` does.

    Args:
        x: ``(R, n_maps, height, width)`` float32.
        n_maps: Number of heat maps of each RoI.
        height: Height of the heat maps.
        width: Width of the heat maps.
        border: ``'zero'`` or ``'repeat'``.
    """
    graph = x.graph
    weight = graph.constant(np.repeat(bilinear_weight(np, np.float32), n_maps, axis=0))
    y = graph.op('ConvTranspose', x, weight, kernel_shape=[4, 4], strides=[2, 2], pads=[1] * 4, group=n_maps)
    return y * border_factors(np, np.float32, height, width) if border == 'repeat' else y
