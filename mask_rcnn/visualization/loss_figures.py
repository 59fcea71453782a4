"""Pictures of mask and keypoint targets, and bars of losses, with crops of the network input.

Boxes are ``(y_min, x_min, y_max, x_max)`` in pixels of the picture; ``(0, 0)`` is the outer corner of its first pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from mask_rcnn.visualization.colors import rgb_of
from mask_rcnn.visualization.contact_sheet import Tile, compose_sheet
from mask_rcnn.visualization.figures import BLUE, GREEN, ORANGE, PURPLE, default_style, new_figure, style_plot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CROP, _GAP = 96, 6  # pixels of a crop in a tile, and between two
_KEYPOINT_CROP = 230  # pixels
_PART_COLORS = (BLUE, ORANGE, GREEN, PURPLE)
_ORANGE, _GREEN = rgb_of(ORANGE).tolist(), rgb_of(GREEN).tolist()
_IGNORED_GREY, _FRAME_GREY, _WHITE = 150, 190, 255


def crop_box(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop a box and resize it; pixels outside of the picture repeat its border.

    Args:
        picture: ``(H, W, 3)`` uint8.
        box: ``(4,)``.
        size: Height and width of the result.

    Returns:
        numpy.ndarray: ``(*size, 3)`` uint8.
    """
    height, width = size
    top, left, bottom, right = (float(value) for value in box)
    scale_y, scale_x = max(bottom - top, 1) / height, max(right - left, 1) / width
    # Large boxes are sampled several times per pixel, and these samples are averaged.
    factor = int(np.clip(np.ceil(max(scale_y, scale_x)), 1, 8))
    matrix = np.array(
        [
            [scale_x / factor, 0, left + 0.5 * scale_x / factor - 0.5],
            [0, scale_y / factor, top + 0.5 * scale_y / factor - 0.5],
        ]
    )
    crop = cv2.warpAffine(
        picture,
        matrix,
        (width * factor, height * factor),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return crop if factor == 1 else cv2.resize(crop, (width, height), interpolation=cv2.INTER_AREA)


def draw_mask_targets(
    picture: np.ndarray,
    boxes: np.ndarray,
    targets: np.ndarray,
    probabilities: np.ndarray,
    captions: Sequence[tuple[str, str]],
) -> np.ndarray:
    """Draw mask targets in a grid: the crop of the RoI, its target, and the predicted probabilities.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        boxes: ``(F, 4)`` RoIs; at least one.
        targets: ``(F, M, M)`` numbers: 1 inside the object, 0 outside, fractions at its border, -1 ignored.
        probabilities: ``(F, M, M)`` floats; NaN, of a network that overflows, is drawn as 0.
        captions: Two lines of text for each RoI.

    Returns:
        numpy.ndarray: ``(h, w, 3)`` uint8, RGB.
    """
    gap = np.full((_CROP, _GAP, 3), _WHITE, np.uint8)
    tiles = []
    for box, target, probability, (title, details) in zip(boxes, targets, probabilities, captions, strict=True):
        levels = np.where(target < 0, _IGNORED_GREY, target * 255).astype(np.uint8)
        predicted = cv2.applyColorMap(np.rint(np.nan_to_num(probability) * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[
            :, :, ::-1
        ]
        parts = [
            _with_outline(crop_box(picture, box, (_CROP, _CROP)), target),
            _enlarge(np.repeat(levels[:, :, None], 3, axis=2)),
            _enlarge(predicted),
        ]
        for part in parts:  # a target may be as white as the sheet
            cv2.rectangle(part, (0, 0), (_CROP - 1, _CROP - 1), (_FRAME_GREY,) * 3, 1)
        tiles.append(Tile(np.hstack([parts[0], gap, parts[1], gap, parts[2]]), title, details))
    return compose_sheet(tiles, columns=4, side=tiles[0].picture.shape[1])


def draw_keypoint_targets(
    picture: np.ndarray,
    boxes: np.ndarray,
    targets: np.ndarray,
    predicted: np.ndarray,
    captions: Sequence[tuple[str, str]],
) -> np.ndarray:
    """Draw keypoint targets in a grid of RoIs: discs for targets, joined with crosses for predictions.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        boxes: ``(Q, 4)`` RoIs; at least one.
        targets: ``(Q, N, 2)`` float ``(y, x)`` in fractions of the RoI; NaN for keypoints without a target.
        predicted: ``(Q, N, 2)`` float, likewise.
        captions: Two lines of text for each RoI.

    Returns:
        numpy.ndarray: ``(h, w, 3)`` uint8, RGB.
    """
    tiles = []
    for box, points, found, (title, details) in zip(boxes, targets, predicted, captions, strict=True):
        sides = np.maximum(box[2:] - box[:2], 1)
        size = np.maximum(np.rint(sides * (_KEYPOINT_CROP / sides.max())).astype(int), 1)
        crop = np.ascontiguousarray(crop_box(picture, box, (int(size[0]), int(size[1]))))
        for (y, x), (found_y, found_x) in zip(points * size, found * size, strict=True):
            if not np.isnan(y):
                target, prediction = (round(x), round(y)), (round(found_x), round(found_y))
                cv2.line(crop, target, prediction, (255, 255, 255), 1, cv2.LINE_AA)
                cv2.drawMarker(crop, prediction, (0, 0, 0), cv2.MARKER_TILTED_CROSS, 10, 4, cv2.LINE_AA)
                cv2.drawMarker(crop, prediction, _ORANGE, cv2.MARKER_TILTED_CROSS, 9, 2, cv2.LINE_AA)
                cv2.circle(crop, target, 4, (255, 255, 255), -1, cv2.LINE_AA)
                cv2.circle(crop, target, 3, _GREEN, -1, cv2.LINE_AA)
        tiles.append(Tile(crop, title, details))
    return compose_sheet(tiles, columns=5, side=_KEYPOINT_CROP)


@default_style()
def plot_costs(
    picture: np.ndarray, boxes: np.ndarray, texts: Sequence[str], parts: Mapping[str, np.ndarray], title: str
) -> Figure:
    """Plot the contributions of RoIs or anchors to the loss as bars, with crops of their boxes.

    Args:
        picture: ``(H, W, 3)`` uint8, RGB.
        boxes: ``(N, 4)``, in the order of the bars from top to bottom.
        texts: Text for each box.
        parts: Name of the loss -> ``(N,)`` contributions, at most four losses; those that are not finite have no bar.
        title: Text above the bars.
    """
    n = max(len(boxes), 1)
    figure, axes = new_figure(11, 0.95 + 0.44 * n, 1, 2, width_ratios=(1, 23))
    crops, bars = axes[0]
    crops.set_axis_off()
    crops.set_xlim(0, 1)
    starts = np.zeros(len(boxes))
    for (name, contributions), color in zip(parts.items(), _PART_COLORS, strict=False):
        values = np.where(np.isfinite(contributions), contributions, 0)
        bars.barh(np.arange(len(boxes)), values, left=starts, height=0.7, color=color, label=name)
        starts = starts + values
    for i, (box, text, total) in enumerate(zip(boxes, texts, starts, strict=True)):
        crops.imshow(_square_crop(picture, box), extent=(0, 1, i + 0.46, i - 0.46), aspect='auto')
        bars.annotate(text, (total, i), (4, 0), textcoords='offset points', va='center', fontsize='small')
    for part in (crops, bars):
        part.set_ylim(n - 0.5, -0.5)
    style_plot(bars)
    bars.set_yticks([])
    bars.set_xlim(0, 1.45 * max(starts.max(initial=0), 1e-9))  # room for the texts
    bars.set_xlabel('contribution to the loss')
    bars.set_title(title, fontsize='medium')
    figure.legend(*bars.get_legend_handles_labels(), loc='outside lower center', ncols=4, frameon=False)
    return figure


def _square_crop(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return the square around a box, 64 pixels wide, with the outline of the box."""
    centre, side = (box[:2] + box[2:]) / 2, 1.2 * max(float((box[2:] - box[:2]).max()), 8.0)
    square = np.concatenate([centre - side / 2, centre + side / 2])
    crop = crop_box(picture, square, (64, 64))
    (top, left), (bottom, right) = (
        np.rint((corner - square[:2]) * (64 / side)).astype(int) for corner in (box[:2], box[2:])
    )
    cv2.rectangle(crop, (int(left), int(top)), (int(right), int(bottom)), _ORANGE, 2)
    return crop


def _with_outline(crop: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Draw the outline of a mask target on the crop of its RoI."""
    crop = np.ascontiguousarray(crop)
    mask = _enlarge((target >= 0.5).astype(np.uint8))
    contours = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    cv2.drawContours(crop, contours, -1, _ORANGE, 1, cv2.LINE_AA)
    return crop


def _enlarge(mask: np.ndarray) -> np.ndarray:
    return cv2.resize(mask, (_CROP, _CROP), interpolation=cv2.INTER_NEAREST)
