"""RoI pooling in ONNX graphs: RoIAlign, RoI max pooling and crop-and-resize, from one feature map or a pyramid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from mask_rcnn.models.roi_pooling import CANONICAL_LEVEL, RoIPooling
from mask_rcnn.onnx_export.graph import Tensor


def pool_rois(features: Sequence[Tensor], rois: Tensor, pooling: RoIPooling) -> Tensor:
    """Return the features of RoIs, ``(R, C, bins, bins)`` float32.

    Args:
        features: The extractor's feature maps, ``(1, C, H, W)`` float32, from the finest level.
        rois: ``(R, 4)`` float32 boxes ``(y_min, x_min, y_max, x_max)`` in the network input.
        pooling: The pooling of the network's head.
    """
    features = features[: len(pooling.strides)]
    if len(features) == 1:
        return _pool(features[0], rois, pooling, pooling.strides[0])
    graph, levels = rois.graph, assign_levels(features[0], rois, pooling)
    pooled, order = [], []
    for level, (feature_map, stride) in enumerate(zip(features, pooling.strides, strict=True)):
        with graph.scope(f'level{level}'):
            indices = graph.op('NonZero', levels.equal(level), dtype=np.int64).reshape(-1)
            pooled.append(_pool(feature_map, rois.take(indices), pooling, stride))
            order.append(indices)
    with graph.scope('order'):
        joined_order = graph.concat(order)
        positions = graph.arange(rois.size(0))
        inverse = graph.op('ScatterElements', positions, joined_order, positions, axis=0)
        return graph.concat(pooled).take(inverse)


def assign_levels(finest: Tensor, rois: Tensor, pooling: RoIPooling) -> Tensor:
    """Return the index of each RoI's level, ``(R,)`` float32; see :meth:`RoIPooling.levels`.

    Args:
        finest: The finest feature map, ``(1, C, H, W)``.
        rois: ``(R, 4)`` float32 boxes in the network input.
        pooling: The pooling of the network's head.
    """
    graph, conventions, boxes = rois.graph, pooling.config.dialect.rois, pooling.config.dialect.boxes
    with graph.scope('levels'):
        n_locations = (finest.size(2) * finest.size(3)).cast(np.float64)
        side = graph.op('Sqrt', n_locations) * pooling.strides[0]
        canonical_size = (pooling.config.roi_canonical_size * (side - (boxes.clip_offset - boxes.offset))) / side
        sides = rois.slice(2, axis=1) - rois.slice(0, 2, axis=1) + boxes.offset
        # Degenerate RoIs, whose product may be negative, get the first level.
        areas = (sides.take(0, axis=1) * sides.take(1, axis=1)).maximum(0)
        relative = graph.op('Sqrt', areas) / canonical_size.cast(np.float32) + conventions.level_epsilon
        # NumPy's logarithm in float32 is that of float64, rounded; ONNX has the natural one only.
        logarithms = (graph.op('Log', relative.cast(np.float64)) / math.log(2)).cast(np.float32)
        levels = CANONICAL_LEVEL + logarithms + conventions.level_bias
        levels = graph.op('Round' if conventions.level_rounding == 'nearest' else 'Floor', levels)
        return (levels - math.log2(pooling.strides[0])).maximum(0).minimum(len(pooling.strides) - 1)


def _pool(feature_map: Tensor, rois: Tensor, pooling: RoIPooling, stride: int) -> Tensor:
    """Pool RoIs from one feature map."""
    if pooling.config.dialect.rois.op == 'crop_and_resize':
        return crop_and_resize(feature_map, rois, pooling.roi_size, stride)
    pool = roi_align if pooling.config.roi_align else roi_max_pooling
    pooled = pool(feature_map, rois, pooling, stride)
    step = pooling.bin_step
    return pooled if step == 1 else pooled.slice(0, axis=2, step=step).slice(0, axis=3, step=step)


def roi_align(feature_map: Tensor, rois: Tensor, pooling: RoIPooling, stride: int) -> Tensor:
    """Return the means of bilinear samples in all bins, also in those that ``pooling.bin_step`` leaves out.

    ONNX's operator has the arithmetic of Caffe2's, as :func:`mask_rcnn.ops.roi.roi_align.roi_align` does.

    Args:
        feature_map: ``(1, C, H, W)`` float32.
        rois: ``(R, 4)`` float32 boxes in the network input.
        pooling: The pooling of the network's head.
        stride: Input pixels per location of the feature map.
    """
    aligned = pooling.config.dialect.rois.aligned
    return rois.graph.op(
        'RoiAlign',
        feature_map,
        rois.take([1, 0, 3, 2], axis=1),
        _zeros(rois.size(0)),
        output_height=pooling.roi_size,
        output_width=pooling.roi_size,
        spatial_scale=1 / stride,
        sampling_ratio=pooling.config.sampling_ratio,
        coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel',
    )


def _zeros(count: Tensor) -> Tensor:
    """Return the index of the image of each RoI, ``(R,)`` int64."""
    return count.graph.op('Expand', count.like([0]), count)


def roi_max_pooling(feature_map: Tensor, rois: Tensor, pooling: RoIPooling, stride: int) -> Tensor:
    """Return the maxima in all bins; see :func:`roi_align` for the arguments.

    ONNX's operator has the arithmetic of Caffe2's.
    """
    graph = rois.graph
    indices = _zeros(rois.size(0)).cast(np.float32).expand_dims(1)
    indexed_rois = graph.concat([indices, rois.take([1, 0, 3, 2], axis=1)], axis=1)
    size = [pooling.roi_size] * 2
    return graph.op('MaxRoiPool', feature_map, indexed_rois, pooled_shape=size, spatial_scale=1 / stride)


def crop_and_resize(feature_map: Tensor, rois: Tensor, n_bins: int, stride: int) -> Tensor:
    """Sample each RoI at the points of a grid, with the order of operations of TensorFlow's operator.

    See :func:`mask_rcnn.ops.roi.crop_and_resize.crop_and_resize`.  ``GridSample`` would round the positions again.

    Args:
        feature_map: ``(1, C, H, W)`` float32.
        rois: ``(R, 4)`` float32 boxes in the network input.
        n_bins: Height and width of the grid.
        stride: Input pixels per location of the feature map.
    """
    height, width = feature_map.size(2), feature_map.size(3)
    pixels = feature_map.squeeze(0).transpose(1, 2, 0).reshape(height * width, feature_map.size(1))
    (top, bottom, fy), (left, right, fx) = (
        _sample_points(rois, axis, side, n_bins, stride) for axis, side in enumerate((height, width))
    )
    rows = {name: y.expand_dims(2) * width for name, y in (('top', top), ('bottom', bottom))}
    columns = {name: x.expand_dims(1) for name, x in (('left', left), ('right', right))}

    def interpolate(row: str) -> Tensor:
        """Interpolate along ``x`` in a row: ``(R, bins, bins, C)``."""
        first, last = (pixels.take((rows[row] + columns[name]).maximum(0)) for name in ('left', 'right'))
        return first + (last - first) * fx.expand_dims(1, 3)

    upper, lower = interpolate('top'), interpolate('bottom')
    samples = upper + (lower - upper) * fy.expand_dims(2, 3)
    is_inside = (top >= 0).expand_dims(2, 3) & (left >= 0).expand_dims(1, 3)
    return is_inside.where(samples, 0).transpose(0, 3, 1, 2)


def _sample_points(rois: Tensor, axis: int, side: Tensor, n_bins: int, stride: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the sample points of RoIs along an axis of ``side`` locations.

    Returns:
        tuple: The locations before and after each point, ``(R, bins)`` int64, negative outside of the map, and the
        weight of the second one, ``(R, bins)`` float32.
    """
    last = (side - 1).cast(np.float32)
    last_pixel = (side * stride - 1).cast(np.float32)
    low, high = (rois.slice(i, i + 1, axis=1) / last_pixel for i in (axis, axis + 2))
    if n_bins == 1:
        position = 0.5 * (low + high) * last
    else:
        step = (high - low) * last / (n_bins - 1)
        position = low * last + step.like(np.arange(n_bins)) * step
    is_inside = (position >= 0) & (position <= last)
    position = is_inside.where(position, -1)
    first = rois.graph.op('Floor', position)
    index = first.cast(np.int64)
    return index, (index + 1).minimum(side - 1), position - first


def run_in_chunks(head: Callable[..., Sequence[Tensor]], chunk_size: int, rois: Tensor, *rows: Tensor) -> list[Tensor]:
    """Run a head on the RoIs of an image in a loop, so that memory does not depend on their number.

    All chunks have the same size, at most ``chunk_size``; the last one is padded with zeros.  There is at least one
    chunk, because runtimes disagree on loops without iterations.

    Args:
        head: Called with a chunk of each of the tensors; returns tensors with as many rows.
        chunk_size: Maximum number of RoIs of a chunk.
        rois: ``(R, 4)`` float32 boxes in the network input.
        *rows: Other tensors with ``R`` rows.

    Returns:
        list: The head's outputs, with ``R`` rows.
    """
    graph, n_rois = rois.graph, rois.size(0)
    with graph.scope('chunks'):
        n_chunks = ((n_rois + (chunk_size - 1)) / chunk_size).maximum(1)
        size = ((n_rois + (n_chunks - 1)) / n_chunks).maximum(1)
        padded = [_pad_rows(tensor, n_chunks * size) for tensor in (rois, *rows)]

    def run(iteration: Tensor) -> Sequence[Tensor]:
        start = iteration.reshape(1) * size
        return head(*(tensor.slice(start, start + size) for tensor in padded))

    outputs = graph.loop(n_chunks, run)
    with graph.scope('chunks'):
        return [_join_chunks(output).slice(0, n_rois) for output in outputs]


def _pad_rows(x: Tensor, length: Tensor) -> Tensor:
    """Append rows of zeros, so that a tensor has ``length`` rows."""
    graph = x.graph
    n_rows = graph.concat([length.like([0]), length - x.size(0)])
    return graph.op('Pad', x, n_rows, None, graph.constant(np.array([0], np.int64)))


def _join_chunks(x: Tensor) -> Tensor:
    """Reshape ``(chunks, rows, ...)`` to ``(chunks * rows, ...)``."""
    graph = x.graph
    return graph.op('Reshape', x, graph.concat([graph.constant(np.array([-1], np.int64)), x.shape().slice(2)]))
