"""Masks, outlines, boxes, keypoints, traces and lines to labels, drawn into a picture uint8 ``(H, W, 3)`` in place.

Colours are ``(3,)`` uint8, RGB, and boxes are ``(y_min, x_min, y_max, x_max)`` within the picture.
"""

from __future__ import annotations

import cv2
import numpy as np

from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, COCO_SKELETON, MIN_KEYPOINT_LOGIT
from mask_rcnn.ops.masks.crop import MaskCrop
from mask_rcnn.visualization.labels import PlacedLabel, font_size_for

_MIN_SIDES_PER_LINE = 40  # size of an object in widths of the lines around it
_BOX = 0.9  # opacity of the boxes
_BAND_PIXELS = 2**17  # pixels of a mask that are blended at a time, so that the arrays stay in the cache
_SHIFT = 4  # fractional bits of the coordinates for OpenCV's drawing functions: multiples of 1 / 16


def fill_mask(canvas: np.ndarray, crop: MaskCrop, color: np.ndarray, opacity: float) -> None:
    """Blend a translucent colour over a mask; the edge is blurred by one pixel."""
    height, width = crop.mask.shape
    region = canvas[crop.top : crop.top + height, crop.left : crop.left + width]
    alpha = cv2.blur(crop.mask * np.uint8(round(255 * opacity)), (3, 3), borderType=cv2.BORDER_REPLICATE)
    step = max(1, _BAND_PIXELS // width)
    for row in range(0, height, step):
        band = region[row : row + step]
        band[...] = _blend(band, color, alpha[row : row + step, :, None])


def _blend(below: np.ndarray, color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Compute ``below + (color - below) * alpha / 255`` in integers, rounded; ``alpha`` is uint8."""
    change = (color.astype(np.int32) - below) * alpha
    return (below + (change + 127) // 255).astype(np.uint8)


def trace_outline(crop: MaskCrop, line_width: int) -> list[np.ndarray]:
    """Return the closed curves around a mask, ``(P, 1, 2)`` int32 in sixteenths of a pixel, (x, y)."""
    framed = cv2.copyMakeBorder(crop.mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    found = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    origin = np.array((crop.left - 1, crop.top - 1))
    reach = 1 + line_width
    return [
        np.rint((_smoothed(points[:, 0], reach) + origin) * 2**_SHIFT).astype(np.int32)[:, None] for points in found
    ]


def draw_outline(canvas: np.ndarray, curves: list[np.ndarray], color: np.ndarray, width: int) -> None:
    """Draw the curves of :func:`trace_outline` with lines of a width in pixels."""
    cv2.polylines(canvas, curves, True, color.tolist(), width, cv2.LINE_AA, _SHIFT)


def _smoothed(points: np.ndarray, reach: int) -> np.ndarray:
    """Smooth a closed curve with a moving average, which turns pixel steps into straight lines."""
    reach = min(reach, len(points) // 8)
    if reach < 1:
        return points.astype(np.float64)
    around = np.concatenate([points[-reach:], points, points[:reach]]).astype(np.float64)
    sums = np.cumsum(np.concatenate([np.zeros((1, 2)), around]), axis=0)
    return (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)


def line_width(shape: tuple[int, ...], box: np.ndarray | None = None, scale: float = 450) -> int:
    """Return the width of lines in a picture of a shape ``(H, W, ...)``, at most 1/40 of the size of a box."""
    width = float(np.sqrt(shape[0] * shape[1])) / scale
    if box is not None:
        width = min(width, float(np.sqrt(np.prod(box[2:] - box[:2]))) / _MIN_SIDES_PER_LINE)
    return max(1, round(width))


def draw_box(canvas: np.ndarray, box: np.ndarray, color: np.ndarray) -> None:
    """Draw a rectangle whose lines lie inside the box."""
    top, left, bottom, right = np.rint(box).astype(int)
    width = line_width(canvas.shape, box)
    alpha = np.full((1, 1, 1), round(255 * _BOX), np.uint8)
    inner_top, inner_bottom = min(top + width, bottom), max(bottom - width, top)
    sides = (
        canvas[top:inner_top, left:right],
        canvas[max(inner_bottom, inner_top) : bottom, left:right],
        canvas[inner_top:inner_bottom, left : min(left + width, right)],
        canvas[inner_top:inner_bottom, max(right - width, left + width) : right],
    )
    for side in sides:
        side[...] = _blend(side, color, alpha)


def draw_keypoints(canvas: np.ndarray, keypoints: np.ndarray, color: np.ndarray) -> None:
    """Draw the keypoints ``(K, 4)`` of one instance: white dots with a coloured rim, and bones with a black edge."""
    points = np.rint((keypoints[:, 1::-1] - 0.5) * 2**_SHIFT).astype(int).tolist()
    is_visible = keypoints[:, 2] > MIN_KEYPOINT_LOGIT
    width = line_width(canvas.shape)
    skeleton = COCO_SKELETON if len(keypoints) == len(COCO_KEYPOINT_NAMES) else ()
    bones = [(a, b) for a, b in skeleton if is_visible[a] and is_visible[b]]
    for thickness, ink in ((2 * width + 2, (0, 0, 0)), (2 * width, color.tolist())):
        for a, b in bones:
            cv2.line(canvas, points[a], points[b], ink, thickness, cv2.LINE_AA, _SHIFT)
    for k in np.flatnonzero(is_visible):
        for radius, ink in ((2 * width + 1, color.tolist()), (1.5 * width, (255, 255, 255))):
            cv2.circle(canvas, points[k], round(radius * 2**_SHIFT), ink, -1, cv2.LINE_AA, _SHIFT)


def draw_trace(canvas: np.ndarray, centres: np.ndarray, color: np.ndarray) -> None:
    """Draw the way of an object, ``(N, 2)`` points ``(y, x)``: a line with a black edge, and a dot at the last one."""
    if not len(centres):
        return
    points = np.rint((centres[:, ::-1] - 0.5) * 2**_SHIFT).astype(np.int32)
    width = line_width(canvas.shape)
    for thickness, ink in ((width + 2, (0, 0, 0)), (width, color.tolist())):
        cv2.polylines(canvas, [points[:, None]], False, ink, thickness, cv2.LINE_AA, _SHIFT)
    for radius, ink in ((1.5 * width + 1, (0, 0, 0)), (1.5 * width, color.tolist())):
        cv2.circle(canvas, points[-1].tolist(), round(radius * 2**_SHIFT), ink, -1, cv2.LINE_AA, _SHIFT)


def draw_leader(canvas: np.ndarray, label: PlacedLabel, box: np.ndarray, color: np.ndarray) -> None:
    """Draw a line from a label to its box if they are apart."""
    top, left, bottom, right = label.box
    start = np.clip((box[:2] + box[2:]) / 2, (top, left), (bottom, right))
    end = np.clip(start, box[:2], box[2:])
    if np.hypot(*(end - start)) > font_size_for(canvas.shape[:2]) / 3:
        first, last = (np.rint(point[::-1] * 2**_SHIFT).astype(int).tolist() for point in (start, end))
        cv2.line(canvas, first, last, color.tolist(), line_width(canvas.shape), cv2.LINE_AA, _SHIFT)
