"""The early warning of a run that diverges."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from chainer import training

from mask_rcnn.io.wording import counted
from mask_rcnn.training.extensions import TrainingLog

#: Number of iterations over which losses are averaged: single batches differ by more than the factor.
_WINDOW = 20
#: The loss grows if its mean is above this multiple of its smallest mean so far ...
_FACTOR = 3.0
#: ... and above this value, because a small loss may vary by the factor.
_MIN_LOSS = 1.0
#: A loss that has been much smaller and is above this value grows fast: it can be infinite before the mean is known.
_HUGE_LOSS = 100.0


class DivergenceWarning(training.Extension):
    """Trainer extension: warns once if the loss grows.

    Args:
        log: The log, whose entries are part of snapshots: a resumed run remembers its smallest loss.
        warn: Called with one line.
    """

    name = 'divergence'  # type: ignore[assignment]  # Chainer declares None
    priority = 45  # after the log and the table

    def __init__(self, log: TrainingLog, warn: Callable[[str], None]):
        self._log, self._warn = log, warn
        self._n_entries = 0
        self._has_warned = False

    def __call__(self, trainer: training.Trainer) -> None:
        if self._has_warned or len(self._log.log) == self._n_entries:
            return
        self._n_entries = len(self._log.log)
        growth = find_growth(self._log.log)
        if growth is not None:
            self._has_warned = True
            self._warn(
                f'the loss grows: it was {growth[0]:.3g}, and is {growth[1]:.3g} after '
                f'{counted(self._log.log[-1]["iteration"], "iteration")}; a lower --lr or --clip-gradient 10 may help'
            )


def find_growth(log: list[Mapping[str, float]]) -> tuple[float, float] | None:
    """Return the smallest and the last loss of a log if the loss grows without limit, otherwise ``None``."""
    losses = [entry['main/loss'] for entry in log]
    if losses[-1] > max(_HUGE_LOSS, _FACTOR * min(losses)):
        return min(losses), losses[-1]
    means = window_means(log)
    if means and means[-1] > max(_MIN_LOSS, _FACTOR * min(means)):
        return min(means), means[-1]
    return None


def window_means(log: list[Mapping[str, float]]) -> list[float]:
    """Return the mean loss of each window of at least 20 iterations in a log; the windows overlap."""
    if len(log) < 2:
        return []
    n_entries = math.ceil(_WINDOW / max(log[1]['iteration'] - log[0]['iteration'], 1))
    losses = [entry['main/loss'] for entry in log]
    return [sum(losses[i : i + n_entries]) / n_entries for i in range(len(losses) - n_entries + 1)]
