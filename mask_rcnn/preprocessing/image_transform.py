"""Conversion of images into network inputs, and of boxes between their coordinates.

:func:`prepare_image` makes the network input for training and for prediction on the CPU, and
:func:`prepare_image_gpu` for prediction on a GPU.  They also return an :class:`ImageTransform`, which maps boxes from
the image to the input and back.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.ops.images.network_input import (
    InputLayout,
    resize_opencv_gpu,
    resize_pillow_gpu,
    resize_torch_gpu,
    resize_uint8_skimage_gpu,
)
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.transfer import upload
from mask_rcnn.preprocessing.resize import resize_opencv, resize_torch, resize_uint8_skimage
from mask_rcnn.preprocessing.resize_pillow import normalize_pixels, resize_pillow, to_bytes

#: The values of ``dialect.input.side_rounding``, for positive lengths.
_ROUNDINGS: dict[str, Callable[[float], int]] = {
    'half_even': round,
    'half_up': lambda length: math.floor(length + 0.5),
    'down': math.floor,
}


@dataclass(frozen=True)
class ImageTransform:
    """The mapping from coordinates in an image to coordinates in its network input.

    Args:
        size: Height and width of the image.
        scale: Factor by which the image is resized, before height and width are rounded to whole pixels.
        factors: Factors of box coordinates, ``(y, x)``.
        window: Centres of the resized image's corner pixels in the network input,
            ``(y_min, x_min, y_max, x_max)``.
        input_size: Height and width of the network input before it is padded to a multiple of
            ``Config.size_divisor``.  Training keeps anchors and proposals inside this area.
    """

    size: tuple[int, int]
    scale: float
    factors: tuple[float, float]
    window: tuple[float, float, float, float]
    input_size: tuple[int, int]

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width of the resized image in whole pixels."""
        top, left, bottom, right = map(int, self.window)
        return bottom - top + 1, right - left + 1

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Map boxes from the image to the network input.

        Args:
            boxes: ``(R, 4)`` floats, NumPy or CuPy, in pixels of the image.

        Returns:
            ``(R, 4)`` of the same type, in pixels of the network input.
        """
        scalar_type, mapped = boxes.dtype.type, get_array_module(boxes).empty_like(boxes)
        for axis, (factor, offset) in enumerate(zip(self.factors, self.window[:2], strict=True)):
            mapped[:, axis::2] = boxes[:, axis::2] * scalar_type(factor) + scalar_type(offset)
        return mapped

    def invert_boxes(self, boxes: np.ndarray, *, reciprocal: bool = False) -> np.ndarray:
        """Map boxes from the network input to the image: the inverse of :meth:`apply_boxes`.

        Args:
            boxes: ``(R, 4)`` floats, NumPy or CuPy, in pixels of the network input; or points ``(R, 2)``.
            reciprocal: Whether to multiply by the reciprocals of the factors, as Detectron does in training
                (``roi_data/fast_rcnn.py``), or to divide by the factors, as it does in inference
                (``core/test.py``).  The results are rounded differently.

        Returns:
            An array of the same type and shape, in pixels of the image.
        """
        scalar_type, mapped = boxes.dtype.type, get_array_module(boxes).empty_like(boxes)
        for axis, (factor, offset) in enumerate(zip(self.factors, self.window[:2], strict=True)):
            moved, factor = boxes[:, axis::2] - scalar_type(offset), scalar_type(factor)
            mapped[:, axis::2] = moved * scalar_type(1 / float(factor)) if reciprocal else moved / factor
        return mapped

    def invert_points(self, points: np.ndarray) -> np.ndarray:
        """Map points ``(..., 2)``, ``(y, x)``, from the network input to the image; see :meth:`invert_boxes`."""
        return self.invert_boxes(points.reshape(-1, 2)).reshape(points.shape)

    @classmethod
    def top_left(
        cls,
        size: tuple[int, int],
        scale: float,
        *,
        resized: tuple[int, int] | None = None,
        box_factors: str = 'scale',
    ) -> ImageTransform:
        """Return the transform of an image that is resized into the upper left corner of the input (Detectron).

        Args:
            size: Height and width of the image.
            scale: Factor by which the image is resized.
            resized: Height and width of the resized image; ``None`` for those of :func:`resized_size`.
            box_factors: Factors of box coordinates: ``'scale'``; ``'width_ratio'``, the ratio of the widths in whole
                pixels, also for ``y`` (DeNA's ``mask_rcnn.py``, ``predict``); or ``'side_ratios'``, the ratio of the
                heights and that of the widths (torchvision, detectron2).
        """
        height, width = resized_size(size, scale) if resized is None else resized
        ratios = height / size[0], width / size[1]
        factors = {'scale': (scale, scale), 'width_ratio': (ratios[1], ratios[1]), 'side_ratios': ratios}
        return cls(
            size=(size[0], size[1]),
            scale=scale,
            factors=factors[box_factors],
            window=(0.0, 0.0, height - 1.0, width - 1.0),
            input_size=(height, width),
        )

    @classmethod
    def letterbox(
        cls, size: tuple[int, int], scale: float, side: int, *, resized: tuple[int, int] | None = None
    ) -> ImageTransform:
        """Return the transform of an image that is resized and centred in a square (Matterport).

        It maps the centres of the image's corner pixels to those of the resized image's corner pixels (``model.py``,
        ``unmold_detections``).

        Args:
            size: Height and width of the image.
            scale: Factor by which the image is resized.
            side: Side of the square in pixels: at least the height and the width of the resized image.
            resized: Height and width of the resized image; ``None`` for those of :func:`resized_size`.
        """
        height, width = resized_size(size, scale) if resized is None else resized
        top, left = (side - height) // 2, (side - width) // 2
        return cls(
            size=(size[0], size[1]),
            scale=scale,
            factors=(_corner_distance_ratio(height, size[0]), _corner_distance_ratio(width, size[1])),
            window=(float(top), float(left), float(top + height - 1), float(left + width - 1)),
            input_size=(side, side),
        )


def _corner_distance_ratio(n_out: int, n_in: int) -> float:
    """Return the ratio of the distances between first and last pixel; a distance of 0 counts as 1."""
    return max(n_out - 1, 1) / max(n_in - 1, 1)


def resized_size(size: tuple[int, int], scale: float, rounding: str = 'half_even') -> tuple[int, int]:
    """Return height and width of a resized image in whole pixels, at least 1.

    Args:
        size: Height and width of the image.
        scale: Factor by which the image is resized.
        rounding: See ``dialect.input.side_rounding``.
    """
    return _round_sides((size[0] * scale, size[1] * scale), rounding)


def _round_sides(lengths: tuple[float, float], rounding: str) -> tuple[int, int]:
    height, width = (max(_ROUNDINGS[rounding](length), 1) for length in lengths)
    return height, width


def _limited_size(size: tuple[int, int], config: Config) -> tuple[int, int]:
    """Return height and width of a resized image by detectron2's steps.

    They round half-integer lengths differently from products with one factor (``data/transforms/augmentation_impl.py``,
    ``ResizeShortestEdge.get_output_shape``): the shorter side gets its exact length, and then both sides are multiplied
    by the factor of the limit.
    """
    height, width = size
    scale = config.min_size / min(size)
    lengths = (float(config.min_size), scale * width) if height < width else (scale * height, float(config.min_size))
    if max(lengths) > config.max_size:
        scale = config.max_size / max(lengths)
        lengths = lengths[0] * scale, lengths[1] * scale
    return _round_sides(lengths, config.dialect.input.side_rounding)


def input_scale(size: tuple[int, int], config: Config) -> float:
    """Return the factor by which an image is resized.

    The shorter side becomes ``config.min_size``, unless the longer side would then exceed ``config.max_size``
    (Detectron's ``detectron/utils/blob.py``, ``get_target_size``); its length is rounded before this comparison if
    ``dialect.input.round_long_side`` is set.  With ``dialect.input.upscale_only``, images whose
    shorter side exceeds ``config.min_size`` keep their size within that limit (Matterport's ``utils.resize_image``).

    Args:
        size: Height and width of the image.
        config: Limits ``min_size`` and ``max_size``, and the dialect.
    """
    shorter, longer = min(size), max(size)
    scale = config.min_size / shorter
    if config.dialect.input.upscale_only:
        scale = max(scale, 1.0)
    length = scale * longer
    if (np.round(length) if config.dialect.input.round_long_side else length) > config.max_size:
        scale = config.max_size / longer
    return float(scale)


def input_transform(size: tuple[int, int], config: Config, scale: float | None = None) -> ImageTransform:
    """Return the transform from an image to its network input.

    Args:
        size: Height and width of the image.
        config: Limits ``min_size`` and ``max_size``, and the dialect.
        scale: Factor by which the image is resized; ``None`` for that of :func:`input_scale`.
    """
    conventions = config.dialect.input
    if scale is None and conventions.side_rounding == 'half_up':
        resized = _limited_size(size, config)
    else:
        resized = resized_size(size, input_scale(size, config) if scale is None else scale, conventions.side_rounding)
    scale = input_scale(size, config) if scale is None else scale
    if conventions.letterbox:
        longer = max(resized)
        side = config.max_size if longer <= config.max_size else longer + -longer % config.size_divisor
        return ImageTransform.letterbox(size, scale, side, resized=resized)
    return ImageTransform.top_left(size, scale, resized=resized, box_factors=conventions.box_factors)


def prepare_image(
    image: np.ndarray, config: Config, *, scale: float | None = None
) -> tuple[np.ndarray, ImageTransform]:
    """Convert an image into the network input.

    Detectron (``detectron/utils/blob.py``) subtracts the mean, resizes the image (``prep_im_for_blob``), and then pads
    the input of an FPN with zeros at the bottom and on the right to a multiple of the coarsest stride
    (``im_list_to_blob``).  Matterport resizes and pads the image (``utils.resize_image``), and then subtracts the mean,
    also from the padding (``mold_image``).  DeNA's program has Detectron's steps with the mean after the resize.
    torchvision (``models/detection/transform.py``) has Detectron's steps with another resize; it divides by the
    standard deviation before it.

    detectron2 (``data/transforms/transform.py``, ``ResizeTransform``) resizes bytes, and then subtracts the mean.  An
    array of floats that are not all integers from 0 to 255 is resized as in torchvision.

    Args:
        image: ``(3, H, W)`` float32 or ``(H, W, 3)`` uint8, RGB, 0 to 255.
        config: Sizes of the input, and the dialect with the order, mean and standard deviation of the channels.
        scale: Factor by which the image is resized; ``None`` for that of :func:`input_scale`.

    Returns:
        tuple: The network input, ``(3, h, w)`` float32, and the transform from the image to it.
    """
    conventions = config.dialect.input
    image_transform = input_transform(_image_size(image), config, scale)
    pixels = to_bytes(image) if conventions.resize == 'pillow_uint8' else None
    if pixels is not None:
        x = resize_pillow(pixels, image_transform.resized)
        reverse = conventions.channel_order == 'BGR'
        x = normalize_pixels(x, conventions.pixel_mean, conventions.pixel_std, reverse=reverse)
        return _pad(x, image_transform, config.size_divisor), image_transform
    channels = image.transpose(2, 0, 1) if image.dtype == np.uint8 else image  # the resize reads few of many bytes
    if conventions.channel_order == 'BGR':
        channels = channels[::-1]
    return _resize_channels(channels, config, image_transform), image_transform


def _resize_channels(channels: np.ndarray, config: Config, image_transform: ImageTransform) -> np.ndarray:
    """Return the network input of ``(3, H, W)`` channels in the order of the network input."""
    conventions = config.dialect.input
    mean, std, mean_first = conventions.pixel_mean, conventions.pixel_std, conventions.subtract_mean_first
    if conventions.resize in ('torch_float32', 'pillow_uint8'):
        x = resize_torch(channels, image_transform.resized, mean, std, normalize_first=mean_first)
        return _pad(x, image_transform, config.size_divisor)
    if conventions.resize == 'opencv_float32':
        x = resize_opencv(
            channels, mean, image_transform.scale, size=image_transform.resized, subtract_mean_first=mean_first
        )
        x = _pad(x, image_transform, config.size_divisor)
    else:
        x = resize_uint8_skimage(channels, image_transform.resized)
        x = _pad(x, image_transform, config.size_divisor)
        # NumPy subtracts Matterport's float64 means in double precision and rounds the result once.
        np.subtract(x, np.array(mean)[:, None, None], out=x, casting='same_kind')
    if any(value != 1 for value in std):
        x /= np.array(std, np.float32)[:, None, None]
    return x


def prepare_image_gpu(image: np.ndarray, config: Config, xp: Any) -> tuple[Array, ImageTransform]:
    """Convert an image into the network input on the current GPU; the values are those of :func:`prepare_image`.

    The image is copied to the GPU as it is: the bytes of a photo are a quarter of the network input's.

    Args:
        image: ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32, RGB, 0 to 255, on the host.
        config: See :func:`prepare_image`.
        xp: CuPy.

    Returns:
        tuple: The network input, ``(1, 3, h, w)`` float32, and the transform from the image to it.

    Raises:
        ValueError: The image contains values that are not finite.
    """
    conventions = config.dialect.input
    image_transform = input_transform(_image_size(image), config)
    top, left = (int(corner) for corner in image_transform.window[:2])
    layout = InputLayout(
        size=_padded_size(image_transform, config.size_divisor),
        corner=(top, left),
        resized=image_transform.resized,
        reverse_channels=conventions.channel_order == 'BGR',
        mean=conventions.pixel_mean,
        std=conventions.pixel_std,
        subtract_mean_first=conventions.subtract_mean_first,
    )
    pixels = to_bytes(image) if conventions.resize == 'pillow_uint8' else None
    if pixels is not None:
        return resize_pillow_gpu(upload(pixels, xp), layout), image_transform
    uploaded = upload(image, xp, check_finite=image.dtype == np.float32)
    if conventions.resize == 'opencv_float32':
        return resize_opencv_gpu(uploaded, image_transform.scale, layout), image_transform
    if conventions.resize == 'skimage_uint8':
        return resize_uint8_skimage_gpu(uploaded, layout), image_transform
    return resize_torch_gpu(uploaded, layout), image_transform


def _image_size(image: np.ndarray) -> tuple[int, int]:
    """Return the height and width of ``(H, W, 3)`` uint8 or ``(3, H, W)`` float32."""
    height, width = image.shape[:2] if image.dtype == np.uint8 else image.shape[1:]
    return height, width


def _padded_size(image_transform: ImageTransform, divisor: int) -> tuple[int, int]:
    """Return the height and width of the network input, multiples of ``divisor``."""
    height, width = (side + -side % divisor for side in image_transform.input_size)
    return height, width


def _pad(x: np.ndarray, image_transform: ImageTransform, divisor: int) -> np.ndarray:
    """Zero-pad to the letterbox position and to multiples of ``divisor``."""
    top, left = (int(corner) for corner in image_transform.window[:2])
    height, width = _padded_size(image_transform, divisor)
    if (height, width) == x.shape[1:]:
        return x
    padded = np.zeros((len(x), height, width), np.float32)
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return padded
