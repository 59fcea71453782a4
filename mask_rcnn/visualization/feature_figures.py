"""Figures of arrays: the network input, feature maps and activations, mask probabilities and keypoint heat maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mask_rcnn.visualization.box_artists import draw_boxes
from mask_rcnn.visualization.class_names import plot_name
from mask_rcnn.visualization.figures import (
    BLUE,
    GREY,
    SKY,
    VERMILION,
    YELLOW,
    default_style,
    new_figure,
    shrink,
    style_plot,
)
from mask_rcnn.visualization.panels import (
    WHITE,
    add_score_bar,
    brighten,
    new_panels,
    score_colormap,
    set_limits,
    show_backdrop,
    zoom_region,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FEATURE_COLORS = 'viridis'
_MIN_RATIO = 0.35  # width by height of a panel
_MIN_TICK_SIDE = 0.2  # fraction of the longer side
_MAX_MAP_SIDE = 400  # pixels of a drawn feature map


@default_style()
def draw_input(image: np.ndarray, network_input: np.ndarray, window: np.ndarray) -> Figure:
    """Draw an image beside the pixels that the network reads, with a frame between the resized image and padding.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        network_input: ``(h, w, 3)`` uint8, RGB.
        window: ``(4,)`` the edges of the resized image in the network input; what is outside is padding.
    """
    # A narrow panel has no room for its title, and a short side none for its ticks.
    ratios = [max(picture.shape[1] / picture.shape[0], _MIN_RATIO) for picture in (image, network_input)]
    height = min(10 / (sum(ratios) + 0.1), 5.0)
    figure, grid = new_figure(max(height * (sum(ratios) + 0.1), 4.0), height + 0.6, 1, 2, width_ratios=ratios)
    titles = ('Image', 'Network input')
    for axes, picture, title in zip(grid[0], (image, network_input), titles, strict=True):
        sides = picture.shape[:2]
        axes.imshow(shrink(picture, 1000), extent=(0, sides[1], sides[0], 0), interpolation='antialiased')
        axes.set_title(f'{title}\n{sides[1]} x {sides[0]} pixels', fontsize='medium')
        axes.tick_params(labelsize='x-small')
        for axis, length in ((axes.yaxis, sides[0]), (axes.xaxis, sides[1])):
            if length < _MIN_TICK_SIDE * max(sides):
                axis.set_ticks([])
    if tuple(window) != (0, 0, *network_input.shape[:2]):
        draw_boxes(grid[0, 1], window[None], SKY, 'dashed')
    return figure


@default_style()
def draw_feature_maps(names: Sequence[str], features: Sequence[np.ndarray]) -> Figure:
    """Draw the mean and the maximum over the channels of feature maps.

    Args:
        names: The names of the maps.
        features: For each map, ``(C, h, w)`` floats.
    """
    ratio = min(max(features[0].shape[1] / features[0].shape[2], 0.3), 2.5)
    columns = len(features)
    if columns == 1:  # side by side
        figure, grid = new_figure(8, 4 * ratio + 0.5, 1, 2)
        grid = grid.T
    else:
        side = min(10 / max(columns, 3), 3.4 / ratio)
        figure, grid = new_figure(max(side * columns, 4.0), 2 * (side * ratio + 0.3), 2, columns)
    for (top, bottom), name, array in zip(grid.T, names, features, strict=True):
        n_channels, height, width = array.shape
        _show_map(top, array.mean(axis=0), f'{name}: {n_channels} x {height} x {width}\nmean')
        _show_map(bottom, array.max(axis=0), 'maximum')
    return figure


@default_style()
def draw_channels(array: np.ndarray, *, n: int = 16, title: str = '', columns: int = 8) -> Figure:
    """Draw the channels of an array with the highest variance, in their order.

    Args:
        array: ``(C, h, w)`` floats, or ``(C,)``, which is drawn as one row.
        n: Maximum number of channels that are drawn.
        title: Text above the figure.
        columns: Channels in a row.
    """
    if array.ndim == 1:
        return _draw_vector(array, title)
    variances = array.reshape(len(array), -1).astype(np.float64).var(axis=1)
    chosen = np.sort(np.argsort(-np.nan_to_num(variances), kind='stable')[:n])
    columns = min(columns, len(chosen))
    n_rows = math.ceil(len(chosen) / columns)
    side = 10 / max(columns, 4)
    ratio = min(max(array.shape[1] / array.shape[2], 0.3), 2.5)
    figure, grid = new_figure(max(side * columns, 4.0), n_rows * (side * ratio + 0.25) + 0.35, n_rows, columns)
    for axes, channel in zip(grid.flat, chosen.tolist(), strict=False):
        _show_map(axes, array[channel], f'{channel}', size='x-small')
    for axes in grid.flat[len(chosen) :]:
        axes.set_visible(False)
    if title:
        figure.suptitle(title, fontsize='medium')
    return figure


def _draw_vector(values: np.ndarray, title: str) -> Figure:
    figure, grid = new_figure(10, 1.8)
    axes = grid[0, 0]
    style_plot(axes)
    axes.grid(False, axis='x')
    axes.bar(range(len(values)), values, width=1.0, color=BLUE)
    axes.set_xlim(-0.5, len(values) - 0.5)
    axes.set_xlabel('channel', fontsize='small')
    axes.tick_params(labelsize='x-small')
    axes.set_title(title, fontsize='medium')
    return figure


def _show_map(axes: Axes, values: np.ndarray, title: str, *, size: str = 'small') -> None:
    """Show values in colours from their minimum to their maximum."""
    values = np.nan_to_num(np.asarray(values, np.float32))
    axes.imshow(shrink(values, _MAX_MAP_SIDE), cmap=_FEATURE_COLORS, interpolation='nearest')
    axes.set_axis_off()
    axes.set_title(title, fontsize=size, pad=2)


@default_style()
def draw_masks(
    picture: np.ndarray,
    boxes: np.ndarray,
    probs: np.ndarray,
    masks: Sequence[np.ndarray],
    texts: Sequence[str],
    *,
    threshold: float = 0.5,
) -> Figure:
    """Draw the predicted mask of each object on its grid, beside the pasted mask in the image.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        boxes: ``(R, 4)`` in pixels of the picture.
        probs: ``(R, M, M)`` probabilities on a grid over each box.
        masks: For each object, ``(H, W)`` bool.
        texts: The title of each object.
        threshold: The probability at which a pixel belongs to the mask.
    """
    figure, panels = new_panels(2 * len(boxes), (1, 1), columns=4, width=9.5, extra=0.1, bar=True)
    for i, (box, grid, mask, text) in enumerate(zip(boxes, probs, masks, texts, strict=True)):
        left, right = panels[2 * i : 2 * i + 2]
        _show_probabilities(left, grid, threshold, f'{text}: {grid.shape[0]} x {grid.shape[1]}')
        region = zoom_region(box[None], picture.shape[:2], margin=0.1, min_side=0.01)
        _show_mask(right, picture, mask, region)
        right.set_title('in the image', fontsize='small')
        draw_boxes(right, box[None], WHITE, 'thin')
    add_score_bar(figure, panels, 'mask probability')
    return figure


def _show_probabilities(axes: Axes, probs: np.ndarray, threshold: float, title: str) -> None:
    """Show a grid of probabilities with the contour at the threshold."""
    side = probs.shape[0]
    axes.imshow(probs, cmap=score_colormap(), vmin=0, vmax=1, extent=(0, side, side, 0), interpolation='nearest')
    if probs.min() < threshold < probs.max():
        centres = np.arange(side) + 0.5
        axes.contour(centres, centres, probs, [threshold], colors=WHITE, linewidths=1.3)
    set_limits(axes, np.array([0, 0, side, side]))
    axes.set_title(title, fontsize='small')


def _show_mask(axes: Axes, picture: np.ndarray, mask: np.ndarray, region: np.ndarray) -> None:
    """Show the part of a picture around a mask, dark outside the mask, with a line around it."""
    top, left, bottom, right = np.rint(region).astype(int).clip(0).tolist()
    part = picture[top:bottom, left:right]
    picture = picture.copy()
    picture[top:bottom, left:right] = brighten(part) if part.size else part
    shown = (picture * 0.4).astype(np.uint8)
    shown[mask] = picture[mask]
    show_backdrop(axes, shown, region=region, style='plain')
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if len(rows):
        top, left = int(rows[0]), int(columns[0])
        crop = np.pad(mask[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float32)
        x, y = (np.arange(n) + start - 0.5 for n, start in ((crop.shape[1], left), (crop.shape[0], top)))
        axes.contour(x, y, crop, [0.5], colors=YELLOW, linewidths=1.3)


@default_style()
def draw_heatmaps(
    picture: np.ndarray,
    box: np.ndarray,
    heatmaps: np.ndarray,
    keypoints: np.ndarray,
    names: Sequence[str],
    is_visible: np.ndarray,
    *,
    text: str,
    columns: int = 6,
) -> Figure:
    """Draw the heat maps of the keypoints of one object, with the decoded points.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        box: ``(4,)`` in pixels of the picture.
        heatmaps: ``(K, S, S)`` logits on a grid over the box.
        keypoints: ``(K, 2)`` decoded points ``(y, x)`` in pixels of the picture.
        names: The name of each keypoint.
        is_visible: ``(K,)`` bool, whether the logit of the point is high enough for a picture.
        text: Name and score of the object.
        columns: Panels in a row.
    """
    ratio = float(np.clip((box[2] - box[0]) / max(box[3] - box[1], 1), 0.5, 1.8))
    figure, panels = new_panels(1 + len(heatmaps), (ratio, 1), columns=columns, extra=0.2)
    region = zoom_region(box[None], picture.shape[:2], margin=0.05, min_side=0.01)
    show_backdrop(panels[0], picture, text, region=region, style='bright')
    draw_boxes(panels[0], box[None], WHITE, 'thin')
    panels[0].plot(*keypoints[is_visible][:, ::-1].T, 'o', color=SKY, markeredgecolor='black', markersize=4)
    top, left, bottom, right = box.tolist()
    for axes, heatmap, point, name, visible in zip(
        panels[1:], heatmaps, keypoints, names, is_visible.tolist(), strict=True
    ):
        axes.imshow(heatmap, cmap=_FEATURE_COLORS, extent=(left, right, bottom, top), interpolation='nearest')
        color = VERMILION if visible else GREY
        axes.plot(*point[::-1], 'o', color=color, markeredgecolor=WHITE, markersize=6, gid='keypoint')
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
        axes.set_aspect('auto')
        axes.set_axis_off()
        axes.set_title(plot_name(name) if visible else f'({plot_name(name)})', fontsize='x-small')
    return figure
