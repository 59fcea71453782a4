"""Panels of figures: pictures side by side, a dark backdrop for coloured boxes, bars of scores, and legends.

The figures of the steps of a network share their signs.  A box is dotted before a step and solid after it; an anchor
and a suppressed box are dashed.  Colours of scores go from violet (0) to yellow (1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from mask_rcnn.visualization.backdrops import make_canvas
from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.figures import BLUE, GREY, INK, new_figure, shrink, style_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

#: Sign -> line style and width in points.
LINES: dict[str, tuple[Any, float]] = {
    'solid': ('-', 1.7),
    'dotted': ((0, (1, 1.3)), 1.9),
    'dashed': ((0, (5, 2)), 1.4),
    'thin': ((0, (4, 2)), 0.8),
}

#: Colours of lines on the backdrop.
WHITE, PALE = '#ffffff', '#d0d0d0'

_TITLE_HEIGHT = 0.34  # inches
_MAX_PANEL_HEIGHT = 5.0  # inches
_MAX_PICTURE_SIDE = 1000  # pixels of a picture in a panel
_BLACK, _WHITE = 12, 140  # grey values of the darkest and of the brightest parts of the backdrop
_SATURATION = 0.35  # of the backdrop relative to the picture
_DARK = 110  # grey value; a picture whose bright parts are darker is brightened in close-ups
_BAR_WIDTH = 0.9  # inches of a colour bar
#: Margin around the backdrop, as a fraction of its longer side, and its maximum for boxes that leave the picture.
_MARGIN, _MAX_MARGIN = 0.03, 0.3


def new_panels(
    n: int,
    size: Sequence[float],
    *,
    columns: int = 3,
    width: float = 10.0,
    min_width: float = 3.0,
    extra: float = 0.45,
    bar: bool = False,
) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels for pictures of one size.

    Args:
        n: Number of panels, at least 1.
        size: Height and width of the pictures; their ratio determines the height of the panels.
        columns: Maximum number of panels in a row.
        width: Maximum width of the figure in inches.
        min_width: Its minimum width, such as that of a legend.
        extra: Height in inches for what is below the panels, such as a legend.
        bar: Whether a colour bar follows.
    """
    bar_width = _BAR_WIDTH if bar else 0.0
    columns = min(n, columns)
    n_rows = math.ceil(n / columns)
    ratio = min(max(size[0] / size[1], 0.3), 2.5)
    panel_width = min((width - bar_width) / columns, _MAX_PANEL_HEIGHT / ratio)
    height = n_rows * (panel_width * ratio + _TITLE_HEIGHT) + extra
    figure, axes = new_figure(max(panel_width * columns + bar_width, min_width), height, n_rows, columns)
    for unused in axes.flat[n:]:
        unused.set_visible(False)
    return figure, list(axes.flat[:n])


def show_backdrop(
    axes: Axes,
    picture: np.ndarray,
    title: str = '',
    *,
    region: np.ndarray | None = None,
    style: str = 'dark',
    margin: float = _MARGIN,
) -> None:
    """Show a picture, usually in dark, faded colours, from which lines stand out.  Data coordinates are its pixels.

    Args:
        axes: The axes.
        picture: ``(H, W, 3)`` uint8, RGB.
        title: Text above the picture.
        region: ``(4,)`` part of the picture that is shown; ``None`` for the picture with a margin.
        style: ``'dark'``; ``'pale'`` grey; ``'bright'`` for its own colours, which are brightened in dark parts; or
            ``'plain'``.
        margin: Width of the margin as a fraction of the longer side.
    """
    height, width = picture.shape[:2]
    if region is not None:
        picture, extent = _cut(picture, region)
    else:
        extent = (0, width, height, 0)
    shown = shrink(picture, _MAX_PICTURE_SIDE)
    if style != 'plain':
        shown = {'dark': darken, 'pale': fade, 'bright': brighten}[style](shown)
    axes.imshow(shown, extent=extent, interpolation='antialiased')
    pad = margin * max(height, width)
    limits = np.array([-pad, -pad, height + pad, width + pad]) if region is None else region
    set_limits(axes, limits)
    axes.set_title(title, fontsize='medium')


def darken(picture: np.ndarray) -> np.ndarray:
    """Return a picture ``(H, W, 3)`` uint8 in dark, faded colours; the contrast of dark pictures is raised."""
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
    pale = _SATURATION * picture + (1 - _SATURATION) * grey
    low, high = np.percentile(grey, (1, 99))
    return (_BLACK + (pale - low) * (_WHITE - _BLACK) / max(high - low, 40)).clip(0, _WHITE).astype(np.uint8)


def fade(picture: np.ndarray) -> np.ndarray:
    """Return a picture ``(H, W, 3)`` uint8 in pale grey."""
    return make_canvas(picture, 'grey')


def brighten(picture: np.ndarray) -> np.ndarray:
    """Return a dark picture ``(H, W, 3)`` uint8 with more brightness, and another one as it is."""
    high = np.percentile(picture, 99)
    return picture if high >= _DARK else (picture * (200 / max(high, 20))).clip(0, 255).astype(np.uint8)


def set_limits(axes: Axes, region: np.ndarray) -> None:
    """Show a region ``(y_min, x_min, y_max, x_max)`` without ticks and frame."""
    top, left, bottom, right = np.asarray(region, float).tolist()
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.set_aspect('equal')
    axes.set_axis_off()


def margin_for(boxes: np.ndarray, size: Sequence[int]) -> float:
    """Return the margin of :func:`show_backdrop` with which boxes ``(R, 4)`` are visible; 0.3 is the maximum."""
    outside = np.concatenate([-boxes[:, :2], boxes[:, 2:] - np.array(size)]).max(initial=0)
    return float(np.clip(1.05 * outside / max(size), _MARGIN, _MAX_MARGIN))


def _cut(picture: np.ndarray, region: np.ndarray) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Return the pixels of a region and their extent for ``imshow``."""
    height, width = picture.shape[:2]
    top, left = (int(np.clip(np.floor(region[i]), 0, side - 1)) for i, side in ((0, height), (1, width)))
    bottom = int(np.clip(np.ceil(region[2]), top + 1, height))
    right = int(np.clip(np.ceil(region[3]), left + 1, width))
    return picture[top:bottom, left:right], (left, right, bottom, top)


def zoom_region(boxes: np.ndarray, size: Sequence[int], *, margin: float = 0.2, min_side: float = 0.12) -> np.ndarray:
    """Return a region around boxes, ``(4,)`` float64, that lies in a picture unless the boxes leave it.

    Args:
        boxes: ``(R, 4)`` with at least one box.
        size: Height and width of the picture.
        margin: Distance from the boxes as a fraction of their longer side.
        min_side: Minimum height and width as a fraction of the picture's longer side.
    """
    low, high = boxes[:, :2].min(axis=0).astype(np.float64), boxes[:, 2:].max(axis=0).astype(np.float64)
    side = max(float((high - low).max()) * (1 + 2 * margin), min_side * max(size), 2.0)
    half = np.maximum((high - low) * (0.5 + margin), side / 2)
    centre = (low + high) / 2
    limit = np.array(size, np.float64)
    start = np.minimum(np.maximum(centre - half, np.minimum(low, 0)), low)
    stop = np.maximum(np.minimum(centre + half, np.maximum(high, limit)), high)
    return np.concatenate([start, stop])


def score_colormap() -> Colormap:
    """Return the colour map of scores; all of its colours stand out from the backdrop."""
    import matplotlib
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list('scores', matplotlib.colormaps['plasma'](np.linspace(0.3, 1, 256)))


def score_colors(scores: np.ndarray) -> np.ndarray:
    """Return the colours ``(R, 4)`` of scores from 0 to 1."""
    return np.asarray(score_colormap()(np.asarray(scores, np.float64))).reshape(-1, 4)


def add_score_bar(figure: Figure, axes: Sequence[Axes], label: str) -> None:
    """Add the colour bar of scores from 0 to 1 to the right of axes."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    mappable = ScalarMappable(Normalize(0, 1), score_colormap())
    bar = figure.colorbar(mappable, ax=list(axes), label=label, fraction=0.03, pad=0.02, aspect=24, shrink=0.7)
    bar.outline.set_visible(False)  # type: ignore[operator]  # it is an artist, not a method


def add_legend(figure: Figure, entries: Iterable[tuple[str, Any, str]]) -> None:
    """Add a legend of lines below the panels.

    Args:
        figure: The figure.
        entries: For each line its text, colour and sign, a key of :data:`LINES`.
    """
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=color, linestyle=style, linewidth=width, label=text)
        for text, color, sign in entries
        for style, width in [LINES[sign]]
    ]
    # As dark as the backdrop, so that the colours are those of the lines.
    style = {'facecolor': '#333333', 'edgecolor': 'none', 'framealpha': 1, 'labelcolor': WHITE, 'fancybox': False}
    figure.legend(
        handles=handles, loc='outside lower center', ncols=len(handles), fontsize='small', handlelength=3, **style
    )


def draw_score_bars(
    axes: Axes, classes: Sequence[tuple[str, float]], *, threshold: float | None = None, title: str = ''
) -> None:
    """Draw class scores as horizontal bars; the background is grey.

    Args:
        axes: The axes.
        classes: The name and probability of each class, from top to bottom.
        threshold: The minimum score of a detection, a dashed line, or ``None``.
        title: Text above the bars.
    """
    rows = range(len(classes))
    colors = [GREY if name == 'background' else BLUE for name, _ in classes]
    axes.barh(rows, [score for _, score in classes], color=colors, height=0.72)
    for row, (_, score) in enumerate(classes):
        # The line of the threshold must not cross the text.
        place = score if threshold is None or score >= threshold else threshold
        axes.text(place + 0.025, row, f'{score:.2f}', va='center', fontsize='x-small')
    if threshold is not None:
        axes.axvline(threshold, color=INK, linestyle=(0, (3, 2)), linewidth=0.9)
    axes.set_yticks(rows, [plot_name(name) for name, _ in classes], fontsize='x-small')
    axes.set_xlim(0, 1.22)
    axes.set_ylim(max(len(classes), 3) - 0.4, -0.6)
    axes.set_xticks([0, 0.5, 1], ['0', '0.5', '1'], fontsize='x-small')
    style_plot(axes)
    axes.grid(False, axis='y')
    axes.tick_params(length=0)
    if title:
        axes.set_title(title, fontsize='small', loc='left')
