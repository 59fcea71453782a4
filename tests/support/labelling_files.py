"""Small files in the forms that labelling tools write, with their images, and masks by independent formulas."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

#: Height and width of the images.
SIZE = HEIGHT, WIDTH = 90, 120
TRIANGLE_X, TRIANGLE_Y = [10, 80, 30], [5, 20, 75]
TRIANGLE = [10, 5, 80, 20, 30, 75]


def write_image(path: Path, size: tuple[int, int] = SIZE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size[::-1], (90, 120, 30)).save(path)
    return path


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding='utf-8')
    return path


def png_text(bitmap: np.ndarray) -> str:
    """Return a bitmap ``(h, w)`` bool as a PNG file in base64, as labelme writes it."""
    file = io.BytesIO()
    Image.fromarray(bitmap).save(file, 'PNG')
    return base64.b64encode(file.getvalue()).decode('ascii')


def via_region(shape: dict, attributes: dict | None = None) -> dict:
    return {'shape_attributes': shape, 'region_attributes': attributes or {}}


def via_triangle(attributes: dict | None = None) -> dict:
    return via_region({'name': 'polygon', 'all_points_x': TRIANGLE_X, 'all_points_y': TRIANGLE_Y}, attributes)


def via_image(regions, name: str = 'a.png', **fields) -> dict:
    """Return the images of an export with one image."""
    return {f'{name}100': {'filename': name, 'size': 100, 'regions': regions, 'file_attributes': {}, **fields}}


def labelme_shape(points, kind: str = 'polygon', label: str = 'cat', **fields) -> dict:
    return {'label': label, 'points': points, 'group_id': None, 'shape_type': kind, 'flags': {}, **fields}


def labelme_file(shapes, name: str = 'a.png', **fields) -> dict:
    return {
        'version': '5.4.1',
        'flags': {},
        'shapes': shapes,
        'imagePath': name,
        'imageData': None,
        'imageHeight': HEIGHT,
        'imageWidth': WIDTH,
        **fields,
    }


def coco_file(annotations, name: str = 'a.png', categories=None) -> dict:
    return {
        'images': [{'id': 0, 'file_name': name, 'height': HEIGHT, 'width': WIDTH}],
        'annotations': annotations,
        'categories': categories or [{'id': 0, 'name': 'cat'}, {'id': 1, 'name': 'dog'}],
    }


def coco_object(**fields) -> dict:
    return {'id': 0, 'image_id': 0, 'category_id': 0, 'segmentation': [TRIANGLE], 'iscrowd': 0, **fields}


def xml_object(points, name: str = 'cat', **fields: str) -> str:
    texts = ''.join(f'<{key}>{text}</{key}>' for key, text in {'deleted': '0', 'verified': '0', **fields}.items())
    vertices = ''.join(f'<pt><x>{x}</x><y>{y}</y></pt>' for x, y in points)
    return f'<object><name>{name}</name>{texts}<polygon><username>me</username>{vertices}</polygon></object>'


def xml_file(objects: str, name: str = 'a.png') -> str:
    return (
        f'<annotation><filename>{name}</filename><folder>f</folder><source><sourceImage>me</sourceImage></source>'
        f'{objects}<imagesize><nrows>{HEIGHT}</nrows><ncols>{WIDTH}</ncols></imagesize></annotation>'
    )


def sample_points(size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of the points that decide which pixels are inside an outline.

    They are the centres, 1/20 pixel lower: pycocotools draws an outline on a grid that is five times as fine, and takes
    the upper one of the two rows in which an edge passes the centre of a column.
    """
    y, x = np.mgrid[: size[0], : size[1]].astype(float)
    return x + 0.5, y + 0.55


def polygon_mask(polygon, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the pixels whose sample point is inside a polygon: a ray from it crosses an odd number of edges."""
    x, y = sample_points(size)
    points = np.reshape(polygon, (-1, 2)).astype(float)
    inside = np.zeros(size, bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 != y2:
            inside ^= ((y1 > y) != (y2 > y)) & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return inside


def ellipse_mask(centre, radii, angle: float = 0.0, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Return the pixels whose sample point is inside an ellipse, rotated clockwise in the image by radians."""
    x, y = sample_points(size)
    x, y = x - centre[0], y - centre[1]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return (along / radii[0]) ** 2 + (across / radii[1]) ** 2 <= 1


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())
