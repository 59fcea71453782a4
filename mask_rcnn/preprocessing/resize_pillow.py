"""Resizing of bytes with the arithmetic of Pillow, and their normalisation (detectron2).

:func:`resize_pillow` returns the bytes of Pillow in half of Pillow's time on one CPU, and uses all CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mask_rcnn.ops.images.triangle_filter import WEIGHT_BITS, triangle_filter
from mask_rcnn.ops.runtime.parallel import jit, parallel_for

#: Half of the unit of a result, which rounds a sum to the nearest integer.
_HALF = 1 << (WEIGHT_BITS - 1)


def resize_pillow(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture bilinearly with antialiasing.

    The result has the bytes of ``PIL.Image.resize((width, height), BILINEAR)``: the width is resized before the height,
    and both passes round to bytes.  Pillow 12.1 and older versions, with which detectron2's models were made, always
    have this order.  Pillow 12.2 and 12.3 resize the height first if it is reduced and exceeds 100 times the width, and
    Pillow 13.0 if it is reduced by more than twice as many pixels as the width; bytes can then differ by 1.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        size: Height and width of the result.

    Returns:
        ``(*size, 3)`` uint8.
    """
    if pixels.shape[1] != size[1]:
        pixels = _resize_width(np.ascontiguousarray(pixels), size[1])
    if pixels.shape[0] != size[0]:
        pixels = _resize_height(np.ascontiguousarray(pixels), size[0])
    return pixels


def to_bytes(image: np.ndarray) -> np.ndarray | None:
    """Return an image as a picture of bytes, or ``None`` if other values than the integers from 0 to 255 occur.

    Args:
        image: ``(3, H, W)`` float32, or ``(H, W, 3)`` uint8, which is returned unchanged.

    Returns:
        ``(H, W, 3)`` uint8, or ``None``.
    """
    if image.dtype == np.uint8:
        return image
    image = np.ascontiguousarray(image)
    pixels = np.empty((*image.shape[1:], 3), np.uint8)
    results: list[bool] = []
    parallel_for(lambda start, stop: results.append(_convert_rows(image, pixels, start, stop)), len(pixels))
    return pixels if all(results) else None


def normalize_pixels(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], *, reverse: bool) -> np.ndarray:
    """Subtract the mean from a picture and divide it by the standard deviation, in single precision.

    Args:
        pixels: ``(H, W, 3)`` uint8.
        mean: Mean of each channel of the result.
        std: Standard deviation of each channel of the result.
        reverse: Whether the result has the channels in the reverse order of the picture.

    Returns:
        ``(3, H, W)`` float32.
    """
    pixels = np.ascontiguousarray(pixels)
    out = np.empty((3, *pixels.shape[:2]), np.float32)
    # The result of each byte, for each channel of the result.
    means, stds = (np.array(values, np.float32)[:, None] for values in (mean, std))
    table = (np.arange(256, dtype=np.float32) - means) / stds
    channels = np.array([2, 1, 0] if reverse else [0, 1, 2])
    parallel_for(lambda start, stop: _look_up_rows(pixels, table, channels, out, start, stop), len(pixels))
    return out


def _resize_width(pixels: np.ndarray, width: int) -> np.ndarray:
    out = np.empty((len(pixels), width, 3), np.uint8)
    weights = triangle_filter(pixels.shape[1], width)
    parallel_for(lambda start, stop: _resize_width_of_rows(pixels, *weights, out, start, stop), len(pixels))
    return out


def _resize_height(pixels: np.ndarray, height: int) -> np.ndarray:
    out = np.empty((height, pixels.shape[1] * 3), np.uint8)
    weights, rows = triangle_filter(len(pixels), height), pixels.reshape(len(pixels), -1)
    parallel_for(lambda start, stop: _resize_height_to_rows(rows, *weights, out, start, stop), height)
    return out.reshape(height, -1, 3)


@jit
def _resize_width_of_rows(
    pixels: np.ndarray,
    first: np.ndarray,
    n_taps: np.ndarray,
    weights: np.ndarray,
    out: np.ndarray,
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        for j in range(len(first)):
            red = green = blue = np.int32(_HALF)
            for k in range(n_taps[j]):
                weight, x = weights[j, k], first[j] + k
                red += pixels[i, x, 0] * weight
                green += pixels[i, x, 1] * weight
                blue += pixels[i, x, 2] * weight
            out[i, j, 0] = min(red >> WEIGHT_BITS, 255)
            out[i, j, 1] = min(green >> WEIGHT_BITS, 255)
            out[i, j, 2] = min(blue >> WEIGHT_BITS, 255)


@jit
def _resize_height_to_rows(
    rows: np.ndarray, first: np.ndarray, n_taps: np.ndarray, weights: np.ndarray, out: np.ndarray, start: int, stop: int
) -> None:
    sums = np.empty(rows.shape[1], np.int32)
    for i in range(start, stop):
        sums[:] = _HALF
        for k in range(n_taps[i]):
            weight, row = weights[i, k], rows[first[i] + k]
            for j in range(len(sums)):
                sums[j] += row[j] * weight
        for j in range(len(sums)):
            out[i, j] = min(sums[j] >> WEIGHT_BITS, 255)


@jit
def _convert_rows(image: np.ndarray, pixels: np.ndarray, start: int, stop: int) -> bool:
    """Convert ``(3, H, W)`` floats to bytes and return whether all are integers from 0 to 255."""
    for i in range(start, stop):
        for c in range(3):
            row = image[c, i]
            for j in range(len(row)):
                value = row[j]
                if not (value >= 0 and value <= 255):
                    return False
                byte = np.uint8(value)
                if byte != value:
                    return False
                pixels[i, j, c] = byte
    return True


@jit
def _look_up_rows(
    pixels: np.ndarray, table: np.ndarray, channels: np.ndarray, out: np.ndarray, start: int, stop: int
) -> None:
    for i in range(start, stop):
        for c in range(3):
            channel, values = channels[c], table[c]
            for j in range(pixels.shape[1]):
                out[c, i, j] = values[pixels[i, j, channel]]
