"""Anchors: the reference boxes of the RPN's deltas."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def cell_anchors(kind: str, stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors of the first location of a feature map.

    Args:
        kind: ``'detectron'`` (:func:`detectron_cell_anchors`), ``'matterport'`` (:func:`matterport_cell_anchors`),
            ``'dena'`` (:func:`dena_cell_anchors`), ``'torchvision'`` (:func:`torchvision_cell_anchors`) or
            ``'detectron2'`` (:func:`detectron2_cell_anchors`).
        stride: Input pixels per location.
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths.

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float64 or float32 boxes; ratios are the outer loop, sizes the
        inner loop, except for ``'detectron2'``.
    """
    if kind in _OF_STRIDE:
        return _OF_STRIDE[kind](stride, sizes, ratios)
    return _CENTRED_ON_PIXEL[kind](sizes, ratios)


def detectron_cell_anchors(stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return Detectron's anchors of the first location of a feature map.

    Widths and heights are rounded to whole pixels for an anchor with the size of one stride, and then scaled.  Source:
    ``detectron/modeling/generate_anchors.py``.

    Args:
        stride: Input pixels per location.
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths.

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float64 boxes with the centre ``(stride - 1) / 2``; ratios are
        the outer loop, sizes the inner loop.
    """
    widths = np.round(np.sqrt(stride * stride / np.asarray(ratios, np.float64)))
    heights = np.round(widths * ratios)
    scales = np.asarray(sizes, np.float64) / stride
    half_sides = (np.stack([heights, widths], axis=1)[:, None] * scales[:, None] - 1) / 2
    half_sides = half_sides.reshape(-1, 2)
    centre = (stride - 1) / 2
    return np.concatenate([centre - half_sides, centre + half_sides], axis=1)


def matterport_cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return Matterport's anchors of the first location of a feature map.

    Sides are not rounded.  The centre is the first pixel of the location.  The second corner of Matterport's anchors
    (``utils.generate_anchors``) is the first pixel after the box; ``utils.norm_boxes`` subtracts 1 from it, as this
    function does.

    Args:
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths; Matterport's ratios are the inverse.

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float64 boxes; ratios are the outer loop, sizes the inner loop.
    """
    half_sides = _half_sides(sizes, ratios)
    return np.concatenate([-half_sides, half_sides - 1], axis=1)


def dena_cell_anchors(stride: int, sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return the anchors of the first location of a feature map in DeNA's program and ChainerCV's Faster R-CNN.

    Sides are not rounded, and corners are coordinates.  Source: ChainerCV
    ``links/model/faster_rcnn/utils/generate_anchor_base.py``.

    Args:
        stride: Input pixels per location.
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths.

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float32 boxes with the centre ``stride / 2``; ratios are the
        outer loop, sizes the inner loop.
    """
    half_sides = _half_sides(sizes, ratios)
    return np.concatenate([stride / 2 - half_sides, stride / 2 + half_sides], axis=1).astype(np.float32)


def torchvision_cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return torchvision's anchors of the first location of a feature map.

    The halves of the sides are rounded to integers.  The centre is the origin, and corners are coordinates.  Source:
    ``torchvision/models/detection/anchor_utils.py``, which computes in single precision.

    Args:
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths.

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float32 boxes; ratios are the outer loop, sizes the inner loop.
    """
    roots = np.sqrt(np.asarray(ratios, np.float32))
    sides = np.stack([roots, 1 / roots], axis=1)[:, None] * np.asarray(sizes, np.float32)[:, None]
    half_sides = np.rint(sides.reshape(-1, 2) / 2)
    return np.concatenate([-half_sides, half_sides], axis=1)


def detectron2_cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return detectron2's anchors of the first location of a feature map.

    Sides are not rounded.  The centre is the origin, and corners are coordinates.  Source:
    ``detectron2/modeling/anchor_generator.py``.

    Args:
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths.

    Returns:
        numpy.ndarray: ``(len(sizes) * len(ratios), 4)`` float32 boxes; sizes are the outer loop, ratios the inner loop.
    """
    areas, aspect_ratios = np.square(np.asarray(sizes, np.float64))[:, None], np.asarray(ratios, np.float64)
    widths = np.sqrt(areas / aspect_ratios)
    half_sides = np.stack([aspect_ratios * widths, widths], axis=2).reshape(-1, 2) / 2
    return np.concatenate([-half_sides, half_sides], axis=1).astype(np.float32)


#: The anchors that depend on the stride, and those that do not, by their name in a dialect.
_OF_STRIDE = {'detectron': detectron_cell_anchors, 'dena': dena_cell_anchors}
_CENTRED_ON_PIXEL = {
    'matterport': matterport_cell_anchors,
    'torchvision': torchvision_cell_anchors,
    'detectron2': detectron2_cell_anchors,
}


def _half_sides(sizes: Sequence[float], ratios: Sequence[float]) -> np.ndarray:
    """Return half the height and half the width of each anchor without rounding, ``(R * S, 2)``."""
    roots = np.sqrt(np.asarray(ratios, np.float64))
    sides = np.stack([roots, 1 / roots], axis=1)[:, None] * np.asarray(sizes, np.float64)[:, None]
    return sides.reshape(-1, 2) / 2


def strides_of_size(input_size: Sequence[int], size: Sequence[int]) -> tuple[int, int]:
    """Return torchvision's distance of the anchors of a feature map along ``y`` and ``x``, in whole pixels.

    It is less than the stride if the input is not a multiple of that: 61 for the 12 rows of P6 that are computed from
    736 rows.  Source: ``AnchorGenerator.forward`` of ``torchvision/models/detection/anchor_utils.py``.

    Args:
        input_size: Height and width of the padded network input.
        size: Height and width of the feature map.
    """
    return input_size[0] // size[0], input_size[1] // size[1]


def shift_anchors(cell: np.ndarray, stride: int | tuple[int, int], height: int, width: int) -> np.ndarray:
    """Shift the anchors of the first location to all locations of a feature map.

    Args:
        cell: ``(A, 4)`` anchors of the first location.
        stride: Input pixels per location, one number or those of ``y`` and ``x``.
        height: Height of the feature map.
        width: Width of the feature map.

    Returns:
        numpy.ndarray: ``(height * width * A, 4)`` float32 boxes; the anchors of a location are the inner loop.
    """
    y_stride, x_stride = (stride, stride) if isinstance(stride, int) else stride
    anchors = np.empty((height, width, len(cell), 4), np.float32)
    # The additions are float64; they run once per row and once per column instead of at every location.
    anchors[..., ::2] = (np.arange(height)[:, None, None] * y_stride + cell[:, ::2])[:, None]
    anchors[..., 1::2] = np.arange(width)[:, None, None] * x_stride + cell[:, 1::2]
    return anchors.reshape(-1, 4)
