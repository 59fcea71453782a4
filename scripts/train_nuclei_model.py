"""Train the bundled model of cell nuclei: MobileNetV1-FPN on the images of the Data Science Bowl 2018.

Trains with the code of ``train.py`` from ImageNet weights, stores the result in half precision, and evaluates the
stored file on the held-out images, with up to 1000 detections per image.  Exits with status 0 if mask AP, mask AP50 and
file size meet ``GOALS``.  The folder of the data contains ``instances_train.json``, ``instances_val.json`` and
``images``; ``mask-rcnn data`` writes such files.  Add ``--resume last`` after a stop.

    python scripts/train_nuclei_model.py --data nuclei --pretrained mobilenet_v1_imagenet.npz
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import training_check
from dsb_score import dsb_score

ROOT = Path(__file__).resolve().parents[1]

#: One thread makes sums independent of the number of CPUs.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

MODEL = 'nuclei_mobilenet_v1_fpn.npz'
GOALS = {'mask AP': 0.50, 'mask AP50': 0.85, 'megabytes': 12.0}
ITERATIONS, SEED = 4400, 0
#: Minimum score of the detections in the score of the Data Science Bowl.
SCORE_THRESHOLD = 0.5


def main(argv: list[str] | None = None) -> int:
    """Train, store and evaluate the model; returns the exit status."""
    parser = training_check.make_parser(__doc__, out='result_nuclei', iterations=ITERATIONS)
    add = parser.add_argument
    add('--data', type=Path, default=Path('nuclei'), help='folder of the data (default: %(default)s)')
    add('--pretrained', default='imagenet', help="MobileNetV1's ImageNet weights (default: %(default)s)")
    add('--resume', help='resume a snapshot of this run, "last" for the newest one')
    add('--modelfile', type=Path, default=ROOT / 'modelfiles' / MODEL, help='file to write (default: %(default)s)')
    add('--workers', type=int, default=0, help='processes that read images (default: %(default)s)')
    args = parser.parse_args(argv)
    status = training_check.run_training(training_arguments(args))
    if status:
        return status
    training_check.store(args.out / f'model_iter_{args.iterations}.npz', args.modelfile)
    return evaluate(args.modelfile, args.data, args.out, args.gpu)


def training_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments of ``train.py``."""
    fields = {**training_check.SLIM_NETWORK, 'max_detections': 1000}
    images = args.data / 'images'
    words = training_check.train_arguments({
        'train-annotations': args.data / 'instances_train.json',
        'train-images': images,
        'val-annotations': args.data / 'instances_val.json',
        'val-images': images,
        'extractor': 'mobilenet_v1_fpn',
        'pretrained': args.pretrained,
        'set': [f'{name}={value}' for name, value in fields.items()],
        'min-size': 640,
        'max-size': 1280,
        'anchor-sizes': [12, 24, 48, 96, 192],
        'scale-jitter': [0.6, 1.3],
        'crop': 320,
        'color-jitter': 0.2,
        'batchsize': 4,
        'roi-batch': 128,
        'train-proposals': 500,
        'clip-gradient': 5,
        'lr': 0.001,
        'lr-initialchange': 200,
        'step-size': args.iterations * 31 // 44,
        'lr-step': args.iterations * 40 // 44,
        'iteration': args.iterations,
        'validation': args.iterations // 4,
        'snapshot': 200,
        'keep': 2,
        'seed': SEED,
        'gpu': args.gpu,
        'workers': args.workers,
        'out': args.out,
    })  # fmt: skip
    return [*words, '--vertical-flip', '--quarter-turns', *(['--resume', args.resume] if args.resume else [])]


def evaluate(path: Path, data: Path, out: Path, gpu: int) -> int:
    """Compare a model file with the goals; return 0 if all are met, else 1."""
    import mask_rcnn
    from mask_rcnn.cli.evaluate import evaluate_to_folder
    from mask_rcnn.datasets import COCODataset

    model = mask_rcnn.load(path, gpu=gpu)
    held_out = COCODataset(data / 'instances_val.json', data / 'images', only_annotated=False)
    metrics = evaluate_to_folder(model, held_out, out / 'evaluation', name='held-out images').summary()
    reached = {
        'mask AP': metrics['segm/AP'],
        'mask AP50': metrics['segm/AP50'],
        'megabytes': path.stat().st_size / 1e6,
    }
    sys.stdout.write(f'Data Science Bowl score {mean_dsb_score(model, held_out):.3f}\n')
    return training_check.compare(reached, GOALS, at_most={'megabytes'})


def mean_dsb_score(model, dataset) -> float:
    """Return the mean of the competition's score over the images of a dataset."""
    scores = []
    for i in range(len(dataset)):
        (detections,) = model.detect([dataset[i].image])
        kept = detections.above(SCORE_THRESHOLD).sorted_by_score()
        scores.append(dsb_score(kept.iter_masks(), dataset.get_annotations(i).segmentations))
    return sum(scores) / len(scores)


if __name__ == '__main__':
    sys.exit(main())
