"""Datasets in COCO's format for the tests of their inspection."""

import json
from pathlib import Path

import cv2
import numpy as np


def annotation(number, image_id, box, category_id=1, **changes):
    """An annotation whose outline is its box ``(x, y, width, height)``."""
    x, y, width, height = box
    outline = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        'id': number,
        'image_id': image_id,
        'category_id': category_id,
        'bbox': list(box),
        'area': width * height,
        'iscrowd': 0,
        'segmentation': [outline],
        **changes,
    }


def write_dataset(folder, sizes, annotations, names=('cat', 'dog'), edit=None, stem='data'):
    """Write different PNG images ``0.png``, ``1.png``, ... of ``(height, width)`` with the ids 0, 1, ..., and the JSON.

    Returns:
        The annotation file.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        'info': {'year': 2020},
        'images': [
            {'id': i, 'file_name': f'{i}.png', 'height': height, 'width': width}
            for i, (height, width) in enumerate(sizes)
        ],
        'annotations': annotations,
        'categories': [{'id': i + 1, 'name': name} for i, name in enumerate(names)],
    }
    for i, (height, width) in enumerate(sizes):
        image = np.full((height, width, 3), 40, np.uint8)
        image[0, 0] = divmod(i, 256) + (0,)
        cv2.imwrite(str(folder / f'{i}.png'), image)
    if edit:
        edit(content)
    path = folder / f'{stem}.json'
    path.write_text(json.dumps(content), encoding='utf-8')
    return path


def write_large_dataset(folder, n_images, n_objects):
    """Write small JPEG images of different contents, and polygons of 24 vertices in them; returns the JSON."""
    rng = np.random.RandomState(0)
    folder.mkdir()
    blocks = rng.randint(0, 256, (50, 8, 8, 3), np.uint8).repeat(15, axis=1).repeat(20, axis=2)
    pictures = [cv2.imencode('.jpg', block)[1].tobytes() for block in blocks]
    images = [{'id': i, 'file_name': f'{i}.jpg', 'height': 120, 'width': 160} for i in range(n_images)]
    for i in range(n_images):
        (folder / f'{i}.jpg').write_bytes(pictures[i % len(pictures)])
    angles = np.arange(24) * (2 * np.pi / 24)
    annotations = []
    for number, (x, y, radius) in enumerate(rng.uniform((30, 30, 5), (90, 90, 25), (n_objects, 3))):
        points = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).round(2)
        low, high = points.min(axis=0), points.max(axis=0)
        annotations.append(
            {
                'id': number,
                'image_id': number % n_images,
                'category_id': number % 7,
                'iscrowd': 0,
                'area': 3 * radius**2,
                'bbox': [*low.tolist(), *(high - low).tolist()],
                'segmentation': [points.ravel().tolist()],
            }
        )
    categories = [{'id': i, 'name': f'class {i}'} for i in range(7)]
    path = folder / 'data.json'
    path.write_text(json.dumps({'images': images, 'annotations': annotations, 'categories': categories}))
    return path
