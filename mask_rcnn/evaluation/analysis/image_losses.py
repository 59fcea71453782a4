"""The AP that the errors of each image cost, and the contents of the images that cost most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.analysis.average_precision import average_precision
from mask_rcnn.evaluation.analysis.matches import Matches
from mask_rcnn.evaluation.analysis.outcomes import Outcome, Outcomes
from mask_rcnn.evaluation.coco import KindEvaluation
from mask_rcnn.evaluation.metrics import MASKS


@dataclass(frozen=True, eq=False)
class ImageErrors:
    """The objects and detections of an image with errors.

    Args:
        image_id: The image's id in the ground truth.
        loss: Rise of AP50 of the whole dataset (0 to 1) without the errors of the image.
        n_objects: Number of objects; crowds do not count.
        n_detected: Number of objects that a detection matches with IoU >= 0.5.
        object_boxes: ``(G, 4)`` float64, ``(y_min, x_min, y_max, x_max)``, edges of pixels.
        object_masks: ``G`` run lengths for :func:`mask_rcnn.ops.masks.rle.decode_rle`; empty if boxes are analysed.
        object_labels: ``(G,)`` integers.
        object_states: ``G`` names: ``'correct'`` (detected), ``'missed'``, ``'crowd'``, or ``'classification'`` or
            ``'localisation'`` for the target of a detection with this error.
        boxes: ``(D, 4)`` float64, in the same form.
        masks: ``D`` run lengths, or empty.
        labels: ``(D,)`` integers.
        scores: ``(D,)`` float64.
        kinds: ``D`` names: ``'correct'``, ``'ignored'`` (on a crowd) or the kind of error, such as ``'duplicate'``.
    """

    image_id: int | str
    loss: float
    n_objects: int
    n_detected: int
    object_boxes: np.ndarray
    object_masks: tuple[dict, ...]
    object_labels: np.ndarray
    object_states: tuple[str, ...]
    boxes: np.ndarray
    masks: tuple[dict, ...]
    labels: np.ndarray
    scores: np.ndarray
    kinds: tuple[str, ...]


def measure_image_losses(matches: Matches) -> np.ndarray:
    """Return by how much AP50 would rise without the errors of each image.

    The false positives of a single image are removed, and its objects that no detection matches are taken out of the
    count: TIDE's oracles for false positives and false negatives, for one image.  The result is exact.  It takes one
    pass over the true positives of a class for each image with errors in this class.

    Args:
        matches: The matches of boxes or masks.

    Returns:
        numpy.ndarray: ``(N,)`` float64, 0 to 1, one value for each image.
    """
    losses = np.zeros(len(matches.image_ids))
    n_objects = matches.objects_per_class
    is_lost = matches.is_lost
    for label in np.flatnonzero(n_objects).tolist():
        lost = np.bincount(
            matches.object_images[is_lost & (matches.object_labels == label)], minlength=len(matches.image_ids)
        )
        for image, rise in _iter_class_losses(matches, label, int(n_objects[label]), lost):
            losses[image] += rise
    return losses / max(int((n_objects > 0).sum()), 1)


def _iter_class_losses(matches: Matches, label: int, n_objects: int, n_lost: np.ndarray) -> Iterator[tuple[int, float]]:
    """Yield the images whose errors lower the AP of one class, and by how much they lower it."""
    chosen = np.flatnonzero((matches.detection_labels == label) & ~matches.is_ignored)
    chosen = chosen[np.argsort(-matches.scores[chosen], kind='stable')]
    is_true, images = matches.is_true_positive[chosen], matches.detection_images[chosen]
    ranks = np.flatnonzero(is_true) + 1
    before = average_precision(ranks, n_objects, len(chosen))
    order = np.argsort(images, kind='stable')
    starts = np.searchsorted(images[order], np.arange(len(n_lost) + 1))
    for image, lost in enumerate(n_lost.tolist()):
        positions = order[starts[image] : starts[image + 1]]
        false_ranks = positions[~is_true[positions]] + 1
        if lost == 0 and (not len(false_ranks) or (len(ranks) and false_ranks[0] > ranks[-1])):
            continue  # no error, or none before the last true positive
        moved = ranks - np.searchsorted(false_ranks, ranks)
        yield image, average_precision(moved, n_objects - lost, len(chosen) - len(false_ranks)) - before


def describe_image(
    evaluation: KindEvaluation, matches: Matches, outcomes: Outcomes, image: int, loss: float
) -> ImageErrors:
    """Return the objects and detections of one image.

    Args:
        evaluation: The finished evaluation of boxes or masks.
        matches: Its matches.
        outcomes: The outcomes of the matches.
        image: Index of the image in ``matches.image_ids``.
        loss: See :class:`ImageErrors`.
    """
    detections = np.flatnonzero(matches.detection_images == image)
    objects = np.flatnonzero(matches.object_images == image)
    detected, truth = evaluation.coco_eval.cocoDt.anns, evaluation.coco_eval.cocoGt.anns
    shapes = [detected[i] for i in matches.detection_ids[detections].tolist()]
    true_shapes = [truth[i] for i in matches.object_ids[objects].tolist()]
    kinds = [Outcome(kind).name.lower() for kind in outcomes.kinds[detections].tolist()]
    state_of = dict.fromkeys(objects.tolist(), 'missed')
    # The last state counts: that of a correct detection, otherwise that of the error with the highest score.
    order = np.lexsort((matches.scores[detections], matches.is_true_positive[detections])).tolist()
    state_of |= {int(outcomes.targets[detections[i]]): kinds[i] for i in order if outcomes.targets[detections[i]] >= 0}
    state_of |= dict.fromkeys(objects[matches.is_crowd[objects]].tolist(), 'crowd')
    has_masks = evaluation.kind == MASKS
    return ImageErrors(
        image_id=matches.image_ids[image],
        loss=loss,
        n_objects=int((~matches.is_crowd[objects]).sum()),
        n_detected=kinds.count('correct'),
        object_boxes=_corners(true_shapes),
        object_masks=tuple(shape['segmentation'] for shape in true_shapes) if has_masks else (),
        object_labels=matches.object_labels[objects],
        object_states=tuple(state_of[i] for i in objects.tolist()),
        boxes=_corners(shapes),
        masks=tuple(shape['segmentation'] for shape in shapes) if has_masks else (),
        labels=matches.detection_labels[detections],
        scores=matches.scores[detections],
        kinds=tuple(kinds),
    )


def _corners(shapes: list[dict]) -> np.ndarray:
    """Convert COCO's ``x, y, width, height`` to ``(y_min, x_min, y_max, x_max)``."""
    boxes = np.array([shape['bbox'] for shape in shapes], np.float64).reshape(-1, 4)
    return np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]], axis=1)
