"""Learning rate schedules."""

from __future__ import annotations

from dataclasses import dataclass

from mask_rcnn.config import fields
from mask_rcnn.config.schedules import RATE_PER_IMAGE, WARMUP, decay_steps, warmup_length

#: Iterations and decay steps of Detectron's schedules for 8 images per batch (R-50-C4: 8 GPUs with one image each):
#: ``configs/12_2017_baselines/e2e_mask_rcnn_R-50-C4_{1x,2x}.yaml``.
DETECTRON_SCHEDULES = {
    'detectron-1x': (180000, (120000, 160000)),
    'detectron-2x': (360000, (240000, 320000)),
}
_DETECTRON_BATCH = 8

#: The ranges of the numbers of :class:`Schedule`.
_CHECKS = {
    **dict.fromkeys(('peak', 'start', 'decay'), fields.non_negative),
    'warmup': fields.integer(0),
    'steps': fields.sequence(fields.integer(0), 'iterations of at least 0', min_length=0, max_length=1000),
}


@dataclass(frozen=True)
class Schedule:
    """A warm-up, then a learning rate that decays in steps.

    Args:
        peak: Learning rate after the warm-up.
        start: Learning rate at the start of the warm-up.
        warmup: Iterations of the warm-up.
        linear: Increase the rate linearly from ``start`` to ``peak`` during the warm-up; otherwise it is ``start``
            until the end of the warm-up.
        steps: At each of these iterations the rate is multiplied by ``decay``.
        decay: See ``steps``.

    Raises:
        ValueError: A value is out of range.
    """

    peak: float
    start: float
    warmup: int
    linear: bool = False
    steps: tuple[int, ...] = ()
    decay: float = 0.1

    def __post_init__(self) -> None:
        fields.check_fields(self, _CHECKS)

    def rate(self, iteration: int) -> float:
        """Return the learning rate of an iteration, counted from 0."""
        rate = self.peak * self.decay ** sum(iteration >= step for step in self.steps)
        if iteration >= self.warmup:
            return rate
        if not self.linear:
            return self.start
        # detectron/utils/lr_policy.py, get_lr_at_iter: warm-up method "linear"
        return self.start + (self.peak - self.start) * iteration / self.warmup


def step_schedule(lr: float, *, warmup: int, first_decay: int, second_decay: int) -> Schedule:
    """Return the schedule of ``train.py``'s flags: ``lr`` in the warm-up, then ``10 * lr``, divided by 10 twice."""
    return Schedule(peak=10 * lr if warmup else lr, start=lr, warmup=warmup, steps=(first_decay, second_decay))


def detectron_schedule(name: str, batch_size: int) -> tuple[Schedule, int]:
    """Return Detectron's schedule for a batch size and its number of iterations.

    The learning rate is 0.02 for 16 images and proportional to the batch size, after a linear warm-up from a third of
    it over 500 iterations.  Iterations and steps are scaled so that the number of images equals Detectron's.

    Args:
        name: A key of :data:`DETECTRON_SCHEDULES`.
        batch_size: Images per update, over all processes.
    """
    iterations, steps = DETECTRON_SCHEDULES[name]
    peak = RATE_PER_IMAGE * batch_size

    def rescale_iterations(n: int) -> int:
        return max(round(n * _DETECTRON_BATCH / batch_size), 1)

    return Schedule(
        peak=peak, start=peak / 3, warmup=WARMUP, linear=True, steps=tuple(map(rescale_iterations, steps))
    ), rescale_iterations(iterations)


def run_schedule(lr: float, iterations: int) -> Schedule:
    """Return a schedule for a run of any length, with the proportions of Detectron's 1x.

    The learning rate rises linearly from a third of ``lr`` over 500 iterations, or over a quarter of a short run, and
    is multiplied by 0.1 after 2/3 and 8/9 of the iterations.
    """
    return Schedule(peak=lr, start=lr / 3, warmup=warmup_length(iterations), linear=True, steps=decay_steps(iterations))
