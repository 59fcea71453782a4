"""What a data set hands out, and what a training step takes: three plain records.

An :class:`Example` is an image with its :class:`Annotations`, as it is in the files; a
:class:`TrainingExample` is the same made ready for the network by
:class:`mask_rcnn.datasets.transforms.TrainingTransform`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.preprocessing.image_transform import ImageTransform

#: One object's shape: polygons (flat arrays ``x, y, x, y, ...``) or COCO's run lengths.
Segmentation = tuple | dict


@dataclass(frozen=True)
class Annotations:
    """The objects of one image, in pixels of the original image (after a flip, of the flipped one).

    Args:
        boxes: ``(G, 4)`` float32, ``(y_min, x_min, y_max, x_max)``.  The corners are pixels that belong to
            the box, as Detectron has them: ``x_max = x_min + width - 1``, clipped to the image.
        labels: ``(G,)`` int32, 0 is the first foreground class.
        crowd: ``(G,)`` bool, true for a region of many objects that were not told apart.
        segmentations: One for each object: a tuple of polygons, each a flat float array
            ``x, y, x, y, ...`` of at least three points; or run lengths as pycocotools takes them,
            ``{'size': [H, W], 'counts': bytes}``.
        keypoints: ``(G, K, 3)`` float32, ``(y, x, visibility)`` as COCO has them: 0 not labelled (then ``y``
            and ``x`` are 0), 1 hidden, 2 to be seen; ``None`` where the data have no keypoints.

    Raises:
        ValueError: Shapes do not fit each other.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    segmentations: tuple[Segmentation, ...]
    keypoints: np.ndarray | None = None

    def __post_init__(self):
        count = len(self.segmentations)
        shapes = np.shape(self.boxes), np.shape(self.labels), np.shape(self.crowd)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f'{count} segmentations, but boxes, labels and crowd of the shapes {shapes}')
        shape = np.shape(self.keypoints)
        if self.keypoints is not None and shape != (count, *shape[1:2], 3):
            raise ValueError(f'{count} segmentations, but keypoints of the shape {shape}')

    def __len__(self) -> int:
        return len(self.segmentations)


@dataclass(frozen=True)
class Example:
    """One image of a data set, as it is in the files.

    Args:
        image: ``(3, H, W)`` float32, RGB, 0 to 255, original size.
        annotations: Its objects.
        name: What messages call it: its file, where it has one.
        image_id: Its number (or name) in the data set's own terms.
    """

    image: np.ndarray
    annotations: Annotations
    name: str
    image_id: int | str


@dataclass(frozen=True)
class TrainingExample:
    """One image made ready for a training step.

    Args:
        x: ``(3, h, w)`` float32: the network's input, see
            :func:`mask_rcnn.preprocessing.prepare.prepare_image`; perhaps padded.
        image_transform: Where the image lies in ``x``.
        annotations: The objects, in pixels of the original (flipped if ``x`` is).
        name: What messages call it.
        image_id: Its number (or name) in the data set's own terms.
        seed: All random choices that concern this example come from it, in ``[0, 2**32)``; so they do not
            depend on how a batch is divided or on which process works on it.
    """

    x: np.ndarray
    image_transform: ImageTransform
    annotations: Annotations
    name: str
    image_id: int | str
    seed: int
