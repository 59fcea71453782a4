"""Figures of training targets: anchors and RoIs by role on the network input, and overlaps by object size.

Boxes are ``(y_min, x_min, y_max, x_max)`` in pixels of the picture; ``(0, 0)`` is the outer corner of its first pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mask_rcnn.visualization.box_artists import outline_boxes
from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.colors import PALETTE
from mask_rcnn.visualization.figures import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILION,
    default_style,
    new_figure,
    style_plot,
)
from mask_rcnn.visualization.panels import new_panels, show_backdrop

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Role of anchors -> title in the legend and the style of the lines, in the order in which they are drawn.
ANCHOR_STYLES: dict[str, tuple[str, dict[str, Any]]] = {
    'negative': ('negative, sampled', {'color': BLUE, 'linewidth': 0.6, 'alpha': 0.7}),
    'ignored': ('ignored: IoU between the thresholds', {'color': ORANGE, 'linewidth': 1.0, 'linestyle': ':'}),
    'positive_not_sampled': ('positive, not sampled', {'color': GREEN, 'linewidth': 1.2, 'linestyle': '--'}),
    'positive': ('positive, sampled', {'color': GREEN, 'linewidth': 2.2}),
}

_WIDTH, _MIN_WIDTH = 12.0, 7.0  # inches
_COLUMNS = {1: 1, 2: 2, 4: 2}  # of so few panels; three of more
_MAX_NUMBERS = 40  # objects with a number; more would hide the picture


@dataclass(frozen=True, eq=False)
class Panel:
    """One picture of a figure with boxes by role.

    Args:
        title: The title.
        boxes: Role -> boxes ``(N, 4)``.
    """

    title: str
    boxes: Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a picture.

    Args:
        boxes: ``(G, 4)``.
        marked: Indices of objects that are drawn in another colour.
        marked_title: The reason for it, for the legend.
    """

    boxes: np.ndarray
    marked: Sequence[int] = field(default_factory=tuple)
    marked_title: str = 'object without positive anchor'


@default_style()
def plot_anchors(picture: np.ndarray, objects: Objects, panels: Sequence[Panel]) -> Figure:
    """Draw anchors by role: positive ones solid, negative ones thin, ignored ones dotted.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        objects: Its objects, which are drawn in all panels with their numbers.
        panels: At least one, usually one for each level of the features; roles of :data:`ANCHOR_STYLES`.
    """
    figure, axes = _pale_panels(picture, [panel.title for panel in panels], columns=_COLUMNS.get(len(panels), 3))
    for panel_axes, panel in zip(axes, panels, strict=True):
        for role, (_, style) in ANCHOR_STYLES.items():
            if len(panel.boxes.get(role, ())):
                outline_boxes(panel_axes, panel.boxes[role], **style)
        _add_objects(panel_axes, objects)
    drawn = {role for panel in panels for role, boxes in panel.boxes.items() if len(boxes)}
    entries = [style for role, style in ANCHOR_STYLES.items() if role in drawn]
    _add_legend(figure, [*entries[::-1], *_object_entries(objects)])
    return figure


@default_style()
def plot_rois(
    picture: np.ndarray,
    objects: Objects,
    foreground: np.ndarray,
    targets: np.ndarray,
    owners: np.ndarray,
    background: np.ndarray,
    titles: tuple[str, str] = ('foreground', 'background'),
) -> Figure:
    """Draw RoIs by role: the foreground with arrows to its regression targets, and the background.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        objects: Its objects.
        foreground: ``(F, 4)`` RoIs.
        targets: ``(F, 4)`` their target boxes.
        owners: ``(F,)`` int index of the object of each RoI, which determines its colour.
        background: ``(B, 4)`` RoIs.
        titles: Titles of the two panels.
    """
    figure, axes = _pale_panels(picture, titles, columns=2)
    colors = PALETTE[owners % len(PALETTE)] / 255
    outline_boxes(axes[0], foreground, color=colors, linewidth=1.0, zorder=4)
    for start in (0, 2):  # the upper left corners, then the lower right ones
        tails, heads = (boxes[:, start : start + 2].astype(np.float64) for boxes in (foreground, targets))
        vectors = heads - tails
        if len(vectors):
            axes[0].quiver(
                *(tails[:, 1], tails[:, 0], vectors[:, 1], vectors[:, 0]),
                color=colors,
                angles='xy',
                scale_units='xy',
                scale=1,
                width=0.004,
                headwidth=4,
                zorder=4.5,
            )
    if len(background):
        outline_boxes(axes[1], background, color=BLUE, linewidth=0.6, alpha=0.6)
    for panel_axes in axes:
        _add_objects(panel_axes, objects)
    entries: list[tuple[str, dict[str, Any]]] = [
        ('foreground RoI, in the colour of its object; arrows lead to the corners of its target', {'color': GREEN}),
        ('background RoI', {'color': BLUE, 'linewidth': 0.8}),
    ]
    _add_legend(figure, [*entries, *_object_entries(objects)])
    return figure


@dataclass(frozen=True, eq=False)
class Overlaps:
    """The best overlaps of objects with boxes of one kind.

    Args:
        title: The kind of boxes.
        iou: ``(G,)`` best IoU of each object.
        limits: Text -> IoU of a horizontal line.
    """

    title: str
    iou: np.ndarray
    limits: Mapping[str, float]


@default_style()
def plot_overlaps(
    sizes: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    parts: Sequence[Overlaps],
    anchors: Sequence[float],
) -> Figure:
    """Plot the best overlap of each object against its size.

    Args:
        sizes: ``(G,)`` sizes (square roots of the areas) in pixels of the network input; positive.
        labels: ``(G,)`` int classes.
        class_names: Name of each class.
        parts: The kinds of overlaps, one plot each.
        anchors: Sizes of the anchors.
    """
    figure, axes = new_figure(_WIDTH, 4.2, 1, len(parts), sharex=True)
    common = _most_common(labels, len(CYCLE) - 1)
    for plot, part in zip(axes[0], parts, strict=True):
        style_plot(plot)
        for size in anchors:
            plot.axvline(size, color=GREY, linewidth=0.8, linestyle=(0, (1, 3)))
        for text, limit in part.limits.items():
            plot.axhline(limit, color=INK, linewidth=0.8, linestyle='--')
            plot.annotate(
                text, (1, limit), (-2, 2), xycoords=('axes fraction', 'data'), textcoords='offset points',
                ha='right', va='bottom', fontsize='small', color=INK,
            )  # fmt: skip
        groups = [(plot_name(class_names[label]), labels == label) for label in common]
        groups.append(('other classes', ~np.isin(labels, common)))
        for (name, members), color in zip(groups, CYCLE, strict=False):
            if members.any():
                plot.scatter(sizes[members], part.iou[members], s=22, color=color, alpha=0.75, linewidths=0, label=name)
        plot.set_xscale('log')
        plot.set_ylim(-0.03, 1.05)
        plot.set_title(part.title, fontsize='medium')
        plot.set_xlabel('size of the object in pixels of the network input')
        _label_sizes(plot, sizes, anchors)
    axes[0, 0].set_ylabel('best IoU')
    if len(sizes):
        handles, texts = axes[0, 0].get_legend_handles_labels()
        n_rows = -(-len(texts) // 6)
        figure.legend(handles, texts, loc='outside lower center', ncols=-(-len(texts) // n_rows), frameon=False)
    return figure


def _label_sizes(plot: Axes, sizes: np.ndarray, anchors: Sequence[float]) -> None:
    """Show the range of all sizes, with powers of two as ticks."""
    from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

    values = np.concatenate([sizes, np.asarray(anchors, float)])
    low, high = (values.min(), values.max()) if len(values) else (1, 100)
    plot.set_xlim(low / 1.25, high * 1.25)
    plot.xaxis.set_major_locator(FixedLocator([2**i for i in range(15)]))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter(StrMethodFormatter('{x:.0f}'))


def _most_common(labels: np.ndarray, n: int) -> list[int]:
    """Return the most frequent labels in ascending order; all of them if there are at most ``n``."""
    values, counts = np.unique(labels, return_counts=True)
    return sorted(values[np.argsort(-counts, kind='stable')][:n].tolist())


def _pale_panels(picture: np.ndarray, titles: Sequence[str], columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with a pale picture in each panel."""
    figure, panels = new_panels(len(titles), picture.shape[:2], columns=columns, width=_WIDTH, min_width=_MIN_WIDTH)
    for axes, title in zip(panels, titles, strict=True):
        show_backdrop(axes, picture, title, style='pale', margin=0)
    return figure, panels


def _add_objects(axes: Axes, objects: Objects) -> None:
    """Add the boxes and numbers of objects; marked ones have another colour."""
    is_marked = np.zeros(len(objects.boxes), bool)
    is_marked[list(objects.marked)] = True
    is_crowded = len(objects.boxes) > _MAX_NUMBERS
    halo, width = (1.8, 0.8) if is_crowded else (2.6, 1.3)
    outline_boxes(axes, objects.boxes, color='white', linewidth=halo, alpha=0.9, zorder=3)
    for selected, color in ((~is_marked, INK), (is_marked, VERMILION)):
        outline_boxes(axes, objects.boxes[selected], color=color, linewidth=width, zorder=3)
    numbered = objects.marked[:_MAX_NUMBERS] if is_crowded else range(len(objects.boxes))
    for i in numbered:
        top, left = objects.boxes[i, :2]
        fits_above = top > 0.04 * axes.get_ylim()[0]
        axes.annotate(
            str(i),
            (left, top),
            (0, 1.5 if fits_above else -1.5),
            textcoords='offset points',
            va='bottom' if fits_above else 'top',
            fontsize=7,
            color='white',
            bbox={'boxstyle': 'square,pad=0.15', 'facecolor': VERMILION if is_marked[i] else INK, 'linewidth': 0},
            zorder=5,
            annotation_clip=True,
        )


def _object_entries(objects: Objects) -> list[tuple[str, dict[str, Any]]]:
    """Return the entries of the legend for objects."""
    entries: list[tuple[str, dict[str, Any]]] = []
    if len(objects.marked) < len(objects.boxes):
        entries.append(('object', {'color': INK, 'linewidth': 1.3}))
    if len(objects.marked):
        entries.append((objects.marked_title, {'color': VERMILION, 'linewidth': 1.3}))
    return entries


def _add_legend(figure: Figure, entries: Sequence[tuple[str, dict[str, Any]]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=text, **style) for text, style in entries]
    if handles:
        figure.legend(handles=handles, loc='outside lower center', ncols=3, frameon=False, fontsize='small')
