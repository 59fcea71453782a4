"""Box arithmetic: sizes, overlaps, coding as deltas, clipping.

Everywhere ``offset`` is what a box's width exceeds ``x_max - x_min`` by: 1 in Detectron, where both
corners are pixels of the box, and 0 where corners are coordinates.
"""

from __future__ import annotations

from chainer.backend import get_array_module


def box_iou(boxes_a, boxes_b, *, offset: float = 1.0):
    """Return the pairwise intersection over union.

    For float32 boxes with Detectron's bits: its C code (``detectron/utils/cython_bbox.pyx``) has the areas
    in double precision and rounds the second one and the union.

    Args:
        boxes_a: ``(R, 4)`` boxes.
        boxes_b: ``(K, 4)`` boxes.
        offset: See the module.

    Returns:
        array: ``(R, K)`` of the boxes' dtype; 0 where two boxes do not meet.
    """
    xp = get_array_module(boxes_a)
    # Made as (K, R): where time matters, a are anchors or proposals, and inner loops should be long.
    intersection = _shared_side(boxes_a, boxes_b, 0, offset) * _shared_side(boxes_a, boxes_b, 1, offset)
    area_a, area_b = (_exact_area(boxes, offset) for boxes in (boxes_a, boxes_b))
    area_b = area_b.astype(boxes_b.dtype).astype(area_b.dtype)
    union = (area_a + area_b[:, None] - intersection).astype(intersection.dtype)
    return (intersection / xp.where(intersection > 0, union, union.dtype.type(1))).T


def _shared_side(boxes_a, boxes_b, axis, offset):
    """Return by how much each two boxes overlap along an axis, ``(K, R)``."""
    xp = get_array_module(boxes_a)
    side = xp.minimum(xp.ascontiguousarray(boxes_a[:, axis + 2]), boxes_b[:, axis + 2, None])
    side -= xp.maximum(xp.ascontiguousarray(boxes_a[:, axis]), boxes_b[:, axis, None])
    side += boxes_a.dtype.type(offset)
    return xp.maximum(side, 0, out=side)


def _exact_area(boxes, offset):
    sides = (boxes[:, 2:] - boxes[:, :2]).astype('f8') + offset
    return sides[:, 0] * sides[:, 1]


def encode_boxes(boxes, targets, *, weights=(1.0, 1.0, 1.0, 1.0), offset: float = 1.0):
    """Return the deltas that :func:`decode_boxes` turns into ``targets``.

    R-CNN's parametrisation (Girshick et al. 2014, appendix C), ``detectron/utils/boxes.py``
    ``bbox_transform_inv``.

    Args:
        boxes: ``(R, 4)`` float boxes (anchors, RoIs).
        targets: ``(R, 4)`` float boxes.
        weights: Factors of ``(dy, dx, dh, dw)``.
        offset: See the module.

    Returns:
        array: ``(R, 4)`` deltas ``(dy, dx, dh, dw)``.
    """
    xp = get_array_module(boxes)
    centre, side = _centre_and_side(boxes, offset)
    target_centre, target_side = _centre_and_side(targets, offset)
    weights = xp.asarray(weights, boxes.dtype)
    return xp.concatenate([weights[:2] * (target_centre - centre) / side,
                           weights[2:] * xp.log(target_side / side)], axis=1)


def decode_boxes(boxes, deltas, *, weights=(1.0, 1.0, 1.0, 1.0), offset: float = 1.0, max_log_scale=None):
    """Move and scale boxes by deltas.

    ``detectron/utils/boxes.py`` ``bbox_transform``, in its order of operations.

    Args:
        boxes: ``(R, 4)`` float boxes (anchors, RoIs).
        deltas: ``(R, 4 * K)`` floats: ``K`` times ``(dy, dx, dh, dw)`` for each box.
        weights: Factors that the deltas carry.
        offset: See the module.
        max_log_scale: Upper limit of ``dh`` and ``dw`` after the weights are taken off.

    Returns:
        array: ``(R, 4 * K)`` boxes of the deltas' dtype.
    """
    xp = get_array_module(deltas)
    centre, side = _centre_and_side(boxes.astype(deltas.dtype, copy=False)[:, None], offset)
    n_class = deltas.shape[1] // 4
    deltas = deltas.reshape(len(deltas), n_class, 4)
    number = deltas.dtype.type
    # Divided one by one, not times the reciprocal: Detectron's bits.
    shift = deltas[..., :2] / _pair(weights[:2], deltas)
    growth = deltas[..., 2:] / _pair(weights[2:], deltas)
    if max_log_scale is not None:
        growth = xp.minimum(growth, number(max_log_scale))
    half = xp.exp(growth) * side * number(0.5)
    middle = shift * side + centre
    decoded = xp.concatenate([middle - half, middle + half - number(offset)], axis=2)
    return decoded.reshape(len(deltas), 4 * n_class)


def _pair(values, like):
    """Return a factor of both axes in an array's type: as one number where it is the same, which a GPU need not
    be sent."""
    if values[0] == values[1]:
        return like.dtype.type(values[0])
    return get_array_module(like).asarray(values, like.dtype)


def clip_boxes(boxes, size, *, offset: float = 1.0, origin=(0.0, 0.0)):
    """Move corners that are outside an image onto its border.

    Args:
        boxes: ``(R, 4 * K)`` boxes.
        size: Height and width of the image.
        offset: See the module; corners end up in ``[0, side - offset]``.
        origin: The image's first row and column, from which that is counted.

    Returns:
        array: New array of the same shape and dtype.
    """
    xp, number = get_array_module(boxes), boxes.dtype.type
    clipped = xp.empty_like(boxes)
    for axis in (0, 1):
        low = number(origin[axis])
        high = low + number(size[axis]) - number(offset)
        xp.clip(boxes[:, axis::2], low, high, out=clipped[:, axis::2])
    return clipped


def _centre_and_side(boxes, offset):
    side = boxes[..., 2:] - boxes[..., :2] + boxes.dtype.type(offset)
    return boxes[..., :2] + boxes.dtype.type(0.5) * side, side
