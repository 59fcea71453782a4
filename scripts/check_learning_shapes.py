"""Check that training generalises: train on generated shapes, evaluate on 100 unseen images.

Images have 128 x 128 pixels, objects have sides of at least 10 pixels.  Trains with the code of ``train.py`` and exits
with status 0 if box AP50 is at least 0.90.  The network is R-50-FPN: the feature map of a C4 network has 8 x 8
locations at this size, and its box AP50 reaches 0.72.

    python scripts/check_learning_shapes.py --pretrained resnet50_imagenet.npz
"""

from __future__ import annotations

import argparse
import sys

import training_check

GOALS = {'bbox/AP50': 0.90}


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    parser = training_check.make_parser(__doc__, out='result_shapes', iterations=1800)
    parser.add_argument('--pretrained', required=True, help='ImageNet weights')
    args = parser.parse_args(argv)
    status = training_check.run_training(training_arguments(args))
    return status or training_check.report(args.out / 'log', GOALS)


def training_arguments(args: argparse.Namespace) -> list[str]:
    """Return the arguments of ``train.py``."""
    return training_check.train_arguments({
        'dataset': 'shapes',
        'extractor': 'resnet50_fpn',
        'min-size': 128,
        'pretrained': args.pretrained,
        'gpu': args.gpu,
        'out': args.out,
        'batchsize': 4,
        'roi-batch': 32,
        'lr': 0.0005,
        'clip-gradient': 10,
        **training_check.step_options(args.iterations),
    })  # fmt: skip


if __name__ == '__main__':  # the processes that load images import this file again
    sys.exit(main())
