"""The numbers of training schedules: learning rates, warm-ups, decays and evaluations."""

from __future__ import annotations

#: Detectron's learning rate for an image of the batch: 0.02 for 16 images (Goyal et al. 2017, section 2.1).
RATE_PER_IMAGE = 0.02 / 16
#: Iterations of Detectron's warm-up.
WARMUP = 500

#: Number of evaluations of a run, and minimum number of iterations between them.
N_EVALUATIONS, MIN_EVALUATION_INTERVAL = 15, 10

#: The schedule of ``mask-rcnn train`` without options, from Chainer_Mask_R-CNN: the rate and the length of the warm-up,
#: the iterations of both decays, and the number of iterations.
DEFAULT_RATE, DEFAULT_WARMUP, DEFAULT_DECAYS, DEFAULT_ITERATIONS = 1e-4, 800, (400000, 480000), 800000


def warmup_length(iterations: int) -> int:
    """Return the iterations of the warm-up of a run: those of Detectron, at most a quarter of the run."""
    return min(WARMUP, iterations // 4)


def decay_steps(iterations: int) -> tuple[int, int]:
    """Return the iterations at which the rate of a run decays: after 2/3 and 8/9 of it, as in Detectron's 1x."""
    return iterations * 2 // 3, iterations * 8 // 9
