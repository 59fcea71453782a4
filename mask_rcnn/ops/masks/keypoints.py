"""From a keypoint head's heat maps to keypoints in the image.

Source: Detectron ``detectron/utils/keypoints.py`` (``heatmaps_to_keypoints``, ``scores_to_probs``); OpenCV
``modules/imgproc/src/resize.cpp`` (bicubic, float: Keys 1981 with a = -0.75, borders repeated).
"""

from __future__ import annotations

import math

import chainer
import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels, parallel

#: Threads that share one heat map.
_THREADS = 256

#: Keys's a, and what ``interpolateCubic`` makes of it; all in float32, as there.
_A = np.float32(-0.75)
_A2, _A3 = np.float32(_A + 2), np.float32(_A + 3)
_A4, _A5, _A8 = np.float32(4 * _A), np.float32(5 * _A), np.float32(8 * _A)
_ONE = np.float32(1)


def decode_heatmaps(heatmaps, boxes):
    """Find the highest point of each heat map, resized to its box.

    A map is resized bicubically to the box's size, rounded up, in pixels; its highest pixel (the first one,
    row by row) is the keypoint, at the pixel's centre; the probability is that of a softmax over all pixels.
    A box from ``x_min`` to ``x_max`` is ``max(x_max - x_min, 1)`` wide here, whatever it is elsewhere.

    Args:
        heatmaps: (R, K, M, M) float32: logits over the box, one map for each keypoint.
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the image.

    Returns:
        (R, K, 4) float32: ``(y, x, logit, probability)``, ``y`` and ``x`` in pixels of the image, where the
        centre of the first pixel is at 0.5.

    Raises:
        ValueError: If a shape is wrong.
    """
    if heatmaps.ndim != 4 or 0 in heatmaps.shape[1:]:
        raise ValueError(f'heatmaps must have the shape (R, K, M, M), not {heatmaps.shape}')
    if boxes.shape != (len(heatmaps), 4):
        raise ValueError(f'boxes must have the shape ({len(heatmaps)}, 4), not {boxes.shape}')
    xp = chainer.backend.get_array_module(heatmaps)
    origins = boxes[:, :2].astype(np.float32)
    sides = xp.maximum(boxes[:, 2:].astype(np.float32) - origins, np.float32(1))
    sizes = xp.ceil(sides)
    out = xp.empty((*heatmaps.shape[:2], 4), np.float32)
    implementation = decode_cpu if xp is np else decode_gpu
    implementation(xp.ascontiguousarray(heatmaps, np.float32), xp.ascontiguousarray(sizes, np.int32), out)
    points = (out[:, :, :2].astype(np.float64) + 0.5) * (sides / sizes)[:, None] + origins[:, None]
    out[:, :, :2] = points.astype(np.float32)
    return out


def decode_gpu(heatmaps, sizes, out):
    """The GPU implementation: fills ``out`` with (row, column, logit, probability); ``sizes`` (R, 2) int32."""
    n_roi, n_keypoint, rows, columns = heatmaps.shape
    if n_roi:
        cuda_kernels.kernel('masks/keypoints.cu', 'decode_heatmaps')(
            (n_roi * n_keypoint,),
            (_THREADS,),
            (heatmaps, sizes, np.int32(n_keypoint), np.int32(rows), np.int32(columns), out),
        )


def decode_cpu(heatmaps, sizes, out):
    """The CPU implementation; the same arguments as :func:`decode_gpu`, NumPy arrays."""

    def work(start, stop):
        _decode_range(heatmaps, sizes, out, start, stop)

    parallel.parallel_for(work, out.shape[0] * out.shape[1])


@parallel.jit
def _decode_range(heatmaps, sizes, out, start, stop):
    """Decode heat maps ``start`` to ``stop``, counted through all RoIs."""
    for index in range(start, stop):
        r, k = index // heatmaps.shape[1], index % heatmaps.shape[1]
        heatmap = heatmaps[r, k]
        height, width = sizes[r, 0], sizes[r, 1]
        lines = _resized_columns(heatmap, width)
        row = np.empty(width, np.float32)
        # The softmax's sum is kept relative to the highest logit so far.
        highest, total = np.float32(-np.inf), 0.0
        taps = np.empty(4, np.float32)
        for i in range(height):
            source = _taps(i, height, heatmap.shape[0], taps)
            _combine(lines, source, taps, row)
            best = np.argmax(row)
            if row[best] > highest:
                total *= math.exp(highest - row[best])
                highest = row[best]
                out[r, k, 0], out[r, k, 1], out[r, k, 2] = i, best, highest
            for j in range(width):
                total += math.exp(row[j] - highest)
        out[r, k, 3] = 1 / total


@parallel.jit
def _resized_columns(heatmap, width):
    """Resize the rows of a map to ``width`` pixels."""
    last = heatmap.shape[1] - 1
    lines = np.empty((heatmap.shape[0], width), np.float32)
    taps = np.empty(4, np.float32)
    for j in range(width):
        source = _taps(j, width, heatmap.shape[1], taps)
        a, b = min(max(source - 1, 0), last), min(max(source, 0), last)
        c, d = min(max(source + 1, 0), last), min(max(source + 2, 0), last)
        for i in range(heatmap.shape[0]):
            lines[i, j] = (
                heatmap[i, a] * taps[0] + heatmap[i, b] * taps[1] + heatmap[i, c] * taps[2] + heatmap[i, d] * taps[3]
            )
    return lines


@parallel.jit
def _combine(lines, source, taps, row):
    """Sum up the four lines around one row of the result."""
    last = lines.shape[0] - 1
    a, b = lines[min(max(source - 1, 0), last)], lines[min(max(source, 0), last)]
    c, d = lines[min(max(source + 1, 0), last)], lines[min(max(source + 2, 0), last)]
    for j in range(row.size):
        row[j] = a[j] * taps[0] + b[j] * taps[1] + c[j] * taps[2] + d[j] * taps[3]


@parallel.jit
def _taps(pixel, n_out, n_in, taps):
    """Write the weights of the four source pixels around a pixel's centre; return the second one's index."""
    position = np.float32((pixel + 0.5) * (1.0 / (n_out / n_in)) - 0.5)
    source = math.floor(position)
    x = position - np.float32(source)
    y = _ONE - x
    taps[0] = ((_A * (x + _ONE) - _A5) * (x + _ONE) + _A8) * (x + _ONE) - _A4
    taps[1] = (_A2 * x - _A3) * x * x + _ONE
    taps[2] = (_A2 * y - _A3) * y * y + _ONE
    taps[3] = _ONE - taps[0] - taps[1] - taps[2]
    return source
