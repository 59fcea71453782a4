"""Where an image lies in the network's input, and so where boxes of the one lie in the other."""

from __future__ import annotations

from dataclasses import dataclass

from chainer.backend import get_array_module


@dataclass(frozen=True)
class ImageTransform:
    """An image, resized and perhaps moved, in the network's input.

    Args:
        size: ``(H, W)`` of the image.
        scale: By what factor it was resized (before its sides were rounded).
        factors: ``(y, x)``: the network's pixels per pixel of the image, as boxes are converted.
        window: ``(y_min, x_min, y_max, x_max)``: the centres of the resized image's corner pixels in the
            network's input.
        input_size: Height and width of the network's input before its sides are padded to multiples
            (``Config.size_divisor``); within them anchors and proposals lie when the network is trained.
    """

    size: tuple[int, int]
    scale: float
    factors: tuple[float, float]
    window: tuple[float, float, float, float]
    input_size: tuple[int, int]

    def apply_boxes(self, boxes):
        """Return where boxes of the image lie in the network's input.

        Args:
            boxes: ``(R, 4)`` floats, NumPy or CuPy, in pixels of the image.

        Returns:
            ``(R, 4)`` of the same type.
        """
        scalar, moved = boxes.dtype.type, get_array_module(boxes).empty_like(boxes)
        for axis, (factor, first) in enumerate(zip(self.factors, self.window)):
            moved[:, axis::2] = boxes[:, axis::2] * scalar(factor) + scalar(first)
        return moved

    def invert_boxes(self, boxes, *, reciprocal: bool = False):
        """Return where boxes of the network's input lie in the image: the inverse of :meth:`apply_boxes`.

        Args:
            boxes: ``(R, 4)`` floats, NumPy or CuPy, in pixels of the network's input.
            reciprocal: Multiply by the reciprocals of the factors, as Detectron does where it trains
                (``roi_data/fast_rcnn.py``), instead of dividing by them, as it does where it detects
                (``core/test.py``): the two round differently.

        Returns:
            ``(R, 4)`` of the same type.
        """
        scalar, moved = boxes.dtype.type, get_array_module(boxes).empty_like(boxes)
        for axis, (factor, first) in enumerate(zip(self.factors, self.window)):
            from_first, factor = boxes[:, axis::2] - scalar(first), scalar(factor)
            moved[:, axis::2] = from_first * scalar(1 / float(factor)) if reciprocal else from_first / factor
        return moved

    @classmethod
    def top_left(cls, size: tuple[int, int], scale: float) -> ImageTransform:
        """Return the transform of an image that is resized from its upper left corner on (Detectron).

        Args:
            size: ``(H, W)`` of the image.
            scale: By what factor it is resized; its sides are rounded to whole pixels.
        """
        height, width = rounded_sides(size, scale)
        return cls(
            size=tuple(size),
            scale=scale,
            factors=(scale, scale),
            window=(0.0, 0.0, height - 1.0, width - 1.0),
            input_size=(height, width),
        )

    @classmethod
    def letterbox(cls, size: tuple[int, int], scale: float, side: int) -> ImageTransform:
        """Return the transform of an image that is resized and put into the middle of a square (Matterport).

        The centres of its corner pixels go to those of the resized image (``model.py``, ``unmold_detections``).

        Args:
            size: ``(H, W)`` of the image.
            scale: By what factor it is resized; its sides are rounded to whole pixels.
            side: Of the square, at least that of the resized image.
        """
        sides = rounded_sides(size, scale)
        low = [(side - own) // 2 for own in sides]
        high = [first + own - 1 for first, own in zip(low, sides)]
        # An image of one pixel's height has no distance to measure.
        factors = tuple(max(new - 1, 1) / max(old - 1, 1) for new, old in zip(sides, size))
        return cls(
            size=tuple(size),
            scale=scale,
            factors=factors,
            window=tuple(map(float, (*low, *high))),
            input_size=(side, side),
        )


def rounded_sides(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the sides of a resized image in whole pixels: halves go to even, nothing below 1."""
    height, width = (max(round(side * scale), 1) for side in size)
    return height, width
