"""Pasting of predicted masks into the image.

Source: Detectron ``detectron/core/test.py`` (``segm_results``), ``detectron/utils/boxes.py``
(``expand_boxes``); OpenCV ``modules/imgproc/src/resize.cpp`` (bilinear, float); with a margin: Matterport's
``utils.unmold_mask`` and scikit-image's ``transform.resize`` (order 1, mode ``'constant'``, clip).
"""

from __future__ import annotations

import math

import chainer
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime import cuda_kernels, parallel

#: Threads of a block; CUDA's limit to a grid's second side.
_THREADS, _MAX_BLOCKS_Y = 256, 65535
#: Masks are pasted on a GPU in portions of about this many bytes on their way to the host.
_PORTION_BYTES = 1 << 26

_ONE = np.float32(1)


def paste_masks(probs, boxes, size, *, offset=1.0, padding=1, margin=0, threshold=0.5, threshold_inclusive=False):
    """Resize each mask into its box and binarise it.

    A mask of M x M pixels is padded with zeros, and its box is enlarged by the factor (M + 2 padding) / M.  The
    corners of the box are truncated to integers.  The padded mask is resized to the box as OpenCV does it, and the
    threshold is applied.

    The result has R H W bytes.  To save memory, paste slices of the masks, reuse an array with :func:`paste_into`, or
    take the run lengths from :func:`mask_runs`.

    Args:
        probs: (R, M, M) float32 probabilities.
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        size: Height and width of the image.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.  A box with a negative width or height
            covers no pixels.
        padding: Width of the zero border around a mask in mask pixels: 1 (Detectron) or 0.
        margin: Width of the zero border outside the box, 0 or 1.  1 interpolates between the mask and the zeros, but
            not below the minimum of the mask (scikit-image); 0 repeats the border (OpenCV).
        threshold: Probability above which a pixel belongs to the mask.
        threshold_inclusive: Whether a pixel with a probability equal to the threshold belongs to the mask.

    Returns:
        (R, H, W) bool.

    Raises:
        ValueError: If a shape is wrong.
    """
    xp = chainer.backend.get_array_module(probs)
    out = xp.empty((len(probs), *size), np.bool_)
    return paste_into(
        out,
        probs,
        boxes,
        offset=offset,
        padding=padding,
        margin=margin,
        threshold=threshold,
        threshold_inclusive=threshold_inclusive,
    )


def paste_into(out, probs, boxes, *, offset=1.0, padding=1, margin=0, threshold=0.5, threshold_inclusive=False):
    """Fill ``out`` (R, H, W), a contiguous bool array, with what :func:`paste_masks` returns; return it."""
    if out.ndim != 3 or len(out) != len(probs) or out.dtype != np.bool_ or not out.flags.c_contiguous:
        raise ValueError(f'out must be contiguous bool ({len(probs)}, H, W), not {out.dtype} {out.shape}')
    implementation = paste_cpu if chainer.backend.get_array_module(probs) is np else paste_gpu
    implementation(*_arguments(probs, boxes, offset, padding, margin, threshold, threshold_inclusive), out)
    return out


def paste_to_host(probs, boxes, size, **options):
    """Do what :func:`paste_masks` does, a portion of the masks at a time, and bring the result to the host.

    A GPU packs eight pixels into a byte first: 13 instead of 107 MB of 100 masks of 800 x 1333 pixels.

    Returns:
        numpy.ndarray: (R, H, W) bool.
    """
    xp = chainer.backend.get_array_module(probs)
    out = np.empty((len(probs), *size), np.bool_)
    step = max(1, _PORTION_BYTES // (size[0] * size[1]))
    for start in range(0, len(probs), step):
        part = slice(start, start + step)
        bits = xp.packbits(paste_masks(probs[part], boxes[part], size, **options))
        pixels = np.unpackbits(cuda.to_cpu(bits), count=out[part].size)
        out[part] = pixels.view(np.bool_).reshape(out[part].shape)
    return out


def mask_runs(probs, boxes, size, *, offset=1.0, padding=1, margin=0, threshold=0.5, threshold_inclusive=False):
    """Return which pixels :func:`paste_masks` would give, without giving them: as run lengths need them.

    Nothing is as large as the image: only the boxes' pixels are looked at, and of them the runs are kept, which
    is all that leaves a GPU.

    Args:
        probs, boxes, size, offset, padding, margin, threshold, threshold_inclusive: See :func:`paste_masks`.

    Returns:
        list of numpy.ndarray: For each mask (K, 2) int32: the first pixel of each run and the one behind its
        last, where pixel (y, x) is number ``x * H + y``; rising.  A run ends with its column.

    Raises:
        ValueError: If a shape is wrong.
    """
    implementation = runs_cpu if chainer.backend.get_array_module(probs) is np else runs_gpu
    arguments = _arguments(probs, boxes, offset, padding, margin, threshold, threshold_inclusive)
    return implementation(*arguments, *map(int, size)) if len(probs) else []


def _arguments(probs, boxes, offset, padding, margin, threshold, threshold_inclusive):
    """Check and return what both implementations take, but for the result."""
    if probs.ndim != 3 or 0 in probs.shape[1:]:
        raise ValueError(f'probs must have the shape (R, M, M), not {probs.shape}')
    if boxes.shape != (len(probs), 4):
        raise ValueError(f'boxes must have the shape ({len(probs)}, 4), not {boxes.shape}')
    xp = chainer.backend.get_array_module(probs)
    rows, columns = (
        _place(xp, boxes[:, axis], boxes[:, axis + 2], probs.shape[1 + axis], offset, padding) for axis in (0, 1)
    )
    probs = xp.ascontiguousarray(probs, np.float32)
    return (
        probs,
        *rows,
        *columns,
        int(padding),
        int(margin),
        _least(probs, margin),
        np.float32(threshold),
        bool(threshold_inclusive),
    )


def _least(probs, margin: int):
    """Return what a mask's pixels do not fall below (R,) float32."""
    xp = chainer.backend.get_array_module(probs)
    if margin and len(probs):
        return probs.min(axis=(1, 2))
    return xp.full((len(probs),), -np.inf, np.float32)


def _place(xp, low, high, mask_size: int, offset: float, padding: int):
    """Find the pixels of one axis that padded masks cover.

    Returns:
        First pixel and number of pixels, both (R,) int32, and mask pixels per pixel, (R,) float64.
    """
    # Finite numbers that int32 holds; a box beyond them covers the same pixels of any image.
    low, high = (xp.clip(xp.nan_to_num(edge.astype(np.float32)), -(2.0**27), 2.0**27) for edge in (low, high))
    padded = mask_size + 2 * padding
    half = (high - low) * np.float32(0.5) * np.float32(padded / mask_size)
    centre = (high + low) * np.float32(0.5)
    first, last = (centre - half).astype(np.int32), (centre + half).astype(np.int32)
    count = xp.maximum(last - first + np.int32(offset), 0).astype(np.int32)
    return first, count, 1.0 / (xp.maximum(count, 1) / float(padded))


def paste_gpu(*arguments):
    """The GPU implementation: what :func:`_arguments` returns, CuPy arrays, and ``out``."""
    *arguments, out = arguments
    if out.size:
        _launch('paste_masks', out.shape[1], *arguments, *out.shape[1:], out)


def runs_gpu(*arguments):
    """The GPU implementation: what :func:`_arguments` returns, CuPy arrays, not empty, and the image's height and
    width.
    """
    *_, width = arguments
    xp, n = chainer.backend.get_array_module(arguments[0]), len(arguments[0])
    counts = xp.empty((n * width,), np.int32)
    blocks = -(-width // _THREADS)
    _launch('mask_runs', blocks, *arguments, np.int32(False), counts, counts)
    ends = xp.cumsum(counts, dtype=np.int32)
    bounds = cuda.to_cpu(ends[width - 1 :: width])
    runs = xp.empty((int(bounds[-1]), 2), np.int32)
    if len(runs):
        _launch('mask_runs', blocks, *arguments, np.int32(True), ends, runs)
    return np.split(cuda.to_cpu(runs), bounds[:-1])


def _launch(
    name: str,
    blocks: int,
    probs,
    top,
    height,
    y_scale,
    left,
    width,
    x_scale,
    padding,
    margin,
    min_prob,
    threshold,
    threshold_inclusive,
    out_height,
    out_width,
    *others,
):
    """Launch a kernel that shares each mask among so many blocks."""
    cuda_kernels.kernel('masks/paste_masks.cu', name)(
        (blocks, min(len(probs), _MAX_BLOCKS_Y)),
        (_THREADS,),
        (
            probs,
            top,
            height,
            y_scale,
            left,
            width,
            x_scale,
            *map(np.int32, (len(probs), out_height, out_width, *probs.shape[1:], padding, margin)),
            min_prob,
            threshold,
            np.int32(threshold_inclusive),
            *others,
        ),
    )


def paste_cpu(*arguments):
    """The CPU implementation; the same arguments as :func:`paste_gpu`, NumPy arrays."""
    parallel.parallel_for(lambda start, stop: _paste_range(*arguments, start, stop), len(arguments[0]))


def runs_cpu(probs, top, height, y_scale, left, width, x_scale, padding, margin, min_prob, *rest):
    """The CPU implementation; the same arguments as :func:`runs_gpu`, NumPy arrays."""
    runs = [None] * len(probs)

    def work(start, stop):
        for r in range(start, stop):
            runs[r] = _find_runs(
                probs[r],
                top[r],
                height[r],
                y_scale[r],
                left[r],
                width[r],
                x_scale[r],
                padding,
                margin,
                min_prob[r],
                *rest,
            )

    parallel.parallel_for(work, len(probs))
    return runs


@parallel.jit
def _paste_range(
    probs,
    top,
    height,
    y_scale,
    left,
    width,
    x_scale,
    padding,
    margin,
    min_prob,
    threshold,
    threshold_inclusive,
    out,
    start,
    stop,
):
    """Paste masks ``start`` to ``stop``."""
    for r in range(start, stop):
        out[r] = False
        y_begin, y_end = max(top[r], 0), min(top[r] + height[r], out.shape[1])
        x_begin, x_end = max(left[r], 0), min(left[r] + width[r], out.shape[2])
        if y_begin < y_end and x_begin < x_end:
            _fill(
                probs[r],
                y_begin - top[r],
                y_scale[r],
                x_begin - left[r],
                x_scale[r],
                padding,
                margin,
                min_prob[r],
                threshold,
                threshold_inclusive,
                out[r, y_begin:y_end, x_begin:x_end],
            )


@parallel.jit
def _find_runs(
    prob,
    top,
    height,
    y_scale,
    left,
    width,
    x_scale,
    padding,
    margin,
    min_prob,
    threshold,
    threshold_inclusive,
    out_height,
    out_width,
):
    """Return the runs of one mask."""
    y_begin, y_end = max(top, 0), min(top + height, out_height)
    x_begin, x_end = max(left, 0), min(left + width, out_width)
    if y_begin >= y_end or x_begin >= x_end:
        return np.empty((0, 2), np.int32)
    part = np.empty((y_end - y_begin, x_end - x_begin), np.bool_)
    _fill(
        prob,
        y_begin - top,
        y_scale,
        x_begin - left,
        x_scale,
        padding,
        margin,
        min_prob,
        threshold,
        threshold_inclusive,
        part,
    )
    runs = np.empty((_scan(part, y_begin, x_begin, out_height, np.empty((0, 2), np.int32)), 2), np.int32)
    _scan(part, y_begin, x_begin, out_height, runs)
    return runs


@parallel.jit
def _scan(part, y_begin, x_begin, out_height, runs):
    """Count the runs down the columns of a part of the image; write as many as ``runs`` has room for."""
    count = 0
    for j in range(part.shape[1]):
        inside = False
        for i in range(part.shape[0] + 1):
            now = i < part.shape[0] and part[i, j]
            if now != inside:
                if count < len(runs):
                    runs[count, int(inside)] = (x_begin + j) * out_height + y_begin + i
                count += inside
                inside = now
    return count


@parallel.jit
def _fill(prob, y_first, y_scale, x_first, x_scale, padding, margin, min_prob, threshold, threshold_inclusive, out):
    """Paste one mask from its pixel ``(y_first, x_first)``, counted from its own corner, on."""
    frame = padding + margin
    padded = np.zeros((prob.shape[0] + 2 * frame, prob.shape[1] + 2 * frame), np.float32)
    padded[frame : frame + prob.shape[0], frame : frame + prob.shape[1]] = prob
    lines = np.empty((padded.shape[0], out.shape[1]), np.float32)
    _resize_columns(padded, x_first, x_scale, margin, lines)
    for i in range(out.shape[0]):
        row, fraction = _source(y_first + i, y_scale, margin)
        upper = min(max(row, 0), padded.shape[0] - 1)
        lower = min(max(row + 1, 0), padded.shape[0] - 1)
        for j in range(out.shape[1]):
            value = lines[upper, j] * (_ONE - fraction) + lines[lower, j] * fraction
            value = max(value, min_prob)
            out[i, j] = (value > threshold) | (threshold_inclusive & (value == threshold))


@parallel.jit
def _resize_columns(padded, first, scale, margin, lines):
    """Resize the rows of a padded mask to the columns from ``first`` on."""
    last = padded.shape[1] - 1
    for j in range(lines.shape[1]):
        column, fraction = _source(first + j, scale, margin)
        if column < 0:
            column, fraction = 0, np.float32(0)
        if column >= last:
            column, fraction = last, np.float32(0)
        right = min(column + 1, last)
        for i in range(padded.shape[0]):
            lines[i, j] = padded[i, column] * (_ONE - fraction) + padded[i, right] * fraction


@parallel.jit
def _source(pixel, scale, margin):
    """Return the source pixel left of a target pixel's centre and the fraction of its right neighbour."""
    position = np.float32((pixel + 0.5) * scale - 0.5)
    source = math.floor(position)
    return source + margin, position - np.float32(source)
