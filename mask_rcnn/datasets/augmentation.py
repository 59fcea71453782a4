"""Random augmentation of training examples: scale jitter, crops, flips, quarter turns and colour jitter."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mask_rcnn.config import fields
from mask_rcnn.datasets.example import Annotations, Example, Segmentation
from mask_rcnn.datasets.geometry import Symmetry, Window, crop_annotations, crop_example, transform_example
from mask_rcnn.ops.masks.rle import encode_polygons
from mask_rcnn.ops.masks.rle_crops import decode_crop

# Second words of the seeds of the random streams; 1 is that of the horizontal flip and of the sampling.
_SCALE_STREAM, _CROP_STREAM, _SYMMETRY_STREAM, _COLOR_STREAM = 2, 3, 4, 5
#: Number of random windows; if none of them contains an object, the window is placed over an object.
_MAX_WINDOWS = 10
#: Limits of the scale jitter.
_MIN_SCALE, _MAX_SCALE = 0.01, 100.0
#: The hue is shifted by up to this fraction of the strength of the colour jitter, in turns of the colour circle.
_HUE_FRACTION = 0.25


def _check_scale_jitter(value: Any) -> tuple[float, float]:
    expected = 'two factors LOW <= HIGH'
    factor = fields.number(_MIN_SCALE, _MAX_SCALE, expected)
    low, high = fields.sequence(factor, expected, min_length=2, max_length=2)(value)
    if low > high:
        raise ValueError(expected)
    return float(low), float(high)


_CHECKS = {
    **dict.fromkeys(('flip', 'vertical_flip', 'quarter_turns'), fields.boolean),
    'scale_jitter': _check_scale_jitter,
    'crop': fields.optional(fields.integer(1)),
    'color_jitter': fields.number(0, 1, 'a number from 0 to 1'),
}


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training examples.  By default, images are flipped horizontally, as in Detectron.

    Every change depends on the seed of the example only.

    Args:
        flip: Flip images horizontally with a probability of 1/2 (Detectron's formula).
        vertical_flip: Flip images vertically with a probability of 1/2.
        quarter_turns: Rotate images by 0, 90, 180 or 270 degrees.
        scale_jitter: Lowest and highest factor of the size of the network input; its logarithm is uniform.
        crop: Maximum height and width in pixels of a random window of the resized image; ``None`` for whole images.  A
            window contains an object if the image has one.
        color_jitter: Strength of the changes of brightness, contrast, saturation and hue; see :func:`jitter_colors`.

    Raises:
        ValueError: A value is out of range.
    """

    flip: bool = True
    vertical_flip: bool = False
    quarter_turns: bool = False
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    crop: int | None = None
    color_jitter: float = 0.0

    def __post_init__(self) -> None:
        fields.check_fields(self, _CHECKS)

    def draw_scale(self, seed: int) -> float:
        """Return the factor of the size of the network input for one example."""
        low, high = self.scale_jitter
        if low == high:
            return low
        return float(np.exp(_rng(seed, _SCALE_STREAM).uniform(np.log(low), np.log(high))))

    def draw_symmetry(self, seed: int) -> Symmetry:
        """Return the vertical flip or the rotation of one example."""
        rng = _rng(seed, _SYMMETRY_STREAM)
        n_turns = int(rng.randint(4)) if self.quarter_turns else 0
        turned = Symmetry.quarter_turns(n_turns)
        if self.vertical_flip and rng.rand() < 0.5:
            return Symmetry(turned.transpose, not turned.flip_y, turned.flip_x)
        return turned

    def change_pixels_and_geometry(self, example: Example, scale: float, seed: int) -> Example:
        """Apply everything but the scale and the horizontal flip.

        Args:
            example: The example; its objects are those that are used for training.
            scale: Factor by which the example will be resized, which determines the size of the window in the image.
            seed: Seed of the example.
        """
        if self.crop is not None:
            window = draw_window(example, max(int(self.crop / scale), 1), _rng(seed, _CROP_STREAM))
            if window is not None:
                example = crop_example(example, window)
        symmetry = self.draw_symmetry(seed)
        if symmetry != Symmetry():
            example = transform_example(example, symmetry)
        if self.color_jitter:
            example = _jitter_example(example, self.color_jitter, _rng(seed, _COLOR_STREAM))
        return example


def draw_window(example: Example, side: int, rng: np.random.RandomState) -> Window | None:
    """Draw a random window that contains a part of an object other than a crowd region, if the image has one.

    Args:
        example: The example.
        side: Height and width of the window; a side of the image that is shorter is not cropped.
        rng: The random numbers.

    Returns:
        Window or None: ``None`` if the image is not larger than the window.
    """
    size = example.image.shape[1:]
    height, width = (min(side, n) for n in size)
    if (height, width) == size:
        return None
    boxes = example.annotations.boxes[~example.annotations.crowd]
    for _ in range(_MAX_WINDOWS):
        window = Window(rng.randint(size[0] - height + 1), rng.randint(size[1] - width + 1), height, width)
        if not len(boxes) or _has_object(example.annotations, window):
            return window
    i = int(np.flatnonzero(~example.annotations.crowd)[rng.randint(len(boxes))])
    box = example.annotations.boxes[i]
    window = _place_window((box[:2] + box[2:] + 1) / 2, (height, width), size, rng)
    if _has_object(example.annotations, window):
        return window
    # The centre of a box is not always a pixel of its object.
    pixels = _object_pixels(example.annotations.segmentations[i], size)
    return _place_window(pixels[rng.randint(len(pixels))] + 0.5, (height, width), size, rng) if len(pixels) else window


def _place_window(
    point: np.ndarray, window_size: tuple[int, int], size: tuple[int, int], rng: np.random.RandomState
) -> Window:
    """Return a window of which a point ``y, x`` is in the middle half of each side, as far as the image allows it."""
    top, left = (
        int(np.clip(round(float(middle) - rng.uniform(0.25, 0.75) * n), 0, total - n))
        for middle, n, total in zip(point, window_size, size, strict=True)
    )
    return Window(top, left, *window_size)


def _object_pixels(segmentation: Segmentation, size: tuple[int, int]) -> np.ndarray:
    """Return the pixels of an object in an image, ``(K, 2)`` of ``y, x``."""
    if not segmentation:
        return np.zeros((0, 2), int)
    rle = segmentation if isinstance(segmentation, dict) else encode_polygons(segmentation, size)
    crop, top, left = decode_crop(rle)
    return np.argwhere(crop) + (top, left)


def _has_object(annotations: Annotations, window: Window) -> bool:
    boxes, first = annotations.boxes, np.array([window.top, window.left])
    last = first + (window.height - 1, window.width - 1)
    touches = ((boxes[:, :2] <= last) & (boxes[:, 2:] >= first)).all(axis=1) & ~annotations.crowd
    return bool(touches.any()) and len(crop_annotations(annotations.select(touches), window)) > 0


def _jitter_example(example: Example, strength: float, rng: np.random.RandomState) -> Example:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    hue = rng.uniform(-strength, strength) * _HUE_FRACTION
    return dataclasses.replace(example, image=jitter_colors(example.image, brightness, contrast, saturation, hue))


def jitter_colors(image: np.ndarray, brightness: float, contrast: float, saturation: float, hue: float) -> np.ndarray:
    """Change the colours of an image, as torchvision's ``ColorJitter`` in the order of its arguments.

    Args:
        image: ``(3, H, W)`` float32, RGB, 0 to 255.
        brightness: Factor of all values.
        contrast: Factor of the distance from the mean luma of the image.
        saturation: Factor of the distance from the luma of each pixel.
        hue: Turns of the colour circle, from -0.5 to 0.5.

    Returns:
        numpy.ndarray: ``(3, H, W)`` float32, 0 to 255.
    """
    image = np.clip(image * np.float32(brightness), 0, 255)
    mean = np.float32(_luma(image).mean(dtype=np.float64))
    image = np.clip(mean + np.float32(contrast) * (image - mean), 0, 255)
    luma = _luma(image)
    image = np.clip(luma + np.float32(saturation) * (image - luma), 0, 255)
    if hue == 0 or ((image[0] == image[1]).all() and (image[1] == image[2]).all()):
        return image
    hsv = cv2.cvtColor(np.ascontiguousarray(image.transpose(1, 2, 0)), cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + np.float32(360 * hue)) % 360
    return np.ascontiguousarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).transpose(2, 0, 1))


def _luma(image: np.ndarray) -> np.ndarray:
    """Return the luma of RGB values (ITU-R BT.601), ``(H, W)``."""
    red, green, blue = image
    return np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue


def _rng(seed: int, stream: int) -> np.random.RandomState:
    return np.random.RandomState([seed, stream])
