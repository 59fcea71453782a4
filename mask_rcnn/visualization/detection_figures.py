"""Figures of the box head: class scores of RoIs, refinement of boxes, and NMS of detections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.visualization.box_artists import draw_boxes, draw_frame, draw_moves, label_boxes, settle_layout
from mask_rcnn.visualization.colors import instance_colors
from mask_rcnn.visualization.figures import default_style, new_figure
from mask_rcnn.visualization.panels import (
    PALE,
    add_legend,
    draw_score_bars,
    margin_for,
    new_panels,
    show_backdrop,
    zoom_region,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@default_style()
def draw_class_scores(
    picture: np.ndarray,
    boxes: np.ndarray,
    scores: Sequence[Sequence[tuple[str, float]]],
    titles: Sequence[str],
    *,
    threshold: float | None = None,
    columns: int = 2,
) -> Figure:
    """Draw RoIs in their surroundings, each beside the scores of its best classes.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        boxes: ``(R, 4)`` RoIs in pixels of the picture.
        scores: For each RoI, the names and probabilities of its best classes, the best first.
        titles: The title of each RoI.
        threshold: The minimum score of a detection, a dashed line.
        columns: RoIs in a row.
    """
    n_rows = max(1, math.ceil(len(boxes) / columns))
    figure, grid = new_figure(10, 1.75 * n_rows, n_rows, 2 * columns, width_ratios=[1, 1.7] * columns)
    cells = grid.reshape(-1, 2)
    for (crop, bars), box, classes, title in zip(cells, boxes, scores, titles, strict=False):
        region = zoom_region(box[None], picture.shape[:2], margin=0.25, min_side=0.02)
        show_backdrop(crop, picture, region=region, style='bright')
        draw_frame(crop, box)
        draw_score_bars(bars, classes, threshold=threshold, title=title)
    for axes in cells[len(boxes) :].flat:
        axes.set_visible(False)
    return figure


@default_style()
def draw_refinement(
    picture: np.ndarray, before: np.ndarray, after: np.ndarray, texts: Sequence[str], *, total: int | None = None
) -> Figure:
    """Draw boxes before and after their regression, with an arrow from the old to the new centre.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        before: ``(R, 4)`` RoIs in pixels of the picture.
        after: ``(R, 4)`` the same boxes after the regression.
        texts: The label of each box.
        total: The number of all boxes, if it is larger than R.
    """
    figure, (axes,) = new_panels(1, picture.shape[:2], width=9.0)
    drawn = counted(len(after), 'RoI')
    if total is not None and total > len(after):
        drawn = f'{len(after)} of {counted(total, "RoI")}'
    margin = margin_for(np.concatenate([before, after]), picture.shape[:2])
    show_backdrop(axes, picture, f'Refinement of {drawn}', margin=margin)
    colors = instance_colors(after, picture.shape[:2]) / 255
    draw_boxes(axes, before, colors, 'dotted')
    draw_boxes(axes, after, colors)
    add_legend(figure, [('RoI', PALE, 'dotted'), ('refined box', PALE, 'solid')])
    settle_layout(figure)
    draw_moves(axes, before, after, colors)
    label_boxes(axes, after, texts, colors, others=before)
    return figure


@default_style()
def draw_suppression(
    picture: np.ndarray,
    kept: np.ndarray,
    suppressed: np.ndarray,
    owners: np.ndarray,
    texts: Sequence[str],
    *,
    total: int | None = None,
    n_labels: int = 15,
) -> Figure:
    """Draw boxes before and after NMS; a suppressed box has the colour of the box that suppresses it.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        kept: ``(R, 4)`` the boxes that are kept, in pixels of the picture.
        suppressed: ``(S, 4)`` the boxes that they suppress.
        owners: ``(S,)`` index in ``kept`` of the box that suppresses each one.
        texts: The label of each kept box.
        total: The number of all kept boxes, if it is larger than R.
        n_labels: Maximum number of labels.
    """
    figure, panels = new_panels(2, picture.shape[:2], columns=2)
    colors = instance_colors(kept, picture.shape[:2]).reshape(-1, 3) / 255
    of_all = f' (the best of {total})' if total is not None and total > len(kept) else ''
    show_backdrop(panels[0], picture, f'Before NMS: {counted(len(kept) + len(suppressed), "box", "boxes")}{of_all}')
    draw_boxes(panels[0], suppressed, colors[owners], 'thin')
    draw_boxes(panels[0], kept, colors, 'thin')
    show_backdrop(panels[1], picture, f'After NMS: {counted(len(kept), "box", "boxes")}{of_all}')
    draw_boxes(panels[1], kept, colors)
    add_legend(
        figure, [('before NMS, in the colour of the box that suppresses it', PALE, 'thin'), ('kept', PALE, 'solid')]
    )
    settle_layout(figure)
    label_boxes(panels[1], kept[:n_labels], texts[:n_labels], colors[:n_labels], others=kept[n_labels:])
    return figure
