"""The confusion matrix of the classes, with the background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.analysis.matches import Matches
from mask_rcnn.evaluation.analysis.outcomes import FOREGROUND_IOU


@dataclass(frozen=True)
class Confusion:
    """Objects of one class that are detected as another class.

    Args:
        label: The class of the objects.
        predicted: The class of the detections.
        count: Number of objects.
        fraction: Fraction of all objects of the class.
    """

    label: int
    predicted: int
    count: int
    fraction: float


@dataclass(frozen=True, eq=False)
class ConfusionMatrix:
    """Objects and detections by their classes.

    Args:
        counts: ``(n_classes + 1, n_classes + 1)`` integers: the objects of each class (row) by the class of the
            detection that matches them (column).  The last column contains objects that are not detected, the last row
            detections without an object.
        score_threshold: Detections with a higher score count.
    """

    counts: np.ndarray
    score_threshold: float

    def confusions(self, limit: int) -> list[Confusion]:
        """Return the pairs of different classes with the most confusions, in descending order."""
        pairs = self._confused_pairs()
        order = np.argsort(-pairs, axis=None, kind='stable')[:limit]
        n_objects = self.counts.sum(axis=1)
        return [
            Confusion(label, predicted, int(pairs[label, predicted]), float(pairs[label, predicted] / n_objects[label]))
            for label, predicted in np.stack(np.unravel_index(order, pairs.shape), axis=1).tolist()
            if pairs[label, predicted]
        ]

    def reduce(self, limit: int) -> tuple[list[int], np.ndarray]:
        """Return the part of the matrix with the most confused classes.

        Args:
            limit: Maximum number of classes.

        Returns:
            tuple: The labels, ascending, and their matrix.  If classes are left out, their sum has a row and a column
            before those of the background.
        """
        n_classes = len(self.counts) - 1
        if n_classes <= limit:
            return list(range(n_classes)), self.counts
        pairs = self._confused_pairs()
        # Classes without confusions follow by their number of errors.
        errors = self.counts.sum(axis=1)[:-1] + self.counts.sum(axis=0)[:-1] - 2 * self.counts.diagonal()[:-1]
        order = np.lexsort((-errors, -(pairs.sum(axis=0) + pairs.sum(axis=1))))
        labels = sorted(order[:limit].tolist())
        group = np.full(n_classes + 1, limit)
        group[labels] = np.arange(limit)
        group[-1] = limit + 1
        reduced = np.zeros((limit + 2, limit + 2), self.counts.dtype)
        np.add.at(reduced, (group[:, None], group[None]), self.counts)
        return labels, reduced

    def _confused_pairs(self) -> np.ndarray:
        """Return the counts ``(n_classes, n_classes)`` of different classes; the diagonal is 0."""
        pairs = self.counts[:-1, :-1].copy()
        np.fill_diagonal(pairs, 0)
        return pairs


def measure_confusion(matches: Matches, score_threshold: float = 0.5) -> ConfusionMatrix:
    """Return the confusion matrix of the detections with a score above a threshold.

    Detections are first matched with objects of their own class, as in COCO's evaluation at IoU 0.5.  The others are
    then matched, in descending order of score, each with the remaining object of another class with the highest IoU,
    which must be at least 0.5.  Detections that remain have no object: background, duplicates, bad locations.  Crowds
    and detections that lie on a crowd of their class do not count.

    Args:
        matches: The matches of boxes or masks.
        score_threshold: Detections with a higher score count.
    """
    n_classes = matches.n_classes
    counts = np.zeros((n_classes + 1, n_classes + 1), np.int64)
    is_counted = (matches.scores > score_threshold) & ~matches.is_ignored
    matched = np.where(is_counted & matches.is_true_positive, matches.matched_object, -1)
    is_free = ~matches.is_crowd
    is_free[matched[matched >= 0]] = False
    for (detections, objects), overlaps in zip(matches.iter_images(), matches.overlaps, strict=True):
        rest = np.flatnonzero(is_counted[detections] & (matched[detections] < 0))
        for i in rest[np.argsort(-matches.scores[detections][rest], kind='stable')].tolist():
            free_overlaps = np.where(is_free[objects], overlaps[i], 0)
            if free_overlaps.max(initial=0) >= FOREGROUND_IOU:
                matched[detections.start + i] = objects.start + int(free_overlaps.argmax())
                is_free[matched[detections.start + i]] = False
    true_labels = np.where(matched >= 0, np.append(matches.object_labels, n_classes)[matched], n_classes)
    np.add.at(counts, (true_labels[is_counted], matches.detection_labels[is_counted]), 1)
    np.add.at(counts, (matches.object_labels[is_free], n_classes), 1)
    return ConfusionMatrix(counts, score_threshold)
