"""Draw detections on their image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.boxes.boxes import outer_corners
from mask_rcnn.ops.masks.crop import MaskCrop, crop_mask
from mask_rcnn.preprocessing.image_io import to_pixels
from mask_rcnn.visualization import shapes
from mask_rcnn.visualization.backdrops import BACKDROPS, CANVASES, make_canvas, make_transparent, show_objects
from mask_rcnn.visualization.colors import class_colors, instance_colors, text_color, track_colors
from mask_rcnn.visualization.cover import Cover
from mask_rcnn.visualization.labels import PlacedLabel, Text, draw_label, label_candidates, place_labels
from mask_rcnn.visualization.legend import Legend, draw_legend, make_legend, place_legend

#: Kinds of labels: those that suit the picture, one for each object, or none.
LABELS = ('auto', 'all', 'none')

_MIN_CROWD = 20  # objects
_FILL = {'image': 0.45, 'grey': 0.6, 'black': 0.85, 'white': 0.85}  # opacity of the masks
_FILL_IN_CONTOUR = 0.6  # factor of the opacity of masks with outlines
_LABEL_COST = 50  # of a pixel of a label that a legend hides, in pixels of objects


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
    masks: bool = True,
    boxes: bool = True,
    keypoints: bool = True,
    labels: bool | str = 'auto',
    scores: bool = True,
    font: str | os.PathLike | None = None,
    ids: Sequence[int] | np.ndarray | None = None,
    traces: Sequence[np.ndarray] | None = None,
    transparent: bool = False,
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
        backdrop: One of :data:`BACKDROPS`.  With ``'splash'`` (the image in grey), ``'blur'`` (the blurred image) and
            ``'cutout'`` (nothing), the objects have their original colours: masks are not filled and objects with
            masks have no boxes.
        masks: Fill the masks; they also determine the pixels that the three backdrops above show.
        boxes: Draw the boxes.
        keypoints: Draw keypoints with a high logit; COCO's 17 keypoints are connected by bones.
        labels: One of :data:`LABELS`, for the names of the classes; ``True`` is ``'all'``, ``False`` is ``'none'``.
        scores: Write the scores after the names.
        font: TrueType or OpenType file for the labels, for scripts that DejaVu Sans does not contain (Chinese,
            Japanese, Korean, ...).
        ids: ``(R,)`` positive integers, the numbers of the instances in a video, such as those of
            :class:`mask_rcnn.inference.tracking.Tracker`.  They determine the colours, and labels contain them,
            ``person #3``, and stay at their places in consecutive frames if possible.
        traces: The ways of the instances, ``(N, 2)`` points ``(y, x)`` each, which are drawn as lines.
        transparent: Return the ``'cutout'`` with an alpha channel; otherwise it is white around the objects.

    Returns:
        A uint8 array of shape ``(H, W, 3)``, RGB, or ``(H, W, 4)``, RGBA, for a transparent cutout.

    Raises:
        ValueError: The image has another type, shape or size than ``detections.size``, the backdrop or the kind of
            labels is unknown, or there is not one id and one trace for each instance.
        OSError: ``font`` cannot be read.
    """
    kind = _label_kind(labels)
    if backdrop not in BACKDROPS:
        raise ValueError(f'backdrop must be one of {", ".join(BACKDROPS)}, not {backdrop!r}')
    pixels = _check_pixels(image, detections.size)
    order = _largest_first(detections.boxes)
    ordered = detections[order]
    ordered_ids = None if ids is None else _check_ids(ids, len(ordered))[order]
    clipped_boxes = _clip_boxes(ordered.boxes, ordered.size, ordered.dialect.boxes.offset)
    candidates = _label_candidates(ordered, clipped_boxes, kind, scores, font, ordered_ids)
    only_legend = kind == 'auto' and _suits_legend(candidates, ordered.labels)
    if only_legend:
        candidates = [[] for _ in candidates]
    colors = _choose_colors(ordered, clipped_boxes, only_legend, ordered_ids)
    is_filled = masks and backdrop in CANVASES and ordered.has_masks
    opacity = _FILL.get(backdrop, 0) * (_FILL_IN_CONTOUR if contour else 1) if is_filled else 0
    canvas = make_canvas(pixels, backdrop) if backdrop in CANVASES else None
    cover, outlines = _draw_masks(canvas, ordered, clipped_boxes, colors, opacity=opacity, contour=contour)
    canvases = [canvas] if canvas is not None else _show_objects(pixels, cover, backdrop, transparent)
    is_crowd = only_legend and len(ordered) >= _MIN_CROWD
    has_boxes = boxes and not (ordered.has_masks and (is_crowd or backdrop not in CANVASES))
    overlay = _Overlay(
        outlines=outlines,
        boxes=clipped_boxes,
        has_boxes=has_boxes,
        keypoints=ordered.keypoints if keypoints else None,
        traces=None if traces is None else _in_order(traces, order),
        labels=place_labels(candidates, clipped_boxes, cover.saliency, ordered.size, steady=ids is not None),
        colors=colors,
        font=font,
    )
    if kind == 'auto':
        overlay.add_legend(ordered.names, cover, has_colors=is_filled or contour)
    for picture in canvases:
        overlay.draw(picture)
    return make_transparent(*canvases) if len(canvases) > 1 else canvases[0]


@dataclass
class _Overlay:
    """The lines and texts over the objects of a picture, for one or more canvases.

    Args:
        outlines: The outlines of masks: curves, colour and width of the lines.
        boxes: ``(R, 4)``, within the picture.
        has_boxes: Whether the boxes are drawn.
        keypoints: ``(R, K, 4)``, or ``None``.
        traces: ``(N, 2)`` for each instance, or ``None``.
        labels: The label of each instance, or ``None`` for an instance without one.
        colors: ``(R, 3)`` uint8.
        font: See :func:`mask_rcnn.visualization.labels.load_font`.
        legend: The legend and its upper left pixel.
    """

    outlines: list[tuple[list[np.ndarray], np.ndarray, int]]
    boxes: np.ndarray
    has_boxes: bool
    keypoints: np.ndarray | None
    traces: list[np.ndarray] | None
    labels: list[PlacedLabel | None]
    colors: np.ndarray
    font: str | os.PathLike | None
    legend: tuple[Legend, tuple[int, int]] | None = None

    def add_legend(self, names: list[str], cover: Cover, *, has_colors: bool) -> None:
        """Add a legend of the classes with an object without a label.

        Args:
            names: The class name of each instance.
            cover: The pixels of the objects, to which those of the labels are added.
            has_colors: Whether the masks have the colours of the instances.
        """
        listed = {name for name, label in zip(names, self.labels, strict=True) if label is None}
        has_colors = has_colors or self.has_boxes or self.keypoints is not None or self.traces is not None
        legend = make_legend(names, self.colors if has_colors else None, listed, cover.covered.shape, self.font)
        if legend is None:
            return
        for label in self.labels:
            if label is not None:
                top, left, bottom, right = label.box
                cover.covered[top:bottom, left:right] = _LABEL_COST
        self.legend = legend, place_legend(legend, cover.covered)

    def draw(self, canvas: np.ndarray) -> None:
        """Draw everything into a canvas."""
        for curves, color, width in self.outlines:
            shapes.draw_outline(canvas, curves, color, width)
        if self.has_boxes:
            for box, color in zip(self.boxes, self.colors, strict=True):
                shapes.draw_box(canvas, box, color)
        for draw, parts in ((shapes.draw_keypoints, self.keypoints), (shapes.draw_trace, self.traces)):
            for part, color in zip(() if parts is None else parts, self.colors, strict=parts is not None):
                draw(canvas, part, color)
        _draw_labels(canvas, self.labels, self.boxes, self.colors, self.font)
        if self.legend is not None:
            draw_legend(canvas, *self.legend, self.font)


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
        shapes.draw_leader(canvas, label, box, color)
    for label, _, color in placed:
        draw_label(canvas, label, color, text_color(color), font)


def _draw_masks(
    canvas: np.ndarray | None,
    detections: DrawableDetections,
    clipped_boxes: np.ndarray,
    colors: np.ndarray,
    *,
    opacity: float,
    contour: bool,
) -> tuple[Cover, list[tuple[list[np.ndarray], np.ndarray, int]]]:
    """Fill the masks of instances in a canvas, if there is one; returns their cover and outlines."""
    cover = Cover(detections.size)
    outlines = []
    for crop, box, color in zip(_mask_crops(detections), clipped_boxes, colors, strict=True):
        cover.add(crop, box)
        if crop is None:
            continue
        if canvas is not None and opacity:
            shapes.fill_mask(canvas, crop, color, opacity)
        if contour:
            width = shapes.line_width(detections.size, box, scale=400)
            outlines.append((shapes.trace_outline(crop, width), color, width))
    return cover, outlines


def _show_objects(pixels: np.ndarray, cover: Cover, backdrop: str, transparent: bool) -> list[np.ndarray]:
    """Return the canvas of a backdrop that is not in :data:`CANVASES`, or two for a transparent cutout."""
    surroundings = [backdrop]
    if backdrop == 'cutout':
        surroundings = ['black', 'white'] if transparent else ['white']
    return [show_objects(pixels, cover.covered, name) for name in surroundings]


def _in_order(parts: Sequence[np.ndarray], order: np.ndarray) -> list[np.ndarray]:
    if len(parts) != len(order):
        raise ValueError(f'{counted(len(parts), "trace is", "traces are")} given for {counted(len(order), "instance")}')
    return [np.asarray(parts[i]) for i in order]


def _check_ids(ids: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    array = np.asarray(ids, np.int64)
    if array.shape != (count,) or (array < 1).any():
        raise ValueError(f'ids must be {counted(count, "positive integer")}, one for each instance')
    return array


def _label_kind(labels: bool | str) -> str:
    kind = {True: 'all', False: 'none'}.get(labels, labels) if isinstance(labels, bool) else labels
    if kind not in LABELS:
        raise ValueError(f'labels must be one of {", ".join(LABELS)}, not {kind!r}')
    return kind


def _label_candidates(
    detections: DrawableDetections,
    clipped_boxes: np.ndarray,
    kind: str,
    scores: bool,
    font: str | os.PathLike | None,
    ids: np.ndarray | None,
) -> list[list[tuple[float, Text]]]:
    """Return the candidates for each label; for ``'auto'`` only those that are no larger than the object's box."""
    if kind == 'none':
        return [[] for _ in range(len(detections))]
    track_ids = [None] * len(detections) if ids is None else ids.tolist()
    candidates = [
        label_candidates(name, float(score) if scores else None, detections.size, font, track_id=track_id)
        for name, score, track_id in zip(detections.names, detections.scores, track_ids, strict=True)
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


def _choose_colors(
    detections: DrawableDetections, clipped_boxes: np.ndarray, only_legend: bool, ids: np.ndarray | None
) -> np.ndarray:
    """Return the colours of instances: those of their ids, of their classes if a legend names them, or others."""
    if ids is not None:
        return track_colors(ids)
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
