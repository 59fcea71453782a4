"""``mask-rcnn data split``: the division of a dataset into training and validation data."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn.cli.command import run_and_report_errors
from mask_rcnn.cli.data.dataset_files import add_dataset
from mask_rcnn.cli.options import seed
from mask_rcnn.cli.outputs import check_output
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.datasets.coco_json import COCOFile, check_coco_json, read_json
from mask_rcnn.datasets.image_files import find_image_file
from mask_rcnn.datasets.inspection.image_scan import group_equal_files
from mask_rcnn.datasets.inspection.split import group_images, select_images, split_groups
from mask_rcnn.io.atomic_file import created_folders, open_for_writing
from mask_rcnn.io.console import print_line
from mask_rcnn.io.wording import counted

_DESCRIPTION = """\
Divide a dataset into training and validation data: NAME.json becomes NAME_train.json and NAME_val.json. Each class that
two images have is on both sides where possible. Images with equal files stay on one side. All fields of the file are
kept, and both files have all classes. The images are not copied."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description = _DESCRIPTION
    add_dataset(parser)
    add = parser.add_argument
    add(
        '--fraction',
        type=_fraction,
        default=0.1,
        metavar='F',
        help='fraction of the images in the validation data, between 0 and 1 (default: %(default)s)',
    )
    add('--seed', '-s', type=seed, default=0, metavar='N', help='seed of the random choice (default: %(default)s)')
    add(
        '--by',
        type=_pattern,
        metavar='REGEX',
        help='images for which this regular expression finds the same text in file_name stay on one side; with groups, '
        r"the same text of the groups: --by '^(patient\d+)_'",
    )
    add('--out', '-o', type=Path, metavar='DIR', help='folder of the two files (default: that of ANNOTATIONS)')


def run(args: argparse.Namespace) -> int:
    """Divide the data; returns the exit status (0, 1 if the data cannot be used, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _split(args), (AnnotationFileError,))


def _split(args: argparse.Namespace) -> int:
    content = read_json(args.annotations)
    file = check_coco_json(args.annotations, content)
    with created_folders([] if args.out is None else [args.out]):
        _divide(args, content, file)
    return 0


def _divide(args: argparse.Namespace, content: dict, file: COCOFile) -> None:
    outputs = _prepare_outputs(args)
    paths = [os.path.join(args.images, find_image_file(args.images, image.file_name)) for image in file.images]
    groups = group_images(file, group_equal_files(paths), args.by)
    try:
        is_val = split_groups(groups, args.fraction, seed=args.seed)
    except ValueError as error:
        raise AnnotationFileError(args.annotations, str(error)) from error
    for part, side in (('train', False), ('val', True)):
        chosen = [group for group, group_is_val in zip(groups, is_val, strict=True) if group_is_val == side]
        _write(outputs[part], content, file, [i for group in chosen for i in group.images])


def _prepare_outputs(args: argparse.Namespace) -> dict[str, Path]:
    """Return the files to write, which can be written and are not the input."""
    folder = args.annotations.parent if args.out is None else args.out
    outputs = {part: folder / f'{args.annotations.stem}_{part}.json' for part in ('train', 'val')}
    for output in outputs.values():
        check_output('--out', output, [('the annotation file', args.annotations)])
    return outputs


def _write(path: Path, content: dict, file: COCOFile, indices: Sequence[int]) -> None:
    selected = select_images(content, file, indices)
    with open_for_writing(path) as output:
        output.write(json.dumps(selected, ensure_ascii=False).encode('utf-8', 'surrogatepass'))
    n_images, n_annotations = len(selected['images']), len(selected['annotations'])
    print_line(f'{path}: {counted(n_images, "image")}, {counted(n_annotations, "annotation")}')


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number between 0 and 1')
    return value


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f'{text!r} is not a regular expression: {error}') from error
