"""Box arithmetic in an ONNX graph; the counterpart of :mod:`mask_rcnn.ops.boxes.boxes`.

The operations are float32, in the order of those on the CPU.  A box ``(y_min, x_min, y_max, x_max)`` has the width
``x_max - x_min + offset``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor


def corners(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and the second corners ``(..., 2)`` of boxes ``(..., 4)``."""
    return boxes.slice(0, 2, axis=-1), boxes.slice(2, 4, axis=-1)


def decode_boxes(
    graph: GraphBuilder,
    boxes: Tensor,
    deltas: Tensor,
    *,
    weights: Sequence[float],
    offset: float,
    max_log_scale: float,
) -> Tensor:
    """Decode deltas relative to boxes into boxes.

    Args:
        graph: The graph.
        boxes: ``(..., 4)`` float32 (anchors, RoIs).
        deltas: ``(..., 4)`` float32, ``(dy, dx, dh, dw)``; both shapes are broadcast.
        weights: Factors by which the deltas were multiplied when they were encoded.
        offset: 1 or 0; see the module.
        max_log_scale: Upper limit of ``dh`` and ``dw`` after the division by the weights; infinity for no limit.
    """
    first, second = corners(boxes)
    side = second - first + offset
    centre = first + side * 0.5
    shift, log_scale = (
        delta / factors for delta, factors in zip(corners(deltas), (weights[:2], weights[2:]), strict=True)
    )
    if max_log_scale < math.inf:
        log_scale = log_scale.minimum(max_log_scale)
    half_side = graph.op('Exp', log_scale) * side * 0.5
    new_centre = shift * side + centre
    return graph.concat([new_centre - half_side, new_centre + half_side - offset], axis=-1)


def clip_boxes(boxes: Tensor, size: Tensor, *, offset: float, origin: Tensor | None = None) -> Tensor:
    """Clip boxes to an image; NaN remains.

    Args:
        boxes: ``(..., 4)`` float32.
        size: ``(2,)`` int64, height and width of the image.
        offset: Corners are clipped to ``[0, side - offset]`` relative to ``origin``.
        origin: ``(2,)`` int64, coordinates of the image's upper left corner; ``None`` for 0.
    """
    if origin is None:
        low, high = boxes.like(0), size.cast(np.float32) - offset
    else:
        low = origin.cast(np.float32)
        high = low + size.cast(np.float32) - offset
        low = of_both_corners(low)
    return boxes.maximum(low).minimum(of_both_corners(high))


def of_both_corners(pair: Tensor) -> Tensor:
    """Return the values ``(2,)`` of ``y`` and ``x`` for both corners of a box, ``(4,)``."""
    return pair.graph.concat([pair, pair])
