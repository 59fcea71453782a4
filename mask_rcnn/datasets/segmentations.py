"""Outlines of objects in annotation files: polygons and run lengths in the forms that labelling tools write."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.annotation_values import AnnotationError, read_count, read_numbers, shorten
from mask_rcnn.datasets.example import Segmentation
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.masks.rle import decode_counts, encode_polygons

_MIN_POLYGON_NUMBERS = 6  # three points
#: A vertex may lie outside the image by this number of image sides or of pixels, whichever is more: tiles of large
#: images have outlines that continue in other tiles.  pycocotools allocates memory for each pixel of an outline, and
#: crashes if there are more than 2**31.
_MAX_SIDES_OUTSIDE, _MAX_PIXELS_OUTSIDE = 4, 10_000
#: The longest outline, in sums of height and width; the longest one of COCO 2017 has fewer than 20.
_MAX_OUTLINE_SIDES = 100
#: Images with more pixels overflow the 32-bit arithmetic of pycocotools.
_MAX_IMAGE_PIXELS = 2**31
#: Tolerance in pixels where the annotated box decides what two points mean.
_BOX_TOLERANCE = 2


def read_segmentation(
    value: Any, size: tuple[int, int], *, bbox: list[float] | None = None, shape: str | None = None
) -> Segmentation:
    """Return the polygons or the run lengths of an object.

    A polygon is a list ``x, y, x, y, ...`` or a list of points; a single polygon need not be in a list.  Two points are
    labelme's rectangle or circle (:func:`two_point_polygon`).  Polygons of a single point are dropped.  A polygon may
    also be an object of VGG Image Annotator with ``all_points_x`` and ``all_points_y``.  Run lengths may be in a list;
    several are joined.

    Args:
        value: The ``segmentation`` of an annotation.
        size: Height and width of the image.
        bbox: The annotated box, ``x, y, width, height``.
        shape: The ``shape_type`` of the annotation, if it has one.

    Returns:
        Polygons of at least three points, compressed run lengths, or ``()`` if there is no outline.

    Raises:
        AnnotationError: The value is something else, a polygon is far outside the image, or the run lengths do not fit
            the image.
    """
    if not value:
        return ()
    if size[0] * size[1] > _MAX_IMAGE_PIXELS:
        raise AnnotationError(f'belongs to an image of {size[0]} x {size[1]} pixels, too large for pycocotools')
    if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], dict):
        (value,) = value
    if isinstance(value, (list, tuple)) and all(isinstance(part, dict) and 'counts' in part for part in value):
        return coco_mask.merge([_read_run_lengths(part, size) for part in value])
    if isinstance(value, dict) and 'all_points_x' in value:
        value = _read_via_polygon(value)
    if isinstance(value, dict):
        return _read_run_lengths(value, size)
    if not isinstance(value, (list, tuple)):
        raise AnnotationError('is neither a list of polygons nor run lengths')
    polygons = []
    for numbers in map(_read_polygon, _split_polygons(value)):
        if len(numbers) == 4:
            polygons.append(two_point_polygon(numbers, bbox, shape))
        elif len(numbers) >= _MIN_POLYGON_NUMBERS:
            polygons.append(np.array(numbers, np.float64))
    for polygon in polygons:
        check_polygon(polygon, size)
    return tuple(polygon for polygon in polygons if len(polygon))


def check_polygon(polygon: np.ndarray, size: tuple[int, int]) -> None:
    """Refuse a polygon for which pycocotools would need too much memory.

    Args:
        polygon: ``x, y, x, y, ...``.
        size: Height and width of the image.

    Raises:
        AnnotationError: A vertex is far outside the image, or the polygon is too long.
    """
    if not len(polygon):
        return
    height, width = size
    margin = max(_MAX_SIDES_OUTSIDE * max(size), _MAX_PIXELS_OUTSIDE)
    x, y = polygon[0::2], polygon[1::2]
    low, high = np.array([x.min(), y.min()]), np.array([x.max(), y.max()])
    if low.min() < -margin or (high - (width, height)).max() > margin:
        i = np.maximum(abs(x - width / 2), abs(y - height / 2)).argmax()
        raise AnnotationError(
            f'has a vertex at x = {x[i]:g}, y = {y[i]:g}, far outside the image of {height} x {width} pixels '
            '(height x width)'
        )
    max_length = _MAX_OUTLINE_SIDES * (height + width) + 8 * margin
    if len(x) * (high - low).max() > max_length:
        length = np.maximum(abs(x - np.roll(x, 1)), abs(y - np.roll(y, 1))).sum()
        if length > max_length:
            raise AnnotationError(
                f'has an outline of {length:.0f} pixels, too long for an image of {height} x {width} pixels'
            )


def two_point_polygon(numbers: list[float], bbox: list[float] | None, shape: str | None) -> np.ndarray:
    """Return the polygon that two points stand for.

    labelme describes a rectangle by two opposite corners, and a circle by its centre and a point on it.  Its converters
    to COCO's format copy the points.  Two points are a circle if the annotation states it (``shape_type``), or if the
    annotated box is that of the circle; otherwise they are a rectangle.

    Args:
        numbers: ``x, y, x, y``.
        bbox: The annotated box, ``x, y, width, height``, or ``None``.
        shape: The annotation's ``shape_type``, or ``None``.

    Returns:
        A polygon, or an empty array for a shape without area.
    """
    x1, y1, x2, y2 = numbers
    radius = math.hypot(x2 - x1, y2 - y1)
    left, top, width, height = min(x1, x2), min(y1, y2), abs(x2 - x1), abs(y2 - y1)
    is_circle = shape == 'circle'
    if shape is None and bbox is not None and not _is_near(bbox, [left, top, width, height]):
        is_circle = _is_near(bbox, [x1 - radius, y1 - radius, 2 * radius, 2 * radius])
        if not is_circle and bbox == numbers:  # pycocotools reads four numbers as a box
            left, top, width, height = bbox
    if is_circle and radius > 0:
        # The number of vertices of labelme: the polygon is at most one pixel inside the circle.
        n_vertices = max(12, int(math.pi / math.acos(1 - 1 / radius))) if radius > 1 else 12
        angles = np.arange(min(n_vertices, 360)) * (2 * math.pi / min(n_vertices, 360))
        return np.stack([x1 + radius * np.cos(angles), y1 + radius * np.sin(angles)], axis=1).ravel()
    if width <= 0 or height <= 0 or shape in ('line', 'linestrip'):
        return np.zeros(0)
    right, bottom = left + width, top + height
    return np.array([left, top, right, top, right, bottom, left, bottom], np.float64)


def outline_box(segmentation: Segmentation, size: tuple[int, int], *, of_pixels: bool) -> list[float] | None:
    """Return the box ``x, y, width, height`` of an outline, or ``None`` if it is empty.

    Args:
        segmentation: Polygons or run lengths.
        size: Height and width of the image.
        of_pixels: Return the box of the pixels inside of polygons instead of the box of their vertices.
    """
    if not segmentation:
        return None
    if isinstance(segmentation, dict) or of_pixels:
        box = coco_mask.toBbox(_to_rle(segmentation, size)).tolist()
    else:
        points = np.concatenate([polygon.reshape(-1, 2) for polygon in segmentation])
        low = points.min(axis=0)
        box = [*low.tolist(), *(points.max(axis=0) - low).tolist()]
    return box if min(box[2:]) > 0 else None


def outline_area(segmentation: Segmentation, size: tuple[int, int]) -> float:
    """Return the area of an outline in pixels of the image, 0 for an empty one."""
    return float(coco_mask.area(_to_rle(segmentation, size))) if segmentation else 0.0


def _to_rle(segmentation: Segmentation, size: tuple[int, int]) -> dict:
    return segmentation if isinstance(segmentation, dict) else encode_polygons(segmentation, size)


def to_json(segmentation: Segmentation) -> list | dict:
    """Return a segmentation as plain Python data in COCO's format."""
    if isinstance(segmentation, dict):
        return {**segmentation, 'counts': segmentation['counts'].decode('ascii')}
    return [polygon.tolist() for polygon in segmentation]


def _is_near(box: list[float], other: list[float]) -> bool:
    return bool(np.abs(np.subtract(box, other)).max() <= _BOX_TOLERANCE)


def _split_polygons(value: list | tuple) -> list:
    """Return the polygons of a list of polygons, of points, or of numbers."""
    n_lists = sum(isinstance(part, (list, tuple)) for part in value)
    if n_lists == 0:
        return [value]  # VGG Image Annotator writes the numbers of one polygon
    if n_lists < len(value):
        raise AnnotationError('is neither a list of polygons nor run lengths')
    if len(value) > 1 and all(map(_is_point, value)):
        return [value]
    return list(value)


def _is_point(value: Any) -> bool:
    return len(value) == 2 and not any(isinstance(number, (list, tuple)) for number in value)


def _read_polygon(value: list | tuple) -> list[float]:
    """Return the numbers ``x, y, x, y, ...`` of a polygon in any form."""
    if value and all(isinstance(part, (list, tuple)) and _is_point(part) for part in value):
        value = [number for point in value for number in point]
    elif len(value) % 2:
        raise AnnotationError(f'has a polygon of {counted(len(value), "number")}, not x, y, x, y, ...')
    return read_numbers(value, 'has a polygon in which a coordinate')


def _read_via_polygon(shape: dict) -> list:
    """Return the numbers ``x, y, x, y, ...`` of a polygon of VGG Image Annotator's projects."""
    columns, rows = shape['all_points_x'], shape.get('all_points_y')
    if not isinstance(columns, list) or not isinstance(rows, list) or len(columns) != len(rows):
        raise AnnotationError("does not have as many numbers in 'all_points_x' as in 'all_points_y'")
    return [number for point in zip(columns, rows, strict=True) for number in point]


def _read_run_lengths(rle: dict, size: tuple[int, int]) -> dict:
    """Return the compressed form of valid run lengths."""
    declared = rle.get('size')
    try:
        sides = [read_count(side, 'side') for side in declared] if isinstance(declared, (list, tuple)) else None
    except AnnotationError:
        sides = None
    if sides != list(size):
        raise AnnotationError(f'is for an image of {shorten(declared)} pixels, not {list(size)}')
    counts = rle.get('counts')
    try:
        if isinstance(counts, (list, tuple)):
            is_plain = set(map(type, counts)) == {int}
            integers = counts if is_plain else [read_count(count, 'a run length') for count in counts]
            runs = np.array(integers, np.int64)
        elif isinstance(counts, (str, bytes)):
            runs = decode_counts(counts)
        else:
            raise ValueError(f"'counts' is {shorten(counts)}, neither a text nor a list")
        if not runs.size:
            raise ValueError('there are none')
        if runs.min() < 0 or runs.max() > size[0] * size[1] or runs.sum() != size[0] * size[1]:
            raise ValueError('their sum is not the number of pixels of the image')
        if isinstance(counts, (list, tuple)):
            counts = coco_mask.frPyObjects({'size': list(size), 'counts': runs.tolist()}, *size)['counts']
    except UnicodeEncodeError as error:
        raise AnnotationError('has malformed run lengths (they have invalid characters)') from error
    except OverflowError as error:
        raise AnnotationError('has malformed run lengths (a number is too large)') from error
    except ValueError as error:
        raise AnnotationError(f'has malformed run lengths ({error})') from error
    return {'size': list(size), 'counts': counts.encode('ascii') if isinstance(counts, str) else counts}
