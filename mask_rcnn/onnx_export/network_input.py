"""Conversion of images into network inputs in ONNX graphs: :mod:`mask_rcnn.preprocessing.image_transform`."""

from __future__ import annotations

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.config.conventions import InputConventions
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor
from mask_rcnn.onnx_export.resize import opencv_samples, resize_bilinear, resize_pillow, skimage_samples, torch_samples
from mask_rcnn.onnx_export.transform import GraphTransform


def prepare_image(graph: GraphBuilder, image: Tensor, config: Config) -> tuple[Tensor, GraphTransform]:
    """Convert an image into the network input: :func:`mask_rcnn.preprocessing.image_transform.prepare_image`.

    Args:
        graph: The graph.
        image: ``(H, W, 3)`` uint8, RGB.
        config: Sizes of the input, and the dialect with the order, mean and standard deviation of the channels.

    Returns:
        tuple: The network input, ``(1, 3, h, w)`` float32, and the transform from the image to it.
    """
    with graph.scope('network_input'):
        transform = input_transform(graph, image.shape().slice(0, 2), config)
        resize = {
            'opencv_float32': _resize_opencv,
            'torch_float32': _resize_torch,
            'skimage_uint8': _resize_skimage,
            'pillow_uint8': _resize_pillow,
        }
        x = resize[config.dialect.input.resize](image, transform, config.dialect.input)
        return x.expand_dims(0), transform


def input_transform(graph: GraphBuilder, size: Tensor, config: Config) -> GraphTransform:
    """Return the transform from an image to its network input.

    Args:
        graph: The graph.
        size: ``(2,)`` int64, height and width of the image.
        config: Limits ``min_size`` and ``max_size``, and the dialect.
    """
    conventions = config.dialect.input
    sides = size.cast(np.float64)
    scale = _input_scale(sides, config)
    lengths = _limited_lengths(sides, config) if conventions.side_rounding == 'half_up' else sides * scale
    resized = _round(lengths, conventions.side_rounding).maximum(1)
    divisor = config.size_divisor
    if not conventions.letterbox:
        factors = {
            'scale': lambda: graph.concat([scale.reshape(1)] * 2),
            'width_ratio': lambda: (resized.cast(np.float64) / sides).take([1, 1]),
            'side_ratios': lambda: resized.cast(np.float64) / sides,
        }[conventions.box_factors]()
        origin = graph.constant(np.zeros(2, np.int64))
        return GraphTransform(size, scale, factors, origin, resized, _round_up(resized, divisor))
    longer = graph.op('ReduceMax', resized, keepdims=1)
    side = (longer <= config.max_size).where(config.max_size, _round_up(longer, divisor))
    padded = graph.concat([_round_up(side, divisor)] * 2)
    distances = [(lengths - 1).maximum(1).cast(np.float64) for lengths in (resized, size)]
    return GraphTransform(size, scale, distances[0] / distances[1], (side - resized) / 2, resized, padded)


def _input_scale(sides: Tensor, config: Config) -> Tensor:
    """Return the factor by which an image is resized, a scalar: ``image_transform.input_scale``.

    Args:
        sides: ``(2,)`` float64, height and width of the image.
        config: Limits ``min_size`` and ``max_size``, and the dialect.
    """
    conventions = config.dialect.input
    shorter, longer = (sides.graph.op(op_type, sides, keepdims=0) for op_type in ('ReduceMin', 'ReduceMax'))
    scale = config.min_size / shorter
    if conventions.upscale_only:
        scale = scale.maximum(1)
    length = scale * longer
    if conventions.round_long_side:
        length = sides.graph.op('Round', length)
    return (length > config.max_size).where(config.max_size / longer, scale)


def _limited_lengths(sides: Tensor, config: Config) -> Tensor:
    """Return the height and width of a resized image by detectron2's steps, ``(2,)`` float64, before the rounding.

    For the arguments, see :func:`_input_scale`; for the steps, ``image_transform._limited_size``.
    """
    reduce = sides.graph.op
    shorter = reduce('ReduceMin', sides, keepdims=1)
    lengths = sides.equal(shorter).where(config.min_size, config.min_size / shorter * sides)
    longer = reduce('ReduceMax', lengths, keepdims=1)
    return (longer > config.max_size).where(lengths * (config.max_size / longer), lengths)


def _round(lengths: Tensor, rounding: str) -> Tensor:
    """Return float64 lengths in whole pixels, int64; see ``dialect.input.side_rounding``."""
    if rounding == 'half_even':
        return lengths.graph.op('Round', lengths).cast(np.int64)
    return lengths.graph.op('Floor', lengths + 0.5 if rounding == 'half_up' else lengths).cast(np.int64)


def _round_up(lengths: Tensor, divisor: int) -> Tensor:
    """Return int64 lengths, rounded up to multiples of ``divisor``."""
    return (lengths + (divisor - 1)) / divisor * divisor


def _resize_opencv(image: Tensor, transform: GraphTransform, conventions: InputConventions) -> Tensor:
    height, width = (image.size(axis) for axis in (0, 1))
    rows = opencv_samples(height, transform.resized.slice(0, 1), transform.scale, is_column=False)
    columns = opencv_samples(width, transform.resized.slice(1, 2), transform.scale, is_column=True)
    means = _per_channel(conventions.pixel_mean)

    def subtract_mean(pixels: Tensor) -> Tensor:
        channels = _channels(pixels, conventions)
        if not conventions.subtract_mean_first:
            return channels.cast(np.float32)
        return (channels.cast(np.float64) - means).cast(np.float32)

    x = resize_bilinear(image, rows, columns, subtract_mean)
    if not conventions.subtract_mean_first:
        x = x - means
    return _divide_by_std(_pad(x, transform), conventions)


def _resize_torch(image: Tensor, transform: GraphTransform, conventions: InputConventions) -> Tensor:
    rows, columns = (torch_samples(image.size(axis), transform.resized.slice(axis, axis + 1)) for axis in (0, 1))

    def convert(pixels: Tensor) -> Tensor:
        channels = _channels(pixels, conventions).cast(np.float32)
        return _normalize(channels, conventions) if conventions.subtract_mean_first else channels

    x = resize_bilinear(image, rows, columns, convert)
    return _pad(x if conventions.subtract_mean_first else _normalize(x, conventions), transform)


def _resize_skimage(image: Tensor, transform: GraphTransform, conventions: InputConventions) -> Tensor:
    rows, columns = (skimage_samples(image.size(axis), transform.resized.slice(axis, axis + 1)) for axis in (0, 1))
    x = resize_bilinear(image, rows, columns, lambda pixels: _channels(pixels, conventions).cast(np.float64))
    low, high = (image.graph.op(op_type, image, keepdims=0) for op_type in ('ReduceMin', 'ReduceMax'))
    x = image.graph.op('Floor', x.maximum(low.cast(np.float64)).minimum(high.cast(np.float64)))
    x = (_pad(x, transform) - _per_channel(conventions.pixel_mean)).cast(np.float32)
    return _divide_by_std(x, conventions)


def _resize_pillow(image: Tensor, transform: GraphTransform, conventions: InputConventions) -> Tensor:
    channels = _channels(resize_pillow(image, transform.resized), conventions).cast(np.float32)
    return _pad(_normalize(channels, conventions), transform)


def _channels(pixels: Tensor, conventions: InputConventions) -> Tensor:
    """Return ``(3, h, w)`` channels in the order of the network input for ``(h, w, 3)`` RGB."""
    channels = pixels.transpose(2, 0, 1)
    return channels.take([2, 1, 0]) if conventions.channel_order == 'BGR' else channels


def _per_channel(values: tuple[float, ...]) -> np.ndarray:
    return np.array(values)[:, None, None]


def _normalize(x: Tensor, conventions: InputConventions) -> Tensor:
    """Subtract the mean and divide by the standard deviation, in single precision."""
    return (x - _per_channel(conventions.pixel_mean)) / _per_channel(conventions.pixel_std)


def _divide_by_std(x: Tensor, conventions: InputConventions) -> Tensor:
    return x / _per_channel(conventions.pixel_std) if any(std != 1 for std in conventions.pixel_std) else x


def _pad(x: Tensor, transform: GraphTransform) -> Tensor:
    """Zero-pad ``(3, h, w)`` to the size of the network input."""
    zero = x.graph.constant(np.zeros(1, np.int64))
    after = transform.padded - transform.resized - transform.origin
    return x.graph.op('Pad', x, x.graph.concat([zero, transform.origin, zero, after]))
