"""Make the bundled model: a MobileNetV1 FPN network that knows eight kinds of things in drawn scenes.

Trains with ``train.py``'s own code from ImageNet's weights, on pictures that are drawn as they are needed;
stores the result in half precision; measures the stored file on 200 unseen pictures, and its speed.  Exits
with status 0 if mask AP, size and time are what ``GOALS`` asks for.

    python scripts/train_demo_model.py --pretrained mobilenet_v1_imagenet.npz
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]

#: With one thread sums are the same on any number of CPUs, and OpenBLAS's do not fight with ours for them.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

MODEL = 'shapes_mobilenet_v1_fpn.npz'
GOALS = {'mask AP': 0.60, 'megabytes': 12.0, 'seconds': 1.0}
#: Pictures to measure on, far from the seeds of training.
N_UNSEEN, PICTURE_SIZE, UNSEEN_SEED = 200, 512, 1_000_000
#: The model is trained on small inputs, because they are cheap, and sees a bit more on larger ones.
SIZES = {'min_size': 192, 'max_size': 384, 'rpn_post_nms': 300}
ITERATIONS, SEED = 4840, 0


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--pretrained', default='imagenet', help="MobileNetV1's ImageNet weights (default: %(default)s)")
    add('--out', type=pathlib.Path, default=pathlib.Path('result_demo_model'), help='(default: %(default)s)')
    add('--modelfile', type=pathlib.Path, default=ROOT / 'modelfiles' / MODEL, help='(default: %(default)s)')
    add('--iterations', type=int, default=ITERATIONS, help='(default: %(default)s)')
    add('--gpu', type=int, default=-1)
    add('--workers', type=int, default=1, help='processes that draw (default: %(default)s)')
    args = parser.parse_args(argv)
    from mask_rcnn.cli import train

    started = time.monotonic()
    status = train.main(training_arguments(args))
    if status:
        return status
    sys.stdout.write(f'{(time.monotonic() - started) / 60:.1f} minutes\n')
    store(args.out / f'model_iter_{args.iterations}.npz', args.modelfile)
    return measure(args.modelfile, args.out, args.gpu)


def training_arguments(args: argparse.Namespace) -> list[str]:
    """Return what follows ``train.py`` on the command line."""
    n = args.iterations
    return [
        '--dataset',
        'shapes-rich',
        '--extractor',
        'mobilenet_v1_fpn',
        '--pretrained',
        args.pretrained,
        '--anchor-sizes',
        '12',
        '24',
        '48',
        '96',
        '160',
        '--set',
        'fpn_channels=64',
        'rpn_channels=64',
        'head_channels=256',
        'mask_channels=64',
        'mask_convs=2',
        'roi_canonical_size=112',
        '--batchsize',
        '4',
        '--roi-batch',
        '32',
        '--train-proposals',
        '200',
        '--clip-gradient',
        '10',
        '--lr',
        '0.0006',
        '--lr_initialchange',
        '50',
        '--step_size',
        str(n * 8 // 11),
        '--lr_step',
        str(n * 10 // 11),
        '--iteration',
        str(n),
        '--seed',
        str(SEED),
        '--gpu',
        str(args.gpu),
        '--workers',
        str(args.workers),
        '--out',
        str(args.out),
        '--validation',
        '0',
        '--snapshot',
        '500',
        '--keep',
        '1',
    ]


def store(source: pathlib.Path, target: pathlib.Path) -> None:
    """Write a model file once more: filters in half precision, of which reading makes single, and ``SIZES``."""
    import numpy as np

    from mask_rcnn.weights import read_weights, write_weights

    file = read_weights(source)
    arrays = {name: array.astype(np.float16) if array.ndim > 1 else array for name, array in file.arrays.items()}
    meta = dataclasses.replace(file.meta, config=file.meta.config.replace(**SIZES))
    write_weights(target, arrays, meta)


def measure(path: pathlib.Path, out: pathlib.Path, gpu: int) -> int:
    """Compare a model file with the goals; returns the exit status."""
    import mask_rcnn
    from mask_rcnn.cli.evaluate import evaluate_to_folder
    from mask_rcnn.datasets import RichShapesDataset

    model = mask_rcnn.load(path, gpu=gpu)
    unseen = RichShapesDataset(N_UNSEEN, size=PICTURE_SIZE, seed=UNSEEN_SEED)
    metrics = evaluate_to_folder(model, unseen, out / 'evaluation', name='unseen scenes')
    reached = {
        'mask AP': metrics.summary()['segm/AP'],
        'megabytes': path.stat().st_size / 1e6,
        'seconds': seconds_of_a_prediction(model, unseen[0].image),
    }
    passed = {
        name: reached[name] >= goal if name == 'mask AP' else reached[name] <= goal for name, goal in GOALS.items()
    }
    for name, goal in GOALS.items():
        verdict = 'reached' if passed[name] else 'not reached'
        sys.stdout.write(f'{name} {reached[name]:.3f}, goal {goal:.2f}: {verdict}\n')
    return 0 if all(passed.values()) else 1


def seconds_of_a_prediction(model, image) -> float:
    """Return how long the masks of a picture take, the best of five."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        model.predict([image])
        times.append(time.perf_counter() - started)
    return min(times)


if __name__ == '__main__':  # the processes that draw import this file, too
    sys.exit(main())
