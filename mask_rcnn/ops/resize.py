"""The network's input: an image without its mean, resized to the last bit as Detectron did it."""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops._parallel import jit, parallel_for


def centre_and_resize(image: np.ndarray, mean, scale: float) -> np.ndarray:
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
    n_channel, height, width = image.shape
    out_height, out_width = (max(int(np.rint(side * scale)), 1) for side in (height, width))
    left, x_weights = _sample_points(out_width, width, scale)
    # OpenCV pulls points outside the first and last column onto them; of rows it clips the two indices
    # and keeps the weights, which may round differently.
    outside = (left < 0) | (left >= width - 1)
    x_weights[outside] = 0
    top, y_weights = _sample_points(out_height, height, scale)
    out = np.empty((n_channel, out_height, out_width), np.float32)
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
