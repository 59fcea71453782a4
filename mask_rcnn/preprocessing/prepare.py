"""From an image of a data set to the network's input: resizing, and the flip of training.

:func:`prepare_image` is the one way into the network; prediction and training both take it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.config import Config
from mask_rcnn.datasets.coco_keypoints import COCO_MIRRORED_KEYPOINTS
from mask_rcnn.datasets.example import Annotations, Example, Segmentation, TrainingExample
from mask_rcnn.preprocessing.image_transform import ImageTransform, rounded_sides
from mask_rcnn.preprocessing.resize import resize_uint8_skimage, subtract_mean_and_resize

# Tells the random numbers of the flip from those of the sampling, which come from the same seed.
_FLIP_STREAM = 1


def input_scale(size: tuple[int, int], config: Config) -> float:
    """Return by what factor an image is resized.

    ``detectron/utils/blob.py`` ``get_target_size``: the shorter side becomes ``config.min_size`` unless
    the longer one would exceed ``config.max_size``.  In a dialect that only enlarges (Matterport's
    ``utils.resize_image``), a larger image stays as it is, within that limit.

    Args:
        size: ``(H, W)`` of the image.
        config: Gives both limits.
    """
    short, long = min(size), max(size)
    scale = config.min_size / short
    if config.dialect.input.upscale_only:
        scale = max(scale, 1.0)
    if np.round(scale * long) > config.max_size:
        scale = config.max_size / long
    return float(scale)


def prepare_image(image: np.ndarray, config: Config) -> tuple[np.ndarray, ImageTransform]:
    """Make the network's input of an image.

    ``detectron/utils/blob.py`` ``prep_im_for_blob``: the mean goes before the image is resized; and
    ``im_list_to_blob``: a network with a feature pyramid gets zeros below and to the right, up to multiples
    of its coarsest stride.  Matterport's ``utils.resize_image`` and ``mold_image`` do it the other way round.

    Args:
        image: ``(3, H, W)`` float32, RGB, 0 to 255.
        config: Gives the sizes and, with its dialect, the order, mean and deviation of the channels.

    Returns:
        tuple: ``(3, h, w)`` float32 array, and where the image lies in it.
    """
    dialect, size = config.dialect, image.shape[1:]
    channels = image[::-1] if dialect.input.channel_order == 'BGR' else image
    scale = input_scale(size, config)
    image_transform = ImageTransform.letterbox(size, scale, config.max_size) if dialect.input.letterbox else ImageTransform.top_left(size, scale)
    if dialect.input.resize == 'opencv_float32':
        x = _pad(subtract_mean_and_resize(channels, dialect.input.pixel_mean, scale), image_transform, config)
    else:
        x = _pad(resize_uint8_skimage(channels, rounded_sides(size, scale)), image_transform, config)
        # In double precision, as NumPy subtracts Matterport's means; rounded once.
        np.subtract(x, np.array(dialect.input.pixel_mean)[:, None, None], out=x, casting='same_kind')
    if any(std != 1 for std in dialect.input.pixel_std):
        x /= np.array(dialect.input.pixel_std, np.float32)[:, None, None]
    return x, image_transform


def _pad(x: np.ndarray, image_transform: ImageTransform, config: Config) -> np.ndarray:
    """Put zeros around an image: what its transform wants, and below and to the right up to multiples."""
    top, left = (int(first) for first in image_transform.window[:2])
    height, width = (side + -side % config.size_divisor for side in image_transform.input_size)
    if (height, width) == x.shape[1:]:
        return x
    padded = np.zeros((len(x), height, width), np.float32)
    padded[:, top:top + x.shape[1], left:left + x.shape[2]] = x
    return padded


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
        x, image_transform = prepare_image(example.image, self.config)
        return TrainingExample(x=x, image_transform=image_transform, annotations=example.annotations, name=example.name,
                               image_id=example.image_id, seed=seed)


def flip_horizontal(example: Example) -> Example:
    """Return the mirror image.

    Coordinates go as in Detectron's ``datasets/roidb.py`` ``extend_with_flipped_entries``:
    ``x' = W - x - 1``, for boxes, polygons and COCO's keypoints, of which left and right ones change their
    places (``detectron/utils/keypoints.py`` ``flip_keypoints``).
    """
    image = np.ascontiguousarray(example.image[:, :, ::-1])
    return dataclasses.replace(
        example, image=image, annotations=_flip_annotations(example.annotations, image.shape[2]))


def _flip_annotations(annotations: Annotations, width: int) -> Annotations:
    boxes = annotations.boxes.copy()
    boxes[:, 1] = width - annotations.boxes[:, 3] - 1
    boxes[:, 3] = width - annotations.boxes[:, 1] - 1
    segmentations = tuple(_flip_segmentation(shape, width) for shape in annotations.segmentations)
    keypoints = None if annotations.keypoints is None else _flip_keypoints(annotations.keypoints, width)
    return dataclasses.replace(annotations, boxes=boxes, segmentations=segmentations, keypoints=keypoints)


def _flip_keypoints(keypoints: np.ndarray, width: int) -> np.ndarray:
    flipped = keypoints[:, COCO_MIRRORED_KEYPOINTS]
    flipped[:, :, 1] = np.where(flipped[:, :, 2] > 0, width - flipped[:, :, 1] - 1, 0)
    return flipped


def _flip_segmentation(segmentation: Segmentation, width: int) -> Segmentation:
    if isinstance(segmentation, dict):
        mask = coco_mask.decode(segmentation)
        return coco_mask.encode(np.asfortranarray(mask[:, ::-1]))
    return tuple(_flip_polygon(polygon, width) for polygon in segmentation)


def _flip_polygon(polygon: np.ndarray, width: int) -> np.ndarray:
    flipped = polygon.copy()
    flipped[0::2] = width - polygon[0::2] - 1
    return flipped
