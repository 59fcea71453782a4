"""Outlines of the shapes that labelling tools draw: rectangles, circles and ellipses as polygons, bitmaps as runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.annotation_values import AnnotationError, read_numbers, shorten
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.datasets.segmentations import check_polygon
from mask_rcnn.ops.masks.rle import encode_mask, encode_polygons

#: Numbers of vertices of a polygon for an ellipse, and vertices per pixel of its longer radius.
_MIN_VERTICES, _MAX_VERTICES, _VERTICES_PER_PIXEL = 32, 360, 2
#: Digits after the decimal point of computed vertices.
_N_DIGITS = 3


def read_polygon(columns: Any, rows: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the polygon ``x, y, x, y, ...`` of the coordinates in a file; empty for fewer than three points.

    Args:
        columns: The x of the points.
        rows: The y of the points.
        size: Height and width of the image.

    Raises:
        AnnotationError: The coordinates are not two lists of the same number of finite numbers, or are far outside.
    """
    if not isinstance(columns, list) or not isinstance(rows, list) or len(columns) != len(rows):
        raise AnnotationError('does not have as many x as y coordinates')
    if len(columns) < 3:
        return np.zeros(0)
    x, y = (read_numbers(values, 'has a polygon in which a coordinate') for values in (columns, rows))
    return checked(np.stack([x, y], axis=1).ravel(), size)


def read_points(points: Any) -> np.ndarray:
    """Return the points ``(N, 2)`` float64 ``(x, y)`` of a list ``[[x, y], ...]``.

    Raises:
        AnnotationError: The value is something else.
    """
    if not isinstance(points, list) or not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise AnnotationError(f'has the points {shorten(points)}, not a list of [x, y]')
    numbers = read_numbers([number for point in points for number in point], 'has a point in which a coordinate')
    return np.array(numbers, np.float64).reshape(-1, 2)


def checked(polygon: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a polygon that can be rasterised in an image of height and width ``size``.

    Raises:
        AnnotationError: See :func:`mask_rcnn.datasets.segmentations.check_polygon`.
    """
    check_polygon(polygon, size)
    return polygon


def rectangle(x1: float, y1: float, x2: float, y2: float, size: tuple[int, int]) -> np.ndarray:
    """Return the polygon of a rectangle with two opposite corners; empty without area.

    Raises:
        AnnotationError: The rectangle is far outside the image.
    """
    left, right, top, bottom = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    if left == right or top == bottom:
        return np.zeros(0)
    return checked(np.array([left, top, right, top, right, bottom, left, bottom], np.float64), size)


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], size: tuple[int, int], angle: float = 0.0
) -> np.ndarray:
    """Return a polygon with the area of an ellipse; empty without area.

    Args:
        centre: ``(x, y)``.
        radii: The radii along x and y before the rotation.
        size: Height and width of the image.
        angle: Rotation in radians from the x axis towards the y axis, clockwise in the image.

    Raises:
        AnnotationError: A radius is negative, or the ellipse is far outside the image.
    """
    if min(radii) < 0:
        raise AnnotationError(f'has a radius of {min(radii):g} pixels')
    if min(radii) == 0:
        return np.zeros(0)
    n = int(min(max(_VERTICES_PER_PIXEL * max(radii), _MIN_VERTICES), _MAX_VERTICES))
    step = 2 * math.pi / n
    angles = np.arange(n) * step
    scale = math.sqrt(step / math.sin(step))  # vertices on the ellipse would cut its area
    x, y = radii[0] * scale * np.cos(angles), radii[1] * scale * np.sin(angles)
    cos, sin = math.cos(angle), math.sin(angle)
    points = np.stack([centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y], axis=1)
    return checked(points.round(_N_DIGITS).ravel(), size)


def paste_bitmap(bitmap: np.ndarray, top: int, left: int, size: tuple[int, int]) -> dict:
    """Return the run lengths of a bitmap at a place of an image, with ``counts`` as bytes.

    Args:
        bitmap: ``(h, w)`` bool.
        top: The row of its first pixel; parts outside the image are clipped.
        left: The column of its first pixel.
        size: Height and width of the image.
    """
    mask = np.zeros(size, bool)
    rows, columns = (
        slice(max(start, 0), max(start + n, 0)) for start, n in zip((top, left), bitmap.shape, strict=True)
    )
    part = mask[rows, columns]
    first_row, first_column = max(-top, 0), max(-left, 0)
    part[:] = bitmap[first_row : first_row + part.shape[0], first_column : first_column + part.shape[1]]
    rle = encode_mask(mask)
    return {**rle, 'counts': rle['counts'].encode('ascii')}


def join(parts: Sequence[Segmentation], size: tuple[int, int]) -> Segmentation:
    """Return the union of several outlines: polygons stay polygons, unless one of the outlines is a bitmap."""
    parts = [part for part in parts if part]
    if len(parts) == 1:
        return parts[0]
    if all(isinstance(part, tuple) for part in parts):
        return tuple(polygon for part in parts for polygon in part)
    runs = [part if isinstance(part, dict) else encode_polygons(part, size) for part in parts]
    return coco_mask.merge(runs)
