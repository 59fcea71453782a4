"""Pasting of predicted masks in ONNX graphs, with the arithmetic of :mod:`mask_rcnn.ops.masks.paste_masks`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.config.conventions import MaskConventions
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.resize import clip_index, split_positions
from mask_rcnn.onnx_export.transform import GraphTransform

#: Corners beyond this limit cover the same pixels of any image.
_MAX_CORNER = 2.0**27


@dataclass(frozen=True)
class _BoxAxis:
    """The pixels that masks cover along one axis of the image.

    Args:
        begin: ``(R,)`` int64, first visible pixel.
        end: ``(R,)`` int64, the pixel after the last visible one, at least ``begin``.
        first: ``(R,)`` int64, first pixel of the mask, which may be outside the image.
        shift: ``(R,)`` float64, distance from the left border of the first pixel to that of the padded mask.
        scale: ``(R,)`` float64, mask pixels per image pixel.
    """

    begin: Tensor
    end: Tensor
    first: Tensor
    shift: Tensor
    scale: Tensor


def paste_masks(
    graph: GraphBuilder, probs: Tensor, boxes: Tensor, transform: GraphTransform, dialect: Dialect
) -> Tensor:
    """Resize each mask into its box and binarise it: :func:`mask_rcnn.ops.masks.paste_masks.paste_masks`.

    Args:
        graph: The graph.
        probs: ``(R, M, M)`` float32 probabilities.
        boxes: ``(R, 4)`` float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        transform: The image's transform.
        dialect: Provides the conventions of masks.

    Returns:
        ``(R, H, W)`` bool.
    """
    conventions = dialect.masks
    finite = graph.op('IsNaN', boxes, dtype=bool).where(0, boxes)
    corners = finite.maximum(-_MAX_CORNER).minimum(_MAX_CORNER)
    make_axis = _continuous_axis if conventions.continuous_box else _whole_axis
    height, width = (transform.size.slice(axis, axis + 1) for axis in (0, 1))
    rows = make_axis(corners.take(0, axis=1), corners.take(2, axis=1), probs.size(1), height, conventions)
    columns = make_axis(corners.take(1, axis=1), corners.take(3, axis=1), probs.size(2), width, conventions)
    padding, margin = (0, 1) if conventions.continuous_box else (conventions.padding, conventions.margin)
    frame = padding + margin
    padded = graph.op('Pad', probs, graph.constant(np.array([0, frame, frame] * 2)))
    min_probs = None
    if margin and not conventions.continuous_box:
        min_probs = graph.op('ReduceMin', probs, graph.constant(np.array([1, 2])), keepdims=0)

    def paste(r: Tensor) -> list[Tensor]:
        values = _interpolate(padded.take(r), rows, columns, r, margin)
        if min_probs is not None:
            values = values.maximum(min_probs.take(r))
        threshold = conventions.threshold
        mask = values >= threshold if conventions.threshold_inclusive else values > threshold
        before = [axis.begin.take(r.reshape(1)) for axis in (rows, columns)]
        after = [
            size - axis.end.take(r.reshape(1)) for size, axis in zip((height, width), (rows, columns), strict=True)
        ]
        return [graph.op('Pad', mask, graph.concat([*before, *after]))]

    (masks,) = graph.loop(probs.size(0), paste)
    # Without iterations, the other lengths of the loop's output are undefined.
    return masks.reshape(probs.size(0), height, width)


def _whole_axis(low: Tensor, high: Tensor, mask_size: Tensor, size: Tensor, conventions: MaskConventions) -> _BoxAxis:
    """Return the pixels of masks that are resized to whole pixels.

    Args:
        low: ``(R,)`` float32, first corners of the boxes.
        high: ``(R,)`` float32, second corners.
        mask_size: ``(1,)`` int64, ``M``.
        size: ``(1,)`` int64, height or width of the image.
        conventions: Provides ``padding``, ``box_offset`` and ``squeeze_at_border``.
    """
    padded = (mask_size + 2 * conventions.padding).cast(np.float64)
    half = (high - low) * 0.5 * (padded / mask_size.cast(np.float64)).cast(np.float32)
    centre = (high + low) * 0.5
    first, last = (centre - half).cast(np.int64), (centre + half).cast(np.int64)
    if conventions.squeeze_at_border:
        first, last = first.maximum(0), last.minimum(size - conventions.box_offset)
    n_pixels = (last - first + conventions.box_offset).maximum(0)
    scale = 1 / (n_pixels.maximum(1).cast(np.float64) / padded)
    return _visible_axis(first, first + n_pixels, scale * 0, scale, size)


def _continuous_axis(
    low: Tensor, high: Tensor, mask_size: Tensor, size: Tensor, conventions: MaskConventions
) -> _BoxAxis:
    """Return the pixels of masks that are interpolated in their boxes; for the arguments, see :func:`_whole_axis`."""
    first, end = (low.graph.op(op_type, corner) for op_type, corner in (('Floor', low), ('Ceil', high)))
    first, end = (first - 1).cast(np.int64), (end + 1).cast(np.int64)
    low, high = low.cast(np.float64), high.cast(np.float64)
    is_empty = high <= low
    scale = mask_size.cast(np.float64) / is_empty.where(1, high - low)
    return _visible_axis(first, is_empty.where(first, end), low - first.cast(np.float64), scale, size)


def _visible_axis(first: Tensor, end: Tensor, shift: Tensor, scale: Tensor, size: Tensor) -> _BoxAxis:
    begin = first.maximum(0).minimum(size)
    return _BoxAxis(begin, end.minimum(size).maximum(begin), first, shift, scale)


def _interpolate(mask: Tensor, rows: _BoxAxis, columns: _BoxAxis, r: Tensor, margin: int) -> Tensor:
    """Return the visible probabilities ``(h, w)`` of mask ``r``, which is padded: first the columns, then the rows."""
    column, fraction = _sources(columns, r, margin)
    last = mask.size(1) - 1
    # OpenCV treats columns, but not rows, separately at the borders.
    fraction = ((column < 0) | (column >= last)).where(0, fraction)
    column = clip_index(column, mask.size(1))
    right = clip_index(column + 1, mask.size(1))
    lines = mask.take(column, axis=1) * (1 - fraction) + mask.take(right, axis=1) * fraction
    row, fraction = _sources(rows, r, margin)
    upper, lower = (clip_index(index, mask.size(0)) for index in (row, row + 1))
    fraction = fraction.expand_dims(1)
    return lines.take(upper) * (1 - fraction) + lines.take(lower) * fraction


def _sources(axis: _BoxAxis, r: Tensor, margin: int) -> tuple[Tensor, Tensor]:
    """Return the mask pixel at or before the centre of each visible pixel, and the weight of the one after it."""
    begin, end, first, shift, scale = (
        tensor.take(r) for tensor in (axis.begin, axis.end, axis.first, axis.shift, axis.scale)
    )
    pixels = begin.graph.arange(end - begin) + (begin - first)
    positions = ((pixels.cast(np.float64) + 0.5 - shift) * scale - 0.5).cast(np.float32)
    source, fraction = split_positions(positions)
    return source + margin, fraction
