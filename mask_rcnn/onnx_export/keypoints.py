"""Decoding of keypoints in ONNX graphs, with the arithmetic of :mod:`mask_rcnn.ops.masks.keypoints`."""

from __future__ import annotations

from functools import reduce
from operator import add

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.onnx_export.box_mapping import invert_boxes, map_to_input
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.resize import clip_index, split_positions
from mask_rcnn.onnx_export.transform import GraphTransform

#: The parameter of bicubic interpolation (Keys 1981).
_A = -0.75


def decode_keypoints(
    graph: GraphBuilder, heat_maps: Tensor, boxes: Tensor, transform: GraphTransform, config: Config
) -> Tensor:
    """Find the maximum of each heat map after it is resized to its box.

    The counterpart of :meth:`mask_rcnn.models.keypoint_head.KeypointHead.predict` after the network.

    Args:
        graph: The graph.
        heat_maps: ``(R, K, M, M)`` float32, the logits of each keypoint over the box.
        boxes: ``(R, 4)`` float32 from the box head: in pixels of the network input if the dialect has
            ``detections.postprocess_in_input_space``, otherwise in pixels of the image.
        transform: The image's transform.
        config: Provides the dialect.

    Returns:
        ``(R, K, 4)`` float32 ``(y, x, logit, probability)``; ``y`` and ``x`` are in pixels of the image.
    """
    dialect = config.dialect
    in_input, decode_in_input = dialect.detections.postprocess_in_input_space, dialect.keypoints.decode_in_input
    if decode_in_input:
        boxes = map_to_input(boxes, transform, dialect)
    elif in_input:
        boxes = invert_boxes(boxes, transform)
    points, values = _decode(heat_maps, boxes, dialect.keypoints.softmax_grid == 'predicted')
    if decode_in_input:
        factors, origin = (tensor.cast(np.float32) for tensor in (transform.factors, transform.origin))
        points = (points - origin) / factors
    return graph.concat([points, values], axis=2)


def _decode(heat_maps: Tensor, boxes: Tensor, sum_predicted: bool) -> tuple[Tensor, Tensor]:
    """Decode heat maps in the coordinates of ``boxes``; see :func:`mask_rcnn.ops.masks.keypoints.decode_heatmaps`.

    Returns:
        tuple: ``(R, K, 2)`` float32, ``y`` and ``x``; and ``(R, K, 2)`` float32, logit and probability.
    """
    graph, n_rois, n_keypoints = heat_maps.graph, heat_maps.size(0), heat_maps.size(1)
    origins = boxes.slice(0, 2, axis=1)
    sides = (boxes.slice(2, 4, axis=1) - origins).maximum(1)
    sizes = graph.op('Ceil', sides)
    pixels = sizes.cast(np.int64)
    maps = heat_maps.reshape(n_rois * n_keypoints, heat_maps.size(2), heat_maps.size(3))

    def decode_map(index: Tensor) -> list[Tensor]:
        heat_map, size = maps.take(index), pixels.take(index / n_keypoints.reshape())
        return list(_find_maximum(heat_map, size.slice(0, 1), size.slice(1, 2), sum_predicted))

    # One heat map at a time, because all keypoints of a large box in a photo would need gigabytes.
    positions, values = graph.loop(maps.size(0), decode_map)
    positions, values = (tensor.reshape(n_rois, n_keypoints, graph.constant([2])) for tensor in (positions, values))
    steps = (sides / sizes).cast(np.float64).expand_dims(1)
    points = (positions.cast(np.float64) + 0.5) * steps + origins.cast(np.float64).expand_dims(1)
    return points.cast(np.float32), values


def _find_maximum(heat_map: Tensor, height: Tensor, width: Tensor, sum_predicted: bool) -> tuple[Tensor, Tensor]:
    """Return row and column of the maximum ``(2,)`` int64, and its logit and probability ``(2,)`` float32.

    Args:
        heat_map: ``(M, M)`` float32.
        height: ``(1,)`` int64, the height to which the heat map is resized.
        width: ``(1,)`` int64, the width.
        sum_predicted: Whether the softmax adds the exponentials of the heat map, or those of the resized heat map.
    """
    graph = heat_map.graph
    lines = _interpolate(heat_map, width, axis=1)
    resized = _interpolate(lines, height, axis=0)
    index = graph.op('ArgMax', resized.reshape(-1), axis=0, keepdims=1, dtype=np.int64)
    row = index / width
    highest = graph.op('ReduceMax', resized, keepdims=0)
    exponentials = graph.op('Exp', (heat_map if sum_predicted else resized) - highest)
    # Rows are added in single precision, and their sums in double precision: a sum of a million floats is inexact.
    row_sums = graph.op('ReduceSum', exponentials, graph.constant(np.array([1])), keepdims=0).cast(np.float64)
    probability = (1 / graph.op('ReduceSum', row_sums, keepdims=1)).cast(np.float32)
    return graph.concat([row, index - row * width]), graph.concat([highest.reshape(1), probability])


def _interpolate(x: Tensor, n_out: Tensor, *, axis: int) -> Tensor:
    """Resize an axis of ``(h, w)`` float32 bicubically, as OpenCV does, to a ``(1,)`` int64 length."""
    n_in = x.size(axis)
    scale = 1 / (n_out.cast(np.float64) / n_in.cast(np.float64))
    positions = ((x.graph.arange(n_out).cast(np.float64) + 0.5) * scale - 0.5).cast(np.float32)
    source, fraction = split_positions(positions)
    taps = _cubic_taps(fraction)
    if axis == 0:
        taps = [weights.expand_dims(1) for weights in taps]
    offsets = (-1, 0, 1, 2)
    return reduce(
        add, (x.take(clip_index(source + i, n_in), axis=axis) * w for i, w in zip(offsets, taps, strict=True))
    )


def _cubic_taps(x: Tensor) -> list[Tensor]:
    """Return the weights of the four pixels around positions, in the order of operations of OpenCV.

    Args:
        x: ``(n,)`` float32, distances from the second pixel.
    """
    y = 1 - x
    first = ((_A * (x + 1) - 5 * _A) * (x + 1) + 8 * _A) * (x + 1) - 4 * _A
    second, third = (((_A + 2) * z - (_A + 3)) * z * z + 1 for z in (x, y))
    return [first, second, third, 1 - first - second - third]
