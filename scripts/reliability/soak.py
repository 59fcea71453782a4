"""Predict and train for long with flat memory, and predict in several threads with equal results.

python scripts/reliability/soak.py                              # 3,000 predictions, 2,000 updates
python scripts/reliability/soak.py --threads 8 --minutes 10     # threads only
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

import data_samples
import harness
import numpy as np
from chainer import training

import mask_rcnn
from mask_rcnn.config import Config
from mask_rcnn.datasets import ShapesDataset
from mask_rcnn.inference.detections import Detections
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.training.schedule import step_schedule
from mask_rcnn.training.trainer import TrainingOptions, build_training_run

#: Fraction of the steps before the first measurement, and the largest accepted growth after it, in MB.
WARM_UP, MAX_GROWTH = 0.3, 8.0

#: Heights and widths of the images.
SIZES = ((64, 64), (48, 80), (96, 64), (40, 40), (64, 100))


def small_model(**changes: float) -> MaskRCNN:
    """Return the small network with random weights that detects something."""
    np.random.seed(0)
    return mask_rcnn.build(Config.from_dict({**data_samples.small_config(), 'score_threshold': 0.01, **changes}))


def small_images() -> list[np.ndarray]:
    """Return random images of several sizes, ``(3, H, W)`` float32."""
    rng = np.random.RandomState(0)
    return [rng.uniform(0, 255, (3, height, width)).astype(np.float32) for height, width in SIZES]


def resident_megabytes() -> float:
    """Return the resident memory of this process."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE') / 1e6


class Memory:
    """Measurements of the resident memory over a number of steps.

    Args:
        steps: Number of steps.
    """

    def __init__(self, steps: int):
        self._steps, self._every = steps, max(steps // 100, 1)
        self._rows: list[tuple[int, float]] = []

    def step(self, number: int) -> None:
        """Measure after every hundredth part of the steps; ``number`` counts from 1."""
        if number % self._every == 0 and number >= WARM_UP * self._steps:
            gc.collect()
            self._rows.append((number, resident_megabytes()))

    def growth(self) -> float:
        """Return the increase from the end of the warm-up to the end, on the least-squares line, in MB."""
        steps, megabytes = np.array(self._rows).T
        slope, _ = np.polyfit(steps, megabytes, 1)
        return float(slope * (steps[-1] - steps[0]))

    def __str__(self) -> str:
        return (
            f'{self._rows[0][1]:.0f} MB after the warm-up, {self._rows[-1][1]:.0f} MB at the end ({self.growth():+.1f})'
        )


def predict(n: int) -> Memory:
    """Detect in ``n`` images of changing sizes."""
    model, images, memory = small_model(), small_images(), Memory(n)
    for i in range(n):
        (detections,) = model.detect([images[i % len(images)]])
        detections.to_coco(i)
        memory.step(i + 1)
    return memory


def update(n: int, out: Path) -> Memory:
    """Train for ``n`` updates."""
    memory = Memory(n)
    options = TrainingOptions(
        out=str(out),
        iterations=n,
        schedule=step_schedule(0.001, warmup=0, first_decay=n, second_decay=n),
        batch_size=2,
        sampling=Sampling(roi_batch=16, train_pre_nms=200, train_post_nms=50),
        snapshot_interval=max(n // 10, 1),
        log_interval=max(n // 50, 1),
    )
    run = build_training_run(small_model(), ShapesDataset(1000, size=data_samples.SIZE, seed=0), options)
    run.trainer.extend(_measure(memory), trigger=(1, 'iteration'))
    run.start()
    return memory


def _measure(memory: Memory) -> Callable[[training.Trainer], None]:
    def measure(trainer: training.Trainer) -> None:
        memory.step(trainer.updater.iteration)

    return measure


def _values(detections: Detections) -> list[bytes]:
    arrays = (detections.boxes, detections.labels, detections.scores, detections.masks)
    return [np.ascontiguousarray(array).tobytes() for array in arrays]


def predict_in_threads(n_threads: int, seconds: float) -> tuple[int, list[str]]:
    """Detect with one model in several threads that change as often as possible.

    Returns:
        The number of predictions, and one line for each thread that failed or got another result than one thread alone.
    """
    model, images = small_model(), small_images()
    expected = [_values(model.detect([image])[0]) for image in images]
    model = small_model()  # without the caches of the predictions above
    counts, findings = [0] * n_threads, []
    end = time.monotonic() + seconds

    def work(thread: int) -> None:
        i = thread
        try:
            while not counts[thread] or time.monotonic() < end:
                if _values(model.detect([images[i % len(images)]])[0]) != expected[i % len(images)]:
                    findings.append(f'thread {thread}: another result than one thread alone')
                    return
                counts[thread] += 1
                i += 1
        except Exception as error:  # every error is a finding
            findings.append(f'thread {thread}: {type(error).__name__}: {error}')

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    return sum(counts), findings


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = harness.make_parser(__doc__)
    add = parser.add_argument
    add('--predictions', type=int, default=3000, help='number of predictions (default: %(default)s)')
    add('--updates', type=int, default=2000, help='number of updates (default: %(default)s)')
    add('--threads', type=int, help='only predict in this number of threads')
    add('--minutes', type=float, default=10, help='duration with --threads (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    args, started = parse_arguments(argv), time.monotonic()
    if args.threads:
        n, findings = predict_in_threads(args.threads, 60 * args.minutes)
        report = harness.Report(
            check='threads',
            done=f'{counted(args.threads, "thread")} on one model for {counted(args.minutes, "minute", spec="g")}, '
            'switch interval 1 us',
            outcome=f'{counted(n, "prediction", spec=",")}, {"not " * bool(findings)}all equal to the serial '
            'ones to the bit',
            findings=findings,
        )
        return harness.finish(report, args.json, started)
    with harness.working_folder() as folder:
        memories = {'predictions': predict(args.predictions), 'updates': update(args.updates, folder / 'run')}
    report = harness.Report(
        check='memory',
        done=f'{counted(args.predictions, "prediction", spec=",")}, '
        f'{counted(args.updates, "update", spec=",")} with 10 snapshots',
        outcome='; '.join(f'{name}: {memory}' for name, memory in memories.items()),
        findings=[f'{name}: {memory}' for name, memory in memories.items() if memory.growth() > MAX_GROWTH],
    )
    return harness.finish(report, args.json, started)


if __name__ == '__main__':
    sys.exit(main())
