"""Detections and objects of an evaluation in flat arrays, with the matches that COCO's metrics are based on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask_rcnn.evaluation.coco import KindEvaluation
from mask_rcnn.evaluation.metrics import KEYPOINTS

#: Index of COCO's size range that contains all objects.
_ALL_SIZES = 0


@dataclass(frozen=True, eq=False)
class Matches:
    """The ``D`` detections and ``G`` objects of the ``N`` evaluated images.

    Both are sorted by image and by class; the detections of an image and a class are in descending order of score.
    Detections beyond the number of an image and class that counts are absent, as are objects of classes that are not
    evaluated.

    Args:
        n_classes: Number of classes.
        image_ids: ``N`` ids of images in the ground truth.
        thresholds: ``(T,)``, the IoU thresholds 0.5, 0.55, ... 0.95; OKS thresholds for keypoints.
        detection_ids: ``(D,)`` integers, the ids in ``COCOeval.cocoDt``.
        detection_images: ``(D,)`` integers, indices in ``image_ids``.
        detection_labels: ``(D,)`` integers.
        scores: ``(D,)`` float64.
        matched_object: ``(D,)`` integers, the object that a detection matches with IoU >= 0.5, or -1.
        is_ignored: ``(D,)`` bool, whether a detection lies on a crowd of its class (at IoU 0.5) and does not count.
        object_ids: ``(G,)`` integers, the ids in ``COCOeval.cocoGt``.
        object_images: ``(G,)`` integers, indices in ``image_ids``.
        object_labels: ``(G,)`` integers.
        object_areas: ``(G,)`` float64, square pixels, as the ground truth states them.
        is_crowd: ``(G,)`` bool, whether an object does not count: a crowd or, in an evaluation of keypoints, an object
            without keypoints.
        is_matched: ``(T, G)`` bool, whether a detection matches an object, at each threshold.
        overlaps: For each image, the IoU of each of its detections with each of its objects, float64; 0 for crowds.
            Empty for keypoints.
    """

    n_classes: int
    image_ids: tuple[int | str, ...]
    thresholds: np.ndarray
    detection_ids: np.ndarray
    detection_images: np.ndarray
    detection_labels: np.ndarray
    scores: np.ndarray
    matched_object: np.ndarray
    is_ignored: np.ndarray
    object_ids: np.ndarray
    object_images: np.ndarray
    object_labels: np.ndarray
    object_areas: np.ndarray
    is_crowd: np.ndarray
    is_matched: np.ndarray
    overlaps: tuple[np.ndarray, ...]

    @property
    def is_true_positive(self) -> np.ndarray:
        """``(D,)`` bool, whether a detection matches an object that counts, with IoU >= 0.5."""
        return (self.matched_object >= 0) & ~self.is_ignored

    @property
    def is_lost(self) -> np.ndarray:
        """``(G,)`` bool, whether an object counts and no detection matches it with IoU >= 0.5."""
        return ~(self.is_crowd | self.is_matched[0])

    @property
    def objects_per_class(self) -> np.ndarray:
        """``(n_classes,)`` integers, the number of objects that count."""
        return np.bincount(self.object_labels[~self.is_crowd], minlength=self.n_classes)

    def iter_images(self) -> Iterator[tuple[slice, slice]]:
        """Yield the detections and the objects of each image as slices."""
        limits = np.arange(len(self.image_ids) + 1)
        detections = np.searchsorted(self.detection_images, limits).tolist()
        objects = np.searchsorted(self.object_images, limits).tolist()
        for first, second in zip(itertools.pairwise(detections), itertools.pairwise(objects), strict=True):
            yield slice(*first), slice(*second)


def collect_matches(evaluation: KindEvaluation) -> Matches:
    """Return the matches of a finished evaluation."""
    coco_eval = evaluation.coco_eval
    entries = list(_iter_entries(evaluation))
    detection_ids = _concatenate([entry['dtIds'] for _, _, entry in entries], np.int64)
    object_ids = _concatenate([entry['gtIds'] for _, _, entry in entries], np.int64)
    n_thresholds = len(coco_eval.params.iouThrs)
    matched = [np.zeros((n_thresholds, 0)), *(entry['gtMatches'] for _, _, entry in entries)]
    matched_ids = _concatenate([entry['dtMatches'][0] for _, _, entry in entries], np.int64)
    index_of = {0: -1, **{object_id: i for i, object_id in enumerate(object_ids.tolist())}}  # 0: no match
    detection_counts = [len(entry['dtIds']) for _, _, entry in entries]
    object_counts = [len(entry['gtIds']) for _, _, entry in entries]
    images = np.array([image for image, _, _ in entries], np.intp)
    labels = np.array([label for _, label, _ in entries], np.intp)
    is_crowd = _concatenate([entry['gtIgnore'] for _, _, entry in entries], bool)
    detection_images, object_images = (np.repeat(images, counts) for counts in (detection_counts, object_counts))
    return Matches(
        n_classes=len(evaluation.class_indices),
        image_ids=evaluation.image_ids,
        thresholds=coco_eval.params.iouThrs,
        detection_ids=detection_ids,
        detection_images=detection_images,
        detection_labels=np.repeat(labels, detection_counts),
        scores=_concatenate([entry['dtScores'] for _, _, entry in entries], np.float64),
        matched_object=np.array([index_of[i] for i in matched_ids.tolist()], np.intp),
        is_ignored=_concatenate([entry['dtIgnore'][0] for _, _, entry in entries], bool),
        object_ids=object_ids,
        object_images=object_images,
        object_labels=np.repeat(labels, object_counts),
        object_areas=np.array([coco_eval.cocoGt.anns[i]['area'] for i in object_ids.tolist()], np.float64),
        is_crowd=is_crowd,
        is_matched=np.concatenate(matched, axis=1) > 0,
        overlaps=tuple(
            _iter_overlaps(evaluation, (detection_ids, detection_images), (object_ids, object_images), is_crowd)
        ),
    )


def _iter_entries(evaluation: KindEvaluation) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield image, label and matches of each image and class with detections or objects."""
    params, entries = evaluation.coco_eval.params, evaluation.coco_eval.evalImgs  # classes x size ranges x images
    n_images, n_sizes = len(params.imgIds), len(params.areaRng)
    for image in range(n_images):
        for label, k in enumerate(evaluation.class_indices):
            entry = entries[(k * n_sizes + _ALL_SIZES) * n_images + image]
            if entry is not None:
                yield image, label, entry


def _iter_overlaps(
    evaluation: KindEvaluation,
    detections: tuple[np.ndarray, np.ndarray],
    objects: tuple[np.ndarray, np.ndarray],
    is_crowd: np.ndarray,
) -> Iterator[np.ndarray]:
    """Yield the IoU between all detections and objects of each image, of all classes."""
    if evaluation.kind == KEYPOINTS:
        return
    key = evaluation.kind.key
    limits = np.arange(len(evaluation.image_ids) + 1)
    bounds = zip(
        *(itertools.pairwise(np.searchsorted(images, limits).tolist()) for _, images in (detections, objects)),
        strict=True,
    )
    detected, truth = evaluation.coco_eval.cocoDt.anns, evaluation.coco_eval.cocoGt.anns
    for (start, stop), (first, last) in bounds:
        shapes = [detected[i][key] for i in detections[0][start:stop].tolist()]
        true_shapes = [truth[i][key] for i in objects[0][first:last].tolist()]
        if not (shapes and true_shapes):
            yield np.zeros((len(shapes), len(true_shapes)))
            continue
        overlaps = coco_mask.iou(shapes, true_shapes, [0] * len(true_shapes))
        yield np.where(is_crowd[first:last], 0, overlaps)


def _concatenate(parts: list, dtype: type) -> np.ndarray:
    """Return the concatenation of lists and arrays, also of none."""
    return np.concatenate([np.zeros(0, dtype), *(np.asarray(part, dtype) for part in parts)])
