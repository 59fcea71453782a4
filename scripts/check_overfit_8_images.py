r"""Check that training works: overfit eight images of a COCO dataset on a CPU.

Starts from ImageNet weights, trains at a short side of 256 pixels with the code of ``train.py``, evaluates on the same
eight images, and exits with status 0 if box AP50 is at least 0.90 and mask AP50 at least 0.80.

    python scripts/check_overfit_8_images.py --annotations instances_train2017.json --images train2017 \
        --pretrained resnet50_imagenet.npz
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import training_check

GOALS = {'bbox/AP50': 0.90, 'segm/AP50': 0.80}
SHORT_SIDE, LONG_SIDE = 256, 427


def main(argv: list[str] | None = None) -> int:
    """Run the check; returns the exit status."""
    args = make_parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    subset = args.out / 'eight.json'
    content = json.loads(args.annotations.read_bytes())
    write_subset(content, args.image_ids or choose_images(content, args.n), subset)
    status = training_check.run_training(training_arguments(args, subset))
    return status or training_check.report(args.out / 'log', GOALS)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = training_check.make_parser(__doc__, out='result_eight', iterations=400)
    parser.add_argument('--annotations', type=Path, required=True, help="annotations in COCO's format")
    parser.add_argument('--images', type=Path, required=True, help='folder of the images')
    parser.add_argument('--pretrained', required=True, help='ImageNet weights')
    parser.add_argument('--n', type=int, default=8, help='number of images (default: %(default)s)')
    parser.add_argument(
        '--image-ids', type=int, nargs='+', help='ids of the images (default: those whose smallest object is largest)'
    )
    return parser


def training_arguments(args: argparse.Namespace, subset: Path) -> list[str]:
    """Return the arguments of ``train.py``.

    A batch is two images with 32 RoIs each: res5 on the RoIs takes most of the time on a CPU.
    """
    return training_check.train_arguments({
        'train-annotations': subset,
        'train-images': args.images,
        'val-annotations': subset,
        'val-images': args.images,
        'pretrained': args.pretrained,
        'gpu': args.gpu,
        'out': args.out,
        'min-size': SHORT_SIDE,
        'max-size': LONG_SIDE,
        'batchsize': 2,
        'roi-batch': 32,
        'lr': 0.0005,
        'clip-gradient': 10,
        **training_check.step_options(args.iterations),
    })  # fmt: skip


def choose_images(content: dict, n: int) -> list[int]:
    """Return the ids of the images without crowds whose smallest object, at training size, is largest.

    Args:
        content: A COCO annotation file.
        n: Number of images.
    """
    smallest: dict[int, float] = {}
    images = {image['id']: image for image in content['images']}
    for annotation in content['annotations']:
        image = images[annotation['image_id']]
        short, long = sorted((image['height'], image['width']))
        scale = min(SHORT_SIDE / short, LONG_SIDE / long)
        size = 0 if annotation['iscrowd'] else annotation['area'] ** 0.5 * scale
        smallest[image['id']] = min(smallest.get(image['id'], size), size)
    return sorted(sorted(smallest, key=smallest.__getitem__)[-n:])


def write_subset(content: dict, ids: list[int], path: Path) -> None:
    """Write the annotations of some images, with the categories that occur in them.

    Args:
        content: A COCO annotation file.
        ids: Ids of the images.
        path: The file to write.
    """
    annotations = [annotation for annotation in content['annotations'] if annotation['image_id'] in ids]
    categories = {annotation['category_id'] for annotation in annotations}
    subset = {
        'images': [image for image in content['images'] if image['id'] in ids],
        'annotations': annotations,
        'categories': [category for category in content['categories'] if category['id'] in categories],
    }
    path.write_text(json.dumps(subset), encoding='utf-8')


if __name__ == '__main__':  # the processes that load images import this file again
    sys.exit(main())
