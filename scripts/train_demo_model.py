"""Train the bundled model: MobileNetV1-FPN for eight classes of generated shapes.

Trains with the code of ``train.py`` from ImageNet weights on images that are generated on the fly, stores the result in
half precision, and evaluates the stored file on 200 unseen images.  Exits with status 0 if mask AP, file size and
prediction time meet ``GOALS``.

    python scripts/train_demo_model.py --pretrained mobilenet_v1_imagenet.npz
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import training_check

ROOT = Path(__file__).resolve().parents[1]

#: One thread makes sums independent of the number of CPUs, and leaves the CPUs to the threads of this package.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

MODEL = 'shapes_mobilenet_v1_fpn.npz'
GOALS = {'mask AP': 0.60, 'megabytes': 12.0, 'seconds': 1.0}
#: Evaluation images; their seed is far from the seeds of training.
N_UNSEEN, IMAGE_SIZE, UNSEEN_SEED = 200, 512, 1_000_000
#: Training uses small inputs, which are cheap; the stored configuration uses larger ones, which raise AP.
SIZES = {'min_size': 192, 'max_size': 384, 'rpn_post_nms': 300}
ITERATIONS, SEED = 4840, 0


def main(argv: list[str] | None = None) -> int:
    """Train, store and evaluate the model; returns the exit status."""
    parser = training_check.make_parser(__doc__, out='result_demo_model', iterations=ITERATIONS)
    add = parser.add_argument
    add('--pretrained', default='imagenet', help="MobileNetV1's ImageNet weights (default: %(default)s)")
    add('--modelfile', type=Path, default=ROOT / 'modelfiles' / MODEL, help='file to write (default: %(default)s)')
    add('--workers', type=int, default=1, help='processes that generate images (default: %(default)s)')
    args = parser.parse_args(argv)
    status = training_check.run_training(training_arguments(args))
    if status:
        return status
    training_check.store(args.out / f'model_iter_{args.iterations}.npz', args.modelfile, **SIZES)
    return evaluate(args.modelfile, args.out, args.gpu)


def training_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments of ``train.py``."""
    return training_check.train_arguments({
        'dataset': 'shapes-rich',
        'extractor': 'mobilenet_v1_fpn',
        'pretrained': args.pretrained,
        'anchor-sizes': [12, 24, 48, 96, 160],
        'set': [f'{name}={value}' for name, value in training_check.SLIM_NETWORK.items()],
        'batchsize': 4,
        'roi-batch': 32,
        'train-proposals': 200,
        'clip-gradient': 10,
        'lr': 0.0006,
        'lr-initialchange': 50,
        'step-size': args.iterations * 8 // 11,
        'lr-step': args.iterations * 10 // 11,
        'iteration': args.iterations,
        'seed': SEED,
        'gpu': args.gpu,
        'workers': args.workers,
        'out': args.out,
        'validation': 0,
        'snapshot': 500,
        'keep': 1,
    })  # fmt: skip


def evaluate(path: Path, out: Path, gpu: int) -> int:
    """Compare a model file with the goals; return 0 if all are met, else 1."""
    import mask_rcnn
    from mask_rcnn.cli.evaluate import evaluate_to_folder
    from mask_rcnn.datasets import RichShapesDataset

    model = mask_rcnn.load(path, gpu=gpu)
    unseen = RichShapesDataset(N_UNSEEN, size=IMAGE_SIZE, seed=UNSEEN_SEED)
    metrics = evaluate_to_folder(model, unseen, out / 'evaluation', name='unseen scenes')
    reached = {
        'mask AP': metrics.summary()['segm/AP'],
        'megabytes': path.stat().st_size / 1e6,
        'seconds': prediction_seconds(model, unseen[0].image),
    }
    return training_check.compare(reached, GOALS, at_most={'megabytes', 'seconds'})


def prediction_seconds(model, image) -> float:
    """Return the time of one prediction in seconds, the best of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        model.predict([image])
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == '__main__':  # the processes that generate images import this file again
    sys.exit(main())
