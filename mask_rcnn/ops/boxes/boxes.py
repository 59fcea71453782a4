"""Box arithmetic: overlaps, encoding as deltas, clipping.

A box ``(y_min, x_min, y_max, x_max)`` has the width ``x_max - x_min + offset``.  ``offset`` is 1 if both corners are
pixels of the box (Detectron), and 0 if corners are coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask_rcnn.ops.boxes.iou import box_iou_cpu
from mask_rcnn.ops.runtime.array import Array, get_array_module


def box_iou(boxes_a: Array, boxes_b: Array, *, offset: float = 1.0) -> Array:
    """Return the pairwise intersection over union.

    For finite float32 boxes, the result equals that of Detectron's C code (``detectron/utils/cython_bbox.pyx``) bit by
    bit: the areas have double precision, and the second area and the union are rounded to single precision.

    Args:
        boxes_a: ``(R, 4)`` boxes.
        boxes_b: ``(K, 4)`` boxes.
        offset: 1 or 0; see the module.

    Returns:
        array: ``(R, K)`` of the boxes' dtype; 0 for two boxes that do not overlap.
    """
    if get_array_module(boxes_a) is np and boxes_a.dtype == boxes_b.dtype == np.float32:
        return box_iou_cpu(boxes_a, boxes_b, offset)
    return _box_iou_of_arrays(boxes_a, boxes_b, offset)


def _box_iou_of_arrays(boxes_a: Array, boxes_b: Array, offset: float) -> Array:
    """Return the pairwise intersection over union by array operations: for a GPU, and for other dtypes."""
    xp = get_array_module(boxes_a)
    # Computed as (K, R): in the slow cases boxes_a are the many proposals, and long inner loops are fast.
    intersection = _overlap_1d(boxes_a, boxes_b, 0, offset) * _overlap_1d(boxes_a, boxes_b, 1, offset)
    area_a, area_b = (_area_float64(boxes, offset) for boxes in (boxes_a, boxes_b))
    # In cython_bbox.pyx, float32 variables (box_area, ua) receive these float64 expressions.
    area_b = area_b.astype(boxes_b.dtype).astype(area_b.dtype)
    union = (area_a + area_b[:, None] - intersection).astype(intersection.dtype)
    return (intersection / xp.where(intersection > 0, union, union.dtype.type(1))).T


def _overlap_1d(boxes_a: Array, boxes_b: Array, axis: int, offset: float) -> Array:
    """Return the lengths of the pairwise overlaps along an axis, ``(K, R)``."""
    xp = get_array_module(boxes_a)
    side = xp.minimum(xp.ascontiguousarray(boxes_a[:, axis + 2]), boxes_b[:, axis + 2, None])
    side -= xp.maximum(xp.ascontiguousarray(boxes_a[:, axis]), boxes_b[:, axis, None])
    side += boxes_a.dtype.type(offset)
    return xp.maximum(side, 0, out=side)


def _area_float64(boxes: Array, offset: float) -> Array:
    sides = (boxes[:, 2:] - boxes[:, :2]).astype('f8') + offset
    return sides[:, 0] * sides[:, 1]


def encode_boxes(
    boxes: Array, targets: Array, *, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0), offset: float = 1.0
) -> Array:
    """Encode target boxes as deltas relative to boxes; :func:`decode_boxes` is the inverse.

    The deltas have R-CNN's parametrisation (Girshick et al. 2014, appendix C).  Source: Detectron
    ``detectron/utils/boxes.py`` ``bbox_transform_inv``.

    Args:
        boxes: ``(R, 4)`` float boxes (anchors, RoIs).
        targets: ``(R, 4)`` float boxes.
        weights: Factors by which ``(dy, dx, dh, dw)`` are multiplied.
        offset: 1 or 0; see the module.

    Returns:
        array: ``(R, 4)`` deltas ``(dy, dx, dh, dw)``.
    """
    xp = get_array_module(boxes)
    centre, side = _centre_and_side(boxes, offset)
    target_centre, target_side = _centre_and_side(targets, offset)
    factors = xp.asarray(weights, boxes.dtype)
    return xp.concatenate(
        [factors[:2] * (target_centre - centre) / side, factors[2:] * xp.log(target_side / side)], axis=1
    )


def decode_boxes(
    boxes: Array,
    deltas: Array,
    *,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    offset: float = 1.0,
    max_log_scale: float | None = None,
) -> Array:
    """Decode deltas relative to boxes into boxes.

    Source: Detectron ``detectron/utils/boxes.py`` ``bbox_transform``, with the same order of operations.

    Args:
        boxes: ``(R, 4)`` float boxes (anchors, RoIs).
        deltas: ``(R, 4 * K)`` floats: ``K`` times ``(dy, dx, dh, dw)`` for each box.
        weights: Factors by which the deltas were multiplied when they were encoded.
        offset: 1 or 0; see the module.
        max_log_scale: Upper limit of ``dh`` and ``dw`` after the division by the weights (Detectron's
            ``BBOX_XFORM_CLIP``); ``None`` for no limit.

    Returns:
        array: ``(R, 4 * K)`` boxes of the deltas' dtype.
    """
    xp = get_array_module(deltas)
    centre, side = _centre_and_side(boxes.astype(deltas.dtype, copy=False)[:, None], offset)
    n_classes = deltas.shape[1] // 4
    deltas = deltas.reshape(len(deltas), n_classes, 4)
    scalar_type = deltas.dtype.type
    # A division, not a multiplication by the reciprocal, rounds as Detectron does.
    shift = deltas[..., :2] / _scalar_or_array(weights[:2], deltas)
    log_scale = deltas[..., 2:] / _scalar_or_array(weights[2:], deltas)
    if max_log_scale is not None:
        log_scale = xp.minimum(log_scale, scalar_type(max_log_scale))
    with np.errstate(over='ignore'):  # without a limit, the side may be infinite; the caller clips the box
        half_side = xp.exp(log_scale) * side * scalar_type(0.5)
    new_centre = shift * side + centre
    decoded = xp.concatenate([new_centre - half_side, new_centre + half_side - scalar_type(offset)], axis=2)
    return decoded.reshape(len(deltas), 4 * n_classes)


def _scalar_or_array(values: Sequence[float], like: Array):
    """Return the values of both axes in the dtype of ``like``: one scalar if they are equal, else an array.

    A scalar is passed to the kernel; an array would be copied to the GPU.
    """
    if values[0] == values[1]:
        return like.dtype.type(values[0])
    return get_array_module(like).asarray(values, like.dtype)


def clip_boxes(
    boxes: Array, size: Sequence[float], *, offset: float = 1.0, origin: Sequence[float] = (0.0, 0.0)
) -> Array:
    """Clip boxes to an image.

    Args:
        boxes: ``(R, 4 * K)`` boxes.
        size: Height and width of the image.
        offset: Corners are clipped to ``[0, side - offset]`` relative to ``origin``.
        origin: Coordinates ``(y, x)`` of the image's upper left corner.

    Returns:
        array: New array of the same shape and dtype.
    """
    xp, scalar_type = get_array_module(boxes), boxes.dtype.type
    clipped = xp.empty_like(boxes)
    for axis in (0, 1):
        low = scalar_type(origin[axis])
        high = low + scalar_type(size[axis]) - scalar_type(offset)
        xp.clip(boxes[:, axis::2], low, high, out=clipped[:, axis::2])
    return clipped


def _centre_and_side(boxes: Array, offset: float) -> tuple[Array, Array]:
    side = boxes[..., 2:] - boxes[..., :2] + boxes.dtype.type(offset)
    return boxes[..., :2] + boxes.dtype.type(0.5) * side, side


def outer_corners(boxes: np.ndarray, offset: float) -> np.ndarray:
    """Return boxes that end at the outer corners of their last pixels, as they are drawn: with width ``x_max - x_min``.

    Args:
        boxes: ``(..., 4)`` floats.
        offset: 1 or 0; see the module.
    """
    return boxes + np.array([0, 0, offset, offset], boxes.dtype)


def format_box(box: np.ndarray) -> str:
    """Return a box ``(y_min, x_min, y_max, x_max)`` as text in the order of COCO's corners: ``x0,y0,x1,y1``."""
    return ','.join(f'{box[i]:.0f}' for i in (1, 0, 3, 2))
