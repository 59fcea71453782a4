"""Decoding of a keypoint head's heat maps to keypoints in the image.

Source: Detectron ``detectron/utils/keypoints.py`` (``heatmaps_to_keypoints``, ``scores_to_probs``); OpenCV
``modules/imgproc/src/resize.cpp`` (bicubic, float: Keys 1981 with a = -0.75, borders repeated).  PyTorch's
``interpolate(mode='bicubic')``, which torchvision and detectron2 use, is the same up to the rounding of float32.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels, parallel
from mask_rcnn.ops.runtime.array import Array, get_array_module

#: Threads per heat map.
_THREADS = 256

#: The float32 constants A, A + 2, A + 3, 4 A, 5 A and 8 A in the expressions of OpenCV's ``interpolateCubic``.
_A = np.float32(-0.75)
_A2, _A3 = np.float32(_A + 2), np.float32(_A + 3)
_A4, _A5, _A8 = np.float32(4 * _A), np.float32(5 * _A), np.float32(8 * _A)
_ONE = np.float32(1)


def decode_heatmaps(
    heatmaps: Array, boxes: Array, *, softmax_grid: Literal['resized', 'predicted'] = 'resized'
) -> Array:
    """Find the maximum of each heat map after it is resized to its box.

    A heat map is resized bicubically to the box's height and width in pixels, rounded up.  The keypoint is the centre
    of the pixel with the highest logit, the first one in row-major order.  Its probability is that of a softmax over
    all pixels.  In this function, a box has the width ``max(x_max - x_min, 1)`` in every dialect.

    Args:
        heatmaps: (R, K, M, M) float32, the logits of each keypoint over the box.
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the image or of the network input.
        softmax_grid: Pixels whose exponentials the softmax adds: ``'resized'``, those of the resized heat map
            (Detectron), or ``'predicted'``, those of ``heatmaps`` (detectron2), which makes the probabilities of small
            and of large boxes comparable, but does not limit them to 1.

    Returns:
        (R, K, 4) float32 ``(y, x, logit, probability)``; ``y`` and ``x`` are in pixels of the boxes' image, in which
        the first pixel has its centre at 0.5.

    Raises:
        ValueError: A shape is wrong.
    """
    if heatmaps.ndim != 4 or 0 in heatmaps.shape[1:]:
        raise ValueError(f'heatmaps must have the shape (R, K, M, M), not {heatmaps.shape}')
    if boxes.shape != (len(heatmaps), 4):
        raise ValueError(f'boxes must have the shape ({len(heatmaps)}, 4), not {boxes.shape}')
    xp = get_array_module(heatmaps)
    origins = boxes[:, :2].astype(np.float32)
    sides = xp.maximum(boxes[:, 2:].astype(np.float32) - origins, np.float32(1))
    sizes = xp.ceil(sides)
    out = xp.empty((*heatmaps.shape[:2], 4), np.float32)
    implementation = decode_cpu if xp is np else decode_gpu
    heatmaps, sizes_int32 = xp.ascontiguousarray(heatmaps, np.float32), xp.ascontiguousarray(sizes, np.int32)
    implementation(heatmaps, sizes_int32, softmax_grid == 'predicted', out)
    points = (out[:, :, :2].astype(np.float64) + 0.5) * (sides / sizes)[:, None] + origins[:, None]
    out[:, :, :2] = points.astype(np.float32)
    return out


def decode_gpu(heatmaps: Array, sizes: Array, sum_predicted: bool, out: Array) -> None:
    """The GPU implementation: fills ``out`` with (row, column, logit, probability).

    Args:
        heatmaps: (R, K, M, M) float32, contiguous.
        sizes: (R, 2) int32, height and width to which the heat maps are resized.
        sum_predicted: Whether the softmax adds the exponentials of ``heatmaps``, or those of the resized heat maps.
        out: (R, K, 4) float32, contiguous.
    """
    n_rois, n_keypoints, rows, columns = heatmaps.shape
    if n_rois:
        cuda_kernels.kernel('masks/keypoints.cu', 'decode_heatmaps')(
            (n_rois * n_keypoints,),
            (_THREADS,),
            (heatmaps, sizes, *map(np.int32, (n_keypoints, rows, columns, sum_predicted)), out),
        )


def decode_cpu(heatmaps: np.ndarray, sizes: np.ndarray, sum_predicted: bool, out: np.ndarray) -> None:
    """The CPU implementation; takes the arguments of :func:`decode_gpu`."""
    parallel.parallel_for(
        lambda start, stop: _decode_range(heatmaps, sizes, sum_predicted, out, start, stop),
        out.shape[0] * out.shape[1],
    )


@parallel.jit
def _decode_range(heatmaps, sizes, sum_predicted, out, start, stop):
    """Decode heat maps ``start`` to ``stop``; keypoint ``k`` of RoI ``r`` has the index ``r * K + k``."""
    for index in range(start, stop):
        r, k = index // heatmaps.shape[1], index % heatmaps.shape[1]
        heatmap = heatmaps[r, k]
        height, width = sizes[r, 0], sizes[r, 1]
        lines = _resize_columns(heatmap, width)
        row = np.empty(width, np.float32)
        # The sum of the softmax is relative to the highest logit so far, so that no exponential overflows.
        highest, total = np.float32(-np.inf), 0.0
        out[r, k, 0], out[r, k, 1], out[r, k, 2] = 0, 0, highest  # if all logits are NaN
        taps = np.empty(4, np.float32)
        for i in range(height):
            source = _cubic_taps(i, height, heatmap.shape[0], taps)
            _interpolate_rows(lines, source, taps, row)
            best = np.argmax(row)
            if row[best] > highest:
                total *= math.exp(highest - row[best])
                highest = row[best]
                out[r, k, 0], out[r, k, 1], out[r, k, 2] = i, best, highest
            if not sum_predicted:
                for j in range(width):
                    total += math.exp(row[j] - highest)
        if sum_predicted:
            for logit in heatmap.flat:
                total += math.exp(logit - highest)
        out[r, k, 3] = 1 / total


@parallel.jit
def _resize_columns(heatmap, width):
    """Return the rows of a heat map resized to ``width`` pixels, (M, width) float32."""
    last = heatmap.shape[1] - 1
    lines = np.empty((heatmap.shape[0], width), np.float32)
    taps = np.empty(4, np.float32)
    for j in range(width):
        source = _cubic_taps(j, width, heatmap.shape[1], taps)
        a, b = min(max(source - 1, 0), last), min(max(source, 0), last)
        c, d = min(max(source + 1, 0), last), min(max(source + 2, 0), last)
        for i in range(heatmap.shape[0]):
            lines[i, j] = (
                heatmap[i, a] * taps[0] + heatmap[i, b] * taps[1] + heatmap[i, c] * taps[2] + heatmap[i, d] * taps[3]
            )
    return lines


@parallel.jit
def _interpolate_rows(lines, source, taps, row):
    """Compute one row of the result from the four lines around it; ``source`` is the second of them."""
    last = lines.shape[0] - 1
    a, b = lines[min(max(source - 1, 0), last)], lines[min(max(source, 0), last)]
    c, d = lines[min(max(source + 1, 0), last)], lines[min(max(source + 2, 0), last)]
    for j in range(row.size):
        row[j] = a[j] * taps[0] + b[j] * taps[1] + c[j] * taps[2] + d[j] * taps[3]


@parallel.jit
def _cubic_taps(pixel, n_out, n_in, taps):
    """Compute the weights of the four source pixels around a pixel's centre; return the index of the second one.

    The expressions are those of OpenCV's ``interpolateCubic``, operation by operation in float32.
    """
    position = np.float32((pixel + 0.5) * (1.0 / (n_out / n_in)) - 0.5)
    source = math.floor(position)
    x = position - np.float32(source)
    y = _ONE - x
    taps[0] = ((_A * (x + _ONE) - _A5) * (x + _ONE) + _A8) * (x + _ONE) - _A4
    taps[1] = (_A2 * x - _A3) * x * x + _ONE
    taps[2] = (_A2 * y - _A3) * y * y + _ONE
    taps[3] = _ONE - taps[0] - taps[1] - taps[2]
    return source
