"""Anchors: the boxes from which the RPN measures its proposals."""

from __future__ import annotations

import numpy as np


def detectron_cell_anchors(stride: int, sizes, ratios) -> np.ndarray:
    """Return the anchors of a feature map's first location, as Detectron makes them.

    Widths and heights are rounded to whole pixels at the size of one stride and then scaled
    (``detectron/modeling/generate_anchors.py``); ratios are the outer, sizes the inner loop.

    Args:
        stride: Input pixels per location.
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths.

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float64 boxes around ``(stride - 1) / 2``.
    """
    widths = np.round(np.sqrt(stride * stride / np.asarray(ratios, np.float64)))
    heights = np.round(widths * ratios)
    scales = np.asarray(sizes, np.float64) / stride
    half_sides = (np.stack([heights, widths], axis=1)[:, None] * scales[:, None] - 1) / 2
    half_sides = half_sides.reshape(-1, 2)
    centre = (stride - 1) / 2
    return np.concatenate([centre - half_sides, centre + half_sides], axis=1)


def matterport_cell_anchors(sizes, ratios) -> np.ndarray:
    """Return the anchors of a feature map's first location, as Matterport makes them.

    Not rounded, around the location's first pixel (``utils.generate_anchors``).  Matterport gives its boxes'
    second corners behind the last pixel and moves them onto it where it divides by the image's size less one
    (``utils.norm_boxes``): so they are here.

    Args:
        sizes: Square roots of the anchors' areas in pixels.
        ratios: Heights divided by widths (Matterport's own ratios are the inverse).

    Returns:
        numpy.ndarray: ``(len(ratios) * len(sizes), 4)`` float64 boxes, ratios the outer loop.
    """
    roots = np.sqrt(np.asarray(ratios, np.float64))
    sides = np.stack([roots, 1 / roots], axis=1)[:, None] * np.asarray(sizes, np.float64)[:, None]
    half_sides = sides.reshape(-1, 2) / 2
    return np.concatenate([-half_sides, half_sides - 1], axis=1)


def shift_anchors(cell: np.ndarray, stride: int, height: int, width: int) -> np.ndarray:
    """Repeat cell anchors over a feature map.

    Args:
        cell: ``(A, 4)`` anchors of the first location.
        stride: Input pixels per location.
        height: Rows of the map.
        width: Columns of the map.

    Returns:
        numpy.ndarray: ``(height * width * A, 4)`` float32 boxes; anchors are the inner loop.
    """
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing='ij')
    shifts = np.stack([y, x, y, x], axis=2).reshape(-1, 1, 4)
    return (shifts + cell).reshape(-1, 4).astype(np.float32)
