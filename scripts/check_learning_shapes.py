"""Show that learning generalises: drawn squares, circles and triangles, tested on 100 unseen pictures.

Pictures have 128 pixels, objects from 10 pixels on; trains with ``train.py``'s own code and exits with status 0
if box AP50 is at least 0.90.  The network is R-50-FPN: at 128 pixels a C4 network's map has 8 x 8 locations, and
its box AP50 reaches 0.72.

    python scripts/check_learning_shapes.py --pretrained resnet50_imagenet.npz
"""

import argparse
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]

from check_overfit_8_images import report

GOALS = {'bbox/AP50': 0.90}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--pretrained', required=True)
    add('--out', type=pathlib.Path, default=pathlib.Path('result_shapes'))
    add('--iterations', type=int, default=1800)
    add('--gpu', type=int, default=-1)
    args = parser.parse_args(argv)
    from mask_rcnn.cli import train

    started = time.monotonic()
    status = train.main(training_arguments(args))
    if status:
        return status
    sys.stdout.write(f'{(time.monotonic() - started) / 60:.1f} minutes\n')
    return report(args.out / 'log', GOALS)


def training_arguments(args: argparse.Namespace) -> list[str]:
    n = args.iterations
    return [
        '--dataset',
        'shapes',
        '--extractor',
        'resnet50_fpn',
        '--min-size',
        '128',
        '--pretrained',
        args.pretrained,
        '--gpu',
        str(args.gpu),
        '--out',
        str(args.out),
        '--batchsize',
        '4',
        '--roi-batch',
        '32',
        '--lr',
        '0.0005',
        '--lr_initialchange',
        str(n // 20),
        '--step_size',
        str(n * 3 // 4),
        '--lr_step',
        str(n * 9 // 10),
        '--clip-gradient',
        '10',
        '--iteration',
        str(n),
        '--validation',
        str(n),
        '--snapshot',
        str(max(n // 4, 1)),
        '--keep',
        '1',
    ]


if __name__ == '__main__':  # the processes that read images import this file, too
    sys.exit(main())
