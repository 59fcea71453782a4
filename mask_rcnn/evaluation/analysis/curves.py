"""Precision-recall curves from the arrays of COCO's evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.coco import KindEvaluation

#: Names of the curves: at IoU (or OKS) 0.5, at 0.75, and the mean over 0.5, 0.55, ... 0.95.
CURVES = ('0.5', '0.75', '0.5:0.95')


@dataclass(frozen=True, eq=False)
class PrecisionRecall:
    """Interpolated precision at COCO's 101 recalls; the mean of a curve is its AP.

    Args:
        recalls: ``(101,)``: 0, 0.01, ... 1.
        precision: ``(3, 101)``, the mean over the classes with objects, for each of :data:`CURVES`; NaN if there is
            none.
        precision_per_class: ``(n_classes, 3, 101)``; NaN for classes without objects.
    """

    recalls: np.ndarray
    precision: np.ndarray
    precision_per_class: np.ndarray

    @property
    def ap(self) -> np.ndarray:
        """``(3,)``, the AP of each of :data:`CURVES`; NaN without objects."""
        return self.precision.mean(axis=1)

    @property
    def ap_per_class(self) -> np.ndarray:
        """``(n_classes, 3)``, the AP of each class; NaN for classes without objects."""
        return self.precision_per_class.mean(axis=2)


def select_thresholds(values: np.ndarray) -> np.ndarray:
    """Return the values at the thresholds of :data:`CURVES`.

    Args:
        values: ``(10, ...)``, at the thresholds 0.5, 0.55, ... 0.95.

    Returns:
        numpy.ndarray: ``(3, ...)``, at 0.5, at 0.75, and the mean over all.
    """
    return np.stack([values[0], values[5], values.mean(axis=0)])


def collect_curves(evaluation: KindEvaluation) -> PrecisionRecall:
    """Return the precision-recall curves of a finished evaluation."""
    coco_eval = evaluation.coco_eval
    # Axes: IoU threshold, recall, class, size (0: all), number of detections per image (-1: largest).
    precision = coco_eval.eval['precision'][:, :, list(evaluation.class_indices), 0, -1]
    curves = select_thresholds(precision).transpose(2, 0, 1)
    per_class = np.where(curves < 0, np.nan, curves)
    has_objects = ~np.isnan(per_class[:, 0, 0])
    mean = per_class[has_objects].mean(axis=0) if has_objects.any() else np.full(per_class.shape[1:], np.nan)
    return PrecisionRecall(coco_eval.params.recThrs, mean, per_class)
