"""The network's input: images resized to the last bit as Detectron did it, and as Matterport did."""

from __future__ import annotations

import math

import numpy as np

from mask_rcnn.ops.runtime.parallel import jit, parallel_for
from mask_rcnn.preprocessing._fitted_zoom import skimage_affine


def subtract_mean_and_resize(image: np.ndarray, mean, scale: float) -> np.ndarray:
    """Subtract a mean from an image and resize it bilinearly.

    What ``cv2.resize(image - mean, None, fx=scale, fy=scale)`` gave on float32 images in the OpenCV of
    Detectron's time (3.x, 4.2).  Today's OpenCV, in which the weights are of lower precision, differs
    from it by up to 6e-3 of 255 grey levels, enough to exchange one of several almost equal proposals.

    Args:
        image: ``(C, H, W)`` real array.
        mean: ``C`` numbers.
        scale: Factor for both sides; each is rounded to a whole number of pixels (halves to even).

    Returns:
        numpy.ndarray: ``(C, round(H * scale), round(W * scale))`` float32, at least one pixel a side.
    """
    n_channels, height, width = image.shape
    out_height, out_width = (max(int(np.rint(side * scale)), 1) for side in (height, width))
    left, x_weights = _sample_points(out_width, width, scale)
    # OpenCV pulls points outside the first and last column onto them; of rows it clips the two indices
    # and keeps the weights, which may round differently.
    outside = (left < 0) | (left >= width - 1)
    x_weights[outside] = 0
    top, y_weights = _sample_points(out_height, height, scale)
    out = np.empty((n_channels, out_height, out_width), np.float32)
    mean = np.asarray(mean, np.float64)

    def rows(start, stop):
        _resize_rows(image, mean, np.clip(left, 0, width - 1), x_weights, top, y_weights, out, start, stop)

    parallel_for(rows, out_height)
    return out


def _sample_points(n_out: int, n_in: int, scale: float):
    """Return, per output pixel, the input pixel at or before its centre and the distance from it."""
    position = ((np.arange(n_out) + 0.5) * (1 / scale) - 0.5).astype(np.float32)
    before = np.floor(position)
    return before.astype(np.int64), position - before


@jit
def _resize_rows(image, mean, left, x_weights, top, y_weights, out, start, stop):
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
                # Rounded to float32 once each, as NumPy subtracts Detectron's float64 means.
                u0, u1 = np.float32(upper[x0] - mean[c]), np.float32(upper[x1] - mean[c])
                v0, v1 = np.float32(lower[x0] - mean[c]), np.float32(lower[x1] - mean[c])
                u = u0 * (one - a) + u1 * a
                v = v0 * (one - a) + v1 * a
                out[c, i, j] = u * (one - b) + v * b


def resize_uint8_skimage(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image of whole numbers bilinearly and cut off what is behind the point.

    What scikit-image 0.17's ``transform.resize`` (order 1, mode ``'constant'``, clip, no anti-aliasing) gave
    on uint8 images, converted to uint8: in double precision, with zeros beyond the image, into which an enlarged
    image's border fades, though not below the image's least number.  An image of that size stays as it is.

    Args:
        image: ``(C, H, W)`` real array.
        size: Height and width of the result.

    Returns:
        numpy.ndarray: ``(C, *size)`` float32, whole numbers.
    """
    if image.shape[1:] == tuple(size):
        return np.floor(image).astype(np.float32)
    out = np.empty((len(image), *size), np.float32)
    by_row, by_column = skimage_affine(tuple(image.shape[1:]), tuple(size))
    top, y_weights = _sample_positions(size[0], *by_row)
    left, x_weights = _sample_positions(size[1], *by_column)
    framed = np.pad(image.astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    min_value, max_value = float(image.min()), float(image.max())

    def rows(start, stop):
        _resize_uint8_rows(framed, left + 1, x_weights, top + 1, y_weights, min_value, max_value, out, start, stop)

    parallel_for(rows, size[0])
    return out


def _sample_positions(n_out: int, factor: float, offset: float):
    """Like :func:`_sample_points`, in double precision, of given positions."""
    position = factor * np.arange(n_out) + offset
    before = np.floor(position)
    return before.astype(np.int64), position - before


@jit
def _resize_uint8_rows(framed, left, x_weights, top, y_weights, min_value, max_value, out, start, stop):
    for c in range(framed.shape[0]):
        for i in range(start, stop):
            upper, lower = framed[c, top[i]], framed[c, min(top[i] + 1, framed.shape[1] - 1)]
            b = y_weights[i]
            for j in range(len(left)):
                x0 = left[j]
                x1 = min(x0 + 1, framed.shape[2] - 1)
                a = x_weights[j]
                u = (1 - a) * upper[x0] + a * upper[x1]
                v = (1 - a) * lower[x0] + a * lower[x1]
                out[c, i, j] = math.floor(min(max((1 - b) * u + b * v, min_value), max_value))
