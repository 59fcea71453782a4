"""Early stopping: the end of a run whose AP no longer grows."""

from __future__ import annotations

from collections.abc import Mapping

import chainer
import numpy as np
from chainer import training

#: Metrics that select the best model, in order of preference; the first one that was evaluated is used.
_SELECTION_METRICS = ('keypoints/AP', 'segm/AP', 'bbox/AP')

#: Prefix of the metrics in the values that a trainer observes.
_PREFIX = 'validation/'


def selection_score(summary: Mapping[str, float]) -> float | None:
    """Return the metric that selects the best model, or ``None`` if nothing was evaluated."""
    return next((summary[name] for name in _SELECTION_METRICS if name in summary), None)


class EarlyStopping(training.Extension):
    """Trainer extension: counts the evaluations since the best AP.

    The AP is that of the best model: see :class:`~mask_rcnn.training.extensions.Evaluation`.  An evaluation that fails
    or is interrupted does not count.  All processes have the same metrics and therefore the same counts.

    Args:
        patience: Number of evaluations without a better AP after which the run ends.

    Attributes:
        best_score (float): The best AP so far.
        best_iteration (int): Its iteration; 0 before the first evaluation.
        n_worse (int): Number of evaluations since then.
    """

    name = 'early_stopping'  # type: ignore[assignment]  # Chainer declares None
    priority = 290  # after the evaluation, before the log

    def __init__(self, patience: int):
        self.patience = patience
        self.best_score, self.best_iteration, self.n_worse = -np.inf, 0, 0

    @property
    def is_exhausted(self) -> bool:
        """True if the run is to end."""
        return self.n_worse >= self.patience

    def __call__(self, trainer: training.Trainer) -> None:
        metrics = {
            name.removeprefix(_PREFIX): value for name, value in trainer.observation.items() if name.startswith(_PREFIX)
        }
        score = selection_score(metrics)
        if score is None:
            return
        if score > self.best_score:
            self.best_score, self.best_iteration, self.n_worse = score, trainer.updater.iteration, 0
        else:
            self.n_worse += 1

    def serialize(self, serializer: chainer.Serializer | chainer.Deserializer) -> None:
        """Write or read the counts; a snapshot of a run without early stopping has none."""
        try:
            best_score = float(serializer('best_score', self.best_score))
        except KeyError:
            return
        self.best_score = best_score
        self.best_iteration = int(serializer('best_iteration', self.best_iteration))
        self.n_worse = int(serializer('n_worse', self.n_worse))
