"""The shapes of labelme and of programs that write its format."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from mask_rcnn.datasets.annotation_values import AnnotationError, shorten
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.datasets.importers.outlines import checked, ellipse, paste_bitmap, read_points, rectangle
from mask_rcnn.io.wording import counted

#: Shapes without an inside.
LEFT_OUT_SHAPES = ('point', 'points', 'line', 'linestrip')


def read_shape(kind: Any, shape: dict, size: tuple[int, int]) -> Segmentation:
    """Return the outline of a shape; ``()`` without area.

    Args:
        kind: The ``shape_type``.
        shape: The shape.
        size: Height and width of the image.

    Raises:
        AnnotationError: The shape is malformed or of an unknown kind.
    """
    points = read_points(shape.get('points'))
    if kind == 'mask':
        return _read_mask(shape.get('mask'), points, size)
    if kind == 'circle':
        (x, y), edge = _two_points(kind, points)
        radius = math.hypot(edge[0] - x, edge[1] - y)
        return _as_segmentation(ellipse((x, y), (radius, radius), size))
    if kind == 'rectangle' and len(points) == 2:
        x1, y1, x2, y2 = points.ravel().tolist()
        return _as_segmentation(rectangle(x1, y1, x2, y2, size))
    if kind in ('polygon', 'rectangle', 'rotation', 'oriented_rectangle'):  # of four points in X-AnyLabeling
        return _as_segmentation(checked(points.ravel(), size) if len(points) >= 3 else np.zeros(0))
    raise AnnotationError(f"has the 'shape_type' {shorten(kind)}; known are polygon, rectangle, circle and mask")


def _as_segmentation(polygon: np.ndarray) -> Segmentation:
    return (polygon,) if len(polygon) else ()


def _two_points(kind: str, points: np.ndarray) -> list[list[float]]:
    if len(points) != 2:
        raise AnnotationError(f'is a {kind} of {counted(len(points), "point")}, not of two')
    return points.tolist()


def _read_mask(data: Any, points: np.ndarray, size: tuple[int, int]) -> Segmentation:
    """Return the run lengths of a bitmap, a PNG file in base64 whose corner pixels are the two points."""
    first, last = _two_points('mask', points)
    limit = 2 * max(size)
    if max(map(abs, [*first, *last])) > limit:
        raise AnnotationError(f'is a mask at {first}, {last}, far outside the image')
    (left, top), (right, bottom) = ([round(number) for number in point] for point in (first, last))
    expected = bottom - top + 1, right - left + 1
    if not isinstance(data, str):
        raise AnnotationError("is a mask without the PNG file 'mask'")
    try:
        with Image.open(io.BytesIO(base64.b64decode(data)), formats=('PNG',)) as image:
            if image.size[::-1] != expected:
                raise AnnotationError(
                    f'has a mask of {image.height} x {image.width} pixels, but its points declare '
                    f'{expected[0]} x {expected[1]}'
                )
            bitmap = np.asarray(image.convert('L')) > 0
    except AnnotationError:
        raise
    except Exception as error:  # Pillow raises errors of many types for damaged data
        raise AnnotationError("has a 'mask' that is not a PNG file in base64") from error
    return paste_bitmap(bitmap, top, left, size) if bitmap.any() else ()
