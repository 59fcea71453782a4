"""Show that learning works: eight images of a COCO-format data set, learned by heart on a CPU.

Starts from ImageNet weights, trains at a short side of 256 pixels with ``train.py``'s own code, evaluates on
the same eight images, and exits with status 0 if box AP50 is at least 0.90 and mask AP50 at least 0.80.

    python scripts/check_overfit_8_images.py --annotations instances_train2017.json --images train2017 \\
        --pretrained resnet50_imagenet.npz
"""

import argparse
import json
import pathlib
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]

GOALS = {'bbox/AP50': 0.90, 'segm/AP50': 0.80}
SHORT_SIDE, LONG_SIDE = 256, 427


def main(argv=None) -> int:
    args = make_parser().parse_args(argv)
    from mask_rcnn.cli import train

    args.out.mkdir(parents=True, exist_ok=True)
    subset = args.out / 'eight.json'
    ids = args.image_ids or choose(json.loads(args.annotations.read_text()), args.n)
    write_subset(args.annotations, ids, subset)
    started = time.monotonic()
    status = train.main(training_arguments(args, subset))
    if status:
        return status
    sys.stdout.write(f'{(time.monotonic() - started) / 60:.1f} minutes\n')
    return report(args.out / 'log', GOALS)


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--annotations', type=pathlib.Path, required=True)
    add('--images', type=pathlib.Path, required=True)
    add('--pretrained', required=True)
    add('--out', type=pathlib.Path, default=pathlib.Path('result_eight'))
    add('--iterations', type=int, default=400)
    add('--gpu', type=int, default=-1)
    add('--n', type=int, default=8, help='number of images (default: %(default)s)')
    add('--image-ids', type=int, nargs='+', help='which images (default: those whose smallest object is largest)')
    return parser


def training_arguments(args: argparse.Namespace, subset: pathlib.Path) -> list[str]:
    """Two images an update; few RoIs, because res5 on them is what a CPU spends its time on."""
    n = args.iterations
    images = str(args.images)
    return [
        '--train-annotations',
        str(subset),
        '--train-images',
        images,
        '--val-annotations',
        str(subset),
        '--val-images',
        images,
        '--pretrained',
        args.pretrained,
        '--gpu',
        str(args.gpu),
        '--out',
        str(args.out),
        '--min-size',
        str(SHORT_SIDE),
        '--max-size',
        str(LONG_SIDE),
        '--batchsize',
        '2',
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


def choose(content: dict, n: int) -> list[int]:
    """Return the images without crowds whose smallest object, resized as for training, is largest."""
    smallest = {}
    images = {image['id']: image for image in content['images']}
    for annotation in content['annotations']:
        image = images[annotation['image_id']]
        short, long = sorted((image['height'], image['width']))
        scale = min(SHORT_SIDE / short, LONG_SIDE / long)
        size = 0 if annotation['iscrowd'] else annotation['area'] ** 0.5 * scale
        smallest[image['id']] = min(smallest.get(image['id'], size), size)
    return sorted(sorted(smallest, key=smallest.get)[-n:])


def write_subset(annotations: pathlib.Path, ids: list[int], path: pathlib.Path) -> None:
    """Write the part of an annotation file that is about some images, with the classes in them."""
    content = json.loads(annotations.read_text())
    chosen = [a for a in content['annotations'] if a['image_id'] in ids]
    classes = {a['category_id'] for a in chosen}
    path.write_text(
        json.dumps(
            {
                'images': [image for image in content['images'] if image['id'] in ids],
                'annotations': chosen,
                'categories': [category for category in content['categories'] if category['id'] in classes],
            }
        )
    )


def report(log: pathlib.Path, goals: dict[str, float]) -> int:
    """Compare the last evaluation in a log with what was to be reached; returns the exit status."""
    last = [entry for entry in json.loads(log.read_text()) if 'validation/bbox/AP' in entry][-1]
    reached = {name: last[f'validation/{name}'] for name in goals}
    for name, goal in goals.items():
        sys.stdout.write(f'{name} {reached[name]:.3f}, to be reached {goal:.2f}\n')
    return 0 if all(reached[name] >= goal for name, goal in goals.items()) else 1


if __name__ == '__main__':  # the processes that read images import this file, too
    sys.exit(main())
