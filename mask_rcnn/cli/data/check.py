"""``mask-rcnn data check``: everything that is missing, broken or doubtful in a dataset."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mask_rcnn.cli.command import UsageError, run_and_report_errors
from mask_rcnn.cli.data.dataset_files import add_dataset, show_progress
from mask_rcnn.cli.options import non_negative_int, positive_int
from mask_rcnn.config import Config
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.datasets.inspection.checks import (
    KINDS,
    MIN_INPUT_SIZE,
    CheckedDataset,
    Finding,
    check_dataset,
    check_pair,
)
from mask_rcnn.io.console import print_line
from mask_rcnn.io.wording import counted

_DESCRIPTION = f"""\
List everything that is missing, broken or doubtful in a dataset, with file and annotation, and count it by kind.
Objects are tiny if they have less than {MIN_INPUT_SIZE:g} pixels (square root of the box area) in the network input."""

_EPILOG = (
    'kinds:\n'
    + '\n'.join(f'  {kind:12} {title}' for kind, title in KINDS.items())
    + """

exit status:
  0: nothing doubtful (except the ignored kinds); 1: something doubtful, or the annotations cannot be read;
  2: bad arguments.
"""
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description, parser.epilog = _DESCRIPTION, _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_dataset(parser)
    add = parser.add_argument
    add('--val-annotations', type=Path, metavar='FILE', help='also check validation data, and find common images ...')
    add('--val-images', type=Path, metavar='DIR', help='... and the folder of the validation images')
    add(
        '--fast',
        action='store_true',
        help='read only the headers of the images, and compare files instead of pixels: damaged pixels are not found',
    )
    add(
        '--min-size',
        type=positive_int,
        default=Config.min_size,
        metavar='N',
        help='shorter side of the network input (default: %(default)s) ...',
    )
    add(
        '--max-size',
        type=positive_int,
        default=Config.max_size,
        metavar='N',
        help='... and maximum longer side (default: %(default)s)',
    )
    add('--ignore', nargs='+', choices=KINDS, default=[], metavar='KIND', help='kinds that are not reported')
    add(
        '--limit',
        type=non_negative_int,
        default=20,
        metavar='N',
        help='list at most N items of a kind; 0 lists all (default: %(default)s; --json always lists all)',
    )
    add('--json', action='store_true', help='write one line of JSON instead of the list')


def run(args: argparse.Namespace) -> int:
    """Check the data; returns the exit status (0, 1 if something is doubtful, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _check(args), (AnnotationFileError,))


def _check(args: argparse.Namespace) -> int:
    if (args.val_annotations is None) != (args.val_images is None):
        raise UsageError('--val-annotations and --val-images need each other')
    if args.min_size > args.max_size:
        raise UsageError(f'--min-size {args.min_size} is larger than --max-size {args.max_size}')
    config = Config(min_size=args.min_size, max_size=args.max_size)
    files = [(args.annotations, args.images)]
    if args.val_annotations is not None:
        files.append((args.val_annotations, args.val_images))
    datasets = [
        check_dataset(annotations, images, config, decode=not args.fast, progress=show_progress)
        for annotations, images in files
    ]
    findings = [finding for dataset in datasets for finding in dataset.findings]
    if len(datasets) == 2:
        findings += check_pair(*datasets)
    findings = [finding for finding in findings if finding.kind not in args.ignore]
    if args.json:
        print_line(json.dumps(_describe(datasets, findings)))
    else:
        _print(datasets, findings, args.limit)
    return 1 if findings else 0


def _describe(datasets: Iterable[CheckedDataset], findings: Sequence[Finding]) -> dict:
    return {
        'datasets': [
            {
                'annotations': str(dataset.annotation_file),
                'n_images': len(dataset.images),
                'n_annotations': dataset.n_annotations,
            }
            for dataset in datasets
        ],
        'counts': Counter(finding.kind for finding in findings),
        'findings': [dataclasses.asdict(finding) for finding in findings],
    }


def _print(datasets: Iterable[CheckedDataset], findings: Sequence[Finding], limit: int) -> None:
    by_kind: dict[str, list[Finding]] = {kind: [] for kind in KINDS}
    for finding in findings:
        by_kind[finding.kind].append(finding)
    for kind, members in by_kind.items():
        listed = members[: limit or None]
        for finding in listed:
            print_line(f'{kind}: {finding}')
        if len(listed) < len(members):
            print_line(f'{kind}: ... and {len(members) - len(listed)} more (--limit 0 lists all)')
    for dataset in datasets:
        n_images, n_annotations = counted(len(dataset.images), 'image'), counted(dataset.n_annotations, 'annotation')
        print_line(f'{dataset.annotation_file}: {n_images}, {n_annotations}')
    for kind, members in by_kind.items():
        if members:
            print_line(f'  {len(members):>7}  {kind}: {KINDS[kind]}')
    if not findings:
        print_line('  nothing doubtful')
