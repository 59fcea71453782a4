"""Synthetic scenes of eight classes of shapes, with light, shadows, materials and clutter.

They are harder than the images of :mod:`mask_rcnn.datasets.synthetic.shapes`.  The bundled model is trained and
evaluated on them.  The functions of this module process images as ``(3, H, W)`` float32, 0 to 1.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.datasets.example import Annotations, Example
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset, make_annotations, mask_to_box

_MAX_OBJECTS = 8
#: Range of an object's radius, as a fraction of the image's shorter side.
_RADII = (0.075, 0.28)
#: Minimum factor by which an object is compressed along one direction, as in an oblique view.
_MIN_STRETCH = 0.72
#: An object is placed only if at least this fraction of it is inside the image ...
_MIN_INSIDE = 0.65
#: ... and at least this fraction of each object that it occludes remains visible.
_MIN_VISIBLE = 0.5
#: Minimum difference, in one channel (0 to 1), between the mean colours of an object and of its background.
_MIN_CONTRAST = 0.22
_MAX_CLUTTER = 8
#: Letters and digits that resemble none of the shapes.
_LETTERS = 'AEFHKLMNRSVWYZ123457'
#: Supersampling factor of outlines.
_OVERSAMPLING = 4


class RichShapesDataset(ShapesDataset):
    """Generated scenes of squares, circles, triangles, stars, rings, crosses, hearts and crescents.

    Image ``i`` depends on the seed and on ``i`` only, not on ``n``.  Objects are rotated and compressed, may leave the
    image, and may occlude up to half of another object.  Segmentations are run lengths of the visible parts, and boxes
    enclose the visible parts.

    Args:
        n: Number of images.
        size: Height and width of the images in pixels, an int or ``(H, W)``; at least 32.  The sizes of objects are
            proportional to the image.
        seed: Seed of the images, in ``[0, 2**32)``.

    Attributes:
        class_names (tuple): Names of the eight classes.
        category_ids (tuple): 1 to 8.
        image_ids (tuple): 1 to ``n``.
        kind (str): Name of the dataset, used in the names of images.

    Raises:
        ValueError: ``n`` is not positive, ``size`` is too small, or ``seed`` is out of range.
    """

    class_names = ('square', 'circle', 'triangle', 'star', 'ring', 'cross', 'heart', 'crescent')
    category_ids = tuple(range(1, 9))
    kind = 'rich shapes'

    def get_example(self, i: int) -> Example:
        """Generate image ``i``; ``dataset[i]`` calls it."""
        rng = np.random.RandomState([self._seed, i])
        light = _Light.random(rng)
        image = _backdrop(rng, self._size)
        for _ in range(rng.randint(_MAX_CLUTTER + 1)):
            _paint_clutter(rng, image)
        objects = _place_objects(rng, self._size)
        for obj in objects:
            _paint_object(rng, image, obj, light)
        return Example(
            image=np.rint(_photograph(rng, image) * 255),
            name=self.image_name(i),
            annotations=_annotate(objects, self._size),
            image_id=self.image_ids[i],
        )


# Geometry.  Outlines are (K, 2) float64 (x, y) in COCO's coordinates: the centre of the first pixel is at (0.5, 0.5).


@dataclass(frozen=True)
class _Object:
    """One object of a scene.

    Args:
        label: Index of the class.
        radius: Half of the size in pixels.
        angle: Rotation in radians.
        outlines: Outer outline and outlines of holes; points inside an odd number of them are inside the object.
    """

    label: int
    radius: float
    angle: float
    outlines: tuple[np.ndarray, ...]

    @property
    def area(self) -> float:
        """The area in pixels, including the part outside the image."""
        first, *holes = map(_polygon_area, self.outlines)
        return first - sum(holes)

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Return the mask of the pixels that are at least half covered, ``(H, W)`` bool."""
        window = _Window.around(self.outlines, 1, size)
        mask = np.zeros(size, bool)
        window.of(mask)[...] = window.coverage(self.outlines) >= 0.5
        return mask


@dataclass(frozen=True)
class _Window:
    """A rectangle of pixels, from ``(top, left)`` up to but not including ``(bottom, right)``; never empty."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def around(cls, outlines: Sequence[np.ndarray], margin: float, size: tuple[int, int]) -> _Window:
        """Return the window that encloses outlines, clipped to the image."""
        points = np.concatenate(outlines)
        (left, top), (right, bottom) = points.min(axis=0) - margin, points.max(axis=0) + margin
        top, left = (int(np.clip(low, 0, side - 1)) for low, side in ((top, size[0]), (left, size[1])))
        bottom, right = (
            int(np.clip(np.ceil(high), low + 1, side))
            for low, high, side in ((top, bottom, size[0]), (left, right, size[1]))
        )
        return cls(top, left, bottom, right)

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return the view ``(..., h, w)`` of the window in an image or a mask."""
        return image[..., self.top : self.bottom, self.left : self.right]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.bottom - self.top, self.right - self.left

    def grid(self, centre: Sequence[float] | np.ndarray, scale: float, angle: float) -> tuple[np.ndarray, np.ndarray]:
        """Return two float32 coordinates of each pixel, relative to a centre, rotated, in units of ``scale``."""
        x = (np.arange(self.left, self.right) + 0.5 - centre[0]) / scale
        y = (np.arange(self.top, self.bottom)[:, None] + 0.5 - centre[1]) / scale
        cos, sin = np.cos(angle), np.sin(angle)
        return (
            (x * cos).astype(np.float32) + (y * sin).astype(np.float32),
            (y * cos).astype(np.float32) - (x * sin).astype(np.float32),
        )

    def coverage(self, outlines: Sequence[np.ndarray]) -> np.ndarray:
        """Return the fraction of each pixel that is inside outlines, ``(h, w)`` float32 from 0 to 1."""
        height, width = self.size
        fine = np.zeros((height * _OVERSAMPLING, width * _OVERSAMPLING), np.uint8)
        # OpenCV's coordinates refer to the centres of the fine pixels, in units of 1/256 pixel.
        points = [
            np.rint(((outline - (self.left, self.top)) * _OVERSAMPLING - 0.5) * 256).astype(np.int32)
            for outline in outlines
        ]
        cv2.fillPoly(fine, points, 255, shift=8)
        return cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _arc(
    start: float, stop: float, radius: float = 1.0, centre: tuple[float, float] = (0.0, 0.0), n: int = 48
) -> np.ndarray:
    angles = np.linspace(start, stop, n, endpoint=False)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius + centre


def _star() -> np.ndarray:
    return _arc(0, 2 * np.pi, n=10) * np.where(np.arange(10) % 2, 0.45, 1.0)[:, None]


def _cross(half: float = 0.32) -> np.ndarray:
    arm = np.array([[1, -half], [1, half], [half, half]])
    return np.concatenate([arm @ _rotation(quarter * np.pi / 2).T for quarter in range(4)])


def _heart() -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([x, -y - 2], axis=1) / 16


def _crescent(distance: float = 0.45, inner: float = 0.75) -> np.ndarray:
    """Return the outline of a unit disc without the part that another disc covers."""
    x = (1 + distance**2 - inner**2) / (2 * distance)  # of the intersections of both circles
    outside, inside = np.arccos(x), np.arctan2(np.sqrt(1 - x**2), x - distance)
    return np.concatenate(
        [_arc(outside, 2 * np.pi - outside), _arc(2 * np.pi - inside, inside, inner, (distance, 0.0))]
    )


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


#: Outlines of each class, inside the unit circle (except for small parts of the heart).
_OUTLINES = (
    (_arc(0, 2 * np.pi, n=4),),
    (_arc(0, 2 * np.pi),),
    (_arc(0, 2 * np.pi, n=3),),
    (_star(),),
    (_arc(0, 2 * np.pi), _arc(0, 2 * np.pi, 0.55)),
    (_cross(),),
    (_heart(),),
    (_crescent(),),
)


def _random_object(rng: np.random.RandomState, size: tuple[int, int]) -> _Object:
    radius = max(float(min(size) * np.exp(rng.uniform(*np.log(_RADII)))), 4.0)
    centre = [rng.uniform(0.3 * radius, side - 0.3 * radius) for side in size[::-1]]
    label, angle, direction = rng.randint(len(_OUTLINES)), *rng.uniform(0, 2 * np.pi, 2)
    stretch = _rotation(direction) @ np.diag([1, rng.uniform(_MIN_STRETCH, 1)]) @ _rotation(-direction)
    matrix = radius * stretch @ _rotation(angle)
    return _Object(label, radius, angle, tuple(outline @ matrix.T + centre for outline in _OUTLINES[label]))


def _place_objects(rng: np.random.RandomState, size: tuple[int, int]) -> list[_Object]:
    """Return sufficiently visible objects; later objects are in front of earlier ones."""
    objects: list[_Object] = []
    visible: list[np.ndarray] = []
    for _ in range(1 + rng.randint(_MAX_OBJECTS)):
        candidate = _random_object(rng, size)
        mask = candidate.mask(size)
        if mask.sum() < _MIN_INSIDE * candidate.area:
            continue
        remaining = [part & ~mask for part in visible]
        if all(part.sum() >= _MIN_VISIBLE * obj.area for part, obj in zip(remaining, objects, strict=True)):
            objects, visible = [*objects, candidate], [*remaining, mask]
    return objects


def _annotate(objects: list[_Object], size: tuple[int, int]) -> Annotations:
    boxes, labels, segmentations = [], [], []
    in_front = np.zeros(size, bool)
    for obj in reversed(objects):
        mask = obj.mask(size)
        visible = mask & ~in_front
        in_front |= mask
        boxes.append(mask_to_box(visible))
        labels.append(obj.label)
        segmentations.append(coco_mask.encode(np.asfortranarray(visible, np.uint8)))
    return make_annotations(boxes, labels, segmentations)


# Appearance of objects.


@dataclass(frozen=True)
class _Light:
    """The light of a scene.

    Args:
        direction: Unit vector (x, y) towards the light.
        strength: Darkness of shadows, from 0 to 1.
        softness: Width of a shadow's border, as a fraction of the object's radius.
    """

    direction: np.ndarray
    strength: float
    softness: float

    @classmethod
    def random(cls, rng: np.random.RandomState) -> _Light:
        angle = rng.uniform(0, 2 * np.pi)
        return cls(np.array([np.cos(angle), np.sin(angle)]), rng.uniform(0.15, 0.6), rng.uniform(0.04, 0.2))


def _paint_object(rng: np.random.RandomState, image: np.ndarray, obj: _Object, light: _Light) -> None:
    """Paint an object and its shadow into an image."""
    size, radius = image.shape[1:], obj.radius
    window = _Window.around(obj.outlines, 0.5 * radius, size)
    coverage, patch = window.coverage(obj.outlines), window.of(image)
    patch *= 1 - _shadow(window, obj, light, rng.uniform(0.05, 0.22))
    background = (patch * coverage).sum(axis=(1, 2)) / max(coverage.sum(), 1)
    centre = obj.outlines[0].mean(axis=0)
    surface = _material(rng, *window.grid(centre, radius, obj.angle), _contrasting_colour(rng, background))
    surface *= _shading(rng, window, obj, coverage, light)
    patch += coverage * (surface - patch)


def _shadow(window: _Window, obj: _Object, light: _Light, height: float) -> np.ndarray:
    """Return the relative loss of brightness in the shadow of an object, ``(h, w)`` from 0 to 1."""
    outlines = [outline - light.direction * height * obj.radius for outline in obj.outlines]
    return light.strength * _blur(window.coverage(outlines), light.softness * obj.radius)


def _shading(
    rng: np.random.RandomState, window: _Window, obj: _Object, coverage: np.ndarray, light: _Light
) -> np.ndarray:
    """Return the brightness ``(h, w)`` of an object's surface: constant, a gradient, or a relief."""
    kind = rng.randint(4)
    if kind == 0:
        return np.ones(window.size, np.float32)
    if kind == 1:
        u, v = window.grid(obj.outlines[0].mean(axis=0), obj.radius, 0.0)
        towards = u * light.direction[0] + v * light.direction[1]
        return 1 + np.float32(0.3) * np.clip(towards, -1, 1).astype(np.float32)
    # The height of the relief increases from the border inwards; slopes that face the light are brighter.
    rim = obj.radius * (rng.uniform(0.12, 0.3) if kind == 2 else 0.8)
    distance = cv2.distanceTransform((coverage >= 0.5).astype(np.uint8), cv2.DIST_L2, 3)
    height = _blur(np.minimum(distance / rim, 1) ** (1.0 if kind == 2 else 0.5), 0.06 * obj.radius)
    slope = [cv2.Sobel(height, cv2.CV_32F, *axis, ksize=3, scale=rim / 8) for axis in ((1, 0), (0, 1))]
    towards = -(slope[0] * light.direction[0] + slope[1] * light.direction[1])
    return np.clip(1 + 0.45 * towards, 0.45, 1.6).astype(np.float32)


def _contrasting_colour(rng: np.random.RandomState, background: np.ndarray) -> np.ndarray:
    """Return a colour ``(3,)`` that differs from the background."""
    colours = np.stack([_colour(rng, (0.25, 1.0), (0.25, 1.0)) for _ in range(16)])
    differs = np.abs(colours - background).max(axis=1) >= _MIN_CONTRAST
    return colours[np.argmax(differs)]


def _colour(rng: np.random.RandomState, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(*saturation), rng.uniform(*value)), np.float32)


def _material(rng: np.random.RandomState, u: np.ndarray, v: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return a surface ``(3, h, w)`` with a pattern of the given colour and a similar one."""
    second = np.clip(colour * rng.uniform(0.55, 1.35) + rng.uniform(-0.12, 0.12, 3), 0, 1).astype(np.float32)
    pattern, colour, second = _pattern(rng, u, v), colour[:, None, None], second[:, None, None]
    return (colour + second) / 2 + (second - colour) / 2 * pattern


def _pattern(rng: np.random.RandomState, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return a pattern ``(h, w)`` float32, -1 to 1; objects are two units wide in the coordinates ``u`` and ``v``."""
    frequency = np.float32(np.exp(rng.uniform(np.log(1.2), np.log(5))))
    wave = np.float32(np.pi) * frequency
    kind = rng.randint(7)
    if kind == 0:
        return np.full(u.shape, -1, np.float32)
    if kind == 1:
        return np.clip(u, -1, 1)
    if kind == 2:
        return np.clip(4 * np.sin(wave * u), -1, 1)
    if kind == 3:
        return np.clip(8 * np.sin(wave * u) * np.sin(wave * v), -1, 1)
    if kind == 4:
        return np.clip(4 * (np.cos(wave * u) + np.cos(wave * v) - 0.8), -1, 1)
    if kind == 5:
        return _fractal(rng, u.shape, 3)
    return np.sin(wave * u + 3 * _fractal(rng, u.shape, 2)).astype(np.float32)


def _fractal(rng: np.random.RandomState, size: tuple[int, int], cells: int) -> np.ndarray:
    """Return fractal noise of four octaves, from -1 to 1."""
    noise = np.zeros(size, np.float32)
    for octave in range(4):
        grid = rng.uniform(-1, 1, (cells * 2**octave + 1,) * 2).astype(np.float32)
        noise += cv2.resize(grid, size[::-1], interpolation=cv2.INTER_CUBIC) * np.float32(0.6**octave)
    return np.clip(noise, -1, 1)


def _blur(values: np.ndarray, deviation: float) -> np.ndarray:
    return cv2.GaussianBlur(values, (0, 0), deviation) if deviation >= 0.3 else values


# Background and camera.


def _backdrop(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return a textured background ``(3, H, W)``."""
    window = _Window(0, 0, *size)
    u, v = window.grid((rng.uniform(0, size[1]), rng.uniform(0, size[0])), 0.14 * min(size), rng.uniform(0, 2 * np.pi))
    colour = _colour(rng, (0.0, 0.6), (0.25, 0.95))
    image = _material(rng, u, v, colour)
    far = _colour(rng, (0.0, 0.6), (0.25, 0.95))
    slope = np.clip(0.5 + 0.08 * u + 0.2 * _fractal(rng, size, 2), 0, 1) * np.float32(rng.uniform(0, 0.8))
    return image + slope * (far[:, None, None] - image)


def _paint_clutter(rng: np.random.RandomState, image: np.ndarray) -> None:
    """Paint an object of none of the eight shapes into an image."""
    size, kind = image.shape[1:], rng.randint(5)
    window = _Window(0, 0, *size)
    if kind == 0:
        coverage = _letter(rng, size)
    elif kind == 1:
        coverage = np.clip(8 * (_fractal(rng, size, 3 + rng.randint(3)) - 0.55), 0, 1)
    else:
        outlines = ((_bar, _curve, _splinter)[kind - 2](rng, size),)
        window = _Window.around(outlines, 1, size)
        coverage = window.coverage(outlines)
    u, v = window.grid((size[1] / 2, size[0] / 2), 0.15 * min(size), rng.uniform(0, np.pi))
    surface, patch = _material(rng, u, v, _colour(rng, (0.0, 0.9), (0.15, 1.0))), window.of(image)
    patch += coverage * np.float32(rng.uniform(0.5, 1)) * (surface - patch)


def _letter(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return the coverage of a letter or digit; OpenCV 5 has other fonts than OpenCV 4."""
    side = min(size)
    canvas = np.zeros(size, np.uint8)
    corner = int(rng.uniform(0, 0.9) * size[1]), int(rng.uniform(0.15, 1) * size[0])
    letter, font = _LETTERS[rng.randint(len(_LETTERS))], rng.randint(5)
    height, thickness = side * rng.uniform(0.008, 0.025), max(int(side * rng.uniform(0.01, 0.04)), 1)
    cv2.putText(canvas, letter, corner, font, height, 255, thickness, cv2.LINE_AA)
    rotation = cv2.getRotationMatrix2D(corner, rng.uniform(-40, 40), 1)
    return cv2.warpAffine(canvas, rotation, size[::-1]).astype(np.float32) / 255


def _bar(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return the outline of a long, narrow bar."""
    half = min(size) * np.array([rng.uniform(0.15, 0.5), rng.uniform(0.008, 0.02)])
    corners = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) * half
    return corners @ _rotation(rng.uniform(0, np.pi)).T + rng.uniform(0, size[::-1])


def _curve(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return the outline of a bent wire."""
    t = np.linspace(-1, 1, 24)
    line = np.stack([t, rng.uniform(0.2, 0.6) * np.sin(rng.uniform(1, 4) * t + rng.uniform(0, 6))], axis=1)
    width = np.array([0, rng.uniform(0.02, 0.05)])
    ribbon = np.concatenate([line + width, line[::-1] - width]) * min(size) * rng.uniform(0.2, 0.45)
    return ribbon @ _rotation(rng.uniform(0, 2 * np.pi)).T + rng.uniform(0, size[::-1])


def _splinter(rng: np.random.RandomState, size: tuple[int, int]) -> np.ndarray:
    """Return the outline of an irregular polygon of six to nine corners."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, 6 + rng.randint(4)))
    radii = min(size) * rng.uniform(0.02, 0.11, len(angles))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None] + rng.uniform(0, size[::-1])


def _photograph(rng: np.random.RandomState, image: np.ndarray) -> np.ndarray:
    """Apply a camera model: uneven light, tint, blur and noise; the result is from 0 to 1."""
    size = image.shape[1:]
    u, v = _Window(0, 0, *size).grid((size[1] / 2, size[0] / 2), max(size) / 2, rng.uniform(0, 2 * np.pi))
    light = 1 + np.float32(rng.uniform(0, 0.3)) * u - np.float32(rng.uniform(0, 0.25)) * (u * u + v * v)
    tint, deviation = rng.uniform(0.88, 1.1, (3, 1, 1)).astype(np.float32), rng.uniform(0, 0.006) * min(size)
    image = np.stack([_blur(plane, deviation) for plane in image * light * tint])
    image += _grain(rng, image.shape, rng.uniform(0, 0.03))
    return np.clip(image, 0, 1)


def _grain(rng: np.random.RandomState, shape: tuple[int, ...], deviation: float) -> np.ndarray:
    """Return noise with a triangular distribution: sums of two random bytes, ten times faster than normal noise."""
    first, second = np.frombuffer(rng.bytes(2 * int(np.prod(shape))), np.int8).reshape(2, *shape)
    return (first.astype(np.float32) + second) * np.float32(deviation / (256 / 6**0.5))
