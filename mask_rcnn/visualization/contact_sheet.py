"""Contact sheets: small pictures of annotated images in a grid, with captions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from mask_rcnn.config import DETECTRON, Dialect
from mask_rcnn.datasets.example import Annotations, Segmentation
from mask_rcnn.ops.masks.rle import decode_rle, encode_polygons
from mask_rcnn.visualization.drawing import draw_detections
from mask_rcnn.visualization.labels import load_font
from mask_rcnn.visualization.pictures import resize_mask, resize_picture

_GAP, _FONT_SIZE = 12, 13  # pixels
_BACKGROUND, _INK, _DETAIL_INK = (255, 255, 255), (20, 20, 20), (110, 110, 110)
#: With more objects, boxes would hide the image.
_MAX_BOXES = 40
#: Images are upscaled by at most this factor.
_MAX_UPSCALE = 2.0


@dataclass(eq=False)
class AnnotatedObjects:
    """The objects of an image as :func:`mask_rcnn.visualization.draw_detections` expects them.

    Args:
        size: Height and width of the picture.
        boxes: ``(R, 4)`` float32, ``(y_min, x_min, y_max, x_max)``.
        masks: ``(R, height, width)`` bool.
        labels: ``(R,)`` int32, the class of each object.
        all_names: Name of each object.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    masks: np.ndarray
    labels: np.ndarray
    all_names: np.ndarray
    keypoints: np.ndarray | None = None
    dialect: Dialect = DETECTRON

    def __post_init__(self) -> None:
        self.scores = np.ones(len(self.boxes), np.float32)

    @property
    def names(self) -> list[str]:
        """The name of each object."""
        return self.all_names.tolist()

    @property
    def has_masks(self) -> bool:
        """Always true; the mask of an object without an outline is empty."""
        return True

    def iter_masks(self) -> Iterator[np.ndarray]:
        """Yield the masks."""
        yield from self.masks

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: np.ndarray) -> AnnotatedObjects:
        return AnnotatedObjects(
            self.size, self.boxes[index], self.masks[index], self.labels[index], self.all_names[index]
        )


@dataclass(frozen=True, eq=False)
class Tile:
    """One picture of a contact sheet.

    Args:
        picture: ``(h, w, 3)`` uint8, RGB.
        title: First line of the caption.
        details: Second line of the caption.
    """

    picture: np.ndarray
    title: str
    details: str


def draw_tile_picture(
    image: np.ndarray, annotations: Annotations, class_names: Sequence[str], *, side: int
) -> np.ndarray:
    """Draw the objects of an image on a small picture.

    The image is resized first, so that lines and letters have the same sizes on all pictures.  Class names are written
    if there are several classes.

    Args:
        image: ``(H, W, 3)`` uint8, RGB.
        annotations: Its objects.
        class_names: Name of each label.
        side: The longer side of the picture in pixels.

    Returns:
        ``(h, w, 3)`` uint8, RGB.
    """
    full_size = image.shape[0], image.shape[1]
    scale = min(side / max(full_size), _MAX_UPSCALE)
    size = max(round(full_size[0] * scale), 1), max(round(full_size[1] * scale), 1)
    resized = resize_picture(image, size)
    boxes = annotations.boxes * np.float32(scale)
    names = [
        class_names[label] + ' (crowd)' * bool(crowd)
        for label, crowd in zip(annotations.labels, annotations.crowd, strict=True)
    ]
    resized_masks = [_resize_mask(segmentation, full_size, size) for segmentation in annotations.segmentations]
    masks = np.array(resized_masks, bool).reshape(-1, *size)
    objects = AnnotatedObjects(size, boxes, masks, annotations.labels, np.array(names, object))
    return draw_detections(
        resized,
        objects,
        contour=True,
        boxes=len(objects) <= _MAX_BOXES,
        labels='auto' if len(class_names) > 1 or annotations.crowd.any() else 'none',
        scores=False,
    )


def compose_sheet(tiles: Sequence[Tile], *, columns: int, side: int) -> np.ndarray:
    """Arrange pictures in rows, with their captions below them.

    Args:
        tiles: One or more pictures, at most ``side`` pixels wide and high.
        columns: Number of pictures in a row.
        side: Width of a column in pixels.

    Returns:
        ``(H, W, 3)`` uint8, RGB.
    """
    columns = min(columns, len(tiles))
    font = load_font(None, _FONT_SIZE)
    line_height = sum(font.getmetrics())
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.picture.shape[0] for tile in row) for row in rows]
    height = sum(heights) + len(rows) * (2 * line_height + 2 * _GAP) + _GAP
    sheet = Image.new('RGB', (columns * (side + _GAP) + _GAP, height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, row_height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = _GAP + column * (side + _GAP)
            picture_height, picture_width = tile.picture.shape[:2]
            corner = left + (side - picture_width) // 2, top + row_height - picture_height
            sheet.paste(Image.fromarray(tile.picture), corner)
            for line, text, ink in ((0, tile.title, _INK), (1, tile.details, _DETAIL_INK)):
                shortened = _shorten(text, side, font)
                x = left + (side - font.getlength(shortened)) / 2
                draw.text((x, top + row_height + _GAP // 3 + line * line_height), shortened, fill=ink, font=font)
        top += row_height + 2 * line_height + 2 * _GAP
    return np.asarray(sheet)


def _resize_mask(segmentation: Segmentation, full_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return the mask of an outline in the small picture, ``size`` bool."""
    if not segmentation:
        return np.zeros(size, bool)
    if isinstance(segmentation, tuple):  # polygons lose less if they are scaled than if their pixels are
        scale = np.array([size[1] / full_size[1], size[0] / full_size[0]])
        rle = encode_polygons(tuple((p.reshape(-1, 2) * scale).ravel() for p in segmentation), size)
        return decode_rle(rle).astype(bool)
    return resize_mask(decode_rle(segmentation), size)


def _shorten(text: str, width: int, font: object) -> str:
    """Return a line of at most ``width`` pixels, with an ellipsis in its middle if it was longer."""
    text = ' '.join(text.split())
    shortened = text
    n_characters = len(text)
    while font.getlength(shortened) > width and n_characters > 2:  # type: ignore[attr-defined]
        n_characters -= 1
        shortened = text[: (n_characters + 1) // 2] + '…' + text[len(text) - n_characters // 2 :]
    return shortened
