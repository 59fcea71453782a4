"""From an image of a data set to the network's input: resizing, and the flip of training.

:func:`prepare_image` is the one way into the network; prediction and training both take it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.config import Config
from mask_rcnn.datasets.example import Annotations, Example, Segmentation, TrainingExample
from mask_rcnn.ops.resize import centre_and_resize

# Tells the random numbers of the flip from those of the sampling, which come from the same seed.
_FLIP_STREAM = 1


def input_scale(size: tuple[int, int], config: Config) -> float:
    """Return by what factor an image is resized.

    ``detectron/utils/blob.py`` ``get_target_size``: the shorter side becomes ``config.min_size`` unless
    the longer one would exceed ``config.max_size``.

    Args:
        size: ``(H, W)`` of the image.
        config: Gives both limits.
    """
    short, long = min(size), max(size)
    scale = config.min_size / short
    if np.round(scale * long) > config.max_size:
        scale = config.max_size / long
    return float(scale)


def prepare_image(image: np.ndarray, config: Config) -> tuple[np.ndarray, float]:
    """Make the network's input of an image.

    ``detectron/utils/blob.py`` ``prep_im_for_blob``: the mean goes before the image is resized; and
    ``im_list_to_blob``: a network with a feature pyramid gets zeros below and to the right, up to multiples
    of its coarsest stride.

    Args:
        image: ``(3, H, W)`` float32, RGB, 0 to 255.
        config: Gives the sizes and, with its dialect, the order, mean and deviation of the channels.

    Returns:
        tuple: ``(3, h, w)`` float32 array, and the scale ``h / H`` (before rounding).
    """
    dialect = config.dialect
    channels = image[::-1] if dialect.channel_order == 'BGR' else image
    scale = input_scale(image.shape[1:], config)
    x = centre_and_resize(channels, dialect.pixel_mean, scale)
    if any(std != 1 for std in dialect.pixel_std):
        x /= np.array(dialect.pixel_std, np.float32)[:, None, None]
    padding = [(0, -side % config.size_divisor) for side in x.shape[1:]]
    return np.pad(x, ((0, 0), *padding)) if np.any(padding) else x, scale


@dataclasses.dataclass(frozen=True)
class TrainingTransform:
    """From an :class:`~mask_rcnn.datasets.example.Example` and a seed to a training example.

    Args:
        config: Sizes and dialect of the network.
        flip: Mirror every second image, by chance.
    """

    config: Config
    flip: bool = True

    def __call__(self, example: Example, seed: int) -> TrainingExample:
        """Make a training example; the same arguments always give the same result.

        Args:
            example: Any image.
            seed: In ``[0, 2**32)``.
        """
        if self.flip and np.random.RandomState([seed, _FLIP_STREAM]).rand() < 0.5:
            example = flip_horizontal(example)
        x, scale = prepare_image(example.image, self.config)
        return TrainingExample(
            x=x, scale=scale, size=example.image.shape[1:], annotations=example.annotations,
            name=example.name, image_id=example.image_id, seed=seed)


def flip_horizontal(example: Example) -> Example:
    """Return the mirror image.

    Coordinates go as in Detectron's ``datasets/roidb.py`` ``extend_with_flipped_entries``:
    ``x' = W - x - 1``, for boxes and for polygons.
    """
    image = np.ascontiguousarray(example.image[:, :, ::-1])
    return dataclasses.replace(
        example, image=image, annotations=_flip_annotations(example.annotations, image.shape[2]))


def _flip_annotations(annotations: Annotations, width: int) -> Annotations:
    boxes = annotations.boxes.copy()
    boxes[:, 1] = width - annotations.boxes[:, 3] - 1
    boxes[:, 3] = width - annotations.boxes[:, 1] - 1
    segmentations = tuple(_flip_segmentation(shape, width) for shape in annotations.segmentations)
    return dataclasses.replace(annotations, boxes=boxes, segmentations=segmentations)


def _flip_segmentation(segmentation: Segmentation, width: int) -> Segmentation:
    if isinstance(segmentation, dict):
        mask = coco_mask.decode(segmentation)
        return coco_mask.encode(np.asfortranarray(mask[:, ::-1]))
    return tuple(_flip_polygon(polygon, width) for polygon in segmentation)


def _flip_polygon(polygon: np.ndarray, width: int) -> np.ndarray:
    flipped = polygon.copy()
    flipped[0::2] = width - polygon[0::2] - 1
    return flipped
