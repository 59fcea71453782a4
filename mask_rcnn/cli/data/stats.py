"""``mask-rcnn data stats``: the statistics of a dataset and the settings that they suggest for training."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mask_rcnn.cli.command import UsageError, flag, run_and_report_errors
from mask_rcnn.cli.data.dataset_files import add_dataset, check_picture_output, show_progress
from mask_rcnn.cli.options import add_gpu, choose_device, positive_float
from mask_rcnn.config import EXTRACTORS, PRESETS
from mask_rcnn.datasets.coco import AnnotationFileError, COCODataset
from mask_rcnn.datasets.inspection.machine import find_machine
from mask_rcnn.datasets.inspection.statistics import collect_statistics
from mask_rcnn.datasets.inspection.statistics_report import (
    describe_statistics,
    format_settings,
    format_statistics,
    plot_statistics,
)
from mask_rcnn.datasets.inspection.suggestions import Machine, Settings, suggest_settings
from mask_rcnn.io.console import print_line, print_lines, print_note, print_warning
from mask_rcnn.io.programs import command_text

_DESCRIPTION = """\
Describe a dataset: objects per class and per image, sizes of images and objects, and the settings for mask-rcnn train
that they suggest. Images and objects that cannot be used for training are left out, and counted."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description = _DESCRIPTION
    add_dataset(parser)
    parser.add_argument(
        '--output', '-o', type=Path, metavar='FILE', help='also write a PNG picture with histograms of the sizes'
    )
    parser.add_argument('--json', action='store_true', help='write one line of JSON instead of the tables')
    parser.add_argument(
        '--extractor',
        choices=EXTRACTORS,
        default='resnet50',
        help='network for which settings are suggested (default: %(default)s)',
    )
    add_gpu(parser.add_argument)
    parser.add_argument(
        '--memory',
        type=positive_float,
        metavar='GIB',
        help='memory for training in GiB (default: that of the GPU, or the main memory)',
    )


def run(args: argparse.Namespace) -> int:
    """Print the statistics; returns the exit status (0, 1 if the data cannot be used, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _describe(args), (AnnotationFileError,))


def _describe(args: argparse.Namespace) -> int:
    if args.output is not None:
        if args.output.suffix.lower() != '.png':
            raise UsageError(f'--output {args.output} does not end with .png')
        check_picture_output(args)
    machine = find_machine(choose_device(args.gpu))
    if args.memory is not None:
        machine = Machine(int(args.memory * 2**30), machine.has_gpu)
    dataset = COCODataset(args.annotations, args.images, skip_broken=True, log_warnings=False, progress=show_progress)
    statistics = collect_statistics(dataset)
    settings = suggest_settings(statistics, extractor=args.extractor, machine=machine)
    config = PRESETS[args.extractor].replace(
        min_size=settings.min_size, max_size=settings.max_size, anchor_sizes=settings.anchor_sizes
    )
    for warning in dataset.warnings:
        print_warning(warning)
    if args.json:
        print_line(json.dumps(describe_statistics(statistics, settings, config)))
    else:
        print_lines(format_statistics(statistics, config))
        device = 'GPU' if machine.has_gpu else 'CPU'
        print_lines(f'\nsuggested for {args.extractor} on a {device} with {machine.memory / 2**30:.0f} GiB')
        print_lines(f'{format_settings(settings)}\n\n{_train_command(args, dataset, settings)}')
    if args.output is not None:
        plot_statistics(args.output, statistics, config, title=args.annotations.name)
        print_note(f'wrote {args.output}')
    return 0


def _train_command(args: argparse.Namespace, dataset: COCODataset, settings: Settings) -> str:
    """Return the command line that trains with the settings; it needs no other data than these."""
    words = ['mask-rcnn', 'train', '--train-annotations', str(args.annotations), '--train-images', str(args.images)]
    if dataset.n_skipped:
        words.append('--skip-broken')
    words += ['--extractor', args.extractor]
    for name, value in settings.train_options.items():
        if name == 'validation':  # train refuses it without evaluation data
            continue
        values = value if isinstance(value, tuple) else (value,)
        words += [flag(name), *(f'{v:g}' if isinstance(v, float) else str(v) for v in values)]
    if settings.network_fields:
        words += ['--set', *(f'{name}={value}' for name, value in settings.network_fields.items())]
    if args.gpu is not None:
        words += ['--gpu', str(args.gpu)]
    return command_text(words)
