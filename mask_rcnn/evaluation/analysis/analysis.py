"""The complete analysis of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.evaluation.analysis.confusion import ConfusionMatrix, measure_confusion
from mask_rcnn.evaluation.analysis.curves import PrecisionRecall, collect_curves
from mask_rcnn.evaluation.analysis.error_costs import ErrorCosts, measure_costs
from mask_rcnn.evaluation.analysis.image_losses import ImageErrors, describe_image, measure_image_losses
from mask_rcnn.evaluation.analysis.matches import Matches, collect_matches
from mask_rcnn.evaluation.analysis.outcomes import Outcomes, find_outcomes
from mask_rcnn.evaluation.analysis.sizes import SizeRecall, count_size_ranges, measure_size_recall
from mask_rcnn.evaluation.coco import COCOEvaluator, KindEvaluation
from mask_rcnn.evaluation.metrics import KEYPOINTS, Kind, Metrics


@dataclass(frozen=True, eq=False)
class KindAnalysis:
    """The analysis of boxes, masks or keypoints.

    Args:
        kind: The kind of prediction.
        curves: Precision-recall curves.
        size_counts: Number of objects in COCO's size ranges: ``'small'``, ``'medium'`` and ``'large'``.
        size_recall: Recall by the size of the object.
        objects_per_class: ``(n_classes,)`` integers; crowds do not count.
        costs: The costs of the kinds of errors; ``None`` for keypoints.
    """

    kind: Kind
    curves: PrecisionRecall
    size_counts: dict[str, int]
    size_recall: SizeRecall
    objects_per_class: np.ndarray
    costs: ErrorCosts | None


@dataclass(frozen=True, eq=False)
class Analysis:
    """The analysis of an evaluation.

    Args:
        metrics: COCO's metrics, equal to those of :meth:`mask_rcnn.evaluation.COCOEvaluator.evaluate`.
        n_images: Number of evaluated images.
        kinds: The analysis of boxes and, if they were evaluated, of masks and of keypoints.
        main_kind: The kind of the confusion matrix and of the worst images: masks, or boxes if masks were not
            evaluated.
        confusion: The confusion matrix.
        n_images_with_loss: Number of images whose errors lower AP50.
        worst_images: The images whose errors lower AP50 most, in descending order; images without effect are left out.
    """

    metrics: Metrics
    n_images: int
    kinds: tuple[KindAnalysis, ...]
    main_kind: Kind
    confusion: ConfusionMatrix
    n_images_with_loss: int
    worst_images: tuple[ImageErrors, ...]


def analyse(evaluator: COCOEvaluator, *, score_threshold: float = 0.5, n_worst: int = 12) -> Analysis:
    """Compute COCO's metrics and analyse the errors that lower them.

    Args:
        evaluator: An evaluator with the detections of all images.
        score_threshold: Detections with a higher score are in the confusion matrix; from 0 to 1.
        n_worst: Maximum number of worst images, 0 or more.

    Raises:
        ValueError: No image was added to the evaluator, or a number is out of range.
    """
    if not 0 <= score_threshold <= 1:
        raise ValueError(f'score_threshold must be from 0 to 1, not {score_threshold!r}')
    if n_worst < 0:
        raise ValueError(f'n_worst must be 0 or more, not {n_worst!r}')
    collector = _Collector(score_threshold, n_worst)
    metrics = evaluator.evaluate(collector.add)
    return Analysis(
        metrics=metrics,
        n_images=collector.n_images,
        kinds=tuple(collector.kinds),
        main_kind=collector.main_kind,
        confusion=collector.confusion,
        n_images_with_loss=collector.n_images_with_loss,
        worst_images=collector.worst_images,
    )


class _Collector:
    """Collects the analysis of each kind while the evaluation of this kind exists.

    The last kind with overlaps is the main one: masks follow boxes.
    """

    main_kind: Kind
    confusion: ConfusionMatrix
    n_images = n_images_with_loss = 0
    worst_images: tuple[ImageErrors, ...] = ()

    def __init__(self, score_threshold: float, n_worst: int):
        self._score_threshold, self._n_worst = score_threshold, n_worst
        self.kinds: list[KindAnalysis] = []

    def add(self, evaluation: KindEvaluation) -> None:
        matches = collect_matches(evaluation)
        outcomes = None if evaluation.kind == KEYPOINTS else find_outcomes(matches)
        self.kinds.append(
            KindAnalysis(
                kind=evaluation.kind,
                curves=collect_curves(evaluation),
                size_counts=count_size_ranges(evaluation, matches),
                size_recall=measure_size_recall(matches),
                objects_per_class=matches.objects_per_class,
                costs=None if outcomes is None else measure_costs(matches, outcomes),
            )
        )
        if outcomes is not None:
            self._add_main(evaluation, matches, outcomes)

    def _add_main(self, evaluation: KindEvaluation, matches: Matches, outcomes: Outcomes) -> None:
        self.main_kind, self.n_images = evaluation.kind, len(matches.image_ids)
        self.confusion = measure_confusion(matches, self._score_threshold)
        losses = measure_image_losses(matches)
        worst = [i for i in np.argsort(-losses, kind='stable')[: self._n_worst].tolist() if losses[i] > 0]
        self.n_images_with_loss = int((losses > 0).sum())
        self.worst_images = tuple(describe_image(evaluation, matches, outcomes, i, float(losses[i])) for i in worst)
