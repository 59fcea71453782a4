"""Run-length encoded masks as crops of their bounding boxes: the time depends on the object, not on the image."""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.masks.rle import decode_runs, encode_runs, find_runs
from mask_rcnn.ops.runtime.parallel import jit


def decode_crop(rle: dict) -> tuple[np.ndarray, int, int]:
    """Return the part of a mask within the bounding box of its pixels.

    Args:
        rle: ``{'size': [H, W], 'counts': str or bytes}``.

    Returns:
        tuple: ``(h, w)`` uint8 of 0 and 1, and the row and the column of its first pixel in the mask; ``(0, 0)`` pixels
        if the mask is empty.

    Raises:
        ValueError: See :func:`mask_rcnn.ops.masks.rle.decode_runs`.
    """
    height = int(rle['size'][0])
    ends = decode_runs(rle)
    runs = ends[: len(ends) // 2 * 2].reshape(-1, 2)
    runs = runs[runs[:, 0] < runs[:, 1]]
    if not runs.size:
        return np.zeros((0, 0), np.uint8), 0, 0
    first, last = runs[:, 0], runs[:, 1] - 1
    left, right = int(first[0] // height), int(last[-1] // height) + 1
    spans_columns = (first // height < last // height).any()
    top = 0 if spans_columns else int((first % height).min())
    bottom = height if spans_columns else int((last % height).max()) + 1
    columns = np.zeros((right - left, bottom - top), np.uint8)
    _fill_columns(runs, height, top, left, columns)
    if spans_columns:  # the bounding box may be lower than the image
        rows = np.flatnonzero(columns.any(axis=0))
        columns, top = columns[:, rows[0] : rows[-1] + 1], int(rows[0])
    return columns.T, top, left


def encode_crop(crop: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict:
    """Encode a mask of which only a part has pixels of 1: the inverse of :func:`decode_crop`.

    Args:
        crop: ``(h, w)`` of 0 and 1.
        top: Row of its first pixel in the mask.
        left: Column of its first pixel in the mask.
        size: Height and width of the mask.

    Returns:
        dict: ``{'size': [H, W], 'counts': bytes}``, as ``pycocotools.mask.encode`` returns it.
    """
    runs = find_runs(crop.astype(bool, copy=False))
    if runs.size:
        # The last pixel of a run is in its column; the first pixel after it may be in the next column of the crop.
        columns, rows = np.divmod(runs - [0, 1], len(crop))
        runs = (columns + left) * size[0] + rows + top + [0, 1]
    rle = encode_runs(runs, size)
    return {**rle, 'counts': rle['counts'].encode('ascii')}


@jit
def _fill_columns(runs: np.ndarray, height: int, top: int, left: int, columns: np.ndarray) -> None:
    """Set the pixels of runs in ``columns``, ``(w, h)``, to 1."""
    for k in range(len(runs)):
        for pixel in range(runs[k, 0], runs[k, 1]):
            x = pixel // height
            columns[x - left, pixel - x * height - top] = 1
