"""From a mask's probabilities inside its box to the mask of the whole image.

Source: Detectron ``detectron/core/test.py`` (``segm_results``), ``detectron/utils/boxes.py``
(``expand_boxes``); OpenCV ``modules/imgproc/src/resize.cpp`` (bilinear, float); with a margin: Matterport's
``utils.unmold_mask`` and scikit-image's ``transform.resize`` (order 1, mode ``'constant'``, clip).
"""

from __future__ import annotations

import math

import chainer
import numpy as np

from mask_rcnn.ops import _cuda, _parallel

_ONE = np.float32(1)


def paste_masks(probs, boxes, size, *, extent=1.0, padding=1, margin=0, threshold=0.5, inclusive=False):
    """Resize each mask into its box and cut it at a threshold.

    A mask of M x M is padded with zeros and its box grows by as much around its centre, by
    (M + 2 padding) / M; corners are truncated to integers; the padded mask is resized to the box as OpenCV
    resizes; pixels above the threshold belong to the mask.

    The result takes R H W bytes.  Paste slices of the masks, or :func:`paste_into` an array again and again,
    where that is too much.

    Args:
        probs: (R, M, M) float32, each mask's probabilities.
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        size: Height and width of the image.
        extent: A box from pixel ``x_min`` to ``x_max`` is ``x_max - x_min + extent`` pixels wide: Detectron's
            1, or 0.  A box turned inside out covers nothing.
        padding: Pixels of zeros around a mask; Detectron's 1, or 0.
        margin: Pixels of zeros beyond the box, 0 or 1: with 1 the mask's border fades into them, though not
            below the mask's least probability (scikit-image); with 0 it is repeated (OpenCV).
        threshold: A pixel belongs to the mask if its probability is above it ...
        inclusive: ... or equal to it, if this is true.

    Returns:
        (R, H, W) bool.

    Raises:
        ValueError: If a shape is wrong.
    """
    xp = chainer.backend.get_array_module(probs)
    out = xp.empty((len(probs), *size), np.bool_)
    return paste_into(out, probs, boxes, extent=extent, padding=padding, margin=margin, threshold=threshold,
                      inclusive=inclusive)


def paste_into(out, probs, boxes, *, extent=1.0, padding=1, margin=0, threshold=0.5, inclusive=False):
    """Fill ``out`` (R, H, W), a contiguous bool array, with what :func:`paste_masks` returns; return it."""
    if probs.ndim != 3 or 0 in probs.shape[1:]:
        raise ValueError(f'probs must have the shape (R, M, M), not {probs.shape}')
    if boxes.shape != (len(probs), 4):
        raise ValueError(f'boxes must have the shape ({len(probs)}, 4), not {boxes.shape}')
    if out.ndim != 3 or len(out) != len(probs) or out.dtype != np.bool_ or not out.flags.c_contiguous:
        raise ValueError(f'out must be contiguous bool ({len(probs)}, H, W), not {out.dtype} {out.shape}')
    xp = chainer.backend.get_array_module(probs)
    rows, columns = (_place(xp, boxes[:, axis], boxes[:, axis + 2], probs.shape[1 + axis], extent, padding)
                     for axis in (0, 1))
    form = paste_cpu if xp is np else paste_gpu
    probs = xp.ascontiguousarray(probs, np.float32)
    form(probs, *rows, *columns, int(padding), int(margin), _least(probs, margin), np.float32(threshold),
         bool(inclusive), out)
    return out


def _least(probs, margin: int):
    """Return what a mask's pixels do not fall below (R,) float32."""
    xp = chainer.backend.get_array_module(probs)
    if margin and len(probs):
        return probs.min(axis=(1, 2))
    return xp.full((len(probs),), -np.inf, np.float32)


def _place(xp, low, high, mask_size: int, extent: float, padding: int):
    """Find the pixels of one axis that padded masks cover.

    Returns:
        First pixel and number of pixels, both (R,) int32, and mask pixels per pixel, (R,) float64.
    """
    # Finite numbers that int32 holds; a box beyond them covers the same pixels of any image.
    low, high = (xp.clip(xp.nan_to_num(edge.astype(np.float32)), -2.0 ** 27, 2.0 ** 27)
                 for edge in (low, high))
    padded = mask_size + 2 * padding
    half = (high - low) * np.float32(0.5) * np.float32(padded / mask_size)
    centre = (high + low) * np.float32(0.5)
    first, last = (centre - half).astype(np.int32), (centre + half).astype(np.int32)
    count = xp.maximum(last - first + np.int32(extent), 0).astype(np.int32)
    return first, count, 1.0 / (xp.maximum(count, 1) / float(padded))


def paste_gpu(probs, top, height, y_scale, left, width, x_scale, padding, margin, least, threshold, inclusive,
              out):
    """The GPU form: CuPy arrays; ``top`` ... ``x_scale`` from :func:`_place`."""
    _cuda.launch(_cuda.kernel('paste_masks.cu', 'paste_masks'), out.size, (
        probs, top, height, y_scale, left, width, x_scale, np.int64(out.size),
        *map(np.int32, (*out.shape[1:], *probs.shape[1:], padding, margin)), least, threshold,
        np.int32(inclusive), out))


def paste_cpu(*arguments):
    """The CPU form; the same arguments as :func:`paste_gpu`, NumPy arrays."""
    _parallel.parallel_for(lambda start, stop: _paste_range(*arguments, start, stop), len(arguments[0]))


@_parallel.jit
def _paste_range(probs, top, height, y_scale, left, width, x_scale, padding, margin, least, threshold,
                 inclusive, out, start, stop):
    """Paste masks ``start`` to ``stop``."""
    frame = padding + margin
    padded = np.zeros((probs.shape[1] + 2 * frame, probs.shape[2] + 2 * frame), np.float32)
    lines = np.empty((padded.shape[0], out.shape[2]), np.float32)
    for r in range(start, stop):
        padded[frame:frame + probs.shape[1], frame:frame + probs.shape[2]] = probs[r]
        out[r] = False
        begin, end = max(left[r], 0), min(left[r] + width[r], out.shape[2])
        _resize_columns(padded, left[r], x_scale[r], margin, begin, end, lines)
        for i in range(max(top[r], 0), min(top[r] + height[r], out.shape[1])):
            row, fraction = _source(i - top[r], y_scale[r], margin)
            upper = min(max(row, 0), padded.shape[0] - 1)
            lower = min(max(row + 1, 0), padded.shape[0] - 1)
            for j in range(begin, end):
                value = lines[upper, j] * (_ONE - fraction) + lines[lower, j] * fraction
                value = max(value, least[r])
                out[r, i, j] = (value > threshold) | (inclusive & (value == threshold))


@_parallel.jit
def _resize_columns(padded, left, scale, margin, begin, end, lines):
    """Resize the rows of a padded mask to columns ``begin`` to ``end`` of the image."""
    last = padded.shape[1] - 1
    for j in range(begin, end):
        column, fraction = _source(j - left, scale, margin)
        if column < 0:
            column, fraction = 0, np.float32(0)
        if column >= last:
            column, fraction = last, np.float32(0)
        right = min(column + 1, last)
        for i in range(padded.shape[0]):
            lines[i, j] = padded[i, column] * (_ONE - fraction) + padded[i, right] * fraction


@_parallel.jit
def _source(pixel, scale, margin):
    """Return the source pixel left of a target pixel's centre and the fraction of its right neighbour."""
    position = np.float32((pixel + 0.5) * scale - 0.5)
    source = math.floor(position)
    return source + margin, position - np.float32(source)
