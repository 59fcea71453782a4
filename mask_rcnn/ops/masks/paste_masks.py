"""Pasting of predicted masks into the image.

Source: Detectron ``detectron/core/test.py`` (``segm_results``), ``detectron/utils/boxes.py``
(``expand_boxes``); OpenCV ``modules/imgproc/src/resize.cpp`` (bilinear, float); with a margin: Matterport's
``utils.unmold_mask`` and scikit-image's ``transform.resize`` (order 1, mode ``'constant'``, clip); with continuous
boxes: detectron2's ``layers/mask_ops.py`` (``_do_paste_mask``) and PyTorch's ``grid_sample`` (bilinear, padding mode
``'zeros'``, ``align_corners=False``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime import cuda_kernels, host_memory, parallel
from mask_rcnn.ops.runtime.array import Array, get_array_module

#: Threads of a block, and CUDA's limit on the height of a grid.
_THREADS, _MAX_BLOCKS_Y = 256, 65535
#: Bytes of masks that justify a thread: 0.1 to 0.6 ms.
_BYTES_PER_THREAD = 1 << 21

_ONE = np.float32(1)


def paste_masks(
    probs: Array,
    boxes: Array,
    size: tuple[int, int],
    *,
    offset: float = 1.0,
    padding: int = 1,
    margin: int = 0,
    continuous_box: bool = False,
    squeeze_at_border: bool = False,
    threshold: float = 0.5,
    threshold_inclusive: bool = False,
) -> Array:
    """Resize each mask into its box and binarise it.

    A mask of M x M pixels is padded with zeros, and its box is extended by the factor (M + 2 padding) / M.  The
    corners of the box are truncated to integers.  The padded mask is resized to the box with OpenCV's bilinear
    interpolation, and the threshold is applied.

    With ``continuous_box``, the corners are not truncated.  The probability of a pixel is interpolated bilinearly at
    the position of its centre in the mask, which has zeros on all sides.  Only pixels up to one pixel outside of the
    box, rounded outwards, can belong to the mask.

    The result has R H W bytes.  To save memory, paste slices of the masks, reuse an array with :func:`paste_into`, or
    take the runs from :func:`mask_runs`.

    Args:
        probs: (R, M, M) float32 probabilities.
        boxes: (R, 4) float32 ``(y_min, x_min, y_max, x_max)`` in pixels of the image.
        size: Height and width of the image.
        offset: 1 or 0, a term of the box width; see :mod:`mask_rcnn.ops.boxes.boxes`.  A box with a negative width or
            height covers no pixels.
        padding: Width of the zero border around a mask in mask pixels: 1 (Detectron) or 0.
        margin: Width of the zero border outside the box, 0 or 1.  1 interpolates between the mask and the zeros, but
            not below the minimum of the mask (scikit-image); 0 repeats the border (OpenCV).
        continuous_box: Whether the mask is interpolated at the centres of pixels in the box (detectron2), or resized to
            whole pixels (Detectron).  If it is set, ``offset``, ``padding``, ``margin`` and ``squeeze_at_border`` have
            no effect.
        squeeze_at_border: Whether the extended box is clipped to the image before the mask is resized to it (DeNA), so
            that the whole mask is squeezed into the visible part, or the resized mask is cropped (Detectron).
        threshold: Pixels with a higher probability belong to the mask.
        threshold_inclusive: Whether a pixel with a probability equal to the threshold belongs to the mask.

    Returns:
        (R, H, W) bool.

    Raises:
        ValueError: If a shape is wrong.
    """
    spec = _paste_spec(
        probs,
        boxes,
        size,
        offset=offset,
        padding=padding,
        margin=margin,
        continuous_box=continuous_box,
        squeeze_at_border=squeeze_at_border,
        threshold=threshold,
        threshold_inclusive=threshold_inclusive,
    )
    xp, shape = get_array_module(probs), (len(probs), *map(int, size))
    if xp is not np:
        out = xp.empty(shape, np.bool_)
        paste_gpu(spec, out)
        return out
    out, is_zero = host_memory.allocate(shape, np.bool_)
    paste_cpu(spec, out, is_zero)
    return out


def paste_into(out: Array, probs: Array, boxes: Array, **options: Any) -> Array:
    """Paste masks into an existing array.

    Args:
        out: (R, H, W) contiguous bool; is overwritten.
        probs: (R, M, M) float32 probabilities.
        boxes: (R, 4) float32.
        options: Keyword arguments of :func:`paste_masks`.

    Returns:
        ``out``.

    Raises:
        ValueError: If a shape is wrong, or ``out`` is not contiguous bool.
    """
    if out.ndim != 3 or len(out) != len(probs) or out.dtype != np.bool_ or not out.flags.c_contiguous:
        raise ValueError(f'out must be contiguous bool ({len(probs)}, H, W), not {out.dtype} {out.shape}')
    spec = _paste_spec(probs, boxes, out.shape[1:], **options)
    if get_array_module(probs) is np:
        paste_cpu(spec, out, False)
    else:
        paste_gpu(spec, out)
    return out


def mask_runs(probs: Array, boxes: Array, size: tuple[int, int], **options: Any) -> list[np.ndarray]:
    """Return the masks of :func:`paste_masks` as runs of pixels, the input of run-length encoding.

    No array has the size of the image: only pixels inside the boxes are evaluated, and a GPU returns only the runs.

    Args:
        probs: (R, M, M) float32 probabilities.
        boxes: (R, 4) float32.
        size: Height and width of the image.
        options: Keyword arguments of :func:`paste_masks`.

    Returns:
        list of numpy.ndarray: For each mask (K, 2) int32: the first pixel of each run and the first pixel after it, in
        ascending order.  Pixel (y, x) has the index ``x * H + y``.  A run does not continue in the next column.

    Raises:
        ValueError: If a shape is wrong.
    """
    spec = _paste_spec(probs, boxes, size, **options)
    implementation = runs_cpu if get_array_module(probs) is np else runs_gpu
    height, width = map(int, size)
    return implementation(spec, height, width) if len(probs) else []


class _BoxAxis(NamedTuple):
    """The pixels that the padded masks cover along one axis of the image.

    Args:
        first: First pixel (R,) int32.
        n_pixels: Number of pixels (R,) int32.
        shift: Distance from the left border of the first pixel to that of the padded mask (R,) float64.
        scale: Mask pixels per image pixel (R,) float64.
    """

    first: Array
    n_pixels: Array
    shift: Array
    scale: Array


class _PasteSpec(NamedTuple):
    """The arguments of both implementations.  Numba compiles functions of named tuples, but not of dataclasses.

    Args:
        probs: (R, M, M) float32, contiguous.
        rows: The rows of the image that each mask covers.
        columns: The columns of the image that each mask covers.
        padding: See :func:`paste_masks`.
        margin: See :func:`paste_masks`.
        min_prob: Lower limit of interpolated probabilities (R,) float32.
        threshold: See :func:`paste_masks`.
        threshold_inclusive: See :func:`paste_masks`.
    """

    probs: Array
    rows: _BoxAxis
    columns: _BoxAxis
    padding: int
    margin: int
    min_prob: Array
    threshold: np.float32
    threshold_inclusive: bool


def _paste_spec(
    probs: Array,
    boxes: Array,
    size: Sequence[int],
    *,
    offset: float = 1.0,
    padding: int = 1,
    margin: int = 0,
    continuous_box: bool = False,
    squeeze_at_border: bool = False,
    threshold: float = 0.5,
    threshold_inclusive: bool = False,
) -> _PasteSpec:
    """Validate the arguments of :func:`paste_masks` and compute where the masks lie in the image."""
    if probs.ndim != 3 or 0 in probs.shape[1:]:
        raise ValueError(f'probs must have the shape (R, M, M), not {probs.shape}')
    if boxes.shape != (len(probs), 4):
        raise ValueError(f'boxes must have the shape ({len(probs)}, 4), not {boxes.shape}')
    xp = get_array_module(probs)
    # Clip to values that int32 can represent; a box beyond them covers the same pixels of any image.
    corners = xp.clip(xp.nan_to_num(boxes.astype(np.float32)), -(2.0**27), 2.0**27)
    low, high, sides = corners[:, :2].T, corners[:, 2:].T, probs.shape[1:]
    if continuous_box:
        rows, columns = (_continuous_axis(xp, low[i], high[i], sides[i]) for i in (0, 1))
        padding, margin = 0, 1
    else:
        limits = size if squeeze_at_border else (None, None)
        rows, columns = (_box_axis(xp, low[i], high[i], sides[i], offset, padding, limits[i]) for i in (0, 1))
    probs = xp.ascontiguousarray(probs, np.float32)
    has_min_prob = margin and not continuous_box and len(probs)
    min_prob = probs.min(axis=(1, 2)) if has_min_prob else xp.full((len(probs),), -np.inf, np.float32)
    return _PasteSpec(
        probs, rows, columns, int(padding), int(margin), min_prob, np.float32(threshold), bool(threshold_inclusive)
    )


def _box_axis(
    xp: Any, low: Array, high: Array, mask_size: int, offset: float, padding: int, limit: int | None
) -> _BoxAxis:
    """Return the pixels of one axis that padded masks cover, for boxes from ``low`` to ``high`` (R,).

    ``limit`` is the size of the image to which extended boxes are clipped, or ``None``.
    """
    padded = mask_size + 2 * padding
    # expand_boxes of detectron/utils/boxes.py, then ref_box.astype(np.int32) of segm_results.
    half = (high - low) * np.float32(0.5) * np.float32(padded / mask_size)
    centre = (high + low) * np.float32(0.5)
    first, last = (centre - half).astype(np.int32), (centre + half).astype(np.int32)
    if limit is not None:
        first, last = xp.maximum(first, 0), xp.minimum(last, np.int32(limit) - np.int32(offset))
    n_pixels = xp.maximum(last - first + np.int32(offset), 0).astype(np.int32)
    # OpenCV's inverse scale: 1 / (pixels / mask pixels).
    return _BoxAxis(first, n_pixels, xp.zeros(len(low)), 1.0 / (xp.maximum(n_pixels, 1) / float(padded)))


def _continuous_axis(xp: Any, low: Array, high: Array, mask_size: int) -> _BoxAxis:
    """Return the pixels of one axis that masks cover, for boxes (R,) whose corners are not truncated."""
    first, end = (xp.floor(low) - 1).astype(np.int32), (xp.ceil(high) + 1).astype(np.int32)
    low, high = low.astype(np.float64), high.astype(np.float64)
    is_empty = high <= low
    scale = mask_size / xp.where(is_empty, 1.0, high - low)
    return _BoxAxis(first, xp.where(is_empty, np.int32(0), end - first).astype(np.int32), low - first, scale)


def paste_gpu(spec: _PasteSpec, out: Array) -> None:
    """The GPU implementation: fills ``out`` (R, H, W)."""
    _, height, width = out.shape
    if out.size:
        _launch('paste_masks', height, spec, height, width, out)


def runs_gpu(spec: _PasteSpec, height: int, width: int) -> list[np.ndarray]:
    """The GPU implementation of :func:`mask_runs`, for at least one mask."""
    xp, n_masks = get_array_module(spec.probs), len(spec.probs)
    counts = xp.empty((n_masks * width,), np.int32)
    n_blocks = -(-width // _THREADS)
    _launch('mask_runs', n_blocks, spec, height, width, np.int32(False), counts, counts)
    ends = xp.cumsum(counts, dtype=np.int32)
    bounds = cuda.to_cpu(ends[width - 1 :: width])
    runs = xp.empty((int(bounds[-1]), 2), np.int32)
    if len(runs):
        _launch('mask_runs', n_blocks, spec, height, width, np.int32(True), ends, runs)
    return np.split(cuda.to_cpu(runs), bounds[:-1])


def _launch(name: str, n_blocks: int, spec: _PasteSpec, height: int, width: int, *outputs: Any) -> None:
    """Launch a kernel with ``n_blocks`` blocks for each mask."""
    n_masks, *mask_size = spec.probs.shape
    cuda_kernels.kernel('masks/paste_masks.cu', name)(
        (n_blocks, min(n_masks, _MAX_BLOCKS_Y)),
        (_THREADS,),
        (
            spec.probs,
            *spec.rows,
            *spec.columns,
            *map(np.int32, (n_masks, height, width, *mask_size, spec.padding, spec.margin)),
            spec.min_prob,
            spec.threshold,
            np.int32(spec.threshold_inclusive),
            *outputs,
        ),
    )


def paste_cpu(spec: _PasteSpec, out: np.ndarray, is_zero: bool) -> None:
    """The CPU implementation: fills ``out`` (R, H, W); if ``is_zero``, ``out`` is False everywhere."""
    # One share per thread, because a call takes the interpreter lock.  Each share gets masks of all box sizes.
    n_shares = max(1, min(out.nbytes // _BYTES_PER_THREAD, parallel.cpu_count(), len(out)))
    order = np.argsort(-spec.rows.n_pixels * spec.columns.n_pixels.astype(np.float64))
    parallel.parallel_for(lambda start, stop: _paste_shares(spec, out, is_zero, order, n_shares, start, stop), n_shares)


def runs_cpu(spec: _PasteSpec, height: int, width: int) -> list[np.ndarray]:
    """The CPU implementation of :func:`mask_runs`."""
    runs: list = [None] * len(spec.probs)

    def find_runs(start: int, stop: int) -> None:
        for r in range(start, stop):
            runs[r] = _find_runs(spec, r, height, width)

    parallel.parallel_for(find_runs, len(runs))
    return runs


@parallel.jit
def _paste_shares(spec, out, is_zero, order, n_shares, start, stop):
    """Paste shares ``start`` to ``stop``; share i consists of the masks ``order[i::n_shares]``."""
    for share in range(start, stop):
        for i in range(share, len(order), n_shares):
            r = order[i]
            if not is_zero:
                out[r].fill(False)
            y_begin, y_end = _visible_range(spec.rows, r, out.shape[1])
            x_begin, x_end = _visible_range(spec.columns, r, out.shape[2])
            if y_begin < y_end and x_begin < x_end:
                _paste_region(spec, r, y_begin, x_begin, out[r, y_begin:y_end, x_begin:x_end])


@parallel.jit
def _find_runs(spec, r, height, width):
    """Return the runs of mask ``r``."""
    y_begin, y_end = _visible_range(spec.rows, r, height)
    x_begin, x_end = _visible_range(spec.columns, r, width)
    if y_begin >= y_end or x_begin >= x_end:
        return np.empty((0, 2), np.int32)
    region = np.empty((y_end - y_begin, x_end - x_begin), np.bool_)
    _paste_region(spec, r, y_begin, x_begin, region)
    n_runs = _scan_columns(region, y_begin, x_begin, height, np.empty((0, 2), np.int32))
    runs = np.empty((n_runs, 2), np.int32)
    _scan_columns(region, y_begin, x_begin, height, runs)
    return runs


@parallel.jit
def _visible_range(axis, r, size):
    """Return the pixels of mask ``r`` along an axis of the image, ``begin`` and ``end``; none if begin >= end."""
    return max(axis.first[r], 0), min(axis.first[r] + axis.n_pixels[r], size)


@parallel.jit
def _scan_columns(region, y_begin, x_begin, height, runs):
    """Write the runs of a region of an image whose height is ``height``; return the number of runs.

    Runs for which ``runs`` (K, 2) has no rows are only counted.
    """
    count = 0
    for j in range(region.shape[1]):
        inside = False
        for i in range(region.shape[0] + 1):
            is_set = i < region.shape[0] and region[i, j]
            if is_set != inside:
                if count < len(runs):
                    runs[count, int(inside)] = (x_begin + j) * height + y_begin + i
                count += inside
                inside = is_set
    return count


@parallel.jit
def _paste_region(spec, r, y_begin, x_begin, out):
    """Paste the part of mask ``r`` whose first pixel in the image is ``(y_begin, x_begin)``."""
    prob, frame = spec.probs[r], spec.padding + spec.margin
    padded = np.zeros((prob.shape[0] + 2 * frame, prob.shape[1] + 2 * frame), np.float32)
    padded[frame : frame + prob.shape[0], frame : frame + prob.shape[1]] = prob
    lines = np.empty((padded.shape[0], out.shape[1]), np.float32)
    _resize_columns(padded, spec.columns, r, x_begin, spec.margin, lines)
    min_prob = spec.min_prob[r]
    for i in range(out.shape[0]):
        row, fraction = _source(spec.rows, r, y_begin + i, spec.margin)
        upper = min(max(row, 0), padded.shape[0] - 1)
        lower = min(max(row + 1, 0), padded.shape[0] - 1)
        for j in range(out.shape[1]):
            value = lines[upper, j] * (_ONE - fraction) + lines[lower, j] * fraction
            value = max(value, min_prob)
            out[i, j] = (value > spec.threshold) | (spec.threshold_inclusive & (value == spec.threshold))


@parallel.jit
def _resize_columns(padded, axis, r, x_begin, margin, lines):
    """Resize the rows of padded mask ``r`` horizontally to the pixels of the image, starting at ``x_begin``."""
    last = padded.shape[1] - 1
    for j in range(lines.shape[1]):
        column, fraction = _source(axis, r, x_begin + j, margin)
        # OpenCV treats columns, but not rows, separately at the borders.
        if column < 0:
            column, fraction = 0, np.float32(0)
        if column >= last:
            column, fraction = last, np.float32(0)
        right = min(column + 1, last)
        for i in range(padded.shape[0]):
            lines[i, j] = padded[i, column] * (_ONE - fraction) + padded[i, right] * fraction


@parallel.jit
def _source(axis, r, pixel, margin):
    """Return the pixel of mask ``r`` at or before the centre of a pixel, and the weight of the mask pixel after it."""
    position = np.float32((pixel - axis.first[r] + 0.5 - axis.shift[r]) * axis.scale[r] - 0.5)
    source = math.floor(position)
    return source + margin, position - np.float32(source)
