"""Figures of one object: the boxes that led to a detection, and the step at which an expected object was lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.visualization.box_artists import draw_boxes, draw_frame, draw_moves, label_boxes, settle_layout
from mask_rcnn.visualization.colors import rgb_of
from mask_rcnn.visualization.figures import BLUE, INK, ORANGE, SKY, VERMILION, YELLOW, default_style, new_figure
from mask_rcnn.visualization.panels import (
    PALE,
    WHITE,
    add_legend,
    draw_score_bars,
    show_backdrop,
    zoom_region,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ANCHOR, _PROPOSAL, _FINAL, _RIVAL = SKY, ORANGE, YELLOW, PALE
_MAX_RIVALS = 30


@default_style()
def draw_origin(
    picture: np.ndarray,
    anchor: np.ndarray,
    proposal: np.ndarray,
    box: np.ndarray,
    suppressed: np.ndarray,
    class_scores: Sequence[tuple[str, float]],
    *,
    text: str,
    threshold: float | None = None,
) -> Figure:
    """Draw the origin of a detection: its anchor, its proposal, its box, and the boxes that it suppresses.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        anchor: ``(4,)`` in pixels of the picture, as the other boxes.
        proposal: ``(4,)``.
        box: ``(4,)`` the box of the detection.
        suppressed: ``(S, 4)`` the boxes that the detection suppresses, the best first; at most 30 are drawn.
        class_scores: The names and probabilities of the best classes of the RoI, the best first.
        text: Name and score of the detection.
        threshold: The minimum score of a detection.
    """
    boxes = np.stack([anchor, proposal, box]).astype(np.float64)
    figure, axes, bars = _new_figure(picture, boxes)
    draw_boxes(axes, suppressed[:_MAX_RIVALS], _RIVAL, 'thin')
    draw_boxes(axes, boxes[:1], _ANCHOR, 'dashed')
    draw_boxes(axes, boxes[1:2], _PROPOSAL, 'dotted')
    draw_boxes(axes, boxes[2:], _FINAL)
    draw_score_bars(bars, class_scores, threshold=threshold, title='Scores of the RoI')
    entries = [('anchor', _ANCHOR, 'dashed'), ('proposal', _PROPOSAL, 'dotted'), ('detection', _FINAL, 'solid')]
    if len(suppressed):
        more = f'the best {_MAX_RIVALS} of ' if len(suppressed) > _MAX_RIVALS else ''
        entries.append((f'suppressed ({more}{len(suppressed)})', _RIVAL, 'thin'))
    add_legend(figure, entries)
    settle_layout(figure)
    draw_moves(axes, boxes[:2], boxes[1:], _rgb(_ANCHOR, _FINAL))
    label_boxes(axes, boxes[2:], [text], _rgb(_FINAL))
    return figure


@default_style()
def draw_rejection(
    picture: np.ndarray,
    expected: np.ndarray,
    best: np.ndarray | None,
    counts: Sequence[tuple[str, int, float]],
    lost: int,
    *,
    text: str,
    suppressor: np.ndarray | None = None,
) -> Figure:
    """Draw an expected object that was lost, the best box of the step, and the number of fitting boxes at each step.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        expected: ``(4,)`` the expected box in pixels of the picture.
        best: ``(4,)`` the best box of the step at which the object was lost, or ``None``.
        counts: For each step its title, the number of fitting boxes, and the best IoU with the expected box.
        lost: Index of the first step without a fitting box; ``len(counts)`` if the object is detected.
        text: The name of the expected object.
        suppressor: ``(4,)`` the box because of which NMS suppresses the best box, or ``None``.
    """
    boxes = np.stack([box for box in (expected, best, suppressor) if box is not None])
    figure, axes, bars = _new_figure(picture, boxes)
    draw_boxes(axes, expected[None], WHITE)
    entries = [('expected box', WHITE, 'solid')]
    if best is not None:
        draw_boxes(axes, best[None], _PROPOSAL, 'dashed')
        entries.append(('detection' if lost == len(counts) else 'best box of the step', _PROPOSAL, 'dashed'))
    if suppressor is not None:
        draw_boxes(axes, suppressor[None], _ANCHOR, 'dotted')
        entries.append(('box that suppresses it', _ANCHOR, 'dotted'))
    _draw_funnel(bars, counts, lost)
    add_legend(figure, entries)
    settle_layout(figure)
    label_boxes(axes, expected[None], [text], _rgb(WHITE))
    return figure


def _new_figure(picture: np.ndarray, boxes: np.ndarray) -> tuple[Figure, Axes, Axes]:
    """Return a figure that begins with the image, its panel around the boxes, and its axes for bars."""
    figure, grid = new_figure(10, 3.4, 1, 3, width_ratios=[1, 1.35, 1])
    overview, axes, bars = grid[0]
    region = zoom_region(boxes, picture.shape[:2])
    show_backdrop(overview, picture, 'Image', style='plain')
    show_backdrop(axes, picture, region=region)
    draw_frame(overview, region)
    return figure, axes, bars


def _draw_funnel(axes: Axes, counts: Sequence[tuple[str, int, float]], lost: int) -> None:
    """Draw the number of fitting boxes at each step as horizontal bars on a logarithmic axis."""
    rows = range(len(counts))
    lengths = [np.log10(1 + count) for _, count, _ in counts]
    limit = max(max(lengths), 1)
    axes.barh(rows, lengths, color=[BLUE if row < lost else VERMILION for row in rows], height=0.66)
    for row, ((_, count, iou), length) in enumerate(zip(counts, lengths, strict=True)):
        color = VERMILION if row == lost else INK
        axes.text(
            length + 0.03 * limit, row, f'{count}, best IoU {iou:.2f}', va='center', fontsize='x-small', color=color
        )
    axes.set_yticks(rows, [title for title, _, _ in counts], fontsize='x-small')
    if lost < len(counts):
        label = axes.yaxis.get_ticklabels()[lost]
        label.set(color=VERMILION, fontweight='bold')
    axes.set_xlim(0, 2.1 * limit)
    axes.set_ylim(len(counts) - 0.4, -0.6)
    axes.set_xticks([])
    axes.spines[['top', 'right', 'bottom']].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title('Boxes that fit, step by step', fontsize='small', loc='left')


def _rgb(*colors: str) -> np.ndarray:
    """Return colours ``(N, 3)`` from 0 to 1."""
    return np.array([rgb_of(color) for color in colors]) / 255
