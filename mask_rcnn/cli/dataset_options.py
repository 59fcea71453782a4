"""The datasets of ``train`` and ``evaluate``, and the options that select them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mask_rcnn.cli.command import UsageError, flag
from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.synthetic.rich_shapes import RichShapesDataset
from mask_rcnn.datasets.synthetic.shapes import ShapesDataset
from mask_rcnn.io.console import print_warning

#: A dataset of the commands.
Dataset = COCODataset | ShapesDataset | RichShapesDataset

#: The datasets that are generated; they have no files.
GENERATED = {'shapes': ShapesDataset, 'shapes-rich': RichShapesDataset}
DATASETS = ('coco2017', *GENERATED)

#: Default short and long side of the network input.
SIZES = {'coco2017': (800, 1333), 'shapes': (128, 128), 'shapes-rich': (160, 160)}
#: Default sizes of the anchors in pixels of the network input.
ANCHOR_SIZES = {'coco2017': (32, 64, 128, 256, 512), **dict.fromkeys(GENERATED, (8, 16, 32, 64, 128))}
#: Default ``rpn_post_nms`` of a new network; the generated images contain few objects.
PROPOSALS = {'coco2017': 1000, **dict.fromkeys(GENERATED, 100)}

#: Number of generated images by dataset and part.
N_GENERATED = {'shapes': {'train': 1000, 'val': 100}, 'shapes-rich': {'train': 100000, 'val': 200}}
#: Seed of the generated validation images, far from the usual training seeds so that the two sets differ.
_VALIDATION_SEED = 1_000_000

#: The two parts of a dataset and their names in the help.
PARTS = {'train': 'training', 'val': 'evaluation'}


def add_arguments(parser: argparse._ActionsContainer, folder: Path, *, parts: Sequence[str] = ('train', 'val')) -> None:
    """Add the options that select the data.

    Args:
        parser: A parser or an argument group.
        folder: The parent of the folder ``COCO``, into which ``getcoco.sh`` downloads.
        parts: The parts that the command uses.
    """
    add = parser.add_argument
    add(
        '--dataset',
        choices=DATASETS,
        help='coco2017; shapes: generated squares, circles and triangles; shapes-rich: generated scenes with eight '
        'kinds of objects (default: coco2017)',
    )
    add(
        '--data-dir',
        type=Path,
        metavar='DIR',
        help=f'folder of coco2017 with annotations/, train2017/ and val2017/ (default: {folder / "COCO"})',
    )
    for part in parts:
        add(
            f'--{part}-annotations',
            type=Path,
            metavar='FILE',
            help=f"your own {PARTS[part]} data: annotations in COCO's format ...",
        )
        add(f'--{part}-images', type=Path, metavar='DIR', help='... and the folder of the images')
    add(
        '--skip-broken',
        action='store_true',
        default=None,
        help='skip and count damaged images and annotations instead of stopping at the first one',
    )
    add(
        '--strict',
        action='store_true',
        default=None,
        help='stop with status 1 if objects or images would be left out, or if objects are doubtful: a box or an '
        'outline outside its image, a box that does not fit its outline (otherwise, warnings count them and name the '
        'first three)',
    )
    parser.set_defaults(coco_folder=folder / 'COCO')


@dataclass(frozen=True)
class DatasetArguments:
    """The dataset that the command line selects.

    Args:
        name: One of :data:`DATASETS`; ``'coco2017'`` also for the user's own data.
        folder: The folder of COCO 2017.
        files: The user's own data: part -> annotation file and folder of images.  Empty for the datasets of
            :data:`DATASETS`.
        skip_broken: Skip broken images and annotations.
        strict: Refuse data of which a part is left out or doubtful.
        is_default: True if no option selects the dataset.
    """

    name: str
    folder: Path
    files: Mapping[str, tuple[Path, Path]]
    skip_broken: bool = False
    strict: bool = False
    is_default: bool = False

    @classmethod
    def from_namespace(cls, args: argparse.Namespace) -> DatasetArguments:
        """Return the dataset of parsed arguments.

        Raises:
            UsageError: Two options contradict each other; the message names both.
        """
        _check_conflicts(args)
        files = {part: (getattr(args, f'{part}_annotations'), getattr(args, f'{part}_images')) for part in _parts(args)}
        return cls(
            args.dataset or 'coco2017',
            args.data_dir or args.coco_folder,
            files,
            bool(args.skip_broken),
            bool(args.strict),
            is_default=not (args.dataset or args.data_dir or files),
        )

    @property
    def is_generated(self) -> bool:
        """True if the images are generated."""
        return self.name in GENERATED

    def has(self, part: str) -> bool:
        """Return whether the dataset has the part ``'train'`` or ``'val'``; the user's own data may lack one."""
        return not self.files or part in self.files

    def title(self, part: str) -> str:
        """Return the name of a part for messages."""
        return str(self.files[part][0]) if part in self.files else f'{self.name} ({part})'

    def open(
        self,
        part: str,
        *,
        size: int,
        seed: int = 0,
        keypoints: bool = False,
        masks: bool = True,
        apply_orientation: bool = True,
        kept_classes: Sequence[str] = (),
    ) -> Dataset:
        """Open a part of the dataset.

        Args:
            part: ``'train'`` or ``'val'``.
            size: Side of generated images in pixels.
            seed: Seed of the generated training images.
            keypoints: Whether the objects have COCO's 17 keypoints.
            masks: Whether the network has a mask head.
            apply_orientation: Whether the orientation of the image files is applied.
            kept_classes: See :class:`~mask_rcnn.datasets.coco.COCODataset`.

        Raises:
            UsageError: Generated images have no keypoints.
            mask_rcnn.datasets.coco.AnnotationFileError: The annotations cannot be used, or a part of the data is left
                out or doubtful despite ``strict``.
            mask_rcnn.preprocessing.image_io.ImageFileError: An image cannot be used.
        """
        is_training = part == 'train'
        if self.is_generated:
            if keypoints:
                raise UsageError(f'--dataset {self.name} has no keypoints')
            n_images = N_GENERATED[self.name][part]
            return GENERATED[self.name](n_images, size=max(size, 32), seed=seed if is_training else _VALIDATION_SEED)
        annotations, images = self._find_files(part, keypoints)
        dataset = COCODataset(
            annotations,
            images,
            skip_broken=self.skip_broken,
            only_annotated=is_training,
            keypoints=keypoints,
            apply_orientation=apply_orientation,
            masks=masks,
            kept_classes=kept_classes,
            log_warnings=False,  # :func:`print_dataset_warnings` prints them
        )
        problems = [str(items) for items in (dataset.omissions, dataset.doubts) if items]
        if self.strict and problems:
            raise AnnotationFileError(annotations, f'{"; ".join(problems)} (--strict)')
        return dataset

    def _find_files(self, part: str, keypoints: bool) -> tuple[Path, Path]:
        """Return the annotation file and the folder of the images."""
        if part in self.files:
            return self.files[part]
        name = f'{"person_keypoints" if keypoints else "instances"}_{part}2017.json'
        annotations = self.folder / 'annotations' / name
        if not annotations.exists():
            raise AnnotationFileError(
                annotations,
                'no such file or directory; ./getcoco.sh downloads COCO, and '
                f'--{part}-annotations and --{part}-images name your own data',
            )
        return annotations, self.folder / f'{part}2017'


def print_dataset_warnings(dataset: Dataset, name: str) -> None:
    """Print the warnings of a dataset, such as the summary of what is left out.

    Args:
        dataset: The dataset.
        name: The dataset's name in the warnings.
    """
    for line in getattr(dataset, 'warnings', ()):  # generated images have none
        print_warning(f'{name}: {line}')


def model_category_ids(dataset: Dataset) -> tuple[int, ...]:
    """Return the category ids of a dataset for a model, whose ids are integers: 1, 2, ... if they are texts."""
    ids = tuple(category for category in dataset.category_ids if isinstance(category, int))
    return ids if len(ids) == len(dataset.class_names) else tuple(range(1, len(dataset.class_names) + 1))


def _parts(args: argparse.Namespace) -> list[str]:
    """Return the parts for which the user names files."""
    return [part for part in PARTS if getattr(args, f'{part}_annotations', None) is not None]


def _check_conflicts(args: argparse.Namespace) -> None:
    """Raise :class:`UsageError` for options that contradict each other."""
    for part in PARTS:
        annotations, images = (getattr(args, f'{part}_{name}', None) for name in ('annotations', 'images'))
        if (annotations is None) != (images is None):
            names = (f'--{part}-annotations', f'--{part}-images')
            given, missing = names if images is None else names[::-1]
            raise UsageError(f'{given} needs {missing}')
    for name in ('dataset', 'data_dir'):
        if _parts(args) and getattr(args, name) is not None:
            raise UsageError(
                f'{flag(name)} and --{_parts(args)[0]}-annotations contradict each other: give either a known dataset '
                'or your own data'
            )
    for name in ('data_dir', 'skip_broken', 'strict'):
        if args.dataset in GENERATED and getattr(args, name) is not None:
            raise UsageError(
                f'--dataset {args.dataset} and {flag(name)} contradict each other: {args.dataset} has no files'
            )
