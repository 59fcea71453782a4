"""Figures of the RPN: anchors, the objectness of each location, proposals, and RoIs by level."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.visualization.box_artists import draw_boxes
from mask_rcnn.visualization.figures import ORANGE, PURPLE, SKY, YELLOW, default_style, shrink, style_plot
from mask_rcnn.visualization.panels import (
    PALE,
    add_legend,
    add_score_bar,
    darken,
    margin_for,
    new_panels,
    score_colormap,
    score_colors,
    set_limits,
    show_backdrop,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of the levels, which stand out from the backdrop.
LEVEL_COLORS = (YELLOW, SKY, ORANGE, PURPLE, '#7fdb8a')

#: Colour and sign of each outcome of a selection.
_OUTCOMES = {
    'kept': (ORANGE, 'solid'),
    'suppressed': (SKY, 'thin'),
    'beyond the limit': (PALE, 'thin'),
    'invalid': (PURPLE, 'dotted'),
}


@default_style()
def draw_anchors(
    picture: np.ndarray,
    names: Sequence[str],
    boxes: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    shapes: Sequence[np.ndarray],
    *,
    n: int = 20,
) -> Figure:
    """Draw the anchors of each level with the highest objectness, and the shapes of the anchors.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        names: The names of the levels.
        boxes: For each level, ``(K, 4)`` anchors in pixels of the picture.
        scores: For each level, ``(K,)`` probabilities of an object.
        shapes: For each level, ``(A, 4)`` the anchors of one location, in pixels of the picture.
        n: Maximum number of anchors that are drawn per level.
    """
    figure, panels = new_panels(len(names) + 1, picture.shape[:2], bar=True)
    size = picture.shape[:2]
    for axes, name, level_boxes, level_scores in zip(panels[1:], names, boxes, scores, strict=True):
        order = np.argsort(-level_scores, kind='stable')[:n]
        title, best = f'{name}: the best {len(order)} of {len(level_boxes)}', level_boxes[order]
        show_backdrop(axes, picture, title, margin=margin_for(best, size))
        draw_boxes(axes, best, score_colors(level_scores[order]), 'dashed')
    margin = margin_for(np.concatenate(shapes), size)
    show_backdrop(panels[0], picture, 'Anchors of one location', margin=margin)
    for level_boxes, color in zip(shapes, LEVEL_COLORS, strict=False):
        draw_boxes(panels[0], level_boxes, color, 'dashed')
    add_score_bar(figure, panels, 'objectness')
    add_legend(
        figure, [(f'one location of {name}', color, 'dashed') for name, color in zip(names, LEVEL_COLORS, strict=False)]
    )
    return figure


@default_style()
def draw_objectness(
    picture: np.ndarray, names: Sequence[str], maps: Sequence[np.ndarray], extents: Sequence[np.ndarray]
) -> Figure:
    """Draw the objectness of each location of each level over the picture.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        names: The names of the levels.
        maps: For each level, ``(h, w)`` probabilities: the maximum over the anchors of each location.
        extents: For each level, ``(4,)`` the area that the map covers, in pixels of the picture.
    """
    figure, panels = new_panels(len(names) + 1, picture.shape[:2], extra=0.1, bar=True)
    height, width = picture.shape[:2]
    shown = shrink(picture, 1000)
    panels[0].imshow(shown, extent=(0, width, height, 0), interpolation='antialiased')
    set_limits(panels[0], np.array([0, 0, height, width]))
    panels[0].set_title('Image', fontsize='medium')
    for axes, name, values, extent in zip(panels[1:], names, maps, extents, strict=True):
        top, left, bottom, right = extent.tolist()
        axes.imshow(darken(shown), extent=(0, width, height, 0), interpolation='antialiased')
        axes.imshow(_translucent(values), extent=(left, right, bottom, top), interpolation='nearest')
        set_limits(axes, np.array([0, 0, height, width]))
        axes.set_title(f'{name}: {values.shape[0]} x {values.shape[1]}, maximum {values.max():.2f}', fontsize='medium')
    add_score_bar(figure, panels, 'objectness')
    return figure


def _translucent(values: np.ndarray) -> np.ndarray:
    """Return the colours ``(h, w, 4)`` of scores; low ones are nearly transparent."""
    colors = score_colormap()(np.asarray(values, np.float64))
    colors[..., 3] = 0.1 + 0.75 * values
    return colors


@default_style()
def draw_proposals(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    outcomes: Sequence[str],
    levels: Sequence[str],
    *,
    n: int = 40,
) -> Figure:
    """Draw the best proposals before NMS, the best ones after NMS, and the outcomes of the best ones.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        boxes: ``(C, 4)`` all boxes that enter NMS, in pixels of the picture.
        scores: ``(C,)`` probabilities of an object.
        outcomes: For each box ``'kept'``, ``'suppressed'``, ``'beyond the limit'`` or ``'invalid'``.
        levels: For each box, the name of its level.
        n: Maximum number of boxes in a panel.
    """
    figure, panels = new_panels(4, picture.shape[:2], columns=2, width=9.5, extra=0.9, bar=True)
    results = np.array(outcomes, dtype=object)
    order = np.argsort(-scores, kind='stable')
    kept = order[results[order] == 'kept']
    best, best_kept = order[:n], kept[:n]
    margin = margin_for(boxes[[*best, *best_kept]], picture.shape[:2])
    show_backdrop(panels[0], picture, f'Before NMS: the best {len(best)} of {len(boxes)}', margin=margin)
    draw_boxes(panels[0], boxes[best], score_colors(scores[best]), 'dotted')
    show_backdrop(panels[1], picture, f'After NMS: the best {len(best_kept)} of {len(kept)}', margin=margin)
    draw_boxes(panels[1], boxes[best_kept], score_colors(scores[best_kept]))
    show_backdrop(panels[2], picture, f'Outcomes of the best {len(best)}', margin=margin)
    for outcome, (color, sign) in reversed(_OUTCOMES.items()):
        draw_boxes(panels[2], boxes[best[results[best] == outcome]], color, sign)
    _draw_outcomes(panels[3], results, levels)
    add_score_bar(figure, panels[:2], 'objectness')
    counts = {name: int(np.count_nonzero(results == name)) for name in _OUTCOMES}
    add_legend(
        figure,
        [(f'{name}: {counts[name]}', color, sign) for name, (color, sign) in _OUTCOMES.items() if counts[name]],
    )
    return figure


def _draw_outcomes(axes: Axes, outcomes: np.ndarray, levels: Sequence[str]) -> None:
    """Draw the outcomes of the boxes of each level as stacked bars with their counts."""
    names = sorted(set(levels))
    of_level = np.array(levels, dtype=object)
    starts = np.zeros(len(names))
    for outcome, (color, _) in _OUTCOMES.items():
        counts = np.array([np.count_nonzero((of_level == name) & (outcomes == outcome)) for name in names])
        axes.barh(range(len(names)), counts, left=starts, color=color, height=0.7)
        starts += counts
    for row, total in enumerate(starts.astype(int).tolist()):
        axes.text(total + 0.015 * max(starts.max(initial=1), 1), row, str(total), va='center', fontsize='small')
    axes.set_xlim(0, 1.16 * max(starts.max(initial=1), 1))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set_title('All boxes that enter NMS, by level', fontsize='medium')
    axes.set_xlabel('boxes', fontsize='small')
    style_plot(axes)
    axes.grid(False, axis='y')
    axes.tick_params(labelsize='small')


@default_style()
def draw_roi_levels(
    picture: np.ndarray, names: Sequence[str], boxes: np.ndarray, levels: np.ndarray, *, n: int = 40
) -> Figure:
    """Draw the RoIs of each level, and the distribution of their sizes.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        names: The names of the levels from which RoIs are pooled.
        boxes: ``(R, 4)`` RoIs in pixels of the picture, the best first.
        levels: ``(R,)`` index of the level of each RoI.
        n: Maximum number of RoIs that are drawn per level.
    """
    figure, panels = new_panels(len(names) + 1, picture.shape[:2], extra=0.35)
    rows = [np.flatnonzero(levels == i) for i in range(len(names))]
    drawn = [boxes[of_level[:n]] for of_level in rows]
    margin = margin_for(np.concatenate(drawn), picture.shape[:2])
    for i, (axes, name) in enumerate(zip(panels[1:], names, strict=True)):
        best = f'the best {n} of ' if len(rows[i]) > n else ''
        show_backdrop(axes, picture, f'{name}: {best}{counted(len(rows[i]), "RoI")}', margin=margin)
        draw_boxes(axes, drawn[i], LEVEL_COLORS[i % len(LEVEL_COLORS)])
    _draw_sizes(panels[0], names, boxes, levels)
    return figure


def _draw_sizes(axes: Axes, names: Sequence[str], boxes: np.ndarray, levels: np.ndarray) -> None:
    """Draw a histogram of the sizes of RoIs, stacked by level."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0).astype(np.float64)
    sizes = np.maximum(np.sqrt(sides[:, 0] * sides[:, 1]), 1)
    edges = np.geomspace(max(sizes.min(initial=1e9), 1), max(sizes.max(initial=2), 2) * 1.01, 25)
    if len(sizes) == 0:
        edges = np.geomspace(1, 100, 25)
    groups = [sizes[levels == i] for i in range(len(names))]
    colors = [LEVEL_COLORS[i % len(LEVEL_COLORS)] for i in range(len(names))]
    axes.hist(groups, edges.tolist(), stacked=True, color=colors, label=list(names))
    axes.set_xscale('log')
    axes.set_xlim(edges[0], edges[-1])
    axes.set_title(f'Sizes of {counted(len(boxes), "RoI")}', fontsize='medium')
    axes.set_ylabel('RoIs', fontsize='small')
    axes.locator_params(axis='y', integer=True)
    axes.set_xlabel('square root of the area, pixels of the image', fontsize='small')
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter(_plain_minor)
    axes.tick_params(which='both', labelsize='x-small')
    style_plot(axes)
    axes.legend(fontsize='small', frameon=False)


def _plain_minor(value: float, _: object) -> str:
    """Label the ticks 20, 50, 200, 500 and so on of a logarithmic axis."""
    return f'{value:g}' if f'{value:e}'[0] in '25' else ''
