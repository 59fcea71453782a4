"""Labels of instances: their appearance and their placement.

Placement is greedy.  The smallest instance comes first, because it has the fewest positions.  Each label gets the
position with the lowest cost among many around and inside its box.  The cost increases with the hidden part of
objects (a whole small object costs as much as a whole large one), with the distance from the label's object, and with
the overlap with other objects' boxes.  Labels never overlap each other.
"""

from __future__ import annotations

import functools
import io
import os
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_MIN_FONT_SIZE = 9  # pixels; smaller letters are unreadable
_MAX_TEXT_LENGTH = 32  # letters
_OVERSAMPLING = 4  # of the rounded corners of plates

# Weights of the placement cost; its unit is one completely hidden object.
_FOREIGN_BOX_COST = 0.1  # times the fraction of the label inside another instance's box
_DISTANCE_COST = 0.08  # times the distance between label and box in label heights
_PREFERENCE_COST = 0.004  # times the position's index in the list of positions
_STEADY_PREFERENCE_COST = 0.04  # the same for the frames of a video: a third of the jumps of labels
_SMALL_FONT_COST = 0.25  # for the small font
_NO_SCORE_COST = 0.6  # for the small font without the score
_MAX_HIDDEN = 0.7  # positions that hide more are not allowed


@dataclass(frozen=True)
class Text:
    """The text of a label with its font size and its measured width and height in pixels."""

    content: str
    font_size: int
    width: int
    height: int


@dataclass(frozen=True)
class PlacedLabel:
    """A label at its position, given by its upper left pixel."""

    text: Text
    top: int
    left: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The pixels of the label, ``(top, left, bottom, right)``, ends excluded."""
        return self.top, self.left, self.top + self.text.height, self.left + self.text.width


def font_size_for(size: tuple[int, int]) -> int:
    """Return the font size in pixels for an image of ``size`` ``(H, W)``."""
    return max(_MIN_FONT_SIZE, round(0.021 * float(np.sqrt(size[0] * size[1]))))


@functools.lru_cache(maxsize=16)
def load_font(path: str | os.PathLike | None, font_size: int) -> ImageFont.FreeTypeFont:
    """Load a TrueType or OpenType font; if ``path`` is ``None``, DejaVu Sans from Matplotlib.

    Raises:
        OSError: The font cannot be read.
    """
    if path is None:
        import matplotlib

        path = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    try:
        if not os.path.isfile(path):
            return ImageFont.truetype(os.fspath(path), font_size)  # searches the folders of the system
        with open(path, 'rb') as file:  # FreeType opens no name that is not UTF-8
            return ImageFont.truetype(io.BytesIO(file.read()), font_size)
    except (OSError, ValueError) as error:  # ValueError: a name that is not UTF-8 or contains a NUL character
        reason = 'no such file' if isinstance(error, UnicodeError) else error
        raise OSError(f'{os.fspath(path)}: cannot be read as a font ({reason})') from error


def measure(content: str, font: str | os.PathLike | None, font_size: int) -> Text:
    """Measure one line of text with its padding."""
    return _measure(content, font, font_size)  # type: ignore[arg-type]  # PathLike is hashable in practice


@functools.lru_cache(maxsize=1024)  # the frames of a video have the same names
def _measure(content: str, font: str | os.PathLike | None, font_size: int) -> Text:
    face = load_font(font, font_size)  # type: ignore[arg-type]  # as above
    ascent, descent = face.getmetrics()
    return Text(
        content,
        font_size,
        int(np.ceil(face.getlength(content))) + 2 * _padding(font_size),
        ascent + descent + _padding(font_size) // 2,
    )


def label_candidates(
    name: str,
    score: float | None,
    size: tuple[int, int],
    font: str | os.PathLike | None,
    *,
    track_id: int | None = None,
) -> list[tuple[float, Text]]:
    """Return the candidates for the text of a label, each with its cost, in ascending order of cost.

    Args:
        name: The name of the class.
        score: The score; ``None`` for a label without it.
        size: ``(H, W)`` of the image.
        font: See :func:`load_font`.
        track_id: The number of the object in a video, which all candidates contain: ``person #3``.
    """
    name = shorten_name(name) if track_id is None else f'{shorten_name(name)} #{track_id}'
    full = name if score is None else f'{name} {score:.2f}'
    large = font_size_for(size)
    small = max(_MIN_FONT_SIZE, round(0.8 * large))
    candidates = [(0.0, full, large), (_SMALL_FONT_COST, full, small), (_NO_SCORE_COST, name, small)]
    return [(cost, measure(content, font, font_size)) for cost, content, font_size in candidates]


def shorten_name(name: str) -> str:
    """Return a class name in one line of limited length."""
    name = ' '.join(name.split())
    return name if len(name) <= _MAX_TEXT_LENGTH else name[: _MAX_TEXT_LENGTH - 1] + '…'


def place_labels(
    candidates: list[list[tuple[float, Text]]],
    boxes: np.ndarray,
    saliency: np.ndarray,
    size: tuple[int, int],
    *,
    steady: bool = False,
) -> list[PlacedLabel | None]:
    """Place the labels of instances.

    Args:
        candidates: For each of the ``R`` labels, its candidates; see :func:`label_candidates`.
        boxes: ``(R, 4)`` float, the instances' boxes.
        saliency: ``(h, w)`` float32, a map of the image at any resolution: the sum of the values that a label covers
            is the cost of covering them.
        size: ``(H, W)`` of the image.
        steady: Hide a little more of other objects for positions that are the same in consecutive frames of a video.

    Returns:
        A placed label for each instance, or ``None`` if every position would overlap another label, hide nearly a
        whole object, or leave the image.
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
            cost += (_STEADY_PREFERENCE_COST if steady else _PREFERENCE_COST) * np.arange(len(labels))
            if len(cost) and cost.min() < best_cost:
                best_cost, (top, left) = cost.min(), labels[np.argmin(cost), :2]
                placed[i] = PlacedLabel(text, int(top), int(left))
        if placed[i] is not None:
            occupied = np.concatenate([occupied, [placed[i].box]])
    return placed


def _positions(box: np.ndarray, text: Text, size: tuple[int, int]) -> np.ndarray:
    """Return ``(S, 4)`` label boxes inside the image in order of preference."""
    if text.height > size[0] or text.width > size[1]:
        return np.zeros((0, 4))
    top, left, bottom, right = box
    above, below, before, after = top - text.height, bottom, left - text.width, right
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
        (top, after),
        (top, before),
        (last_row, after),
        (last_row, before),
        (row, after),
        (row, before),
        (row, column),
        (top, column),
        (last_row, column),
    ]
    for steps in (1, 2, 3):
        up, down = above - steps * text.height, below + steps * text.height
        backward, forward = before - steps * text.height, after + steps * text.height
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
    shape = np.array((text.height, text.width))
    upper_left = np.clip(np.rint(corners), 0, np.array(size) - shape)
    return np.concatenate([upper_left, upper_left + shape], axis=1)


def _costs(
    labels: np.ndarray,
    box: np.ndarray,
    others: np.ndarray,
    occupied: np.ndarray,
    integral: np.ndarray,
    size: tuple[int, int],
) -> np.ndarray:
    """Return the cost of each of ``(S, 4)`` label boxes without its preference, infinite for forbidden ones."""
    height, width = labels[:, 2] - labels[:, 0], labels[:, 3] - labels[:, 1]
    scale = (np.array(integral.shape) - 1) / np.array(size)
    top, bottom = (np.rint(labels[:, k] * scale[0]).astype(np.intp) for k in (0, 2))
    left, right = (np.rint(labels[:, k] * scale[1]).astype(np.intp) for k in (1, 3))
    hidden = integral[bottom, right] - integral[top, right] - integral[bottom, left] + integral[top, left]
    foreign = _intersections(labels, others).sum(axis=1) / (height * width)
    gap = np.maximum(box[:2] - labels[:, 2:], labels[:, :2] - box[2:]).clip(min=0)
    cost = hidden + _FOREIGN_BOX_COST * foreign + _DISTANCE_COST * np.hypot(*gap.T) / height
    forbidden = (_intersections(labels, occupied) > 0).any(axis=1) | (hidden > _MAX_HIDDEN)
    return np.where(forbidden, np.inf, cost)


def _intersections(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the pairwise intersection areas of boxes, ``(A, B)``."""
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    return np.prod(np.clip(sides, 0, None), axis=2)


def draw_label(
    canvas: np.ndarray, label: PlacedLabel, color: np.ndarray, ink: tuple[int, int, int], font: str | os.PathLike | None
) -> None:
    """Draw a label on a plate of ``color`` into ``canvas``, uint8 ``(H, W, 3)``.

    Args:
        canvas: Changed in place.
        label: The label and its position.
        color: RGB colour of the plate.
        ink: RGB colour of the letters.
        font: See :func:`load_font`.
    """
    top, left, bottom, right = label.box
    region = canvas[top:bottom, left:right]
    blend_plate(region, color, max(1, label.text.font_size // 4), 0.88)
    draw_text(region, label.text, ink, font)


def blend_plate(region: np.ndarray, color: np.ndarray | tuple[int, int, int], radius: int, opacity: float) -> None:
    """Blend a plate with rounded corners over a region of a picture, uint8 ``(h, w, 3)``, in place."""
    region[...] = np.rint(_blend(region, color, _plate(region.shape[0], region.shape[1], radius) * np.float32(opacity)))


def draw_text(region: np.ndarray, text: Text, ink: tuple[int, int, int], font: str | os.PathLike | None) -> None:
    """Draw a text into a region of its size, uint8 ``(h, w, 3)``, in place."""
    letters = Image.new('L', (text.width, text.height), 0)
    ImageDraw.Draw(letters).text(
        (_padding(text.font_size), _padding(text.font_size) // 4),
        text.content,
        fill=255,
        font=load_font(font, text.font_size),  # type: ignore[arg-type]  # as above
    )
    region[...] = np.rint(_blend(region, ink, np.asarray(letters, np.float32) / 255))


def _padding(font_size: int) -> int:
    return max(2, round(font_size / 3.5))


@functools.lru_cache(maxsize=32)
def _plate(height: int, width: int, radius: int) -> np.ndarray:
    """Return the opacity of a rectangle with rounded corners, ``(height, width)`` float32."""
    image = Image.new('L', (width * _OVERSAMPLING, height * _OVERSAMPLING), 0)
    ImageDraw.Draw(image).rounded_rectangle((0, 0, image.width - 1, image.height - 1), radius * _OVERSAMPLING, fill=255)
    return np.asarray(image.reduce(_OVERSAMPLING), np.float32) / 255


def _blend(below: np.ndarray, color: np.ndarray | tuple, opacity: np.ndarray) -> np.ndarray:
    """Blend a colour over pixels; ``opacity`` is 0 to 1."""
    return below + (np.asarray(color, np.float32) - below) * opacity[:, :, None]
