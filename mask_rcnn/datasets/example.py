"""The records that datasets return and training steps read.

An :class:`Example` is an image with its :class:`Annotations`, as stored in the dataset.
:class:`mask_rcnn.datasets.transforms.TrainingTransform` converts it into a :class:`TrainingExample`, which holds the
network input.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_transform import ImageTransform

#: The shape of one object: polygons (flat arrays ``x, y, x, y, ...``) or COCO's run lengths.
Segmentation = tuple | dict


@dataclass(frozen=True)
class Annotations:
    """The objects of one image, in pixels of the original image or, after a flip, of the flipped image.

    Args:
        boxes: ``(G, 4)`` float32, ``(y_min, x_min, y_max, x_max)``, clipped to the image.  Both corners are pixels of
            the box, as in Detectron: ``x_max = x_min + width - 1``.
        labels: ``(G,)`` int32; 0 is the first foreground class.
        crowd: ``(G,)`` bool, True for a region of several objects that are not annotated individually.
        segmentations: Shape of each object: a tuple of polygons, each a flat float array ``x, y, x, y, ...`` of at
            least three points; or run lengths in the format of pycocotools, ``{'size': [H, W], 'counts': bytes}``.
        keypoints: ``(G, K, 3)`` float32, ``(y, x, visibility)`` with COCO's visibility: 0 not labelled (``y`` and
            ``x`` are 0), 1 labelled but hidden, 2 labelled and visible.  ``None`` if the dataset has no keypoints.

    Raises:
        ValueError: The lengths of the fields differ, or a field has a wrong shape.
    """

    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    segmentations: tuple[Segmentation, ...]
    keypoints: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = len(self.segmentations)
        shapes = np.shape(self.boxes), np.shape(self.labels), np.shape(self.crowd)
        if shapes != ((count, 4), (count,), (count,)):
            raise ValueError(f'{counted(count, "segmentation")}, but boxes, labels and crowd of shapes {shapes}')
        if self.keypoints is not None:
            shape = np.shape(self.keypoints)
            if shape != (count, *shape[1:2], 3):
                raise ValueError(f'{counted(count, "segmentation")}, but keypoints of shape {shape}')

    def __len__(self) -> int:
        return len(self.segmentations)

    def select(self, mask: np.ndarray) -> Annotations:
        """Return the objects for which ``mask``, ``(G,)`` bool, is true."""
        return Annotations(
            boxes=self.boxes[mask],
            labels=self.labels[mask],
            crowd=self.crowd[mask],
            segmentations=tuple(itertools.compress(self.segmentations, mask)),
            keypoints=None if self.keypoints is None else self.keypoints[mask],
        )


@dataclass(frozen=True)
class Example:
    """One image of a dataset, before any transform.

    Args:
        image: ``(3, H, W)`` float32, RGB, 0 to 255, in its original size.
        annotations: The objects of the image.
        name: Name of the image in messages: its path, if it is a file.
        image_id: Id of the image in the dataset.
    """

    image: np.ndarray
    annotations: Annotations
    name: str
    image_id: int | str


class ExampleDataset(Protocol):
    """A dataset of examples with random access: a list, or one of Chainer's datasets."""

    def __len__(self) -> int:
        """Return the number of images."""

    def __getitem__(self, index: int, /) -> Example:
        """Return the example of image ``index``."""


@dataclass(frozen=True)
class TrainingExample:
    """One image prepared for a training step.

    Args:
        x: ``(3, h, w)`` float32, the network input; see
            :func:`mask_rcnn.preprocessing.image_transform.prepare_image`.
        image_transform: Mapping from the image to ``x``.
        annotations: The objects, in pixels of the original image, flipped if ``x`` is flipped.
        name: Name of the image in messages.
        image_id: Id of the image in the dataset.
        seed: Seed of all random choices for this example, in ``[0, 2**32)``.  The choices therefore depend neither on
            the batch nor on the process.
    """

    x: np.ndarray
    image_transform: ImageTransform
    annotations: Annotations
    name: str
    image_id: int | str
    seed: int


def group_by_size(examples: Sequence[TrainingExample]) -> list[list[TrainingExample]]:
    """Group examples by the size of their network input, keeping their order."""
    groups: dict[tuple[int, ...], list[TrainingExample]] = {}
    for example in examples:
        groups.setdefault(example.x.shape, []).append(example)
    return list(groups.values())
