"""Labels of instances: what they look like, and where they hide the least.

Placing is greedy: the smallest instance chooses first, because it has the fewest places; each label
takes, of many positions around and inside its box, the one with the lowest cost.  The cost counts what
the label would hide (a whole small object costs as much as a whole large one), how far it is from its
object and how much of it lies in other objects' boxes; another label is never covered.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MIN_FONT_SIZE = 9  # pixels; smaller letters cannot be read
_MAX_TEXT_LENGTH = 32  # letters
_OVERSAMPLING = 4  # of the plates' round corners

# Weights of the placing cost, whose unit is one object wholly hidden.
_FOREIGN_BOX = 0.1  # per share of the label that lies in another instance's box
_DISTANCE = 0.08  # per label height between label and box
_PREFERENCE = 0.004  # per step down the list of positions
_SMALLER = 0.25  # for the smaller font
_SHORTER = 0.6  # for the smaller font without the score
_TOO_MUCH = 0.7  # a place that hides more than this is none


@dataclass(frozen=True)
class Text:
    """A label's wording in one font size, measured."""

    content: str
    font_size: int
    width: int
    height: int


@dataclass(frozen=True)
class PlacedLabel:
    """A label and the pixel of its upper left corner."""

    text: Text
    top: int
    left: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.top, self.left, self.top + self.text.height, self.left + self.text.width


def font_size_for(size: tuple[int, int]) -> int:
    """Return the font size in pixels that suits a picture of ``size`` ``(H, W)``."""
    return max(_MIN_FONT_SIZE, round(0.021 * float(np.sqrt(size[0] * size[1]))))


@functools.lru_cache(maxsize=16)
def load_font(path: str | os.PathLike | None, font_size: int) -> ImageFont.FreeTypeFont:
    """Load a TrueType or OpenType font; without ``path`` DejaVu Sans, which comes with Matplotlib."""
    if path is None:
        import matplotlib

        path = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    try:
        return ImageFont.truetype(os.fspath(path), font_size)
    except OSError as error:
        raise OSError(f'{os.fspath(path)}: cannot be read as a font ({error})') from error


def measure(content: str, font: str | os.PathLike | None, font_size: int) -> Text:
    """Lay out one line of text with room around it."""
    face = load_font(font, font_size)
    ascent, descent = face.getmetrics()
    return Text(
        content,
        font_size,
        int(np.ceil(face.getlength(content))) + 2 * _padding(font_size),
        ascent + descent + _padding(font_size) // 2,
    )


def label_candidates(
    name: str, score: float | None, size: tuple[int, int], font: str | os.PathLike | None
) -> list[tuple[float, Text]]:
    """Return the forms that a label may take, each with its cost, the best form first."""
    name = ' '.join(name.split())
    if len(name) > _MAX_TEXT_LENGTH:
        name = name[: _MAX_TEXT_LENGTH - 1] + '…'
    full = name if score is None else f'{name} {score:.2f}'
    large = font_size_for(size)
    small = max(_MIN_FONT_SIZE, round(0.8 * large))
    candidates = [(0.0, full, large), (_SMALLER, full, small), (_SHORTER, name, small)]
    return [(cost, measure(content, font, font_size)) for cost, content, font_size in candidates]


def place_labels(
    candidates: list[list[tuple[float, Text]]], boxes: np.ndarray, saliency: np.ndarray, size: tuple[int, int]
) -> list[PlacedLabel | None]:
    """Find a place for each label.

    Args:
        candidates: Of each of the ``R`` labels the forms it may take, see :func:`label_candidates`.
        boxes: ``(R, 4)`` float, the instances' boxes.
        saliency: ``(h, w)`` float32, a map of the picture at any resolution: the sum over the part
            that a label covers is the cost of covering it.
        size: ``(H, W)`` of the picture.

    Returns:
        A place for each label, ``None`` where every one would cover another label, hide nearly a
        whole object, or run out of the picture.
    """
    integral = cv2.integral(saliency, sdepth=cv2.CV_64F)
    placed: list[PlacedLabel | None] = [None] * len(boxes)
    occupied = np.zeros((0, 4))
    sides = boxes[:, 2:] - boxes[:, :2]
    for i in np.argsort(sides[:, 0] * sides[:, 1], kind='stable'):
        others = np.delete(boxes, i, axis=0)
        best_cost = np.inf
        for candidate_cost, text in candidates[i]:
            labels = _positions(boxes[i], text, size)
            cost = candidate_cost + _costs(labels, boxes[i], others, occupied, integral, size)
            if len(cost) and cost.min() < best_cost:
                best_cost, (top, left) = cost.min(), labels[np.argmin(cost), :2]
                placed[i] = PlacedLabel(text, int(top), int(left))
        if placed[i] is not None:
            occupied = np.concatenate([occupied, [placed[i].box]])
    return placed


def _positions(box: np.ndarray, text: Text, size: tuple[int, int]) -> np.ndarray:
    """Return ``(S, 4)`` label boxes inside the picture, the preferred ones first."""
    if text.height > size[0] or text.width > size[1]:
        return np.zeros((0, 4))
    top, left, bottom, right = box
    above, below, before, behind = top - text.height, bottom, left - text.width, right
    last_row, last_column = bottom - text.height, right - text.width
    row, column = (top + last_row) / 2, (left + last_column) / 2
    corners = [
        (above, left),
        (below, left),
        (above, last_column),
        (below, last_column),
        (top, left),
        (last_row, left),
        (top, last_column),
        (last_row, last_column),
        (above, column),
        (below, column),
        (top, behind),
        (top, before),
        (last_row, behind),
        (last_row, before),
        (row, behind),
        (row, before),
        (row, column),
        (top, column),
        (last_row, column),
    ]
    for steps in (1, 2, 3):
        up, down = above - steps * text.height, below + steps * text.height
        backward, forward = before - steps * text.height, behind + steps * text.height
        corners += [
            (up, left),
            (up, column),
            (up, last_column),
            (down, left),
            (down, column),
            (down, last_column),
            (top, forward),
            (last_row, forward),
            (top, backward),
            (last_row, backward),
            (up, forward),
            (down, forward),
            (up, backward),
            (down, backward),
        ]
    limit = np.array(size) - (text.height, text.width)
    corners = np.clip(np.rint(corners), 0, limit)
    return np.concatenate([corners, corners + (text.height, text.width)], axis=1)


def _costs(
    labels: np.ndarray,
    box: np.ndarray,
    others: np.ndarray,
    occupied: np.ndarray,
    integral: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Return the cost of each of ``(S, 4)`` label boxes, infinite where a label must not be."""
    height, width = labels[:, 2] - labels[:, 0], labels[:, 3] - labels[:, 1]
    scale = (np.array(integral.shape) - 1) / np.array(size)
    top, bottom = (np.rint(labels[:, k] * scale[0]).astype(np.intp) for k in (0, 2))
    left, right = (np.rint(labels[:, k] * scale[1]).astype(np.intp) for k in (1, 3))
    hidden = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    foreign = _intersections(labels, others).sum(axis=1) / (height * width)
    gap = np.maximum(box[:2] - labels[:, 2:], labels[:, :2] - box[2:]).clip(min=0)
    cost = (
        hidden + _FOREIGN_BOX * foreign + _DISTANCE * np.hypot(*gap.T) / height + _PREFERENCE * np.arange(len(labels))
    )
    forbidden = (_intersections(labels, occupied) > 0).any(axis=1) | (hidden > _TOO_MUCH)
    return np.where(forbidden, np.inf, cost)


def _intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the ``(A, B)`` areas that boxes have in common."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.prod(np.clip(sides, 0, None), axis=2)


def draw_label(
    canvas: np.ndarray, label: PlacedLabel, color: np.ndarray, ink: tuple[int, int, int], font: str | os.PathLike | None
) -> None:
    """Write a label on a plate of ``color`` into ``canvas``, uint8 ``(H, W, 3)``."""
    top, left, bottom, right = label.box
    region = canvas[top:bottom, left:right]
    plate = _plate(label.text.height, label.text.width, max(1, label.text.font_size // 4))
    letters = Image.new('L', (label.text.width, label.text.height), 0)
    ImageDraw.Draw(letters).text(
        (_padding(label.text.font_size), _padding(label.text.font_size) // 4),
        label.text.content,
        fill=255,
        font=load_font(font, label.text.font_size),
    )
    blended = _over(region, color, plate * np.float32(0.88))
    region[...] = np.rint(_over(blended, ink, np.asarray(letters, np.float32) / 255))


def _padding(font_size: int) -> int:
    return max(2, round(font_size / 3.5))


def _plate(height: int, width: int, radius: int) -> np.ndarray:
    """Opacity of a rectangle with round corners."""
    image = Image.new('L', (width * _OVERSAMPLING, height * _OVERSAMPLING), 0)
    ImageDraw.Draw(image).rounded_rectangle((0, 0, image.width - 1, image.height - 1), radius * _OVERSAMPLING, fill=255)
    return np.asarray(image.reduce(_OVERSAMPLING), np.float32) / 255


def _over(below: np.ndarray, color: np.ndarray | tuple, opacity: np.ndarray) -> np.ndarray:
    return below + (np.asarray(color, np.float32) - below) * opacity[:, :, None]
