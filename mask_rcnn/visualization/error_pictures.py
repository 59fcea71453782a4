"""Pictures of the errors in an image: the objects next to the detections, marked by kind of error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from mask_rcnn.ops.masks.rle import decode_rle
from mask_rcnn.visualization.colors import rgb_of, text_color
from mask_rcnn.visualization.figures import GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW
from mask_rcnn.visualization.labels import draw_label, draw_text, measure, place_labels, shorten_name
from mask_rcnn.visualization.pictures import resize_mask, resize_picture

#: Longer side of a panel in pixels; images are resized to it, so that lines and letters have equal sizes.
_SIDE = 620
_GAP, _MARGIN = 12, 6  # pixels
_FONT_SIZE, _LABEL_SIZE = 14, 12  # pixels
_WIDTH = 2  # of lines, pixels
#: Images wider than this multiple of their height have their panels one below the other.
_MAX_ASPECT = 1.7
#: With more labels, they would hide the panel.
_MAX_LABELS = 20
_SHIFT = 4  # fractional bits of the coordinates for OpenCV's drawing functions
_INK, _HALO = (34, 34, 34), (0, 0, 0)


@dataclass(frozen=True)
class Mark:
    """The appearance of a kind of error.

    Args:
        title: Text of the legend.
        color: ``'#rrggbb'``.
        dashes: Lengths of strokes and gaps in pixels; none for a solid line.
    """

    title: str
    color: str
    dashes: tuple[float, ...] = ()

    @property
    def rgb(self) -> np.ndarray:
        """``(3,)`` uint8."""
        return rgb_of(self.color)


#: The marks of objects and detections by their kind, in the order of the legend.
MARKS = {
    'correct': Mark('detected', GREEN),
    'missed': Mark('missed', YELLOW, (10, 6)),
    'classification': Mark('wrong class', PURPLE, (10, 6)),
    'localisation': Mark('bad location', ORANGE, (10, 6)),
    'both': Mark('wrong class and bad location', '#ffffff', (10, 5, 2, 5)),
    'duplicate': Mark('duplicate', SKY, (3, 5)),
    'background': Mark('background', VERMILION),
    'crowd': Mark('crowd, not evaluated', GREY, (3, 5)),
    'ignored': Mark('on a crowd, not evaluated', GREY, (3, 5)),
}


def mark_title(kind: str) -> str:
    """Return the title of a kind of error in the legend; a name that is not a kind stays as it is."""
    return MARKS[kind].title if kind in MARKS else kind


@dataclass(frozen=True, eq=False)
class MarkedShapes:
    """Objects or detections with their kinds.

    Args:
        boxes: ``(R, 4)`` float, ``(y_min, x_min, y_max, x_max)``, edges of pixels of the image.
        masks: ``R`` run lengths ``{'size': [H, W], 'counts': ...}``, or none to draw the boxes.
        kinds: ``R`` keys of :data:`MARKS`.
        texts: ``R`` texts of labels; an empty one for a shape without a label.
    """

    boxes: np.ndarray
    masks: Sequence[dict]
    kinds: Sequence[str]
    texts: Sequence[str]


def draw_errors(
    image: np.ndarray, objects: MarkedShapes, detections: MarkedShapes, titles: tuple[str, str]
) -> np.ndarray:
    """Draw the objects of an image next to its detections, or above them if the image is wide, with a legend.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        objects: The objects of the ground truth.
        detections: The detections.
        titles: Titles of the two panels.

    Returns:
        A uint8 array of shape ``(h, w, 3)``, RGB; a panel has a longer side of 620 pixels.
    """
    height, width = image.shape[:2]
    scale = _SIDE / max(height, width)
    size = max(round(height * scale), 1), max(round(width * scale), 1)
    resized = resize_picture(image, size)
    panels = [
        _add_title(_draw_panel(resized.copy(), shapes, scale), title)
        for shapes, title in zip((objects, detections), titles, strict=True)
    ]
    if width > _MAX_ASPECT * height:
        picture = _stack(panels)
    else:
        tallest = max(panel.shape[0] for panel in panels)
        picture = np.hstack([_pad(panels[0], tallest, panels[0].shape[1] + _GAP), panels[1]])
    return _stack([picture, _draw_legend({*objects.kinds, *detections.kinds}, picture.shape[1])])


def _draw_panel(canvas: np.ndarray, shapes: MarkedShapes, scale: float) -> np.ndarray:
    """Draw outlines and labels into a resized image."""
    size = canvas.shape[0], canvas.shape[1]
    boxes = np.clip(shapes.boxes * scale, 0, np.tile(size, 2))
    ranks = {kind: i for i, kind in enumerate(MARKS)}
    # Correct shapes first, so that errors are above them.
    for i in sorted(range(len(boxes)), key=lambda i: ranks[shapes.kinds[i]]):
        curves = _mask_curves(shapes.masks[i], size) if shapes.masks else []
        for curve in curves or [_box_curve(boxes[i])]:
            _draw_curve(canvas, curve, MARKS[shapes.kinds[i]])
    labelled = [i for i, text in enumerate(shapes.texts) if text]
    if len(labelled) <= _MAX_LABELS:
        _draw_labels(canvas, boxes, shapes, labelled)
    return canvas


def _mask_curves(rle: dict, size: tuple[int, int]) -> list[np.ndarray]:
    """Return the outer outlines of a mask in a picture of a size, ``(P, 2)`` float (x, y); none if it is too small."""
    mask = resize_mask(decode_rle(rle), size).view(np.uint8)
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour[:, 0].astype(np.float64) for contour in contours if len(contour) > 2]


def _box_curve(box: np.ndarray) -> np.ndarray:
    top, left, bottom, right = box
    return np.array([[left, top], [right - 1, top], [right - 1, bottom - 1], [left, bottom - 1]])


def _draw_curve(canvas: np.ndarray, points: np.ndarray, mark: Mark) -> None:
    """Draw a closed curve on a dark halo, which makes every colour visible on every image."""
    strokes = _strokes(points, mark.dashes)
    for color, width in ((_HALO, _WIDTH + 2), (mark.rgb.tolist(), _WIDTH)):
        cv2.polylines(canvas, strokes, False, color, width, cv2.LINE_AA, _SHIFT)


def _strokes(points: np.ndarray, dashes: tuple[float, ...]) -> list[np.ndarray]:
    """Divide a closed curve into strokes, ``(P, 1, 2)`` int32 for OpenCV."""
    closed = np.concatenate([points, points[:1]])
    position = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    if not dashes or position[-1] < sum(dashes):
        return [_fixed_point(closed)]
    n_periods = max(round(position[-1] / sum(dashes)), 1)
    lengths = np.tile(dashes, n_periods) * (position[-1] / (n_periods * sum(dashes)))
    ends = np.cumsum(lengths)
    strokes = []
    for start, end in zip((ends - lengths)[::2], ends[::2], strict=True):
        inside = position[(position > start) & (position < end)]
        along = np.concatenate([[start], inside, [end]])
        strokes.append(_fixed_point(np.stack([np.interp(along, position, closed[:, k]) for k in (0, 1)], axis=1)))
    return strokes


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.rint(points * 2**_SHIFT).astype(np.int32)[:, None]


def _draw_labels(canvas: np.ndarray, boxes: np.ndarray, shapes: MarkedShapes, labelled: Sequence[int]) -> None:
    """Draw labels where they hide least."""
    size = canvas.shape[0], canvas.shape[1]
    saliency = np.zeros(size, np.float32)
    for top, left, bottom, right in np.rint(boxes).astype(int).tolist():
        region = saliency[top : max(bottom, top + 1), left : max(right, left + 1)]
        region += 1 / max(region.size, 1)
    candidates = [[(0.0, measure(shorten_name(shapes.texts[i]), None, _LABEL_SIZE))] for i in labelled]
    placed = place_labels(candidates, boxes[labelled], saliency, size)
    for i, label in zip(labelled, placed, strict=True):
        if label is not None:
            color = MARKS[shapes.kinds[i]].rgb
            draw_label(canvas, label, color, text_color(color), None)


def _add_title(panel: np.ndarray, title: str) -> np.ndarray:
    text = measure(title, None, _FONT_SIZE)
    strip = np.full((text.height, max(panel.shape[1], text.width), 3), 255, np.uint8)
    draw_text(strip[:, : text.width], text, _INK, None)
    return _stack([strip, panel], gap=0)


def _draw_legend(kinds: set[str], width: int) -> np.ndarray:
    """Return the legend of some kinds, in as many rows as the width needs."""
    swatch, rows = 34, [np.full((1, 1, 3), 255, np.uint8)]
    for kind, mark in MARKS.items():
        if kind not in kinds:
            continue
        text = measure(mark.title, None, _FONT_SIZE)
        entry = np.full((text.height, swatch + text.width + _GAP, 3), 255, np.uint8)
        line = entry[_MARGIN:-_MARGIN, 2 : swatch - 2]
        line[...] = 110  # grey, on which the lines have the contrast of a picture
        middle = line.shape[0] / 2
        _draw_curve(line, np.array([[3, middle], [line.shape[1] - 4, middle]]), mark)
        draw_text(entry[:, swatch : swatch + text.width], text, _INK, None)
        if rows[-1].shape[1] + entry.shape[1] > width or rows[-1].shape[1] == 1:
            rows.append(entry)
        else:
            rows[-1] = np.hstack([rows[-1], entry])
    return _stack(rows, gap=0)


def _stack(parts: Sequence[np.ndarray], gap: int = _GAP // 2) -> np.ndarray:
    """Return pictures one below the other on white."""
    width = max(part.shape[1] for part in parts)
    padded = [_pad(part, part.shape[0] + gap * (i + 1 < len(parts)), width) for i, part in enumerate(parts)]
    return np.vstack(padded)


def _pad(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return a picture with white below and to the right."""
    below, right = height - picture.shape[0], width - picture.shape[1]
    return cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(255, 255, 255))
