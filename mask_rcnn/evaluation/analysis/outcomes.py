"""The kind of error of each detection and the missed objects, as TIDE defines them.

Source: Bolya, Foley, Hays and Hoffman, "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020,
section 2.2.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.analysis.matches import Matches

#: IoU with an object from which a detection is localised, and below which it is in the background.
FOREGROUND_IOU, BACKGROUND_IOU = 0.5, 0.1


class Outcome(enum.IntEnum):
    """The outcome of a detection: correct, a kind of false positive, or on a crowd, where it does not count."""

    CORRECT = 0
    CLASSIFICATION = 1
    LOCALISATION = 2
    BOTH = 3
    DUPLICATE = 4
    BACKGROUND = 5
    IGNORED = 6


#: The kinds of false positives.
FALSE_POSITIVES = (
    Outcome.CLASSIFICATION,
    Outcome.LOCALISATION,
    Outcome.BOTH,
    Outcome.DUPLICATE,
    Outcome.BACKGROUND,
)


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcome of each detection and object.

    Args:
        kinds: ``(D,)`` integers, values of :class:`Outcome`.
        targets: ``(D,)`` integers, the object that a detection matches, or would match if its class or its location
            were corrected; -1 for other detections.
        is_missed: ``(G,)`` bool, objects that no detection matches, not even one with a wrong class or location.
    """

    kinds: np.ndarray
    targets: np.ndarray
    is_missed: np.ndarray

    @property
    def is_false_positive(self) -> np.ndarray:
        """``(D,)`` bool, whether a detection counts and matches no object."""
        return (self.kinds != Outcome.CORRECT) & (self.kinds != Outcome.IGNORED)


def find_outcomes(matches: Matches) -> Outcomes:
    """Return the outcome of each detection and the missed objects.

    A detection that COCO's evaluation at IoU 0.5 counts as a false positive is, in this order:

    1. badly localised: its highest IoU with the objects of its class is at least 0.1 and below 0.5;
    2. wrongly classified: its IoU with an object of another class is at least 0.5;
    3. a duplicate: its IoU with an object of its class is at least 0.5, and a detection with a higher score matches
       that object;
    4. background: its IoU with every object is below 0.1;
    5. both badly localised and wrongly classified otherwise: its highest IoU is that with an object of another class.

    The paper does not give an order; this is that of the authors' program.

    Args:
        matches: The matches of boxes or masks.
    """
    kinds = np.full(len(matches.scores), Outcome.BACKGROUND, np.int8)
    targets = np.where(matches.is_true_positive, matches.matched_object, -1)
    for (detections, objects), overlaps in zip(matches.iter_images(), matches.overlaps, strict=True):
        if not overlaps.size:
            continue
        is_same = matches.detection_labels[detections, None] == matches.object_labels[None, objects]
        same, other = np.where(is_same, overlaps, 0), np.where(is_same, 0, overlaps)
        best_same, best_other = same.max(axis=1), other.max(axis=1)
        is_near, is_confused = _is_between(best_same), best_other >= FOREGROUND_IOU
        kinds[detections] = np.select(
            [is_near, is_confused, best_same >= FOREGROUND_IOU, best_other < BACKGROUND_IOU],
            [Outcome.LOCALISATION, Outcome.CLASSIFICATION, Outcome.DUPLICATE, Outcome.BACKGROUND],
            Outcome.BOTH,
        )
        would_match = np.select([is_near, is_confused], [same.argmax(axis=1), other.argmax(axis=1)], -1)
        is_open = (targets[detections] < 0) & (would_match >= 0)
        targets[detections] = np.where(is_open, would_match + objects.start, targets[detections])
    kinds[matches.is_true_positive] = Outcome.CORRECT
    kinds[matches.is_ignored] = Outcome.IGNORED
    targets[matches.is_ignored] = -1
    is_missed = ~matches.is_crowd
    is_missed[targets[targets >= 0]] = False
    return Outcomes(kinds, targets, is_missed)


def _is_between(overlaps: np.ndarray) -> np.ndarray:
    return (overlaps >= BACKGROUND_IOU) & (overlaps < FOREGROUND_IOU)
