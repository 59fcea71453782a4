"""COCO's average precision at one IoU threshold, from the ranks of the true positives."""

from __future__ import annotations

import numpy as np

#: The recalls at which COCO averages the interpolated precision: 0, 0.01, ... 1.
RECALLS = np.linspace(0, 1, 101)


def average_precision(ranks: np.ndarray, n_objects: int, n_detections: int) -> float:
    """Return the average precision of one class, as ``COCOeval.accumulate`` computes it.

    False positives lower the precision only at the true positives after them, and precision is interpolated: it is the
    highest one at any recall that is at least as high.  The ranks of the true positives therefore determine the AP.

    A class without objects has no AP in COCO's metrics.  Here it arises if all objects of a class were missed and are
    then taken out of the count; its AP is 1 if no detection (a false positive) is left, otherwise 0.

    Args:
        ranks: ``(P,)`` integers, ascending: positions of the true positives, from 1, among the detections of the class
            in descending order of score.
        n_objects: Number of objects of the class.
        n_detections: Number of detections of the class.
    """
    if n_objects == 0:
        return float(n_detections == 0)
    n_matched = np.arange(1, len(ranks) + 1)
    precision = n_matched / (ranks + np.spacing(1))  # COCOeval's protection against a division by zero
    best = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(n_matched / n_objects, RECALLS, side='left')
    return float(np.append(best, 0)[reached].mean())


def average_precisions(
    labels: np.ndarray, scores: np.ndarray, is_true: np.ndarray, n_objects: np.ndarray
) -> np.ndarray:
    """Return the AP of each class.

    Args:
        labels: ``(D,)`` integers, the class of each detection that counts.
        scores: ``(D,)``; equal scores keep their order.
        is_true: ``(D,)`` bool, the true positives.
        n_objects: ``(n_classes,)`` integers.

    Returns:
        numpy.ndarray: ``(n_classes,)`` float64.
    """
    order = np.argsort(-scores, kind='stable')
    order = order[np.argsort(labels[order], kind='stable')]
    starts = np.searchsorted(labels[order], np.arange(len(n_objects) + 1))
    return np.array(
        [
            average_precision(np.flatnonzero(is_true[order[start:stop]]) + 1, n, stop - start)
            for start, stop, n in zip(starts[:-1].tolist(), starts[1:].tolist(), n_objects.tolist(), strict=True)
        ]
    )
