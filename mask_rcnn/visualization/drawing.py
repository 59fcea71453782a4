"""Draw detections on their image."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

import cv2
import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.datasets.coco_keypoints import COCO_KEYPOINT_NAMES, COCO_SKELETON, MIN_KEYPOINT_LOGIT
from mask_rcnn.ops.boxes.boxes import outer_corners
from mask_rcnn.ops.masks.crop import MaskCrop, crop_mask
from mask_rcnn.preprocessing.image_io import to_pixels
from mask_rcnn.visualization.colors import class_colors, instance_colors, text_color
from mask_rcnn.visualization.labels import PlacedLabel, Text, draw_label, font_size_for, label_candidates, place_labels
from mask_rcnn.visualization.legend import draw_legend, make_legend, place_legend

#: Backdrops of a drawing, behind the objects: the image, the image in pale grey, black, white, or the image in grey
#: with the objects in their original colours.
BACKDROPS = ('image', 'grey', 'black', 'white', 'splash')
#: Kinds of labels: those that suit the picture, one for each object, or none.
LABELS = ('auto', 'all', 'none')

_MIN_CROWD = 20  # objects
_MIN_SIDES_PER_LINE = 40  # size of an object in widths of the lines around it
_FILL = {'image': 0.45, 'grey': 0.6, 'black': 0.85, 'white': 0.85}  # opacity of the masks
_FILL_IN_CONTOUR = 0.6  # factor of the opacity of masks with outlines
_BOX = 0.9  # opacity of the boxes
_BAND_PIXELS = 2**17  # pixels of a mask that are blended at a time, so that the arrays stay in the cache
_LABEL_COST = 50  # of a pixel of a label that a legend hides, in pixels of objects
_SALIENCY_SIZE = 512  # longer side of the saliency map, pixels
_SHIFT = 4  # fractional bits of the coordinates for OpenCV's drawing functions: multiples of 1 / 16


class DrawableDetections(Protocol):
    """The detections that :func:`draw_detections` draws, such as :class:`mask_rcnn.Detections`."""

    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
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
    labels: bool | str = 'auto',
    scores: bool = True,
    font: str | os.PathLike | None = None,
) -> np.ndarray:
    """Draw masks, boxes, keypoints and labels of detections.

    Neighbouring instances have different colours.  Large instances are drawn first, so that small ones stay visible.
    The sizes of lines and letters are proportional to the image size; lines around small objects are thinner.  Labels
    are placed where they hide least; in a crowded image, labels without a free position are omitted.

    ``labels='auto'`` draws no label that is larger than the box of its object, and adds a legend with the number of
    objects of each class that has an object without a label.  The legend is in the corner that hides the fewest pixels
    of objects.  If most objects are too small for a label, or at least 20 objects are all of one class, the legend
    replaces all labels, and objects of several classes have shades of the colour of their class.  With at least 20
    objects, such pictures also omit the boxes of objects with masks.

    Args:
        image: float32 ``(3, H, W)`` in [0, 255] or uint8 ``(H, W, 3)``, RGB.  It is not changed.
        detections: The detections of the image.
        contour: Draw an outline around each mask and fill the mask more lightly.
        backdrop: One of :data:`BACKDROPS`.  With ``'splash'``, masks are not filled and objects with masks have no
            boxes.
        boxes: Draw the boxes.
        keypoints: Draw keypoints with a high logit; COCO's 17 keypoints are connected by bones.
        labels: One of :data:`LABELS`, for the names of the classes; ``True`` is ``'all'``, ``False`` is ``'none'``.
        scores: Write the scores after the names.
        font: TrueType or OpenType file for the labels, for scripts that DejaVu Sans does not contain (Chinese,
            Japanese, Korean, ...).

    Returns:
        A uint8 array of shape ``(H, W, 3)``, RGB.

    Raises:
        ValueError: The image has another type, shape or size than ``detections.size``, or the backdrop or the kind of
            labels is unknown.
        OSError: ``font`` cannot be read.
    """
    kind = _label_kind(labels)
    pixels = _check_pixels(image, detections.size)
    canvas = make_canvas(pixels, backdrop)
    ordered = detections[_largest_first(detections.boxes)]
    clipped_boxes = _clip_boxes(ordered.boxes, ordered.size, ordered.dialect.boxes.offset)
    candidates = _label_candidates(ordered, clipped_boxes, kind, scores, font)
    only_legend = kind == 'auto' and _suits_legend(candidates, ordered.labels)
    if only_legend:
        candidates = [[] for _ in candidates]
    is_crowd = only_legend and len(ordered) >= _MIN_CROWD
    colors = _choose_colors(ordered, clipped_boxes, only_legend)
    cover = _Cover(ordered.size)
    outlines = []
    for crop, box, color in zip(_mask_crops(ordered), clipped_boxes, colors, strict=True):
        cover.add(crop, box)
        if backdrop == 'splash':
            _reveal(canvas, pixels, crop, box)
        elif crop is not None:
            _fill(canvas, crop, color, _FILL[backdrop] * (_FILL_IN_CONTOUR if contour else 1))
        if crop is not None and contour:
            width = _line_width(canvas.shape, box, scale=400)
            outlines.append((_outline(crop, width), color, width))
    for curves, color, width in outlines:
        cv2.polylines(canvas, curves, True, color.tolist(), width, cv2.LINE_AA, _SHIFT)
    if boxes and not (ordered.has_masks and (is_crowd or backdrop == 'splash')):
        for box, color in zip(clipped_boxes, colors, strict=True):
            _draw_box(canvas, box, color)
    if keypoints and ordered.keypoints is not None:
        for points, color in zip(ordered.keypoints, colors, strict=True):
            _draw_keypoints(canvas, points, color)
    placed = place_labels(candidates, clipped_boxes, cover.saliency, ordered.size)
    _draw_labels(canvas, placed, clipped_boxes, colors, font)
    if kind == 'auto':
        has_colors = contour or backdrop != 'splash' or not ordered.has_masks
        _draw_legend_of_unlabelled(canvas, ordered.names, placed, colors if has_colors else None, cover, font)
    return canvas


def _label_kind(labels: bool | str) -> str:
    kind = {True: 'all', False: 'none'}.get(labels, labels) if isinstance(labels, bool) else labels
    if kind not in LABELS:
        raise ValueError(f'labels must be one of {", ".join(LABELS)}, not {kind!r}')
    return kind


def _label_candidates(
    detections: DrawableDetections, clipped_boxes: np.ndarray, kind: str, scores: bool, font: str | os.PathLike | None
) -> list[list[tuple[float, Text]]]:
    """Return the candidates for each label; for ``'auto'`` only those that are no larger than the object's box."""
    if kind == 'none':
        return [[] for _ in range(len(detections))]
    candidates = [
        label_candidates(name, float(score) if scores else None, detections.size, font)
        for name, score in zip(detections.names, detections.scores, strict=True)
    ]
    if kind == 'all':
        return candidates
    areas = np.prod(clipped_boxes[:, 2:] - clipped_boxes[:, :2], axis=1)
    return [
        [(cost, text) for cost, text in texts if text.width * text.height <= area]
        for texts, area in zip(candidates, areas, strict=True)
    ]


def _suits_legend(candidates: list[list[tuple[float, Text]]], labels: np.ndarray) -> bool:
    """Return whether most objects are too small for labels, or a crowd is of one class."""
    n_without = sum(not texts for texts in candidates)
    return 2 * n_without > len(labels) or (len(labels) >= _MIN_CROWD and len(np.unique(labels)) == 1)


def _choose_colors(detections: DrawableDetections, clipped_boxes: np.ndarray, only_legend: bool) -> np.ndarray:
    """Return the colours of instances; if a legend names several classes, shades of the colours of the classes."""
    if only_legend and len(np.unique(detections.labels)) > 1:
        return class_colors(clipped_boxes, detections.labels, detections.size)
    return instance_colors(clipped_boxes, detections.size)


def _check_pixels(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the image as a uint8 array ``(H, W, 3)``, which may be the image itself."""
    height, width = size
    if image.dtype == np.uint8 and image.shape == (height, width, 3):
        return image
    if image.dtype == np.float32 and image.shape == (3, height, width):
        return to_pixels(image)
    raise ValueError(
        f'image is {image.dtype} of shape {image.shape}, expected {height} x {width} pixels as in the detections, '
        'float32 (3, H, W) or uint8 (H, W, 3)'
    )


def make_canvas(pixels: np.ndarray, backdrop: str) -> np.ndarray:
    """Return a backdrop of :data:`BACKDROPS` as a new uint8 array ``(H, W, 3)``.

    Args:
        pixels: ``(H, W, 3)`` uint8, RGB.
        backdrop: One of :data:`BACKDROPS`.

    Raises:
        ValueError: The backdrop is unknown.
    """
    if backdrop not in BACKDROPS:
        raise ValueError(f'backdrop must be one of {", ".join(BACKDROPS)}, not {backdrop!r}')
    if backdrop == 'image':
        return pixels.copy()
    if backdrop in ('black', 'white'):
        return np.full_like(pixels, 0 if backdrop == 'black' else 255)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if backdrop == 'grey':  # pale, so that the masks stand out
        grey = cv2.addWeighted(grey, 0.7, grey, 0, 0.3 * 235)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB)


def _largest_first(boxes: np.ndarray) -> np.ndarray:
    """Return the indices of boxes in descending order of area."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.argsort(-sides[:, 0] * sides[:, 1], kind='stable')


def _clip_boxes(boxes: np.ndarray, size: tuple[int, int], offset: float) -> np.ndarray:
    """Convert boxes to corner coordinates ``(y_min, x_min, y_max, x_max)`` in float64, clipped to the image."""
    return np.clip(outer_corners(boxes.astype(np.float64), offset), 0, np.tile(size, 2))


def _mask_crops(detections: DrawableDetections) -> Iterator[MaskCrop | None]:
    """Yield the crop of each mask; ``None`` for an empty mask and for detections without masks."""
    if not detections.has_masks:
        yield from [None] * len(detections)
        return
    yield from map(crop_mask, detections.iter_masks())


class _Cover:
    """Maps of the objects of a picture, for the placement of labels and of the legend.

    Attributes:
        saliency: A small float32 map of the cost of hiding pixels; the values of each instance's pixels add up to 1.
        covered: ``(H, W)`` uint8, 1 for the pixels of objects.
    """

    def __init__(self, size: tuple[int, int]):
        self.size = np.array(size)
        shape = np.maximum(1, np.rint(self.size * min(1, _SALIENCY_SIZE / self.size.max()))).astype(int)
        self.saliency = np.zeros(shape, np.float32)
        self.covered = np.zeros(size, np.uint8)
        self._scale = shape / self.size

    def add(self, crop: MaskCrop | None, box: np.ndarray) -> None:
        """Add an instance by its mask, or by its box if it has no mask."""
        if crop is None:
            region = self._region(box[:2], box[2:])
            region += 1 / region.size
            top, left, bottom, right = np.rint(box).astype(int)
            self.covered[top:bottom, left:right] = 1
            return
        start, shape = np.array((crop.top, crop.left)), crop.mask.shape
        self.covered[crop.top : crop.top + shape[0], crop.left : crop.left + shape[1]] |= crop.mask
        region = self._region(start, start + shape)
        coverage = cv2.resize(crop.mask * np.uint8(255), region.shape[::-1], interpolation=cv2.INTER_AREA)
        region += coverage / np.float32(max(int(coverage.sum()), 1))

    def _region(self, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        shape = np.array(self.saliency.shape)
        low = np.minimum(np.floor(start * self._scale).astype(int), shape - 1)
        high = np.clip(np.ceil(stop * self._scale).astype(int), low + 1, shape)
        return self.saliency[low[0] : high[0], low[1] : high[1]]


def _fill(canvas: np.ndarray, crop: MaskCrop, color: np.ndarray, opacity: float) -> None:
    """Blend a translucent colour over a mask; the edge is blurred by one pixel."""
    height, width = crop.mask.shape
    region = canvas[crop.top : crop.top + height, crop.left : crop.left + width]
    alpha = cv2.blur(crop.mask * np.uint8(round(255 * opacity)), (3, 3), borderType=cv2.BORDER_REPLICATE)
    step = max(1, _BAND_PIXELS // width)
    for row in range(0, height, step):
        band = region[row : row + step]
        band[...] = _blend(band, color, alpha[row : row + step, :, None])


def _reveal(canvas: np.ndarray, pixels: np.ndarray, crop: MaskCrop | None, box: np.ndarray) -> None:
    """Copy the pixels of an object into the canvas: those of its mask, or of its box if it has no mask."""
    if crop is None:
        top, left, bottom, right = np.rint(box).astype(int)
        canvas[top:bottom, left:right] = pixels[top:bottom, left:right]
        return
    region = slice(crop.top, crop.top + crop.mask.shape[0]), slice(crop.left, crop.left + crop.mask.shape[1])
    np.copyto(canvas[region], pixels[region], where=crop.mask[:, :, None].view(bool))


def _blend(below: np.ndarray, color: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Compute ``below + (color - below) * alpha / 255`` in integers, rounded; ``alpha`` is uint8."""
    change = (color.astype(np.int32) - below) * alpha
    return (below + (change + 127) // 255).astype(np.uint8)


def _outline(crop: MaskCrop, line_width: int) -> list[np.ndarray]:
    """Return the closed curves around a mask, ``(P, 1, 2)`` int32 in sixteenths of a pixel, (x, y)."""
    framed = cv2.copyMakeBorder(crop.mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    found = cv2.findContours(framed, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    origin = np.array((crop.left - 1, crop.top - 1))
    reach = 1 + line_width
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


def _line_width(shape: tuple[int, ...], box: np.ndarray | None = None, scale: float = 450) -> int:
    """Return the width of lines in a picture of a shape ``(H, W, ...)``, at most 1/40 of the size of a box."""
    width = float(np.sqrt(shape[0] * shape[1])) / scale
    if box is not None:
        width = min(width, float(np.sqrt(np.prod(box[2:] - box[:2]))) / _MIN_SIDES_PER_LINE)
    return max(1, round(width))


def _draw_box(canvas: np.ndarray, box: np.ndarray, color: np.ndarray) -> None:
    """Draw a rectangle whose lines lie inside the box."""
    top, left, bottom, right = np.rint(box).astype(int)
    width = _line_width(canvas.shape, box)
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


def _draw_legend_of_unlabelled(
    canvas: np.ndarray,
    names: list[str],
    labels: list[PlacedLabel | None],
    colors: np.ndarray | None,
    cover: _Cover,
    font: str | os.PathLike | None,
) -> None:
    """Draw a legend of the classes with an object without a label."""
    listed = {name for name, label in zip(names, labels, strict=True) if label is None}
    legend = make_legend(names, colors, listed, canvas.shape[:2], font)
    if legend is None:
        return
    for label in labels:
        if label is not None:
            top, left, bottom, right = label.box
            cover.covered[top:bottom, left:right] = _LABEL_COST
    draw_legend(canvas, legend, place_legend(legend, cover.covered), font)
