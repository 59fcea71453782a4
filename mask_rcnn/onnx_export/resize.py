"""Resizing of images in ONNX graphs, with the arithmetic of :mod:`mask_rcnn.preprocessing.resize`.

The operator ``Resize`` is not used: it rounds the positions of pixels differently from all original programs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mask_rcnn.onnx_export.graph import Tensor
from mask_rcnn.ops.images.triangle_filter import WEIGHT_BITS


@dataclass(frozen=True)
class Samples:
    """The linear interpolation of one axis: each output pixel is a weighted sum of two input pixels.

    Args:
        before: ``(n_out,)`` int64, the first input pixel.
        after: ``(n_out,)`` int64, the second input pixel.
        weight_before: ``(n_out,)`` floats.
        weight_after: ``(n_out,)`` floats.
    """

    before: Tensor
    after: Tensor
    weight_before: Tensor
    weight_after: Tensor


def opencv_samples(n_in: Tensor, n_out: Tensor, scale: Tensor, *, is_column: bool) -> Samples:
    """Return the interpolation of OpenCV: :func:`mask_rcnn.preprocessing.resize.resize_opencv`.

    Args:
        n_in: ``(1,)`` int64, number of input pixels.
        n_out: ``(1,)`` int64, number of output pixels.
        scale: Scalar float64, the factor of the resize.
        is_column: Whether the axis is the horizontal one: beyond its border, OpenCV moves the position onto the border,
            and not only the pixel.
    """
    pixels = n_out.graph.arange(n_out).cast(np.float64)
    first, fraction = split_positions(((pixels + 0.5) * (1 / scale) - 0.5).cast(np.float32))
    if is_column:
        fraction = ((first < 0) | (first >= n_in - 1)).where(0, fraction)
        first = clip_index(first, n_in)
    return Samples(clip_index(first, n_in), clip_index(first + 1, n_in), 1 - fraction, fraction)


def skimage_samples(n_in: Tensor, n_out: Tensor) -> Samples:
    """Return the interpolation of scikit-image: :func:`mask_rcnn.preprocessing.resize.resize_uint8_skimage`.

    Pixels outside the image are zeros: they have the weight 0.  For the arguments, see :func:`opencv_samples`.
    """
    factor = n_in.cast(np.float64) / n_out.cast(np.float64)
    first, fraction = split_positions(factor * n_out.graph.arange(n_out).cast(np.float64) + (factor / 2 - 0.5))
    return Samples(
        clip_index(first, n_in),
        clip_index(first + 1, n_in),
        (first < 0).where(0, 1 - fraction),
        (first >= n_in - 1).where(0, fraction),
    )


def torch_samples(n_in: Tensor, n_out: Tensor) -> Samples:
    """Return the interpolation of PyTorch: :func:`mask_rcnn.preprocessing.resize.resize_torch`.

    For the arguments, see :func:`opencv_samples`.
    """
    factor = (n_in.cast(np.float32) / n_out.cast(np.float32)).cast(np.float64)
    positions = factor * (n_out.graph.arange(n_out).cast(np.float64) + 0.5) - 0.5
    first, fraction = split_positions(positions.maximum(0).cast(np.float32))
    return Samples(first, clip_index(first + 1, n_in), 1 - fraction, fraction)


def split_positions(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int64 index of the pixel at or before each position, and the distance from that pixel."""
    before = positions.graph.op('Floor', positions)
    return before.cast(np.int64), positions - before


def clip_index(indices: Tensor, length: Tensor) -> Tensor:
    """Clip int64 indices to an axis of a ``(1,)`` int64 length."""
    return indices.maximum(0).minimum(length - 1)


def resize_bilinear(image: Tensor, rows: Samples, columns: Samples, convert: Callable[[Tensor], Tensor]) -> Tensor:
    """Resize an image bilinearly: first the width, then the height.

    Args:
        image: ``(H, W, 3)`` uint8.
        rows: The interpolation of the height.
        columns: The interpolation of the width.
        convert: Converts pixels ``(h, w, 3)`` uint8 into the floats ``(3, h, w)`` that are interpolated; their dtype is
            that of the weights.

    Returns:
        ``(3, h, w)`` floats.
    """
    # Only the pixels that are used are converted: a photo has several times their number.
    lines = [image.take(indices) for indices in (rows.before, rows.after)]
    upper, lower = (
        convert(line.take(columns.before, axis=1)) * columns.weight_before
        + convert(line.take(columns.after, axis=1)) * columns.weight_after
        for line in lines
    )
    return upper * rows.weight_before.expand_dims(1) + lower * rows.weight_after.expand_dims(1)


def resize_pillow(image: Tensor, size: Tensor) -> Tensor:
    """Resize an image with antialiasing, with Pillow's bytes: :func:`mask_rcnn.preprocessing.resize_pillow`.

    The operator ``Resize`` computes the weights in single precision: of the results of ONNX Runtime, a few bytes differ
    from Pillow's by 1.

    Args:
        image: ``(H, W, 3)`` uint8.
        size: ``(2,)`` int64, height and width of the result.

    Returns:
        ``(*size, 3)`` uint8.
    """
    graph, (n_rows, n_columns) = image.graph, (image.size(0), image.size(1))
    height, width = size.slice(0, 1), size.slice(1, 2)
    first, weights = _triangle_filter(n_columns, width)
    # Each column has three channels.  The weights have the length of a row, because broadcasting along it is fast.
    per_channel = weights.expand_dims(2) * np.ones(3)
    per_channel = per_channel.reshape(weights.size(0), -1)
    lines = _sum_taps(
        weights.size(0),
        lambda k: image.take(clip_index(first + k, n_columns), axis=1).reshape(n_rows, -1),
        lambda k: per_channel.take(k),
    )
    first_row, row_weights = _triangle_filter(n_rows, height)
    pixels = _sum_taps(
        row_weights.size(0),
        lambda k: lines.take(clip_index(first_row + k, n_rows)),
        lambda k: row_weights.take(k).expand_dims(1),
    )
    return pixels.reshape(height, width, graph.constant(np.array([3])))


def _sum_taps(n_taps: Tensor, pixels: Callable[[Tensor], Tensor], weights: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the weighted sums of bytes, rounded to bytes.

    Args:
        n_taps: ``(1,)`` int64, number of pixels of each sum.
        pixels: Returns uint8 pixel ``k`` of all sums.
        weights: Returns the int32 weights of these pixels.
    """
    half = n_taps.graph.constant(np.full((1, 1), 1 << (WEIGHT_BITS - 1), np.int32))
    (sums,) = n_taps.graph.loop(
        n_taps, lambda k, total: [total + pixels(k).cast(np.int32) * weights(k)], initial=[half]
    )
    shift = n_taps.graph.constant(np.uint32(WEIGHT_BITS))
    integers = n_taps.graph.op('BitShift', sums.cast(np.uint32), shift, direction='RIGHT')
    return integers.minimum(255).cast(np.uint8)


def _triangle_filter(n_in: Tensor, n_out: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weights of :func:`mask_rcnn.ops.images.triangle_filter.triangle_filter`.

    Returns:
        tuple: ``(n_out,)`` int64, the first input pixel; and ``(max_taps, n_out)`` int32, the weights.
    """
    graph = n_in.graph
    step = n_in.cast(np.float64) / n_out.cast(np.float64)
    radius = step.maximum(1)
    centres = (graph.arange(n_out).cast(np.float64) + 0.5) * step
    first = (centres - radius + 0.5).cast(np.int64).maximum(0)
    n_taps = (centres + radius + 0.5).cast(np.int64).minimum(n_in) - first
    max_taps = graph.op('ReduceMax', n_taps, keepdims=1)
    taps = graph.arange(max_taps).expand_dims(1)
    distances = ((taps + first).cast(np.float64) - centres + 0.5) * (1 / radius)
    weights = (taps < n_taps).where((1 - graph.op('Abs', distances)).maximum(0), 0)
    # A cumulative sum adds in the order of the pixels, as Pillow does; ReduceSum does not.
    sums = graph.op('CumSum', weights, graph.constant(np.int64(0))).slice(-1)
    return first, (weights / sums * (1 << WEIGHT_BITS) + 0.5).cast(np.int32)
