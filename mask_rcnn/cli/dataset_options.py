"""The data sets that ``train`` and ``evaluate`` take, and the flags that name them."""

from __future__ import annotations

import argparse
from pathlib import Path

from mask_rcnn.cli.options import UsageError
from mask_rcnn.datasets.coco import COCODataset
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset

#: The data sets that are drawn; they have no files.
DRAWN = {'shapes': ShapesDataset, 'shapes-rich': RichShapesDataset}
DATASETS = ('coco2017', *DRAWN)

#: Short and long side of the network input, and sides of the anchors, unless flags say otherwise.
SIZES = {'coco2017': (800, 1333), 'shapes': (128, 128), 'shapes-rich': (160, 160)}
ANCHOR_SIZES = {'coco2017': (32, 64, 128, 256, 512), **dict.fromkeys(DRAWN, (8, 16, 32, 64, 128))}

#: Proposals that a new network looks at: the small pictures have few objects.
PROPOSALS = {'coco2017': 1000, **dict.fromkeys(DRAWN, 100)}

#: Pictures of the drawn sets.
N_DRAWN = {'shapes': {'train': 1000, 'val': 100}, 'shapes-rich': {'train': 100000, 'val': 200}}
#: Far from any seed of a training set that somebody would choose, so that validation pictures are unseen.
_UNSEEN_SEED = 1_000_000

_FILE_FLAGS = {'train': ('train_annotations', 'train_images'), 'val': ('val_annotations', 'val_images')}


def add_arguments(parser, folder: Path, *, parts=('train', 'val')) -> None:
    """Add the flags of the data.

    Args:
        parser: A parser or a group of one.
        folder: Where ``getcoco.sh`` puts COCO.
        parts: Which parts the command needs.
    """
    add = parser.add_argument
    add(
        '--dataset',
        choices=DATASETS,
        help='coco2017; shapes: drawn squares, circles and triangles; shapes-rich: drawn scenes of eight '
        'kinds of things (default: coco2017)',
    )
    add(
        '--data-dir',
        type=Path,
        metavar='DIR',
        help=f'folder of coco2017, with annotations/, train2017/ and val2017/ (default: {folder / "COCO"})',
    )
    for part in parts:
        what = {'train': 'training', 'val': 'evaluation'}[part]
        add(
            f'--{part}-annotations',
            type=Path,
            metavar='FILE',
            help=f"data of one's own for {what}: annotations in COCO's format ...",
        )
        add(f'--{part}-images', type=Path, metavar='DIR', help='... and the folder of the images')
    add(
        '--skip-broken',
        action='store_true',
        default=None,
        help='leave out and count broken images and annotations, instead of stopping at the first',
    )
    parser.set_defaults(coco_folder=folder / 'COCO')


def check(args: argparse.Namespace) -> None:
    """Refuse flags of the data that contradict each other.

    Raises:
        UsageError: They do; it names both.
    """
    own = [name for names in _FILE_FLAGS.values() for name in names if getattr(args, name, None) is not None]
    for annotations, images in _FILE_FLAGS.values():
        for one, other in ((annotations, images), (images, annotations)):
            if one in own and other not in own:
                raise UsageError(f'{flag(one)} needs {flag(other)}')
    for name in ('dataset', 'data_dir'):
        if own and getattr(args, name) is not None:
            raise UsageError(
                f'{flag(name)} and {flag(own[0])} contradict each other: the data are either of '
                "a known data set or one's own"
            )
    for name in ('data_dir', 'skip_broken'):
        if args.dataset in DRAWN and getattr(args, name) is not None:
            raise UsageError(
                f'--dataset {args.dataset} and {flag(name)} contradict each other: {args.dataset} has no files'
            )


def flag(name: str) -> str:
    """Return an argument's flag: the README's older flags have underscores, all others hyphens."""
    return '--' + (name if name in _UNDERSCORED else name.replace('_', '-'))


_UNDERSCORED = ('freeze_bn', 'roi_size', 'step_size', 'lr_step', 'lr_initialchange')


def kind(args: argparse.Namespace) -> str:
    """Return the key of :data:`SIZES` that fits the data."""
    return args.dataset or 'coco2017'


def has(part: str, args: argparse.Namespace) -> bool:
    """Return whether there are data for ``'train'`` or ``'val'``: one's own may lack the latter."""
    own = any(getattr(args, name, None) is not None for names in _FILE_FLAGS.values() for name in names)
    return not own or getattr(args, _FILE_FLAGS[part][0], None) is not None


def open_data(part: str, args: argparse.Namespace, *, size: int, seed: int = 0, keypoints: bool = False):
    """Return a data set.

    Args:
        part: ``'train'`` or ``'val'``.
        args: The command's arguments.
        size: Side of the pictures that are drawn.
        seed: Of the pictures that are drawn for training.
        keypoints: Whether the objects have COCO's 17 keypoints.

    Raises:
        UsageError: Keypoints are wanted of pictures that are drawn.
        mask_rcnn.datasets.coco.AnnotationFileError: The annotations cannot be used.
        mask_rcnn.preprocessing.image_io.ImageFileError: An image cannot.
    """
    training = part == 'train'
    if args.dataset in DRAWN:
        if keypoints:
            raise UsageError(f'--dataset {args.dataset} has no keypoints')
        return DRAWN[args.dataset](
            N_DRAWN[args.dataset][part], size=max(size, 32), seed=seed if training else _UNSEEN_SEED
        )
    annotations, images = (getattr(args, name, None) for name in _FILE_FLAGS[part])
    if annotations is None:
        folder = args.data_dir or args.coco_folder
        name = f'{"person_keypoints" if keypoints else "instances"}_{part}2017.json'
        annotations, images = folder / 'annotations' / name, folder / f'{part}2017'
    return COCODataset(
        annotations, images, skip_broken=bool(args.skip_broken), only_annotated=training, keypoints=keypoints
    )


def dataset_name(part: str, args: argparse.Namespace) -> str:
    """Return what messages call a data set."""
    own = getattr(args, _FILE_FLAGS[part][0], None)
    return str(own) if own is not None else f'{kind(args)} ({part})'
