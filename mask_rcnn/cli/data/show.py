"""``mask-rcnn data show``: a contact sheet of annotated images."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from mask_rcnn.cli.command import UsageError, run_and_report_errors
from mask_rcnn.cli.data.dataset_files import add_dataset, check_picture_output, show_progress
from mask_rcnn.cli.options import positive_int, seed
from mask_rcnn.cli.pictures import can_write_picture, write_picture
from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.io.console import print_note, print_warning
from mask_rcnn.io.wording import counted
from mask_rcnn.preprocessing.image_io import ImageFileError, load_image
from mask_rcnn.visualization.contact_sheet import Tile, compose_sheet, draw_tile_picture

_DESCRIPTION = """\
Draw a contact sheet of annotated images: masks, boxes and class names, with the file name and the number of objects of
each image. Check with it that the masks fit the objects."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description = _DESCRIPTION
    add_dataset(parser)
    add = parser.add_argument
    add(
        '--output',
        '-o',
        type=Path,
        default=Path('contact_sheet.png'),
        metavar='FILE',
        help='the picture to write; its extension is the format (default: %(default)s)',
    )
    add('--n', type=positive_int, default=16, metavar='N', help='number of images (default: %(default)s)')
    add('--seed', '-s', type=seed, default=0, metavar='N', help='seed of the random choice (default: %(default)s)')
    add('--class', dest='class_name', metavar='NAME', help='only images with objects of this class, and only these')
    add('--columns', type=positive_int, default=4, metavar='N', help='images in a row (default: %(default)s)')
    add('--size', type=positive_int, default=360, metavar='N', help='longer side of a picture (default: %(default)s)')


def run(args: argparse.Namespace) -> int:
    """Write the contact sheet; returns the exit status (0, 1 if the data cannot be used, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _show(args), (AnnotationFileError, ImageFileError))


def _show(args: argparse.Namespace) -> int:
    if not can_write_picture(args.output.suffix):
        raise UsageError(f'--output {args.output} does not end with the extension of a picture, such as .png or .jpg')
    check_picture_output(args)
    dataset = COCODataset(
        args.annotations,
        args.images,
        skip_broken=True,
        only_annotated=False,
        masks=False,
        log_warnings=False,
        class_names=None if args.class_name is None else [args.class_name],
        progress=show_progress,
    )
    if dataset.n_skipped:
        print_warning(
            f'{counted(dataset.n_skipped, "image or annotation is", "images or annotations are")} broken; '
            'mask-rcnn data check lists what is wrong'
        )
    indices = _choose_images(dataset, args)
    if not indices:
        raise AnnotationFileError(args.annotations, f'no image has an object of the class {args.class_name!r}')
    tiles = [_draw_tile(dataset, i, args.size) for i in show_progress(indices, len(indices), 'image')]
    try:
        write_picture(args.output, compose_sheet(tiles, columns=args.columns, side=args.size))
    except ValueError as error:
        raise UsageError(f'--output {args.output}: {error}; choose a smaller --n or --size') from error
    print_note(f'wrote {args.output}')
    return 0


def _choose_images(dataset: COCODataset, args: argparse.Namespace) -> list[int]:
    """Return the indices of random images in the order of the dataset."""
    candidates = [i for i in range(len(dataset)) if args.class_name is None or len(dataset.get_annotations(i))]
    chosen = np.random.RandomState(args.seed).permutation(len(candidates))[: args.n]
    return [candidates[i] for i in sorted(chosen.tolist())]


def _draw_tile(dataset: COCODataset, i: int, side: int) -> Tile:
    annotations = dataset.get_annotations(i)
    picture = draw_tile_picture(load_image(dataset.image_name(i)), annotations, dataset.class_names, side=side)
    n_objects, (height, width) = len(annotations), dataset.image_size(i)
    details = f'{counted(n_objects, "object")}, {width} x {height}'
    return Tile(picture, Path(dataset.image_name(i)).name, details)
