"""Figures of an evaluation: precision-recall curves, AP and recall by size, AP by class, and the costs of errors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.error_pictures import MARKS
from mask_rcnn.visualization.figures import BLUE, GREY, INK, ORANGE, VERMILION, default_style, new_figure, style_plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The colour and the dashes of the curves at IoU 0.5, at 0.75, and of their mean over 0.5 to 0.95.
_CURVES = {'0.5': (BLUE, '-'), '0.75': (ORANGE, '--'), '0.5:0.95': (VERMILION, '-.')}
_WIDTH = 9.5  # inches
_MAX_COLUMNS, _MULTIPLE = 6, 1.5  # small multiples in a row, and the height of one in inches
_NUMBERS = 111, 121  # positions of two columns of numbers to the right of 100 %
#: Colours of boxes, masks and keypoints.
_KINDS = {'boxes': BLUE, 'masks': ORANGE, 'keypoints': VERMILION}


@default_style()
def plot_precision_recall(recalls: np.ndarray, curves: Mapping[str, np.ndarray]) -> Figure:
    """Plot the precision-recall curves of all classes, one panel for each kind of prediction.

    Args:
        recalls: ``(101,)``.
        curves: For ``'boxes'``, ``'masks'`` and ``'keypoints'``, as far as they were evaluated, ``(3, 101)``: the
            precision at IoU 0.5, at 0.75, and its mean over 0.5 to 0.95.
    """
    figure, (row,) = new_figure(min(_WIDTH, 4.6 * len(curves)), 3.6, 1, len(curves))
    for axes, (title, precision) in zip(row, curves.items(), strict=True):
        _plot_curves(axes, recalls, precision, width=1.8)
        axes.set_title(title, fontsize='medium')
        axes.set_xlabel('recall')
        axes.set_ylabel('precision')
        names = ['OKS' if title == 'keypoints' else 'IoU', *_CURVES]
        labels = [f'{names[0]} {name}: AP {_percent(p.mean())}' for name, p in zip(names[1:], precision, strict=True)]
        axes.legend(axes.lines, labels, loc='best', fontsize=8, framealpha=0.85, edgecolor='none')
    return figure


@default_style()
def plot_class_curves(recalls: np.ndarray, curves: Sequence[tuple[str, np.ndarray]]) -> Figure:
    """Plot the precision-recall curves of several classes as small multiples, with the AP of each class.

    Args:
        recalls: ``(101,)``.
        curves: The name of each class and its curves ``(3, 101)``; see :func:`plot_precision_recall`.
    """
    n_rows = math.ceil(len(curves) / _MAX_COLUMNS)
    n_columns = math.ceil(len(curves) / n_rows)
    figure, grid = new_figure(_WIDTH * min(n_columns / 4, 1), _MULTIPLE * n_rows + 0.7, n_rows, n_columns)
    for axes in grid.flat[len(curves) :]:
        axes.set_axis_off()
    for i, (axes, (name, precision)) in enumerate(zip(grid.flat, curves, strict=False)):
        _plot_curves(axes, recalls, precision, width=1.2)
        axes.set_title(f'{plot_name(name)}  {_percent(precision[2].mean())}', fontsize=8, pad=3)
        axes.tick_params(labelsize=7)
        is_lowest = i + n_columns >= len(curves)
        axes.set_xticks([0, 0.5, 1], ['0', '0.5', '1'] if is_lowest else [])
        axes.set_yticks([0, 0.5, 1], ['0', '0.5', '1'] if i % n_columns == 0 else [])
    lines = grid[0, 0].lines
    figure.legend(
        lines, [f'IoU {name}' for name in _CURVES], loc='outside upper center', ncols=3, fontsize=8, frameon=False
    )
    figure.supxlabel('recall', fontsize=9)
    figure.supylabel('precision', fontsize=9)
    return figure


@default_style()
def plot_size_ap(aps: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> Figure:
    """Plot the AP of small, medium and large objects.

    Args:
        aps: For ``'boxes'``, ``'masks'`` and ``'keypoints'``, as far as they were evaluated, the AP (0 to 1) by the
            name of the size; sizes without objects are absent.
        counts: Number of objects by the name of the size.
    """
    figure, ((axes,),) = new_figure(5.5, 3.4)
    style_plot(axes)
    axes.grid(False, axis='x')
    step = 0.8 / len(aps)
    for k, (kind, values) in enumerate(aps.items()):
        for i, size in enumerate(counts):
            if size in values:
                x = i + (k - (len(aps) - 1) / 2) * step
                axes.bar(x, 100 * values[size], 0.9 * step, color=_KINDS[kind], label=kind)
                axes.text(x, 100 * values[size] + 1, _percent(values[size]), ha='center', fontsize=8)
    axes.set_xticks(range(len(counts)), [f'{size}\n{counted(n, "object")}' for size, n in counts.items()])
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_ylim(0, 106)
    axes.set_yticks(range(0, 101, 20))
    axes.set_ylabel('AP, IoU 0.5:0.95')
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if len(aps) > 1 and handles:
        figure.legend(handles.values(), handles.keys(), loc='outside upper center', ncols=3, fontsize=8, frameon=False)
    return figure


@default_style()
def plot_size_recall(limits: Sequence[float], n_objects: np.ndarray, recall: np.ndarray) -> Figure:
    """Plot the recall by the size of the object, above the numbers of objects.

    Args:
        limits: The ``S + 1`` limits of the bins, the square root of the area in pixels.
        n_objects: ``(S,)`` integers.
        recall: ``(3, S)``, at IoU 0.5, at 0.75, and the mean over 0.5 to 0.95; NaN for bins without objects.
    """
    figure, grid = new_figure(_WIDTH, 4.2, 2, 1, sharex=True, height_ratios=[3, 2])
    upper, lower = grid[:, 0]
    names = [
        f'{low:g} to {high:g}' if math.isfinite(high) else f'above {low:g}' for low, high in itertools.pairwise(limits)
    ]
    positions = np.arange(len(n_objects))
    for values, (name, (color, dashes)) in zip(recall, _CURVES.items(), strict=True):
        used = ~np.isnan(values)
        upper.plot(positions[used], values[used], dashes, marker='o', markersize=4, color=color, label=f'IoU {name}')
    style_plot(upper)
    upper.set_ylim(-0.03, 1.03)
    upper.set_ylabel('recall')
    figure.legend(*upper.get_legend_handles_labels(), loc='outside upper center', ncols=3, fontsize=8, frameon=False)
    style_plot(lower)
    lower.grid(False, axis='x')
    lower.bar(positions, n_objects, 0.85, color=GREY)
    top = max(int(n_objects.max(initial=0)), 1)
    for x, n in zip(positions, n_objects, strict=True):
        lower.text(x, n + 0.03 * top, str(n), ha='center', fontsize=8)
    lower.set_ylim(0, 1.2 * top)
    lower.set_xlim(-0.6, max(len(n_objects), 5) - 0.4)
    lower.set_ylabel('objects')
    lower.set_xticks(positions, names, rotation=30 if len(names) > 8 else 0, fontsize=8)
    lower.set_xlabel('size of the object: square root of its area, pixels')
    return figure


@default_style()
def plot_class_ap(classes: Sequence[tuple[str, int, float, float]], n_worst: int | None = None) -> Figure:
    """Plot the AP of classes as bars, and AP50 as dots.

    Args:
        classes: Name, number of objects, AP and AP50 (0 to 1) of each class, from top to bottom.
        n_worst: Number of classes above a gap, which stands for the classes that are left out; ``None`` for no gap.
    """
    positions = [i + (n_worst is not None and i >= n_worst) for i in range(len(classes))]
    figure, ((axes,),) = new_figure(7.5, 0.22 * max(len(positions), 3) + 1.2)
    style_plot(axes)
    axes.grid(False, axis='y')
    values = [100 * ap for _, _, ap, _ in classes]
    axes.barh(positions, values, 0.75, color=BLUE, label='AP, IoU 0.5:0.95')
    axes.plot([100 * ap50 for *_, ap50 in classes], positions, 'o', color=ORANGE, markersize=5, label='AP50')
    for y, (_, _, ap, ap50) in zip(positions, classes, strict=True):
        for x, value in zip(_NUMBERS, (ap, ap50), strict=True):
            axes.text(x, y, _percent(value), va='center', ha='right', fontsize=8)
    axes.set_yticks(positions, [f'{plot_name(name)} ({n})' for name, n, _, _ in classes], fontsize=8)
    for x, title in zip(_NUMBERS, ('AP', 'AP50'), strict=True):
        axes.text(x, -1, title, va='center', ha='right', fontsize=8, fontweight='bold')
    if n_worst is not None:
        axes.text(1, n_worst, '⋮', va='center', fontsize=11)
    axes.set_ylim(max(positions, default=0) + 0.6, -1.4)
    axes.set_xlim(0, _NUMBERS[-1] + 1)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel('percent', loc='left')
    figure.legend(*axes.get_legend_handles_labels(), loc='outside upper center', ncols=2, fontsize=8, frameon=False)
    return figure


@default_style()
def plot_error_costs(
    costs: Mapping[str, Sequence[tuple[str, float]]], totals: Mapping[str, Sequence[tuple[str, float]]]
) -> Figure:
    """Plot the costs of the kinds of errors, one panel for each kind of prediction.

    Args:
        costs: For ``'boxes'`` and ``'masks'``, as far as they were evaluated: the name (a key of
            :data:`mask_rcnn.visualization.error_pictures.MARKS`) and the cost in AP50 (0 to 1) of each kind of error.
        totals: The names and costs of sums of several kinds, in the same form; the names are any texts.
    """
    figure, (row,) = new_figure(_WIDTH if len(costs) > 1 else 5.5, 3.2, 1, len(costs))
    highest = max((100 * cost for part in (*costs.values(), *totals.values()) for _, cost in part), default=0)
    for axes, title in zip(row, costs, strict=True):
        items = [(MARKS[name].title, cost, MARKS[name].color) for name, cost in costs[title]]
        items += [(name, cost, GREY) for name, cost in totals[title]]
        positions = [i + 0.5 * (i >= len(costs[title])) for i in range(len(items))]
        style_plot(axes)
        axes.grid(False, axis='y')
        axes.barh(
            positions,
            [100 * cost for _, cost, _ in items],
            0.75,
            color=[c for *_, c in items],
            edgecolor=INK,
            linewidth=0.5,
        )
        for y, (_, cost, _) in zip(positions, items, strict=True):
            axes.text(100 * cost + 0.015 * max(highest, 1), y, f'{100 * max(cost, 0):.1f}', va='center', fontsize=8)
        axes.set_yticks(positions, [text.replace(' and ', '\nand ') for text, *_ in items], fontsize=8)
        axes.set_ylim(positions[-1] + 0.6, -0.6)
        axes.set_xlim(0, max(1.15 * highest, 1))
        axes.set_xlabel('rise of AP50 if corrected, percentage points')
        axes.set_title(title, fontsize='medium')
    return figure


def _plot_curves(axes: Axes, recalls: np.ndarray, precision: np.ndarray, *, width: float) -> None:
    """Plot the three curves of :data:`_CURVES`."""
    style_plot(axes)
    for values, (color, dashes) in zip(precision, _CURVES.values(), strict=True):
        axes.plot(recalls, values, dashes, color=color, linewidth=width)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)


def _percent(value: Any) -> str:
    return '-' if math.isnan(value) or value < 0 else f'{100 * value:.1f}'
