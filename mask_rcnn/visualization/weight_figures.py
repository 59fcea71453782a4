"""Figures of weights: histograms, ranges, the filters of the first layer, and the changes between two networks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mask_rcnn.io.console import escape
from mask_rcnn.visualization.colors import rgb_of
from mask_rcnn.visualization.figures import (
    BLUE,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    default_style,
    new_figure,
    show_picture,
    style_plot,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH = 11.0  # inches of every figure
_N_COLUMNS, _PANEL_HEIGHT = 5, 1.4  # of the histograms; inches
_MAX_TITLE = 28  # characters of the title of a histogram

#: Filters whose largest weight is at most this fraction of the largest of all are not amplified.
_MIN_FILTER = 1e-6
_TILE_SIDE, _TILE_GAP = 42, 4  # pixels
_NEUTRAL = 128  # the grey of the weight 0

#: Larger values are drawn at this one: Matplotlib's arithmetic would overflow.
_MAX_DRAWN = 1e30


@dataclass(frozen=True, eq=False)
class HistogramPanel:
    """One histogram of a grid.

    Args:
        title: The name of the layer.
        counts: ``(B,)`` integers.
        edges: ``(B + 1,)`` borders of the bins.
        note: A short text in the panel, such as the standard deviation.
        is_doubtful: Whether the note is about something wrong, such as NaN.
        other: The counts and edges of a second histogram, drawn as a line, or ``None``.
    """

    title: str
    counts: np.ndarray
    edges: np.ndarray
    note: str = ''
    is_doubtful: bool = False
    other: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class RangeRow:
    """The range of one array.

    Args:
        name: The name of the layer.
        part: The part of the network; neighbours of one part form a group.
        low: The minimum.
        percentiles: The values at 1, 25, 50, 75 and 99 percent.
        high: The maximum.
    """

    name: str
    part: str
    low: float
    percentiles: tuple[float, ...]
    high: float


@default_style()
def draw_histograms(
    panels: Sequence[HistogramPanel], *, log_counts: bool = True, labels: tuple[str, str] | None = None
) -> Figure:
    """Draw a grid of small histograms, row by row.

    Args:
        panels: One or more histograms.
        log_counts: Whether the counts have a logarithmic axis, on which single outliers are visible.
        labels: The names of the first and of the second histogram of every panel, for a legend.
    """
    n_rows = math.ceil(len(panels) / _N_COLUMNS)
    legend_height = 0.35 if labels else 0.0
    height = _PANEL_HEIGHT * n_rows + legend_height
    figure, axes = new_figure(_WIDTH, height, n_rows, _N_COLUMNS)
    figure.set_layout_engine(None)  # the time of the constrained layout grows with the square of the number of axes
    figure.subplots_adjust(
        left=0.15 / _WIDTH,
        right=1 - 0.15 / _WIDTH,
        bottom=0.24 / height,
        top=1 - (0.26 + legend_height) / height,
        wspace=0.12,
        hspace=0.5 / (_PANEL_HEIGHT - 0.5),
    )
    for panel, place in zip(panels, axes.flat, strict=False):
        _draw_histogram(place, panel, log_counts)
    for place in axes.flat[len(panels) :]:
        place.set_axis_off()
    if labels:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        handles: list[Any] = [Patch(color=SKY, label=_plain(labels[0])), Line2D([], [], color=VERMILION)]
        handles[1].set_label(_plain(labels[1]))
        figure.legend(handles=handles, loc='upper center', ncols=2, frameon=False, fontsize=9, borderaxespad=0.2)
    return figure


def _draw_histogram(axes: Axes, panel: HistogramPanel, log_counts: bool) -> None:
    style_plot(axes)
    axes.spines['left'].set_visible(False)
    axes.set_title(_shorten(panel.title), fontsize=8, pad=3)
    axes.tick_params(labelsize=7, length=2, pad=1.5)
    axes.set_yticks([])
    histograms = [(panel.counts, panel.edges), *([panel.other] if panel.other else [])]
    borders = [edges for counts, edges in histograms if counts.any()] or [panel.edges]
    low, high = min(edges[0] for edges in borders), max(edges[-1] for edges in borders)
    axes.set_xlim(low, high)
    axes.locator_params(axis='x', nbins=4, prune='both')
    axes.xaxis.get_offset_text().set_fontsize(7)
    highest = max(1, *(int(counts.max()) for counts, _ in histograms))
    if log_counts:
        axes.set_yscale('log')
        axes.set_ylim(0.5, 3.0 * highest**1.15)
        axes.minorticks_off()
        axes.set_yticks([])
    else:
        axes.set_ylim(0, 1.3 * highest)
    if low < 0 < high:
        axes.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    color = BLUE if panel.other is None else SKY
    axes.stairs(panel.counts, panel.edges, fill=True, color=color, baseline=0.5 if log_counts else 0, zorder=2)
    if panel.other is not None:
        axes.stairs(*panel.other, color=VERMILION, linewidth=1, baseline=None, zorder=3)
    ink = VERMILION if panel.is_doubtful else INK
    axes.text(0.99, 0.98, panel.note, transform=axes.transAxes, ha='right', va='top', fontsize=7, color=ink)


@default_style()
def draw_ranges(rows: Sequence[RangeRow]) -> Figure:
    """Draw the distribution of each array as a box on a symmetric logarithmic axis, one row per array.

    A box contains the middle half of the values, the line through it extends from 1 to 99 percent, and the dots are the
    extrema.

    Args:
        rows: One or more arrays, from top to bottom; without finite values a row is empty.
    """
    height = max(0.18 * len(rows) + 1.0, 1.6)
    figure, ((axes,),) = new_figure(_WIDTH, height)
    style_plot(axes)
    axes.grid(False, axis='y')
    places = np.arange(len(rows))
    values = np.clip([(row.low, *row.percentiles, row.high) for row in rows], -_MAX_DRAWN, _MAX_DRAWN)
    drawn = np.flatnonzero(np.isfinite(values).all(axis=1))
    low, one, quarter, median, three_quarters, ninety_nine, high = values[drawn].T
    axes.hlines(drawn, one, ninety_nine, color=BLUE, linewidth=1)
    axes.barh(drawn, three_quarters - quarter, 0.62, quarter, color=SKY, edgecolor=BLUE, linewidth=0.8)
    axes.plot(median, drawn, '|', color=INK, markersize=7, markeredgewidth=1.2)
    for side in (low, high):
        axes.plot(side, drawn, '.', color=ORANGE, markersize=4)
    _scale_symmetrically(axes, values[drawn])
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    axes.set_yticks(places, [_plain(row.name) for row in rows], fontsize=7.5)
    axes.tick_params(axis='x', labelsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    _mark_parts(axes, [row.part for row in rows])
    axes.set_xlabel('value; box: 25 to 75 %, line: 1 to 99 %, dots: minimum and maximum', fontsize=9)
    return figure


def _scale_symmetrically(axes: Axes, values: np.ndarray) -> None:
    """Set a symmetric logarithmic scale that is linear around zero, up to a typical half width of the boxes.

    Args:
        axes: The axes.
        values: ``(R, 7)``, the minimum, the percentiles and the maximum of each row.
    """
    largest = float(np.abs(values).max(initial=0.0)) or 1.0
    widths = np.abs(values[:, [2, 4]]).max(axis=1, initial=0.0)
    widths = widths[widths > 0]
    linear = float(np.quantile(widths, 0.25)) if widths.size else largest
    linear = 10.0 ** math.floor(math.log10(max(linear, 1e-8 * largest)))
    axes.set_xscale('symlog', linthresh=linear, linscale=0.7)
    axes.set_xlim(-1.5 * largest, 1.5 * largest)


def _mark_parts(axes: Axes, parts: Sequence[str]) -> None:
    """Shade every second part of the network, and write the names of all parts at the right."""
    start = 0
    for number, (part, members) in enumerate(groupby(parts)):
        stop = start + len(list(members))
        if number % 2 == 0:
            axes.axhspan(start - 0.5, stop - 0.5, color=GREY, alpha=0.13, linewidth=0)
        axes.annotate(
            _plain(part),
            (1.01, (start + stop - 1) / 2),
            xycoords=('axes fraction', 'data'),
            va='center',
            fontsize=8,
            annotation_clip=False,
        )
        start = stop


@default_style()
def draw_filters(weight: np.ndarray, *, channel_order: str = 'RGB') -> Figure:
    """Draw the filters of the first layer as small RGB pictures; grey is the weight 0.

    Each filter is scaled by its own largest weight.  Filters that are zero are grey, and filters with values that are
    not finite are crossed out.

    Args:
        weight: ``(O, 3, h, w)`` floats.
        channel_order: ``'RGB'`` or ``'BGR'``, the order of the input channels.
    """
    tiles, n_columns = _filter_tiles(weight, channel_order), min(16, len(weight))
    side = _TILE_SIDE + _TILE_GAP
    n_rows = math.ceil(len(tiles) / n_columns)
    picture = np.full((n_rows * side + _TILE_GAP, n_columns * side + _TILE_GAP, 3), 255, np.uint8)
    for number, tile in enumerate(tiles):
        row, column = divmod(number, n_columns)
        top, left = row * side + _TILE_GAP, column * side + _TILE_GAP
        picture[top : top + _TILE_SIDE, left : left + _TILE_SIDE] = tile
    width = max(_WIDTH * n_columns / 16, 1.5)
    figure, ((axes,),) = new_figure(width, (width - 0.5) * picture.shape[0] / picture.shape[1] + 0.2)
    show_picture(axes, picture)
    for row in range(n_rows):
        label = str(row * n_columns)
        axes.text(-3, row * side + side / 2, label, ha='right', va='center', fontsize=8, color=INK, clip_on=False)
    return figure


def _filter_tiles(weight: np.ndarray, channel_order: str) -> np.ndarray:
    """Return the picture of each filter, ``(O, side, side, 3)`` uint8, RGB."""
    filters = weight[:, ::-1] if channel_order == 'BGR' else weight
    filters = filters.astype(np.float64).transpose(0, 2, 3, 1)
    is_finite = np.isfinite(filters).all(axis=(1, 2, 3))
    filters = np.where(is_finite[:, None, None, None], filters, 0)
    largest = np.abs(filters).max(axis=(1, 2, 3), initial=0)
    scale = np.where(largest > _MIN_FILTER * largest.max(initial=0), largest, np.inf)
    pixels = np.rint(_NEUTRAL + 127 * (filters / np.maximum(scale, 1e-300)[:, None, None, None])).astype(np.uint8)
    rows, columns = (np.arange(_TILE_SIDE) * count // _TILE_SIDE for count in pixels.shape[1:3])
    tiles = pixels[:, rows][:, :, columns]
    tiles[~is_finite] = _crossed_out()
    return tiles


def _crossed_out() -> np.ndarray:
    tile = np.full((_TILE_SIDE, _TILE_SIDE, 3), 255, np.uint8)
    diagonal = np.arange(_TILE_SIDE)
    for shift in (-1, 0, 1):
        shifted = np.clip(diagonal + shift, 0, _TILE_SIDE - 1)
        tile[diagonal, shifted] = tile[diagonal, shifted[::-1]] = rgb_of(VERMILION)
    return tile


@default_style()
def draw_changes(names: Sequence[str], changes: Iterable[float]) -> Figure:
    """Draw the relative change of arrays as bars on a logarithmic axis, from top to bottom.

    Args:
        names: The name of each array; one or more.
        changes: ``norm(a - b) / norm(a)`` of each; 0 has no bar, and infinity the full length and a hatching.
    """
    values = np.array(list(changes), float)
    finite = values[np.isfinite(values) & (values > 0)]
    low = 10.0 ** math.floor(math.log10(finite.min()) - 0.3) if finite.size else 1e-3
    high = 10.0 ** math.ceil(math.log10(finite.max()) + 0.3) if finite.size else 1.0
    figure, ((axes,),) = new_figure(_WIDTH, max(0.2 * len(names) + 0.9, 1.5))
    style_plot(axes)
    axes.grid(False, axis='y')
    axes.set_xscale('log')
    places = np.arange(len(names))
    is_infinite = np.isinf(values)
    axes.barh(places, np.where(is_infinite | (values <= 0), low, values), 0.7, color=BLUE)
    axes.barh(places[is_infinite], high, 0.7, color='white', edgecolor=VERMILION, hatch='////')
    axes.set_xlim(low, high)
    for place, value in zip(places, values, strict=True):
        text = 'equal' if value == 0 else 'from zero' if math.isinf(value) else f'{value:.2g}'
        x = low if value == 0 or math.isinf(value) else min(value, high)
        box = {'boxstyle': 'square,pad=0.15', 'facecolor': 'white', 'linewidth': 0} if math.isinf(value) else None
        axes.annotate(text, (x, place), (4, 0), textcoords='offset points', va='center', fontsize=7.5, bbox=box)
    axes.set_yticks(places, [_plain(name) for name in names], fontsize=7.5)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis='x', labelsize=8)
    axes.set_xlabel('relative change: L2 norm of the difference / L2 norm of the first array', fontsize=9)
    return figure


def _shorten(title: str) -> str:
    """Return the end of a name, with an ellipsis if it was longer."""
    return _plain(title if len(title) <= _MAX_TITLE else f'...{title[3 - _MAX_TITLE :]}')


def _plain(text: str) -> str:
    """Return text from a file as one line of ASCII, for which every font has glyphs, and without formulas."""
    return escape(text).encode('ascii', 'backslashreplace').decode('ascii').replace('$', r'\$')
