"""The legend of a picture whose objects are too many or too small for labels: colours, names and counts of classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.visualization.labels import Text, blend_plate, draw_text, font_size_for, measure, shorten_name

_MAX_COLORS = 4  # of the swatch of a class whose instances have different colours
_MAX_HEIGHT, _MAX_WIDTH = 0.6, 0.9  # of the legend, as fractions of the picture
_NO_COLORS = np.zeros((0, 3), np.uint8)
_PLATE = (28, 28, 32)
_INK = (255, 255, 255)
_OPACITY = 0.8


@dataclass(frozen=True)
class LegendRow:
    """A class in the legend.

    Args:
        text: Its name and the number of its instances.
        colors: ``(K, 3)`` uint8, the colours of its instances; none for a row without a swatch.
    """

    text: Text
    colors: np.ndarray


@dataclass(frozen=True)
class Legend:
    """The rows of a legend with its height and width in pixels; ``indent`` is the width before the texts."""

    rows: tuple[LegendRow, ...]
    height: int
    width: int
    indent: int


def make_legend(
    names: Sequence[str],
    colors: np.ndarray | None,
    listed: set[str],
    size: tuple[int, int],
    font: str | os.PathLike | None,
) -> Legend | None:
    """Return the legend of a picture, ``None`` if it has no rows or does not fit the picture.

    Args:
        names: The class name of each of the ``R`` instances.
        colors: ``(R, 3)`` uint8, their colours; ``None`` for a legend without swatches.
        listed: The names of the classes in the legend.
        size: ``(H, W)`` of the image.
        font: See :func:`mask_rcnn.visualization.labels.load_font`.
    """
    font_size = font_size_for(size)
    indices = {name: [i for i, other in enumerate(names) if other == name] for name in sorted(listed)}
    by_count = sorted(indices, key=lambda name: -len(indices[name]))
    swatches = {name: _NO_COLORS if colors is None else _distinct(colors[indices[name]]) for name in by_count}
    rows = [
        LegendRow(measure(f'{shorten_name(name)}  {len(indices[name])}', font, font_size), swatches[name])
        for name in by_count
    ]
    if not rows:
        return None
    max_rows = int(_MAX_HEIGHT * size[0]) // rows[0].text.height
    if len(rows) > max_rows > 0:
        n_left = len(rows) - max_rows + 1
        rest = measure(counted(n_left, 'more class', 'more classes'), font, font_size)
        rows = [*rows[: max_rows - 1], LegendRow(rest, _NO_COLORS)]
    height = sum(row.text.height for row in rows)
    indent = rows[0].text.height if any(len(row.colors) for row in rows) else 0
    width = indent + max(row.text.width for row in rows)
    return Legend(tuple(rows), height, width, indent) if max_rows > 0 and width <= _MAX_WIDTH * size[1] else None


def _distinct(colors: np.ndarray) -> np.ndarray:
    """Return a few different colours in the order of their first instances."""
    _, first = np.unique(colors, axis=0, return_index=True)
    return colors[np.sort(first)[:_MAX_COLORS]]


def place_legend(legend: Legend, covered: np.ndarray) -> tuple[int, int]:
    """Return the upper left pixel ``(top, left)`` of a legend in the corner that hides the fewest pixels.

    Args:
        legend: The legend.
        covered: ``(H, W)``, the cost of hiding each pixel of the picture.
    """
    bottom, right = covered.shape[0] - legend.height, covered.shape[1] - legend.width
    corners = [(0, 0), (0, right), (bottom, 0), (bottom, right)]
    costs = [
        covered[top : top + legend.height, left : left + legend.width].sum(dtype=np.int64) for top, left in corners
    ]
    return corners[int(np.argmin(costs))]


def draw_legend(canvas: np.ndarray, legend: Legend, corner: tuple[int, int], font: str | os.PathLike | None) -> None:
    """Draw a legend into ``canvas``, uint8 ``(H, W, 3)``, with its upper left pixel at ``corner``."""
    top, left = corner
    side = legend.rows[0].text.height
    blend_plate(canvas[top : top + legend.height, left : left + legend.width], _PLATE, side // 4, _OPACITY)
    for row in legend.rows:
        margin = max(2, side // 4)
        swatch = canvas[top + margin : top + side - margin, left + margin : left + side]
        if len(row.colors):
            for part, color in zip(np.array_split(swatch, len(row.colors), axis=1), row.colors, strict=True):
                part[...] = color
        text_left = left + legend.indent
        draw_text(canvas[top : top + side, text_left : text_left + row.text.width], row.text, _INK, font)
        top += side
