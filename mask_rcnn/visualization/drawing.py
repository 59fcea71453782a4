"""Draw detections on their image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, COCO_SKELETON, MIN_KEYPOINT_LOGIT
from mask_rcnn.ops.masks.crop import MaskCrop, crop_mask
from mask_rcnn.visualization.colors import instance_colors, text_color
from mask_rcnn.visualization.labels import PlacedLabel, draw_label, font_size_for, label_candidates, place_labels

#: Backdrops of a drawing, behind the objects: the image, the image in pale grey, black or white.
BACKDROPS = ('image', 'grey', 'black', 'white')

_FILL = {'image': 0.45, 'grey': 0.6, 'black': 0.85, 'white': 0.85}  # opacity of the masks
_FILL_IN_CONTOUR = 0.6  # factor of the opacity of masks with outlines
_BOX = 0.9  # opacity of the boxes
_BAND_PIXELS = 2**17  # pixels of a mask that are blended at a time, so that the arrays stay in the cache
_SALIENCY_SIZE = 512  # longer side of the saliency map, pixels
_SHIFT = 4  # fractional bits of the coordinates for OpenCV's drawing functions: multiples of 1 / 16


class DrawableDetections(Protocol):
    """The detections that :func:`draw_detections` draws, such as :class:`mask_rcnn.Detections`."""

    size: tuple[int, int]
    boxes: np.ndarray
    scores: np.ndarray
    keypoints: np.ndarray | None
    dialect: Dialect

    @property
    def names(self) -> list[str]:
        """The class name of each instance."""

    @property
    def has_masks(self) -> bool:
        """True if the instances have masks."""

    def iter_masks(self) -> Iterator[np.ndarray]:
        """Yield the masks, ``(H, W)`` bool each."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: np.ndarray) -> DrawableDetections: ...


def draw_detections(
    image: np.ndarray,
    detections: DrawableDetections,
    *,
    contour: bool = False,
    backdrop: str = 'image',
    boxes: bool = True,
    keypoints: bool = True,
    labels: bool = True,
    scores: bool = True,
    font: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw masks, boxes, keypoints and labels of detections.

    Neighbouring instances have different colours.  Large instances are drawn first, so that small ones stay visible.
    The sizes of lines and letters are proportional to the image size.  Labels are placed where they hide least; in a
    crowded image, labels without a free position are omitted.

    Args:
        image: float32 ``(3, H, W)`` in [0, 255] or uint8 ``(H, W, 3)``, RGB.  It is not changed.
        detections: The detections of the image.
        contour: Draw an outline around each mask and fill the mask more lightly.
        backdrop: One of :data:`BACKDROPS`.
        boxes: Draw the boxes.
        keypoints: Draw keypoints with a high logit; COCO's 17 keypoints are connected by bones.
        labels: Write the names of the classes.
        scores: Write the scores after the names.
        font: TrueType or OpenType file for the labels, for scripts that DejaVu Sans does not contain (Chinese,
            Japanese, Korean, ...).

    Returns:
        A uint8 array of shape ``(H, W, 3)``, RGB.

    Raises:
        ValueError: The image has another type, shape or size than ``detections.size``, or the backdrop is
            unknown.
        OSError: ``font`` cannot be read.
    """
    canvas = _canvas(image, detections.size, backdrop)
    ordered = detections[_largest_first(detections.boxes)]
    clipped_boxes = _clip_boxes(ordered.boxes, ordered.size, ordered.dialect.boxes.offset)
    colors = instance_colors(clipped_boxes, ordered.size)
    saliency = _SaliencyMap(ordered.size)
    opacity = _FILL[backdrop] * (_FILL_IN_CONTOUR if contour else 1)
    outlines = []
    for crop, box, color in zip(_mask_crops(ordered), clipped_boxes, colors, strict=True):
        saliency.add(crop, box)
        if crop is not None:
            _fill(canvas, crop, color, opacity)
            if contour:
                outlines.append((_outline(crop, canvas.shape), color))
    for curves, color in outlines:
        _draw_curves(canvas, curves, color)
    if boxes:
        for box, color in zip(clipped_boxes, colors, strict=True):
            _draw_box(canvas, box, color)
    if keypoints and ordered.keypoints is not None:
        for points, color in zip(ordered.keypoints, colors, strict=True):
            _draw_keypoints(canvas, points, color)
    if labels:
        candidates = [
            label_candidates(name, float(score) if scores else None, ordered.size, font)
            for name, score in zip(ordered.names, ordered.scores, strict=True)
        ]
        placed = place_labels(candidates, clipped_boxes, saliency.values, ordered.size)
        _draw_labels(canvas, placed, clipped_boxes, colors, font)
    return canvas


def _canvas(image: np.ndarray, size: tuple[int, int], backdrop: str) -> np.ndarray:
    """Return the backdrop as a new uint8 array ``(H, W, 3)``."""
    if backdrop not in BACKDROPS:
        raise ValueError(f'backdrop must be one of {", ".join(BACKDROPS)}, not {backdrop!r}')
    height, width = size
    if image.dtype == np.uint8 and image.shape == (height, width, 3):
        canvas = image.copy()
    elif image.dtype == np.float32 and image.shape == (3, height, width):
        canvas = np.ascontiguousarray(np.rint(image.clip(0, 255)).astype(np.uint8).transpose(1, 2, 0))
    else:
        raise ValueError(
            f'image is {image.dtype} of shape {image.shape}, expected {height} x {width} pixels as in the detections, '
            'float32 (3, H, W) or uint8 (H, W, 3)'
        )
    if backdrop == 'grey':
        grey = cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY)
        canvas = cv2.cvtColor(cv2.addWeighted(grey, 0.7, grey, 0, 0.3 * 235), cv2.COLOR_GRAY2RGB)
    elif backdrop != 'image':
        canvas[...] = 0 if backdrop == 'black' else 255
    return canvas


def _largest_first(boxes: np.ndarray) -> np.ndarray:
    """Return the indices of boxes in descending order of area."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.argsort(-sides[:, 0] * sides[:, 1], kind='stable')


def _clip_boxes(boxes: np.ndarray, size: tuple[int, int], offset: float) -> np.ndarray:
    """Convert boxes to corner coordinates ``(y_min, x_min, y_max, x_max)`` in float64, clipped to the image."""
    boxes = boxes.astype(np.float64)
    boxes[:, 2:] += offset
    return np.clip(boxes, 0, np.tile(size, 2))


def _mask_crops(detections: DrawableDetections) -> Iterator[MaskCrop | None]:
    """Yield the crop of each mask; ``None`` for an empty mask and for detections without masks."""
    if not detections.has_masks:
        yield from [None] * len(detections)
        return
    yield from map(crop_mask, detections.iter_masks())


class _SaliencyMap:
    """A small map of the cost of hiding pixels; the values of each instance's pixels add up to 1."""

    def __init__(self, size: tuple[int, int]):
        self.size = np.array(size)
        shape = np.maximum(1, np.rint(self.size * min(1, _SALIENCY_SIZE / self.size.max()))).astype(int)
        self.values = np.zeros(shape, np.float32)
        self._scale = shape / self.size

    def add(self, crop: MaskCrop | None, box: np.ndarray) -> None:
        """Add an instance by its mask, or by its box if it has no mask."""
        if crop is None:
            region = self._region(box[:2], box[2:])
            region += 1 / region.size
            return
        start = np.array((crop.top, crop.left))
        region = self._region(start, start + crop.mask.shape)
        coverage = cv2.resize(crop.mask * np.uint8(255), region.shape[::-1], interpolation=cv2.INTER_AREA)
        region += coverage / np.float32(max(int(coverage.sum()), 1))

    def _region(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        shape = np.array(self.values.shape)
        low = np.minimum(np.floor(start * self._scale).astype(int), shape - 1)
        high = np.clip(np.ceil(stop * self._scale).astype(int), low + 1, shape)
        return self.values[low[0] : high[0], low[1] : high[1]]


def _fill(canvas: np.ndarray, crop: MaskCrop, color: np.ndarray, opacity: float) -> None:
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


def _outline(crop: MaskCrop, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return the closed curves around a mask, ``(P, 1, 2)`` int32 in sixteenths of a pixel, (x, y)."""
    framed = cv2.copyMakeBorder(crop.mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    found = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    origin = np.array((crop.left - 1, crop.top - 1))
    reach = 1 + _line_width(shape)
    return [
        np.rint((_smoothed(points[:, 0], reach) + origin) * 2**_SHIFT).astype(np.int32)[:, None] for points in found
    ]


def _smoothed(points: np.ndarray, reach: int) -> np.ndarray:
    """Smooth a closed curve with a moving average, which turns pixel steps into straight lines."""
    reach = min(reach, len(points) // 8)
    if reach < 1:
        return points.astype(np.float64)
    around = np.concatenate([points[-reach:], points, points[:reach]]).astype(np.float64)
    sums = np.cumsum(np.concatenate([np.zeros((1, 2)), around]), axis=0)
    return (sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)


def _line_width(shape: tuple[int, ...]) -> int:
    return max(1, round(float(np.sqrt(shape[0] * shape[1])) / 450))


def _draw_curves(canvas: np.ndarray, curves: list[np.ndarray], color: np.ndarray) -> None:
    width = max(1, round(float(np.sqrt(canvas.shape[0] * canvas.shape[1])) / 400))
    cv2.polylines(canvas, curves, True, color.tolist(), width, cv2.LINE_AA, _SHIFT)


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: np.ndarray) -> None:
    """Draw a rectangle whose lines lie inside the box."""
    top, left, bottom, right = np.rint(box).astype(int)
    width = _line_width(canvas.shape)
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


def _draw_keypoints(canvas: np.ndarray, keypoints: np.ndarray, color: np.ndarray) -> None:
    """Draw the keypoints ``(K, 4)`` of one instance: white dots with a coloured rim, and bones with a black edge."""
    points = np.rint((keypoints[:, 1::-1] - 0.5) * 2**_SHIFT).astype(int).tolist()
    is_visible = keypoints[:, 2] > MIN_KEYPOINT_LOGIT
    width = _line_width(canvas.shape)
    skeleton = COCO_SKELETON if len(keypoints) == len(COCO_KEYPOINT_NAMES) else ()
    bones = [(a, b) for a, b in skeleton if is_visible[a] and is_visible[b]]
    for thickness, ink in ((2 * width + 2, (0, 0, 0)), (2 * width, color.tolist())):
        for a, b in bones:
            cv2.line(canvas, points[a], points[b], ink, thickness, cv2.LINE_AA, _SHIFT)
    for k in np.flatnonzero(is_visible):
        for radius, ink in ((2 * width + 1, color.tolist()), (1.5 * width, (255, 255, 255))):
            cv2.circle(canvas, points[k], round(radius * 2**_SHIFT), ink, -1, cv2.LINE_AA, _SHIFT)


def _draw_labels(
    canvas: np.ndarray,
    labels: list[PlacedLabel | None],
    clipped_boxes: np.ndarray,
    colors: np.ndarray,
    font: str | os.PathLike | None,
) -> None:
    placed = [
        (label, box, color)
        for label, box, color in zip(labels, clipped_boxes, colors, strict=True)
        if label is not None
    ]
    for label, box, color in placed:  # before all labels, so that no line crosses letters
        _draw_leader(canvas, label, box, color)
    for label, _, color in placed:
        draw_label(canvas, label, color, text_color(color), font)


def _draw_leader(canvas: np.ndarray, label: PlacedLabel, box: np.ndarray, color: np.ndarray) -> None:
    """Draw a line from a label to its box if they are apart."""
    top, left, bottom, right = label.box
    start = np.clip((box[:2] + box[2:]) / 2, (top, left), (bottom, right))
    end = np.clip(start, box[:2], box[2:])
    if np.hypot(*(end - start)) > font_size_for(canvas.shape[:2]) / 3:
        first, last = (np.rint(point[::-1] * 2**_SHIFT).astype(int).tolist() for point in (start, end))
        cv2.line(canvas, first, last, color.tolist(), _line_width(canvas.shape), cv2.LINE_AA, _SHIFT)
