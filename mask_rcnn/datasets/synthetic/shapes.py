"""Synthetic images of squares, circles and triangles, for training and evaluation without photos.

Objects of all sizes, orientations and textures occlude one another on textured, cluttered and noisy backgrounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import chainer
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.example import Annotations, Example, Segmentation

_MAX_OBJECTS = 6
#: Range of an object's radius, as a fraction of the image's shorter side.
_RADII = (0.06, 0.3)
#: An object is not annotated if a smaller fraction of its area is visible ...
_MIN_VISIBLE = 0.3
#: ... or fewer pixels are visible.
_MIN_PIXELS = 16
_CIRCLE_POINTS = 64
#: Minimum difference, in one channel (0 to 255), between the colours of an object and of its background.
_MIN_CONTRAST = 60
_MAX_CLUTTER = 7
_MAX_NOISE = 6  # standard deviation, in grey levels


class ShapesDataset(chainer.dataset.DatasetMixin):
    """Generated images of squares, circles and triangles.

    Image ``i`` depends on the seed and on ``i`` only, not on ``n``.  The segmentation of an object is a polygon if the
    object is not occluded, and run lengths of its visible part otherwise.  Its box encloses the visible part.

    Args:
        n: Number of images.
        size: Height and width of the images in pixels, an int or ``(H, W)``; at least 32.
        seed: Seed of the images, in ``[0, 2**32)``.

    Attributes:
        class_names (tuple): ``('square', 'circle', 'triangle')``.
        category_ids (tuple): 1, 2, 3.
        image_ids (tuple): 1 to ``n``.
        kind (str): Name of the dataset, used in the names of images.

    Raises:
        ValueError: ``n`` is not positive, ``size`` is too small, or ``seed`` is out of range.
    """

    class_names: tuple[str, ...] = ('square', 'circle', 'triangle')
    category_ids: tuple[int, ...] = (1, 2, 3)
    kind = 'shapes'

    def __init__(self, n: int, *, size: int | tuple[int, int] = 128, seed: int = 0):
        height, width = (size, size) if isinstance(size, int) else size
        if n < 1:
            raise ValueError(f'the number of images must be at least 1, not {n}')
        if min(height, width) < 32:
            raise ValueError(f'images must have at least 32 x 32 pixels, not {height} x {width}')
        if not 0 <= seed < 2**32:
            raise ValueError(f'the seed must be at least 0 and below 2**32, not {seed}')
        self._size = (int(height), int(width))
        self._seed = seed
        self.image_ids = tuple(range(1, n + 1))

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_size(self, i: int) -> tuple[int, int]:
        """Return the height and width of image ``i``."""
        return self._size

    def image_name(self, i: int) -> str:
        """Return the name of image ``i`` in messages."""
        return f'{self.kind} image {i} of seed {self._seed}'

    def get_example(self, i: int) -> Example:
        """Generate image ``i``; ``dataset[i]`` calls it."""
        rng = np.random.RandomState([self._seed, i])
        image = _background(rng, self._size)
        shapes = [_random_shape(rng, self._size) for _ in range(1 + rng.randint(_MAX_OBJECTS))]
        coverages = [shape.coverage(self._size) for shape in shapes]
        for coverage in coverages:
            _paint(rng, image, coverage)
        image += rng.normal(0, rng.uniform(0, _MAX_NOISE), image.shape)
        return Example(
            image=np.rint(image.clip(0, 255)).astype(np.float32),
            name=self.image_name(i),
            annotations=_annotate(shapes, coverages),
            image_id=self.image_ids[i],
        )

    def ground_truth(self) -> dict:
        """Return the annotations in COCO's format for :class:`mask_rcnn.evaluation.COCOEvaluator`."""
        height, width = self._size
        annotations: list[dict] = []
        for i, image_id in enumerate(self.image_ids):
            for annotation in self._coco_annotations(self[i].annotations):
                annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **annotation})
        return {
            'images': [
                {'id': image_id, 'file_name': self.image_name(i), 'height': height, 'width': width}
                for i, image_id in enumerate(self.image_ids)
            ],
            'annotations': annotations,
            'categories': [
                {'id': category, 'name': name}
                for category, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }

    def _coco_annotations(self, annotations: Annotations) -> list[dict]:
        result = []
        for box, label, shape in zip(
            annotations.boxes.tolist(), annotations.labels, annotations.segmentations, strict=True
        ):
            y_min, x_min, y_max, x_max = box
            result.append(
                {
                    'category_id': self.category_ids[label],
                    'iscrowd': 0,
                    'bbox': [x_min, y_min, x_max - x_min + 1, y_max - y_min + 1],
                    'area': float(coco_mask.area(_to_rle(shape, self._size))),
                    'segmentation': {**shape, 'counts': shape['counts'].decode('ascii')}
                    if isinstance(shape, dict)
                    else [polygon.tolist() for polygon in shape],
                }
            )
        return result


@dataclass(frozen=True)
class _Shape:
    """A convex shape, in COCO's coordinates: the centre of the first pixel is at (0.5, 0.5).

    Args:
        label: 0 square, 1 circle, 2 triangle.
        centre: ``(y, x)`` in pixels.
        radius: Distance from the centre to the corners, in pixels.
        angle: Rotation in radians.
    """

    label: int
    centre: tuple[float, float]
    radius: float
    angle: float

    @property
    def area(self) -> float:
        """The area in pixels, including the part outside the image."""
        return (2, np.pi, 0.75 * np.sqrt(3))[self.label] * self.radius**2

    @property
    def outline(self) -> np.ndarray:
        """The corners in order, ``(K, 2)`` float64 ``(x, y)``."""
        count = (4, _CIRCLE_POINTS, 3)[self.label]
        angles = self.angle + 2 * np.pi * np.arange(count) / count
        return np.stack(
            [self.centre[1] + self.radius * np.cos(angles), self.centre[0] + self.radius * np.sin(angles)], axis=1
        )

    def coverage(self, size: tuple[int, int]) -> np.ndarray:
        """Return the covered fraction of each pixel, ``(H, W)`` float64 between 0 and 1.

        It is estimated from the distance between the pixel's centre and the nearest edge, which gives smooth outlines.
        """
        y, x = np.mgrid[: size[0], : size[1]] + 0.5
        if self.label == 1:
            outside = np.hypot(x - self.centre[1], y - self.centre[0]) - self.radius
        else:
            outside = np.full(size, -np.inf)
            apothem = self.radius * (np.sqrt(0.5) if self.label == 0 else 0.5)
            count = 4 if self.label == 0 else 3
            for angle in self.angle + 2 * np.pi * (np.arange(count) + 0.5) / count:
                across = (x - self.centre[1]) * np.cos(angle) + (y - self.centre[0]) * np.sin(angle)
                np.maximum(outside, across - apothem, out=outside)
        return np.clip(0.5 - outside, 0, 1)


def _random_shape(rng: np.random.RandomState, size: tuple[int, int]) -> _Shape:
    low, high = np.log(_RADII)
    radius = max(min(size) * np.exp(rng.uniform(low, high)), 4.0)
    y, x = (rng.uniform(0.5 * radius, side - 0.5 * radius) for side in size)  # some shapes leave the image
    return _Shape(label=rng.randint(3), centre=(y, x), radius=radius, angle=rng.uniform(0, 2 * np.pi))


def _annotate(shapes: list[_Shape], coverages: list[np.ndarray]) -> Annotations:
    """Annotate the visible part of each shape; later shapes are in front of earlier ones."""
    boxes, labels, segmentations = [], [], []
    in_front = np.zeros(coverages[0].shape, bool)
    for shape, coverage in zip(reversed(shapes), reversed(coverages), strict=True):
        inside = coverage >= 0.5
        visible = inside & ~in_front
        hidden = (inside & in_front).any()
        in_front |= inside
        if visible.sum() < max(_MIN_PIXELS, _MIN_VISIBLE * shape.area):
            continue
        segmentation = (
            coco_mask.encode(np.asfortranarray(visible, np.uint8))
            if hidden
            else (_clip_outline(shape.outline, inside.shape).ravel(),)
        )
        boxes.append(mask_to_box(coco_mask.decode(_to_rle(segmentation, inside.shape))))
        labels.append(shape.label)
        segmentations.append(segmentation)
    return make_annotations(boxes, labels, segmentations)


def make_annotations(
    boxes: Sequence[tuple[int, int, int, int]], labels: Sequence[int], segmentations: Sequence[Segmentation]
) -> Annotations:
    """Return the annotations of objects that are not crowds."""
    return Annotations(
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        labels=np.array(labels, np.int32),
        crowd=np.zeros(len(labels), bool),
        segmentations=tuple(segmentations),
    )


def _to_rle(segmentation: Segmentation, size: tuple[int, int]) -> dict:
    if isinstance(segmentation, dict):
        return segmentation
    return coco_mask.merge(coco_mask.frPyObjects([polygon.tolist() for polygon in segmentation], *size))


def _clip_outline(outline: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip a convex polygon ``(K, 2)`` (x, y) to the image (Sutherland and Hodgman 1974)."""
    for axis, limit in ((0, size[1]), (1, size[0])):
        outline = _clip_side(outline, outline[:, axis])
        outline = _clip_side(outline, limit - outline[:, axis])
    return outline


def _clip_side(outline: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Clip a polygon to the part where ``inside`` (one value per corner, interpolated linearly) is not negative."""
    points = []
    next_corners, next_inside = np.roll(outline, -1, axis=0), np.roll(inside, -1)
    for corner, next_corner, a, b in zip(outline, next_corners, inside, next_inside, strict=True):
        if a >= 0:
            points.append(corner)
        if (a >= 0) != (b >= 0):
            points.append(corner + (next_corner - corner) * (a / (a - b)))
    return np.array(points).reshape(-1, 2)


def mask_to_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the bounding box ``(y_min, x_min, y_max, x_max)`` of a mask that is not empty; corners are pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return rows[0], columns[0], rows[-1], columns[-1]


# Drawing.  Images are (3, H, W) float64, 0 to 255; a coverage is (H, W), between 0 and 1.


def _background(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return a texture with clutter: distractors that have none of the three shapes."""
    image = _texture(rng, size, rng.uniform(30, 225, 3))
    for _ in range(rng.randint(_MAX_CLUTTER + 1)):
        _paint(rng, image, _clutter(rng, size))
    return image


def _paint(rng: np.random.RandomState, image: np.ndarray, coverage: np.ndarray) -> None:
    """Paint a textured surface into an image, in a colour that contrasts with the image there."""
    background = (image * coverage).sum(axis=(1, 2)) / max(coverage.sum(), 1)
    colours = rng.uniform(20, 235, (16, 3))
    differs = np.abs(colours - background).max(axis=1) >= _MIN_CONTRAST
    image += coverage * (_texture(rng, coverage.shape, colours[np.argmax(differs)]) - image)


def _texture(rng: np.random.RandomState, size: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """Return an image of one colour, whose brightness a pattern modulates."""
    y, x = np.mgrid[: size[0], : size[1]] / min(size)
    angle, frequency = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(4), np.log(20)))
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kind = rng.randint(6)
    if kind == 0:
        pattern = np.zeros(size)
    elif kind == 1:
        pattern = 2 * (along - along.min()) / np.ptp(along) - 1
    elif kind == 2:
        pattern = np.sign(np.sin(2 * np.pi * frequency * along))
    elif kind == 3:
        pattern = np.sign(np.sin(2 * np.pi * frequency * along) * np.sin(2 * np.pi * frequency * across))
    elif kind == 4:
        pattern = _smooth_noise(rng, size, 2 + int(frequency))
    else:
        pattern = rng.uniform(-1, 1, size)
    contrast = rng.uniform(5, 30)
    return colour[:, None, None] + contrast * rng.uniform(0.5, 1, (3, 1, 1)) * pattern


def _smooth_noise(rng: np.random.RandomState, size: tuple[int, int], cells: int) -> np.ndarray:
    """Return random values between -1 and 1 on a grid of ``cells`` x ``cells``, interpolated linearly."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    (top, y), (left, x) = (np.divmod(np.arange(side) * (cells / side), 1) for side in size)
    top, left = top.astype(int), left.astype(int)
    rows = grid[top] * (1 - y[:, None]) + grid[top + 1] * y[:, None]
    return rows[:, left] * (1 - x) + rows[:, left + 1] * x


def _clutter(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return the coverage of a bar, a cross or blotches."""
    kind = rng.randint(3)
    if kind == 2:
        cells = 3 + rng.randint(4)
        # The finer noise makes the outlines irregular, unlike squares and circles.
        noise = _smooth_noise(rng, size, cells) + 0.5 * _smooth_noise(rng, size, 4 * cells)
        return np.clip(8 * (noise - 0.7), 0, 1)
    angle, length = rng.uniform(0, np.pi), min(size) * rng.uniform(0.1, 0.6)
    width = min(size) * rng.uniform(0.01, 0.03) + 1
    y, x = np.mgrid[: size[0], : size[1]]
    y, x = y - rng.uniform(0, size[0]), x - rng.uniform(0, size[1])
    along = np.abs(x * np.cos(angle) + y * np.sin(angle))
    across = np.abs(y * np.cos(angle) - x * np.sin(angle))
    bar = np.maximum(along - length / 2, across - width / 2)
    if kind == 1:
        bar = np.minimum(bar, np.maximum(across - length / 2, along - width / 2))
    return np.clip(0.5 - bar, 0, 1)
