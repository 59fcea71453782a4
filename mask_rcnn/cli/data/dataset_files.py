"""The arguments that name a dataset, common to the subcommands that inspect one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mask_rcnn.cli.outputs import check_output, refuse_inputs
from mask_rcnn.datasets.coco_json import read_coco_json
from mask_rcnn.datasets.image_files import find_image_file
from mask_rcnn.io.atomic_file import is_replaced
from mask_rcnn.io.console import progress_bar

_Item = TypeVar('_Item')


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments ``ANNOTATIONS`` and ``IMAGES``."""
    parser.add_argument('annotations', type=Path, metavar='ANNOTATIONS', help="annotations in COCO's format (JSON)")
    parser.add_argument('images', type=Path, metavar='IMAGES', help='folder to which the names of the images refer')


def show_progress(items: Iterable[_Item], n_items: int, unit: str) -> Iterator[_Item]:
    """Yield items while a progress bar counts them."""
    with progress_bar(n_items, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()


def check_picture_output(args: argparse.Namespace) -> None:
    """Check that the picture of ``--output`` can be written, and replaces neither the annotations nor an image.

    Raises:
        UsageError: The picture is a file of the dataset.
        mask_rcnn.io.atomic_file.FileError: The picture cannot be written.
        AnnotationFileError: The picture exists, and the annotations cannot be read.
    """
    check_output('--output', args.output, [('the annotation file', args.annotations)])
    if is_replaced(args.output):
        for image in read_coco_json(args.annotations, needs_annotations=False).images:
            path = args.images / find_image_file(args.images, image.file_name)
            refuse_inputs('--output', args.output, [('an image of the dataset', path)])
