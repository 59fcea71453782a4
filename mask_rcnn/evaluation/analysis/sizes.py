"""AP and recall by the size of the objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.analysis.curves import select_thresholds
from mask_rcnn.evaluation.analysis.matches import Matches
from mask_rcnn.evaluation.coco import KindEvaluation

#: Limits of the size bins, the square root of the area in pixels.  COCO's small objects are below 32, large above 96.
SIZE_LIMITS = (0, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 1024)


@dataclass(frozen=True, eq=False)
class SizeRecall:
    """The objects of each size and the fraction of them that any detection matches.

    Args:
        limits: Lower limits of the bins, and the upper limit of the last one, which is infinite if larger objects
            exist; the square root of the area in pixels.  Bins without objects at both ends are left out.
        n_objects: ``(S,)`` integers; crowds do not count.
        recall: ``(3, S)``, the recall at IoU 0.5, at 0.75, and its mean over 0.5, 0.55, ... 0.95; NaN without objects.
    """

    limits: tuple[float, ...]
    n_objects: np.ndarray
    recall: np.ndarray


def measure_size_recall(matches: Matches) -> SizeRecall:
    """Return the recall by size of the object."""
    counts = ~matches.is_crowd
    sizes = np.sqrt(matches.object_areas[counts])
    is_matched = matches.is_matched[:, counts]
    bins = np.searchsorted(SIZE_LIMITS, sizes, side='right') - 1
    n_objects = np.bincount(bins, minlength=len(SIZE_LIMITS))
    n_matched = np.array([np.bincount(bins, row, minlength=len(SIZE_LIMITS)) for row in is_matched])
    with np.errstate(invalid='ignore'):
        recall = n_matched / n_objects
    used = np.flatnonzero(n_objects)
    part = slice(used[0], used[-1] + 1) if used.size else slice(0, 0)
    limits = (*SIZE_LIMITS, float('inf'))[part.start : part.stop + 1] if used.size else ()
    return SizeRecall(limits, n_objects[part], select_thresholds(recall)[:, part])


def count_size_ranges(evaluation: KindEvaluation, matches: Matches) -> dict[str, int]:
    """Return the number of objects in each of COCO's size ranges: ``'small'``, ``'medium'`` and ``'large'``.

    Limits are inclusive, as in COCO's evaluation: an object of exactly 32 x 32 pixels is both small and medium.
    """
    params = evaluation.coco_eval.params
    areas = matches.object_areas[~matches.is_crowd]
    return {
        name: int(((areas >= low) & (areas <= high)).sum())
        for name, (low, high) in zip(params.areaRngLbl, params.areaRng, strict=True)
        if name != 'all'
    }
