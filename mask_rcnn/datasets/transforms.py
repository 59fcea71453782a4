"""The conversion of dataset examples into training examples: choice of objects, augmentation and network input."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from mask_rcnn.config import Config, TrainingConventions
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.coco_keypoints import COCO_MIRRORED_KEYPOINTS
from mask_rcnn.datasets.example import Annotations, Example, Segmentation, TrainingExample
from mask_rcnn.datasets.geometry import Symmetry, transform_segmentation
from mask_rcnn.ops.masks.rle import encode_polygons
from mask_rcnn.preprocessing.image_transform import input_scale, prepare_image

# Second word of the flip's seed; equal to ``training.train_chain._SAMPLING_STREAM``, see there.
_FLIP_STREAM = 1


@dataclasses.dataclass(frozen=True)
class TrainingTransform:
    """The conversion of an :class:`~mask_rcnn.datasets.example.Example` into a training example.

    Args:
        config: Sizes and dialect of the network; ``dialect.training`` selects the objects (:func:`select_objects`).
        augmentation: The random changes of images and objects.
    """

    config: Config
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)

    def __call__(self, example: Example, seed: int) -> TrainingExample:
        """Convert an example; the result depends on the arguments only.

        Args:
            example: An image with its annotations.
            seed: Seed of all random choices for the example, in ``[0, 2**32)``.
        """
        conventions = self.config.dialect.training
        example = dataclasses.replace(example, annotations=select_objects(example.annotations, conventions))
        if conventions.mask_targets in ('bitmap', 'roi_align'):
            # A flipped polygon is rasterised one pixel beside the flipped bitmap.
            example = rasterize(example)
        size, factor = example.image.shape[1:], self.augmentation.draw_scale(seed)
        scale = input_scale(size, self.config) * factor
        changed = self.augmentation.change_pixels_and_geometry(example, scale, seed)
        if changed.annotations is not example.annotations:  # a crop may cut objects
            changed = dataclasses.replace(changed, annotations=select_objects(changed.annotations, conventions))
        example = changed
        if self.augmentation.flip and np.random.RandomState([seed, _FLIP_STREAM]).rand() < 0.5:
            example = flip_horizontal(example, polygon_offset=0 if conventions.exclusive_corners else 1)
        if self.augmentation.color_jitter and self.config.dialect.input.resize == 'pillow_uint8':
            example = dataclasses.replace(example, image=np.rint(example.image))  # Pillow resizes bytes only
        # Without a factor, the sizes are exactly those of inference; a quarter turn exchanges them.
        is_whole = factor == 1 and example.image.shape[1:] in (size, size[::-1])
        x, image_transform = prepare_image(example.image, self.config, scale=None if is_whole else scale)
        return TrainingExample(
            x=x,
            image_transform=image_transform,
            annotations=in_coordinates(example.annotations, conventions),
            name=example.name,
            image_id=example.image_id,
            seed=seed,
        )


def select_objects(annotations: Annotations, conventions: TrainingConventions) -> Annotations:
    """Drop the objects that are not used for training.

    Args:
        annotations: The objects of an image, in pixels of the original image.
        conventions: Provides ``use_crowds`` and ``min_object_size``.

    Returns:
        Annotations: The other objects in their order; there may be none.
    """
    # Both corners are pixels of the box, in every dialect; see `Annotations`.
    sides = annotations.boxes[:, 2:] - annotations.boxes[:, :2] + 1
    used = (sides > conventions.min_object_size).all(axis=1)
    if not conventions.use_crowds:
        used &= ~annotations.crowd
    return annotations if used.all() else annotations.select(used)


def in_coordinates(annotations: Annotations, conventions: TrainingConventions) -> Annotations:
    """Return objects whose boxes and keypoints have the coordinates of a dialect.

    Args:
        annotations: Objects in pixels, as :class:`~mask_rcnn.datasets.example.Annotations` describes them.
        conventions: Provides ``exclusive_corners`` and ``keypoint_shift``.
    """
    changes: dict[str, Any] = {}
    if conventions.exclusive_corners:
        changes['boxes'] = annotations.boxes + np.array([0, 0, 1, 1], np.float32)
    if conventions.keypoint_shift and annotations.keypoints is not None:
        is_labelled = annotations.keypoints[:, :, 2:] > 0
        shift = np.array([conventions.keypoint_shift, conventions.keypoint_shift, 0], np.float32)
        changes['keypoints'] = annotations.keypoints + shift * is_labelled
    return dataclasses.replace(annotations, **changes) if changes else annotations


def rasterize(example: Example) -> Example:
    """Replace the polygons of an example by run lengths of the image's size."""
    size = example.image.shape[1], example.image.shape[2]
    segmentations = tuple(
        encode_polygons(segmentation, size) if segmentation and isinstance(segmentation, tuple) else segmentation
        for segmentation in example.annotations.segmentations
    )
    annotations = dataclasses.replace(example.annotations, segmentations=segmentations)
    return dataclasses.replace(example, annotations=annotations)


def flip_horizontal(example: Example, *, polygon_offset: int = 1) -> Example:
    """Flip an example horizontally.

    Boxes, polygons and keypoints are flipped by Detectron's formula ``x' = W - x - 1`` (``datasets/roidb.py``,
    ``extend_with_flipped_entries``).  Left and right keypoints are exchanged (``detectron/utils/keypoints.py``,
    ``flip_keypoints``).

    Args:
        example: The example.
        polygon_offset: 1 for that formula; 0 to flip polygons by ``x' = W - x``, to the outline of the flipped shape
            (detectron2).
    """
    image = np.ascontiguousarray(example.image[:, :, ::-1])
    annotations = _flip_annotations(example.annotations, image.shape[2], polygon_offset)
    return dataclasses.replace(example, image=image, annotations=annotations)


def _flip_annotations(annotations: Annotations, width: int, polygon_offset: int) -> Annotations:
    boxes = annotations.boxes.copy()
    boxes[:, 1] = width - annotations.boxes[:, 3] - 1
    boxes[:, 3] = width - annotations.boxes[:, 1] - 1
    segmentations = tuple(
        _flip_segmentation(segmentation, width, polygon_offset) for segmentation in annotations.segmentations
    )
    keypoints = None if annotations.keypoints is None else _flip_keypoints(annotations.keypoints, width)
    return dataclasses.replace(annotations, boxes=boxes, segmentations=segmentations, keypoints=keypoints)


def _flip_keypoints(keypoints: np.ndarray, width: int) -> np.ndarray:
    flipped = keypoints[:, COCO_MIRRORED_KEYPOINTS]
    flipped[:, :, 1] = np.where(flipped[:, :, 2] > 0, width - flipped[:, :, 1] - 1, 0)
    return flipped


def _flip_segmentation(segmentation: Segmentation, width: int, polygon_offset: int) -> Segmentation:
    if isinstance(segmentation, dict):
        return transform_segmentation(segmentation, Symmetry(flip_x=True), (segmentation['size'][0], width))
    return tuple(_flip_polygon(polygon, width - polygon_offset) for polygon in segmentation)


def _flip_polygon(polygon: np.ndarray, end: int) -> np.ndarray:
    flipped = polygon.copy()
    flipped[0::2] = end - polygon[0::2]
    return flipped
