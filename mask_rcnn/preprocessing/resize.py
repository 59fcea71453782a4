"""Resizing of images with the arithmetic of the original programs, and their normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mask_rcnn.ops.runtime.parallel import jit, parallel_for


def resize_opencv(
    image: np.ndarray,
    mean: Sequence[float],
    scale: float,
    *,
    size: tuple[int, int] | None = None,
    subtract_mean_first: bool = True,
) -> np.ndarray:
    """Subtract the mean from an image and resize the image bilinearly (Detectron, DeNA).

    The result has the bits of ``cv2.resize(image - mean, None, fx=scale, fy=scale)``, or of the same with the mean
    subtracted from the result, on float32 pixels in the OpenCV versions of Detectron's time (3.x, 4.2).  Newer versions
    use interpolation weights of lower precision.  Their results differ by up to 6e-3 on the scale of 0 to 255, enough
    to swap two proposals with nearly equal scores.

    Args:
        image: ``(C, H, W)`` real array.
        mean: Mean of each of the ``C`` channels.
        scale: Factor of height and width.
        size: Height and width of the result; ``None`` for those of OpenCV, which are rounded to whole pixels (halves to
            even), at least 1.
        subtract_mean_first: Whether the mean is subtracted before the resize, in double precision (Detectron), or after
            it, in single precision (DeNA).

    Returns:
        ``(C, *size)`` float32.
    """
    n_channels, height, width = image.shape
    out_height, out_width = size or (max(int(np.rint(side * scale)), 1) for side in (height, width))
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


def resize_torch(
    image: np.ndarray,
    size: tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    normalize_first: bool = True,
) -> np.ndarray:
    """Normalise an image and resize it bilinearly, without antialiasing (torchvision).

    The resize is that of ``torch.nn.functional.interpolate`` on a CPU (``mode='bilinear'``, ``align_corners=False``,
    the factors of height and width recomputed from the sizes), in single precision.

    Args:
        image: ``(C, H, W)`` real array.
        size: Height and width of the result.
        mean: Mean of each of the ``C`` channels.
        std: Standard deviation of each of the ``C`` channels.
        normalize_first: Whether the image is normalised before the resize (torchvision), or after it (detectron2, for
            arrays of floats).

    Returns:
        ``(C, *size)`` float32.
    """
    means, stds = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    left, x_weights = _split(_torch_positions(image.shape[2], size[1]))
    top, y_weights = _split(_torch_positions(image.shape[1], size[0]))
    before = (means, stds) if normalize_first else (np.zeros_like(means), np.ones_like(stds))
    out = np.empty((len(image), *size), np.float32)

    def resize_rows(start: int, stop: int) -> None:
        _resize_line_by_line(image, *before, left, x_weights, top, y_weights, out, start, stop)

    parallel_for(resize_rows, size[0])
    if not normalize_first:
        out -= means[:, None, None]
        out /= stds[:, None, None]
    return out


def _opencv_positions(n_out: int, scale: float) -> np.ndarray:
    """Return the positions of output pixel centres in the image, rounded to float32 as in OpenCV."""
    return ((np.arange(n_out) + 0.5) * (1 / scale) - 0.5).astype(np.float32)


def _centre_positions(n_in: int, n_out: int) -> np.ndarray:
    """Return the positions of output pixel centres in the image, in double precision."""
    factor = n_in / n_out
    return factor * np.arange(n_out) + (factor / 2 - 1 / 2)


def _torch_positions(n_in: int, n_out: int) -> np.ndarray:
    """Return the positions of output pixel centres in the image, rounded to float32 as in PyTorch.

    PyTorch's float32 product is part of a fused multiply-add; it is exact in double precision.
    """
    factor = np.float32(n_in) / np.float32(n_out)
    return np.maximum(np.float64(factor) * (np.arange(n_out) + 0.5) - 0.5, 0).astype(np.float32)


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


@jit
def _resize_line_by_line(
    image: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    left: np.ndarray,
    x_weights: np.ndarray,
    top: np.ndarray,
    y_weights: np.ndarray,
    out: np.ndarray,
    start: int,
    stop: int,
) -> None:
    height, n_columns = image.shape[1], len(left)
    one = np.float32(1)
    for c in range(image.shape[0]):
        upper, lower = np.empty(n_columns, np.float32), np.empty(n_columns, np.float32)
        row = -2  # the row of the image in `upper`; `lower` contains the next one
        for i in range(start, stop):
            if top[i] != row:
                if top[i] == row + 1:
                    upper, lower = lower, upper
                else:
                    _resize_line(image[c, top[i]], mean[c], std[c], left, x_weights, upper)
                row = top[i]
                _resize_line(image[c, min(row + 1, height - 1)], mean[c], std[c], left, x_weights, lower)
            b = y_weights[i]
            for j in range(n_columns):
                out[c, i, j] = upper[j] * (one - b) + lower[j] * b


@jit
def _resize_line(
    line: np.ndarray, mean: float, std: float, left: np.ndarray, x_weights: np.ndarray, out: np.ndarray
) -> None:
    one = np.float32(1)
    for j in range(len(left)):
        x0 = left[j]
        a = x_weights[j]
        u0 = (np.float32(line[x0]) - mean) / std
        u1 = (np.float32(line[min(x0 + 1, len(line) - 1)]) - mean) / std
        out[j] = u0 * (one - a) + u1 * a
