"""Statistics of a dataset: the objects per class and per image, and the sizes of images and objects."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.config import Config
from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.preprocessing.image_transform import input_scale

#: Limits of the bins of object sizes in pixels; the last bin is open.
SIZE_LIMITS = (0, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, eq=False)
class Statistics:
    """The sizes and numbers of a dataset's images and objects.

    Crowds are not among the objects: they are not trained.

    Args:
        class_names: Name of each label.
        image_sizes: ``(N, 2)`` int64, height and width in pixels.
        labels: ``(M,)`` int32, label of each object.
        image_of: ``(M,)`` int64, index of each object's image.
        box_sizes: ``(M, 2)`` float64, height and width of each object's box in pixels of the original image.
        n_crowds: Number of crowds.
        n_without_objects: Number of images that are left out because they have no object for training.

    Raises:
        ValueError: The dataset has no image or no object.
    """

    class_names: tuple[str, ...]
    image_sizes: np.ndarray
    labels: np.ndarray
    image_of: np.ndarray
    box_sizes: np.ndarray
    n_crowds: int = 0
    n_without_objects: int = 0

    def __post_init__(self) -> None:
        if not len(self.image_sizes) or not len(self.labels):
            raise ValueError('statistics need at least one image and one object')

    @property
    def object_sizes(self) -> np.ndarray:
        """``(M,)`` float64, the square root of each box's area in pixels of the original image."""
        return np.sqrt(self.box_sizes.prod(axis=1))

    @property
    def relative_sizes(self) -> np.ndarray:
        """``(M,)`` float64, object sizes divided by the shorter side of the object's image."""
        return self.object_sizes / self.image_sizes.min(axis=1)[self.image_of]

    @property
    def objects_per_image(self) -> np.ndarray:
        """``(N,)`` int64, number of objects of each image."""
        return np.bincount(self.image_of, minlength=len(self.image_sizes))

    def input_scales(self, config: Config) -> np.ndarray:
        """Return ``(N,)`` float64, the factor by which each image is resized for a network."""
        keys = self.image_sizes[:, 0] << 32 | self.image_sizes[:, 1]  # many times faster than np.unique of pairs
        sizes, index = np.unique(keys, return_inverse=True)
        scales = np.array([input_scale((key >> 32, key & 0xFFFFFFFF), config) for key in sizes.tolist()])
        return scales[index]

    def input_object_sizes(self, config: Config) -> np.ndarray:
        """Return ``(M,)`` float64, the object sizes in pixels of the network input."""
        return self.object_sizes * self.input_scales(config)[self.image_of]


@dataclass(frozen=True)
class ClassStatistics:
    """The objects of one class.

    Args:
        name: Name of the class.
        n_objects: Number of objects.
        n_images: Number of images with an object of the class.
        per_image: Minimum, median, mean and maximum number of objects in these images; ``None`` without objects.
        sizes: 10th, 50th and 90th percentile of the object sizes in pixels; ``None`` without objects.
    """

    name: str
    n_objects: int
    n_images: int
    per_image: tuple[float, float, float, float] | None
    sizes: tuple[float, float, float] | None


def collect_statistics(dataset: COCODataset) -> Statistics:
    """Collect the statistics of a dataset.

    Args:
        dataset: A dataset that was opened with ``only_annotated=True``: each of its images has an object.
    """
    annotations = [dataset.get_annotations(i) for i in range(len(dataset))]
    crowd, boxes, labels = (
        np.concatenate([getattr(a, name) for a in annotations]) for name in ('crowd', 'boxes', 'labels')
    )
    boxes, labels = boxes[~crowd], labels[~crowd]
    image_of = np.repeat(np.arange(len(dataset)), [len(a) for a in annotations])[~crowd]
    return Statistics(
        class_names=dataset.class_names,
        image_sizes=np.array([dataset.image_size(i) for i in range(len(dataset))], np.int64),
        labels=labels,
        image_of=image_of,
        box_sizes=boxes[:, 2:].astype(np.float64) - boxes[:, :2] + 1,  # both corners are pixels of the box
        n_crowds=int(crowd.sum()),
        n_without_objects=dataset.n_without_objects,
    )


def summarize_classes(statistics: Statistics) -> list[ClassStatistics]:
    """Return the statistics of each class in the order of the labels."""
    sizes = statistics.object_sizes
    summaries = []
    for label, name in enumerate(statistics.class_names):
        is_member = statistics.labels == label
        counts = np.unique(statistics.image_of[is_member], return_counts=True)[1]
        has_objects = bool(len(counts))
        summaries.append(
            ClassStatistics(
                name,
                int(is_member.sum()),
                len(counts),
                summarize_counts(counts) if has_objects else None,
                summarize_sizes(sizes[is_member]) if has_objects else None,
            )
        )
    return summaries


def summarize_counts(counts: np.ndarray) -> tuple[float, float, float, float]:
    """Return the minimum, median, mean and maximum of one or more numbers."""
    return float(counts.min()), float(np.median(counts)), float(counts.mean()), float(counts.max())


def summarize_sizes(sizes: np.ndarray) -> tuple[float, float, float]:
    """Return the 10th, 50th and 90th percentile of one or more sizes."""
    low, middle, high = np.percentile(sizes, (10, 50, 90)).tolist()
    return low, middle, high


def size_histogram(sizes: np.ndarray) -> list[int]:
    """Return the number of sizes in each bin of :data:`SIZE_LIMITS`; a size equal to a limit is in the upper bin."""
    return np.histogram(sizes, (*SIZE_LIMITS, np.inf))[0].tolist()


def common_image_sizes(statistics: Statistics, n: int) -> list[tuple[tuple[int, int], int]]:
    """Return the ``n`` most frequent heights and widths with their numbers of images."""
    counts: Counter[Any] = Counter(map(tuple, statistics.image_sizes.tolist()))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:n]
