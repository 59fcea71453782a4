"""Compact storage of a dataset's annotations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Sized
from dataclasses import dataclass

import numpy as np

from mask_rcnn.datasets.coco_annotations import COCOObject
from mask_rcnn.datasets.example import Annotations, Segmentation


@dataclass(frozen=True)
class PackedAnnotations:
    """The objects of all images in flat arrays.

    An image is a range of objects, an object a range of polygons, and a polygon a range of coordinates.  Element ``i``
    of one level consists of the elements ``start[i]:start[i + 1]`` of the next level.  Python lists of a million
    polygons would take gigabytes of memory, and minutes to send to worker processes.

    Args:
        object_start: ``(N + 1,)`` int64, the first object of each image.
        boxes: ``(M, 4)`` float32.
        labels: ``(M,)`` int32.
        crowd: ``(M,)`` bool.
        polygon_start: ``(M + 1,)`` int64, the first polygon of each object.
        coordinate_start: ``(P + 1,)`` int64, the first coordinate of each polygon.
        coordinates: All coordinates, float64.
        run_lengths: Object index -> run lengths, for the objects without polygons.
        keypoints: ``(M, 17, 3)`` float32, or ``(M, 0, 3)`` if the dataset has no keypoints.
    """

    object_start: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    polygon_start: np.ndarray
    coordinate_start: np.ndarray
    coordinates: np.ndarray
    run_lengths: dict[int, dict]
    keypoints: np.ndarray

    @classmethod
    def pack(cls, images: Sequence[Sequence[COCOObject]], *, n_keypoints: int) -> PackedAnnotations:
        """Pack the objects of each image, which have ``n_keypoints`` keypoints; there may be no objects."""
        objects = [obj for image_objects in images for obj in image_objects]
        segmentations = [obj.segmentation for obj in objects]
        object_polygons = [() if isinstance(shape, dict) else shape for shape in segmentations]
        polygons = [polygon for shape in object_polygons for polygon in shape]
        return cls(
            object_start=_starts(images),
            boxes=np.array([obj.box for obj in objects], np.float32).reshape(-1, 4),
            labels=np.array([obj.label for obj in objects], np.int32),
            crowd=np.array([obj.crowd for obj in objects], bool),
            polygon_start=_starts(object_polygons),
            coordinate_start=_starts(polygons),
            coordinates=np.concatenate(polygons) if polygons else np.zeros(0),
            run_lengths={i: shape for i, shape in enumerate(segmentations) if isinstance(shape, dict)},
            keypoints=np.array([obj.keypoints for obj in objects], np.float32).reshape(len(objects), n_keypoints, 3),
        )

    def get_annotations(self, i: int) -> Annotations:
        """Return copies of the annotations of image ``i``."""
        objects = slice(*self.object_start[i : i + 2])
        return Annotations(
            boxes=self.boxes[objects].copy(),
            labels=self.labels[objects].copy(),
            crowd=self.crowd[objects].copy(),
            segmentations=tuple(map(self._segmentation, range(objects.start, objects.stop))),
            keypoints=self.keypoints[objects].copy() if self.keypoints.shape[1] else None,
        )

    def _segmentation(self, i: int) -> Segmentation:
        if i in self.run_lengths:
            return dict(self.run_lengths[i])
        starts = self.coordinate_start[self.polygon_start[i] : self.polygon_start[i + 1] + 1]
        return tuple(self.coordinates[start:stop].copy() for start, stop in itertools.pairwise(starts))


def _starts(parts: Sequence[Sized]) -> np.ndarray:
    return np.cumsum([0, *map(len, parts)], dtype=np.int64)
