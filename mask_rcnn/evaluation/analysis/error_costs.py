"""The AP that each kind of error costs: the rise of AP50 when an oracle corrects this kind and nothing else (TIDE)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.analysis.average_precision import average_precisions
from mask_rcnn.evaluation.analysis.matches import Matches
from mask_rcnn.evaluation.analysis.outcomes import FALSE_POSITIVES, Outcome, Outcomes


@dataclass(frozen=True)
class ErrorCost:
    """The number and the cost of the errors of one kind.

    Args:
        name: ``'classification'``, ``'localisation'``, ``'both'``, ``'duplicate'``, ``'background'`` or ``'missed'``;
            or the sum of several kinds, ``'false positives'`` or ``'false negatives'``.
        count: Number of detections; of objects for ``'missed'`` and ``'false negatives'``.
        cost: Rise of AP50 (0 to 1) if all of these errors are corrected, and only these.
    """

    name: str
    count: int
    cost: float


@dataclass(frozen=True)
class ErrorCosts:
    """The costs of all kinds of errors.

    The costs of different kinds do not add up to 1 - AP50, because an error often hides another one.

    Args:
        ap50: AP at IoU 0.5 before the correction, -1 without objects.
        kinds: The six kinds of TIDE.
        totals: All false positives, and all objects that are not detected.
    """

    ap50: float
    kinds: tuple[ErrorCost, ...]
    totals: tuple[ErrorCost, ...]


def measure_costs(matches: Matches, outcomes: Outcomes) -> ErrorCosts:
    """Return the cost of each kind of error.

    The oracles are those of the paper (section 2.3):

    - wrong class, wrong location: the detection matches its target.  If several detections then match one object,
      only that with the highest score stays.
    - both wrong, duplicate, background, false positives: the detections are removed.
    - missed objects, false negatives: the objects are taken out of the count, as if the precision at the higher recall
      were the same.

    Args:
        matches: The matches of boxes or masks.
        outcomes: The outcomes of these matches.
    """
    oracle = _Oracle(matches, outcomes)
    before = oracle.ap50()
    kinds = []
    for kind in FALSE_POSITIVES:
        is_error = outcomes.kinds == kind
        corrects_target = kind in (Outcome.CLASSIFICATION, Outcome.LOCALISATION)
        after = oracle.after_correction(is_error) if corrects_target else oracle.ap50(kept=~is_error)
        kinds.append(ErrorCost(kind.name.lower(), int(is_error.sum()), after - before))
    missed, lost = (
        ErrorCost(name, int(objects.sum()), oracle.ap50(removed_objects=objects) - before)
        for name, objects in (('missed', outcomes.is_missed), ('false negatives', matches.is_lost))
    )
    is_false = outcomes.is_false_positive
    false = ErrorCost('false positives', int(is_false.sum()), oracle.ap50(kept=~is_false) - before)
    return ErrorCosts(before, (*kinds, missed), (false, lost))


class _Oracle:
    """AP50 of an evaluation with corrections.

    Args:
        matches: The matches.
        outcomes: Their outcomes.
    """

    def __init__(self, matches: Matches, outcomes: Outcomes):
        self._matches, self._outcomes = matches, outcomes
        self._is_true = matches.is_true_positive
        self._n_objects = matches.objects_per_class

    def ap50(self, kept: np.ndarray | None = None, removed_objects: np.ndarray | None = None) -> float:
        """Return AP50 with the detections ``kept`` and without some objects."""
        kept = np.ones(len(self._is_true), bool) if kept is None else kept
        n_objects = self._n_objects
        if removed_objects is not None:
            labels = self._matches.object_labels[removed_objects]
            n_objects = n_objects - np.bincount(labels, minlength=len(n_objects))
        return self._mean_ap(self._matches.detection_labels, self._is_true, kept, n_objects)

    def after_correction(self, is_error: np.ndarray) -> float:
        """Return AP50 if detections match their targets; one detection of each object stays."""
        targets = self._outcomes.targets
        rivals = np.flatnonzero(is_error | self._is_true)
        # By object and score; with equal scores, a detection that needs no correction is first.
        order = rivals[np.lexsort((is_error[rivals], -self._matches.scores[rivals], targets[rivals]))]
        is_first = np.diff(targets[order], prepend=-1) != 0
        kept = np.ones(len(is_error), bool)
        kept[order[~is_first]] = False
        labels = self._matches.detection_labels.copy()
        labels[is_error] = self._matches.object_labels[targets[is_error]]
        return self._mean_ap(labels, self._is_true | is_error, kept, self._n_objects)

    def _mean_ap(self, labels: np.ndarray, is_true: np.ndarray, kept: np.ndarray, n_objects: np.ndarray) -> float:
        """Return the mean AP of the classes that have objects before the correction."""
        is_used = kept & ~self._matches.is_ignored
        aps = average_precisions(labels[is_used], self._matches.scores[is_used], is_true[is_used], n_objects)
        evaluated = aps[self._n_objects > 0]
        return float(evaluated.mean()) if evaluated.size else -1.0
