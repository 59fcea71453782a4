"""Resizing of images with the arithmetic of the original programs, and their normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mask_rcnn.ops.runtime.parallel import jit, parallel_for


def resize_opencv(
    image: np.ndarray, mean: Sequence[float], scale: float, *, subtract_mean_first: bool = True
) -> np.ndarray:
    """Subtract the mean from an image and resize the image bilinearly (Detectron, DeNA).

    The result has the bits of ``cv2.resize(image - mean, None, fx=scale, fy=scale)``, or of the same with the mean
    subtracted from the result, on float32 pixels in the OpenCV versions of Detectron's time (3.x, 4.2).  Newer versions
    use interpolation weights of lower precision.  Their results differ by up to 6e-3 on the scale of 0 to 255, enough
    to swap two proposals with nearly equal scores.

    Args:
        image: ``(C, H, W)`` real array.
        mean: Mean of each of the ``C`` channels.
        scale: Factor of height and width, which are rounded to whole pixels (halves to even), at least 1.
        subtract_mean_first: Whether the mean is subtracted before the resize, in double precision (Detectron), or after
            it, in single precision (DeNA).

    Returns:
        ``(C, round(H * scale), round(W * scale))`` float32.
    """
    n_channels, height, width = image.shape
    out_height, out_width = (max(int(np.rint(side * scale)), 1) for side in (height, width))
    left, x_weights = _split(_opencv_positions(out_width, scale))
    # OpenCV moves positions beyond the first or the last column onto that column.  It clips the two row indices
    # instead and keeps their weights, which may round differently.
    outside = (left < 0) | (left >= width - 1)
    x_weights[outside] = 0
    left = np.clip(left, 0, width - 1)
    top, y_weights = _split(_opencv_positions(out_height, scale))
    out = np.empty((n_channels, out_height, out_width), np.float32)
    means = np.asarray(mean, np.float64)
    means_before = means if subtract_mean_first else np.zeros_like(means)

    def resize_rows(start: int, stop: int) -> None:
        _resize_rows(image, means_before, left, x_weights, top, y_weights, out, start, stop)

    parallel_for(resize_rows, out_height)
    if not subtract_mean_first:
        out -= means.astype(np.float32)[:, None, None]
    return out


def resize_uint8_skimage(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an integer image bilinearly and truncate the result to integers (Matterport).

    Reproduces ``transform.resize`` of scikit-image 0.17 (order 1, mode ``'constant'``, clip, no anti-aliasing) on uint8
    images, followed by a conversion to uint8.  It interpolates in double precision and treats pixels outside the image
    as zeros.  The border of an upscaled image fades to zero, but not below the minimum of the image.  An image that
    already has the requested size is not resized.

    Sample positions have the closed form ``factor * (i + 1/2) - 1/2``.  scikit-image estimates the same mapping from
    three points, so at most about 1 in 10,000 values differs from its result, by one grey level.

    Args:
        image: ``(C, H, W)`` real array.
        size: Height and width of the result.

    Returns:
        ``(C, *size)`` float32 with integer values.
    """
    if image.shape[1:] == tuple(size):
        return np.floor(image).astype(np.float32)
    out = np.empty((len(image), *size), np.float32)
    top, y_weights = _split(_centre_positions(image.shape[1], size[0]))
    left, x_weights = _split(_centre_positions(image.shape[2], size[1]))
    # One pixel of zeros on each side: positions lie between -1 and the height or width.
    padded = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    limits = float(image.min()), float(image.max())

    def resize_rows(start: int, stop: int) -> None:
        _resize_uint8_rows(padded, left + 1, x_weights, top + 1, y_weights, limits, out, start, stop)

    parallel_for(resize_rows, size[0])
    return out


def _opencv_positions(n_out: int, scale: float) -> np.ndarray:
    """Return the positions of output pixel centres in the image, rounded to float32 as in OpenCV."""
    return ((np.arange(n_out) + 0.5) * (1 / scale) - 0.5).astype(np.float32)


def _centre_positions(n_in: int, n_out: int) -> np.ndarray:
    """Return the positions of output pixel centres in the image, in double precision."""
    factor = n_in / n_out
    return factor * np.arange(n_out) + (factor / 2 - 1 / 2)


def _split(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the int64 index of the pixel at or before each position, and the distance from that pixel."""
    before = np.floor(positions)
    return before.astype(np.int64), positions - before


@jit
def _resize_rows(
    image: np.ndarray,
    mean: np.ndarray,
    left: np.ndarray,
    x_weights: np.ndarray,
    top: np.ndarray,
    y_weights: np.ndarray,
    out: np.ndarray,
    start: int,
    stop: int,
) -> None:
    height, width = image.shape[1:]
    one = np.float32(1)
    for c in range(image.shape[0]):
        for i in range(start, stop):
            upper = image[c, min(max(top[i], 0), height - 1)]
            lower = image[c, min(max(top[i] + 1, 0), height - 1)]
            b = y_weights[i]
            for j in range(len(left)):
                x0 = left[j]
                x1 = min(x0 + 1, width - 1)
                a = x_weights[j]
                # Each difference is rounded once to float32, as NumPy rounds it with Detectron's float64 means.
                u0, u1 = np.float32(upper[x0] - mean[c]), np.float32(upper[x1] - mean[c])
                v0, v1 = np.float32(lower[x0] - mean[c]), np.float32(lower[x1] - mean[c])
                u = u0 * (one - a) + u1 * a
                v = v0 * (one - a) + v1 * a
                out[c, i, j] = u * (one - b) + v * b


@jit
def _resize_uint8_rows(
    padded: np.ndarray,
    left: np.ndarray,
    x_weights: np.ndarray,
    top: np.ndarray,
    y_weights: np.ndarray,
    limits: tuple[float, float],
    out: np.ndarray,
    start: int,
    stop: int,
) -> None:
    min_value, max_value = limits
    for c in range(padded.shape[0]):
        for i in range(start, stop):
            upper, lower = padded[c, top[i]], padded[c, top[i] + 1]
            b = y_weights[i]
            for j in range(len(left)):
                x0, a = left[j], x_weights[j]
                u = (1 - a) * upper[x0] + a * upper[x0 + 1]
                v = (1 - a) * lower[x0] + a * lower[x0 + 1]
                out[c, i, j] = math.floor(min(max((1 - b) * u + b * v, min_value), max_value))
