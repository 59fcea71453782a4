"""PNG plots of a run: the losses with the learning rate, and AP."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.visualization.figures import GREY, default_style, encode_figure, new_figure, style_plot

#: Curves of the loss plot: key in the log, label and colour; the sum comes first.
LOSSES = (
    ('main/loss', 'sum', '#222222'),
    ('main/rpn_cls_loss', 'RPN objectness', '#0072b2'),
    ('main/rpn_loc_loss', 'RPN boxes', '#56b4e9'),
    ('main/roi_cls_loss', 'class', '#d55e00'),
    ('main/roi_loc_loss', 'boxes', '#e69f00'),
    ('main/roi_mask_loss', 'masks', '#009e73'),
    ('main/roi_keypoint_loss', 'keypoints', '#cc79a7'),
)

_SIZE = (8, 4.8)  # inches


@default_style()
def plot_losses(path: str | os.PathLike, log: Sequence[Mapping[str, float]]) -> None:
    """Plot the losses of a log, raw (faint) and smoothed (strong), above the learning rate.

    Args:
        path: The PNG file to write.
        log: Entries of the log, with ``iteration``.
    """
    from matplotlib.ticker import LogLocator

    figure, (axes, rate_axes) = _figure(2, height_ratios=(4, 1))
    for key, label, colour in LOSSES:
        x, y = _curve(log, key)
        if not x:
            continue
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
        axes.plot(
            x,
            smooth(y),
            color=colour,
            linewidth=2 if label == 'sum' else 1.3,
            marker='.' if len(x) == 1 else None,
            label=f'{label}  {smooth(y)[-1]:.3f}',
        )
    if axes.has_data():
        axes.set_yscale('log')
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter('{x:g}')
        axes.yaxis.set_minor_formatter('')
        axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes.set_ylabel('loss')
    axes.tick_params(labelbottom=False)
    x, y = _curve(log, 'lr')
    rate_axes.step(x, y, where='post', color=GREY, linewidth=1.3)
    rate_axes.set_ylim(bottom=0)
    rate_axes.set_ylabel('rate')
    rate_axes.set_xlabel('iteration')
    _write(path, figure)


@default_style()
def plot_ap(path: str | os.PathLike, log: Sequence[Mapping[str, float]]) -> None:
    """Plot COCO's AP and AP50 of boxes, masks and keypoints over the evaluations of a log.

    Args:
        path: The PNG file to write; not written if the log contains no evaluation.
        log: Entries of the log, with ``iteration``.
    """
    figure, (axes,) = _figure(1)
    kinds = ('bbox', 'box', '#d55e00'), ('segm', 'mask', '#009e73'), ('keypoints', 'keypoint', '#cc79a7')
    for kind, label, colour in kinds:
        for metric, style in (('AP', '-'), ('AP50', ':')):
            x, y = _curve(log, f'validation/{kind}/{metric}')
            if x:
                axes.plot(
                    x,
                    y,
                    style,
                    color=colour,
                    marker='o',
                    markersize=4,
                    linewidth=1.6,
                    label=f'{label} {metric}  {y[-1]:.3f}',
                )
    if not axes.has_data():
        return
    axes.set_ylim(0, max(0.1, axes.get_ylim()[1]))
    axes.set_ylabel('average precision')
    axes.set_xlabel('iteration')
    axes.legend(loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False)
    _write(path, figure)


def smooth(values: Sequence[float], fraction: float = 0.05) -> list[float]:
    """Return an exponential moving average over about this fraction of the values, unbiased at the start."""
    decay = 1 - 1 / max(fraction * len(values), 1)
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = decay * total + value, decay * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _curve(log: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Return the iterations and the finite values of one key."""
    points = [(entry['iteration'], entry[key]) for entry in log if math.isfinite(entry.get(key, math.nan))]
    return [x for x, _ in points], [y for _, y in points]


def _figure(n_rows: int, **grid: Any) -> tuple[Any, Any]:
    """Return a figure and the axes of its rows."""
    figure, axes = new_figure(*_SIZE, n_rows, sharex=True, **grid)
    for row in axes[:, 0]:
        style_plot(row)
    return figure, axes[:, 0]


def _write(path: str | os.PathLike, figure: Any) -> None:
    with open_for_writing(path) as file:
        file.write(encode_figure(figure))
