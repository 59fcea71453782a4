"""Non-maximum suppression in an ONNX graph; the counterpart of :mod:`mask_rcnn.ops.boxes.nms`."""

from __future__ import annotations

import numpy as np

from mask_rcnn.onnx_export.boxes import corners
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.ops.boxes.nms import GroupShift


def suppress(
    graph: GraphBuilder,
    boxes: Tensor,
    candidates: Tensor,
    threshold: float,
    *,
    offset: float,
    suppress_equal: bool,
    limit: int | None = None,
) -> Tensor:
    """Suppress every box whose IoU with a kept box of its batch and group is at or above a threshold.

    ONNX's ``NonMaxSuppression`` differs in four ways.  It leaves the order of boxes with equal scores open: here the
    order of the boxes is that of precedence, and gives them distinct scores.  It has no offset: the second corners are
    shifted instead, which can change the last bit of an IoU unless the corners are integers.  It exchanges the corners
    of boxes with negative sides: here such a box is empty.  It suppresses above the threshold only: the threshold is
    the next smaller float.

    Args:
        graph: The graph.
        boxes: ``(B, N, 4)`` float32; in each of the ``B`` batches in descending order of precedence.
        candidates: ``(B, G, N)`` bool, the boxes of each of a batch's groups; a box is in at most one group.
        threshold: IoU threshold of suppression, from 0 to 1.
        offset: 1 or 0, a term of the box width.
        suppress_equal: Whether a box is suppressed at an IoU equal to the threshold, or only above it.
        limit: Maximum number of kept boxes of each group, the first ones; ``None`` for no limit.

    Returns:
        Tensor: ``(K,)`` int64, ``b * N + n`` of each kept box, in ascending order.
    """
    limit = np.iinfo(np.int32).max if limit is None else limit
    iou_threshold = np.float32(threshold)
    if suppress_equal and iou_threshold == 0:
        limit = min(limit, 1)  # every IoU is at least 0
    elif suppress_equal:
        iou_threshold = np.nextafter(iou_threshold, np.float32(0))
    first, second = corners(boxes)
    boxes = graph.concat([first, (second + offset).maximum(first)], axis=-1)
    n = boxes.size(1)
    precedence = (n - graph.arange(n)).cast(np.float32)
    selected = graph.op(
        'NonMaxSuppression',
        boxes,
        candidates.where(precedence, 0),
        graph.constant(np.int64(limit)),
        graph.constant(iou_threshold),
        graph.constant(np.float32(0)),
        dtype=np.int64,
    )
    rows = selected.take(0, axis=1) * n + selected.take(2, axis=1)
    # The operator leaves the order of its output open.
    return graph.multi_op('TopK', rows, rows.size(0), dtypes=[None, np.int64], largest=0)[0]


def shift_groups(graph: GraphBuilder, boxes: Tensor, valid: Tensor, groups: Tensor, shift: GroupShift) -> Tensor:
    """Return the boxes whose overlaps decide in NMS: those of each group are shifted by the same distance.

    Args:
        graph: The graph.
        boxes: ``(..., 4)`` float32.
        valid: ``(...)`` bool, whether a box takes part; the others neither count nor determine the distance.
        groups: ``(...)`` int64, the group of each box; its shape is broadcast.
        shift: The shift.
    """
    if not shift.max_boxes:
        return boxes
    count = graph.op('ReduceSum', valid.cast(np.int64), keepdims=0)
    largest = graph.op('ReduceMax', valid.expand_dims(-1).where(boxes, -np.inf), keepdims=0)
    is_shifted = (count > 0) & (count <= shift.max_boxes)
    distance = is_shifted.where(largest + 1, 0)
    return boxes + ((groups + shift.first_group).cast(np.float32) * distance).expand_dims(-1)
