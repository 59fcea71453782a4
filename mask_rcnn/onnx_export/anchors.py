"""Anchors in an ONNX graph; the counterpart of :mod:`mask_rcnn.ops.boxes.anchors`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask_rcnn.config import FPN_STRIDES, Config
from mask_rcnn.models.rpn import level_cell_anchors
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor


def rpn_anchors(
    graph: GraphBuilder, sizes: Sequence[tuple[Tensor, Tensor]], input_size: Tensor, config: Config
) -> list[Tensor]:
    """Return the anchors of each feature map of the RPN, ``(h * w * A, 4)`` float32.

    Args:
        graph: The graph.
        sizes: Height and width of each feature map, ``(1,)`` int64 each.
        input_size: ``(2,)`` int64, height and width of the network input, with its padding.
        config: Sizes and ratios of the anchors, and the dialect.
    """
    strides = FPN_STRIDES if config.has_fpn else FPN_STRIDES[2:3]
    anchors = []
    for cell, stride, size in zip(level_cell_anchors(strides, config), strides, sizes, strict=True):
        distances: Sequence[int | Tensor] = (stride, stride)
        if config.dialect.rpn.strides_from_sizes:
            distances = [input_size.slice(axis, axis + 1) / length for axis, length in enumerate(size)]
        anchors.append(shift_anchors(graph, cell, distances, *size))
    return anchors


def shift_anchors(
    graph: GraphBuilder, cell: np.ndarray, strides: Sequence[int | Tensor], height: Tensor, width: Tensor
) -> Tensor:
    """Shift the anchors of the first location to all locations of a feature map.

    Args:
        graph: The graph.
        cell: ``(A, 4)`` anchors of the first location.
        strides: Input pixels per location along ``y`` and ``x``: integers or ``(1,)`` int64 tensors.
        height: Height of the feature map, ``(1,)`` int64.
        width: Width of the feature map, ``(1,)`` int64.

    Returns:
        Tensor: ``(height * width * A, 4)`` float32; the anchors of a location are the inner loop.
    """
    corners = cell.astype(np.float64).reshape(-1, 2, 2)  # (A, corner, axis)
    sides = []
    for axis, (length, stride) in enumerate(zip((height, width), strides, strict=True)):
        shifts = (graph.arange(length) * stride).cast(np.float64).reshape(-1, 1, 1)
        # The additions are float64, as on the CPU; they run once per row and once per column.
        sides.append((shifts + corners[:, :, axis]).cast(np.float32))
    shape = graph.shape_of(height, width, *corners.shape[:2], 1)
    y, x = sides[0].expand_dims(1, 4), sides[1].expand_dims(0, 4)
    anchors = graph.concat([graph.op('Expand', side, shape) for side in (y, x)], axis=4)
    return anchors.reshape(-1, 4)
