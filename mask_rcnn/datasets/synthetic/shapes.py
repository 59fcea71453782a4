"""Squares, circles and triangles: pictures drawn from a seed, with everything that real ones have.

Objects of all sizes and orientations, with textures, in front of textured, cluttered, noisy backgrounds,
hiding one another in part: enough to learn from and to measure with where there are no photos.
"""

from __future__ import annotations

from dataclasses import dataclass

import chainer
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.example import Annotations, Example, Segmentation

_MAX_OBJECTS = 6
#: Half of an object's extent, as a part of the picture's shorter side.
_RADII = (0.06, 0.3)
#: An object is dropped where less than this part of it is to be seen ...
_MIN_VISIBLE = 0.3
#: ... or fewer pixels than this.
_MIN_PIXELS = 16
_CIRCLE_POINTS = 64
#: Smallest difference between the colours of an object and of what it is in front of (0 to 255 each).
_MIN_CONTRAST = 60
_MAX_CLUTTER = 7
_MAX_NOISE = 6  # standard deviation, in grey levels


class ShapesDataset(chainer.dataset.DatasetMixin):
    """Drawn pictures of squares, circles and triangles.

    Picture ``i`` of a seed is always the same and does not depend on ``n``.  An object that
    nothing hides has its outline as a polygon, one that is partly hidden has run lengths of what is to be
    seen; its box is around that.

    Args:
        n: Number of pictures.
        size: Side of the pictures in pixels, or ``(H, W)``; at least 32.
        seed: Different seeds give different pictures.

    Attributes:
        class_names (tuple): ``('square', 'circle', 'triangle')``.
        category_ids (tuple): 1, 2, 3.
        image_ids (tuple): 1 to ``n``.

    Raises:
        ValueError: ``n`` is not positive, ``size`` is too small or ``seed`` is negative.
    """

    class_names = ('square', 'circle', 'triangle')
    category_ids = (1, 2, 3)
    kind = 'shapes'  # in the names of pictures

    def __init__(self, n: int, *, size: int | tuple[int, int] = 128, seed: int = 0):
        height, width = (size, size) if isinstance(size, int) else size
        if n < 1:
            raise ValueError(f'a data set needs at least one picture, not {n}')
        if min(height, width) < 32:
            raise ValueError(f'pictures must have at least 32 pixels a side, not {height} x {width}')
        if not 0 <= seed < 2**32:
            raise ValueError(f'the seed must be at least 0 and below 2**32, but is {seed}')
        self._size = (int(height), int(width))
        self._seed = seed
        self.image_ids = tuple(range(1, n + 1))

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_size(self, i: int) -> tuple[int, int]:
        """Return the height and width of picture ``i``."""
        return self._size

    def image_name(self, i: int) -> str:
        """Return what messages call picture ``i``."""
        return f'{self.kind} picture {i} of seed {self._seed}'

    def get_example(self, i: int) -> Example:
        """Draw a picture; ``dataset[i]`` calls it."""
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
        """Return what :class:`mask_rcnn.evaluation.COCOEvaluator` compares with, in COCO's format."""
        height, width = self._size
        annotations = []
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
                {'id': category, 'name': name} for category, name in zip(self.category_ids, self.class_names)
            ],
        }

    def _coco_annotations(self, annotations: Annotations) -> list[dict]:
        result = []
        for box, label, shape in zip(annotations.boxes.tolist(), annotations.labels, annotations.segmentations):
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
    """A convex shape; coordinates are COCO's: the centre of the first pixel is at (0.5, 0.5).

    Args:
        label: 0 square, 1 circle, 2 triangle.
        centre: ``(y, x)``.
        radius: From the centre to the corners.
        angle: In radians.
    """

    label: int
    centre: tuple[float, float]
    radius: float
    angle: float

    @property
    def area(self) -> float:
        """In pixels."""
        return (2, np.pi, 0.75 * np.sqrt(3))[self.label] * self.radius**2

    @property
    def outline(self) -> np.ndarray:
        """``(K, 2)`` float64: the corners as (x, y), around the shape."""
        count = (4, _CIRCLE_POINTS, 3)[self.label]
        angles = self.angle + 2 * np.pi * np.arange(count) / count
        return np.stack(
            [self.centre[1] + self.radius * np.cos(angles), self.centre[0] + self.radius * np.sin(angles)], axis=1
        )

    def coverage(self, size: tuple[int, int]) -> np.ndarray:
        """Return how much of each pixel the shape covers, ``(H, W)`` float64 between 0 and 1.

        From the distance between the pixel's centre and the nearest side: exact enough to look smooth.
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
    centre = tuple(rng.uniform(0.5 * radius, side - 0.5 * radius) for side in size)  # some leave the picture
    return _Shape(label=rng.randint(3), centre=centre, radius=radius, angle=rng.uniform(0, 2 * np.pi))


def _annotate(shapes: list[_Shape], coverages: list[np.ndarray]) -> Annotations:
    """Describe what is to be seen of each shape; later ones are in front of earlier ones."""
    boxes, labels, segmentations = [], [], []
    in_front = np.zeros(coverages[0].shape, bool)
    for shape, coverage in zip(reversed(shapes), reversed(coverages)):
        drawn = coverage >= 0.5
        visible = drawn & ~in_front
        hidden = (drawn & in_front).any()
        in_front |= drawn
        if visible.sum() < max(_MIN_PIXELS, _MIN_VISIBLE * shape.area):
            continue
        segmentation = (
            coco_mask.encode(np.asfortranarray(visible, np.uint8))
            if hidden
            else (_clip_outline(shape.outline, drawn.shape).ravel(),)
        )
        boxes.append(box_around(coco_mask.decode(_to_rle(segmentation, drawn.shape))))
        labels.append(shape.label)
        segmentations.append(segmentation)
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
    """Cut a convex polygon ``(K, 2)`` (x, y) at the picture's borders (Sutherland and Hodgman 1974)."""
    for axis, limit in ((0, size[1]), (1, size[0])):
        outline = _clip_side(outline, outline[:, axis])
        outline = _clip_side(outline, limit - outline[:, axis])
    return outline


def _clip_side(outline: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Keep the part of a polygon where ``inside`` (given at its corners, linear between) is not negative."""
    points = []
    for here, there, a, b in zip(outline, np.roll(outline, -1, axis=0), inside, np.roll(inside, -1)):
        if a >= 0:
            points.append(here)
        if (a >= 0) != (b >= 0):
            points.append(here + (there - here) * (a / (a - b)))
    return np.array(points).reshape(-1, 2)


def box_around(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the box ``(y_min, x_min, y_max, x_max)`` whose corners are pixels of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return rows[0], columns[0], rows[-1], columns[-1]


# Drawing.  Images are (3, H, W) float64, 0 to 255; a coverage is (H, W), between 0 and 1.


def _background(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return a texture with things on it that are none of the three shapes."""
    image = _texture(rng, size, rng.uniform(30, 225, 3))
    for _ in range(rng.randint(_MAX_CLUTTER + 1)):
        _paint(rng, image, _clutter(rng, size))
    return image


def _paint(rng: np.random.RandomState, image: np.ndarray, coverage: np.ndarray) -> None:
    """Put something textured, of another colour than what is there, into an image."""
    under = (image * coverage).sum(axis=(1, 2)) / max(coverage.sum(), 1)
    colours = rng.uniform(20, 235, (16, 3))
    differs = np.abs(colours - under).max(axis=1) >= _MIN_CONTRAST
    image += coverage * (_texture(rng, coverage.shape, colours[np.argmax(differs)]) - image)


def _texture(rng: np.random.RandomState, size: tuple[int, int], colour: np.ndarray) -> np.ndarray:
    """Return a picture of one colour, made darker and lighter by a pattern."""
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
    """Return random values between -1 and 1 on a grid of ``cells`` a side, linear between."""
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
        # The finer noise makes the outlines irregular: they must not look like squares or circles.
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
