"""From an example of a dataset to a training example: the random flip and the network's input."""

from __future__ import annotations

import dataclasses

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.config import Config
from mask_rcnn.datasets.coco_keypoints import COCO_MIRRORED_KEYPOINTS
from mask_rcnn.datasets.example import Annotations, Example, Segmentation, TrainingExample
from mask_rcnn.preprocessing.prepare import prepare_image

# Separates the random numbers of the flip from those of the sampling, which use the same seed.
_FLIP_STREAM = 1


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
        return TrainingExample(
            x=x,
            image_transform=image_transform,
            annotations=example.annotations,
            name=example.name,
            image_id=example.image_id,
            seed=seed,
        )


def flip_horizontal(example: Example) -> Example:
    """Return the mirror image.

    Coordinates go as in Detectron's ``datasets/roidb.py`` ``extend_with_flipped_entries``:
    ``x' = W - x - 1``, for boxes, polygons and COCO's keypoints, of which left and right ones change their
    places (``detectron/utils/keypoints.py`` ``flip_keypoints``).
    """
    image = np.ascontiguousarray(example.image[:, :, ::-1])
    return dataclasses.replace(example, image=image, annotations=_flip_annotations(example.annotations, image.shape[2]))


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
