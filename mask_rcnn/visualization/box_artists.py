"""Boxes, arrows and labels on Matplotlib axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mask_rcnn.visualization.panels import LINES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import PolyCollection
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

_GAP = 3.0  # pixels between a box and its label
_FONT_SIZE = 8.0  # points
_MIN_ARROW = 1.0  # pixels; shorter moves have no arrow


def draw_boxes(
    axes: Axes, boxes: np.ndarray, colors: Any, sign: str = 'solid', *, alpha: float = 1.0
) -> PolyCollection:
    """Draw boxes, the first on top.

    Args:
        axes: The axes.
        boxes: ``(R, 4)`` ``(y_min, x_min, y_max, x_max)``.
        colors: One colour, or ``(R, 3)`` or ``(R, 4)`` colours.
        sign: A key of :data:`mask_rcnn.visualization.panels.LINES`.
        alpha: Opacity.

    Returns:
        The added collection, whose paths are the boxes in reverse order.
    """
    style, width = LINES[sign]
    if not isinstance(colors, str):
        colors = np.asarray(colors)[::-1]
    boxes = np.asarray(boxes).reshape(-1, 4)[::-1]
    return outline_boxes(axes, boxes, colors, linestyles=[style], linewidths=width, alpha=alpha, gid=sign)


def outline_boxes(axes: Axes, boxes: np.ndarray, color: Any, **style: Any) -> PolyCollection:
    """Draw the outlines of boxes, the last on top.

    Args:
        axes: The axes.
        boxes: ``(R, 4)`` ``(y_min, x_min, y_max, x_max)``.
        color: One colour, or ``(R, 3)`` or ``(R, 4)`` colours.
        **style: Options of Matplotlib's ``PolyCollection``, such as ``linewidth``.

    Returns:
        The added collection, whose paths are the boxes.
    """
    from matplotlib.collections import PolyCollection

    top, left, bottom, right = np.asarray(boxes, np.float64).reshape(-1, 4).T
    corners = np.stack([left, top, right, top, right, bottom, left, bottom], axis=1).reshape(-1, 4, 2)
    collection = PolyCollection(list(corners), facecolors='none', edgecolors=color, joinstyle='miter', **style)
    axes.add_collection(collection, autolim=False)
    return collection


def draw_frame(axes: Axes, box: np.ndarray) -> None:
    """Draw a box ``(4,)`` in black and white, which stands out from every picture."""
    draw_boxes(axes, box[None], 'white')
    draw_boxes(axes, box[None], 'black', 'dotted')


def draw_moves(axes: Axes, before: np.ndarray, after: np.ndarray, colors: Any) -> None:
    """Draw an arrow from the centre of each box before a step to its centre after the step.

    Args:
        axes: The axes.
        before: ``(R, 4)`` boxes.
        after: ``(R, 4)`` boxes.
        colors: ``(R, 3)`` or ``(R, 4)`` colours.
    """
    from matplotlib.patches import FancyArrowPatch

    for start, stop, color in zip(_centres(before), _centres(after), colors, strict=True):
        axes.plot(*start, 'o', color=color, markersize=2.6, markeredgewidth=0, gid='old centre')
        first, last = axes.transData.transform([start, stop])
        if np.hypot(*(last - first)) >= _MIN_ARROW:
            options: dict[str, Any] = {'arrowstyle': '-|>', 'mutation_scale': 8, 'shrinkA': 0, 'shrinkB': 0}
            axes.add_patch(
                FancyArrowPatch(tuple(start), tuple(stop), color=color, linewidth=1.1, gid='move', **options)
            )


def _centres(boxes: np.ndarray) -> np.ndarray:
    """Return the centres of boxes, ``(R, 2)`` (x, y)."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    return (boxes[:, :2] + boxes[:, 2:])[:, ::-1] / 2


def settle_layout(figure: Figure) -> None:
    """Compute the layout of a figure and keep it, so that positions in pixels are final."""
    figure.draw_without_rendering()
    figure.set_layout_engine('none')


def label_boxes(
    axes: Axes, boxes: np.ndarray, texts: Sequence[str], colors: Any, *, others: np.ndarray | None = None
) -> int:
    """Write a label beside each box where it covers neither its box nor another label.

    A label without such a place is left out.  The free place that crosses the fewest boxes is chosen.
    Call :func:`settle_layout` first.

    Args:
        axes: The axes.
        boxes: ``(R, 4)`` boxes; the first ones have priority.
        texts: The text of each box.
        colors: ``(R, 3)`` or ``(R, 4)`` colours of the texts.
        others: ``(S, 4)`` other boxes that a label should not cross.

    Returns:
        The number of labels that are left out.
    """
    frames = [_in_pixels(axes, box) for box in np.asarray(boxes, np.float64)]
    obstacles = frames if others is None else frames + [_in_pixels(axes, box) for box in np.asarray(others, np.float64)]
    placed: list[Bbox] = []
    for frame, text, color in zip(frames, texts, colors, strict=True):
        label = axes.text(
            0,
            0,
            text,
            color=0.65 * np.asarray(color[:3]) + 0.35,  # lighter, so that the text stands out from its plate
            fontsize=_FONT_SIZE,
            va='bottom',
            ha='left',
            gid='label',
            bbox={'boxstyle': 'square,pad=0.1', 'facecolor': (0, 0, 0, 0.8), 'edgecolor': 'none'},
        )
        place = _find_place(label.get_window_extent(), frame, placed, obstacles, axes.get_window_extent())
        if place is None:
            label.remove()
            continue
        label.set_position(tuple(axes.transData.inverted().transform((place.x0, place.y0)).tolist()))
        placed.append(place)
    return len(texts) - len(placed)


def _in_pixels(axes: Axes, box: np.ndarray) -> Bbox:
    """Return the part of a box that is visible in axes, in pixels of the figure."""
    from matplotlib.transforms import Bbox

    points = axes.transData.transform([box[1::-1], box[3:1:-1]])
    area = axes.get_window_extent()
    points = np.clip(points, area.min, area.max)
    return Bbox([points.min(axis=0), points.max(axis=0)])


def _find_place(extent: Bbox, box: Bbox, placed: list[Bbox], boxes: list[Bbox], area: Bbox) -> Bbox | None:
    """Return the best free place of a label beside a box, or ``None``."""
    from matplotlib.transforms import Bbox

    width, height = extent.width, extent.height
    above, below = box.y1 + _GAP, box.y0 - _GAP - height
    left, right = box.x0 - _GAP - width, box.x1 + _GAP
    corners = [
        (box.x0, above),
        (box.x1 - width, above),
        (box.x0, below),
        (box.x1 - width, below),
        (right, box.y1 - height),
        (left, box.y1 - height),
        (right, box.y0),
        (left, box.y0),
        (box.x0 + (box.width - width) / 2, above),
        (box.x0 + (box.width - width) / 2, below),
    ]
    candidates = [Bbox.from_bounds(x, y, width, height) for x, y in corners]
    free = [
        place
        for place in candidates
        if _contains(area, place) and not any(_overlaps(place.padded(1), other) for other in placed)
    ]
    return min(free, key=lambda place: sum(_crosses(place, other) for other in boxes), default=None)


def _contains(area: Bbox, place: Bbox) -> bool:
    return bool(place.x0 >= area.x0 and place.x1 <= area.x1 and place.y0 >= area.y0 and place.y1 <= area.y1)


def _overlaps(place: Bbox, other: Bbox) -> bool:
    return bool(place.x0 < other.x1 and other.x0 < place.x1 and place.y0 < other.y1 and other.y0 < place.y1)


def _crosses(place: Bbox, box: Bbox) -> bool:
    """Return whether a place touches the outline of a box."""
    inside = place.x0 > box.x0 and place.x1 < box.x1 and place.y0 > box.y0 and place.y1 < box.y1
    return _overlaps(place, box) and not inside
