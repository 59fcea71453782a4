"""``mask-rcnn inspect image``: a report on every step of the detection in a photo."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn.cli.command import UsageError, run_and_report_errors
from mask_rcnn.cli.inspect.photos import add_network, check_layers, load_model, trace_photo
from mask_rcnn.cli.network_options import check_modelfile
from mask_rcnn.cli.outputs import check_can_write, paths_of_images, refuse_inputs
from mask_rcnn.inspect.report import make_report
from mask_rcnn.inspect.tables import Trace
from mask_rcnn.io.atomic_file import created_folders
from mask_rcnn.io.console import print_error, print_line, print_lines, progress_bar
from mask_rcnn.models import MaskRCNN
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.weights import WeightFileError

_DESCRIPTION = """\
Write a report on every step of the detection in a photo: the network input, feature maps, anchors, proposals, class
scores, masks, and the origins of the best detections. The report is one HTML file that contains its pictures. The
network runs on the CPU."""

_MAX_SHAPES = 6  # of a layer in a list


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's description and options to a parser."""
    parser.description = _DESCRIPTION
    add = parser.add_argument
    add('photos', nargs='+', type=Path, metavar='PHOTO', help='image file; several files have a report each')
    add(
        '--out',
        '-o',
        default='.',
        metavar='PATH',
        help='the report of one photo, a file .html, or a folder for reports NAME.html (default: the current folder)',
    )
    add(
        '--layers',
        nargs='+',
        action='extend',
        default=[],
        metavar='NAME',
        help='also show the outputs of these layers; --list-layers lists the names',
    )
    add(
        '--list-layers',
        action='store_true',
        help='print the layers in the order of the computation with the shapes of their outputs, and write no report',
    )
    add_network(parser)


def run(args: argparse.Namespace) -> int:
    """Write the reports; returns the exit status (0, 1 if a file cannot be used, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _inspect(args), (WeightFileError, ImageFileError))


def _inspect(args: argparse.Namespace) -> int:
    if args.list_layers:
        steps = trace_photo(load_model(args), args.photos[0])
        print_lines('\n'.join(list_layers(steps)))
        return 0
    out = args.out if Path(args.out).suffix else f'{args.out}/'  # without an extension, it is a folder
    reports = paths_of_images(args.photos, out, several=len(args.photos) > 1, suffix='.html')
    check_modelfile(args.modelfile)
    _check_reports(reports, args)
    model = load_model(args)
    check_layers(model, args.layers)
    n_failed = 0
    folders = {report.parent for report in reports}
    with created_folders(folders), progress_bar(len(reports), unit='photo') as bar:
        for photo, report in zip(args.photos, reports, strict=True):
            try:
                _write_report(model, photo, report, args.layers)
            except (ImageFileError, OSError, MemoryError) as error:
                n_failed += 1
                print_error(f'{photo}: not enough memory' if isinstance(error, MemoryError) else str(error))
            bar.update()
    return 1 if n_failed else 0


def _check_reports(reports: Sequence[Path], args: argparse.Namespace) -> None:
    inputs = [('the file of --modelfile', args.modelfile), *(('one of the photos', photo) for photo in args.photos)]
    for report in reports:
        if report.suffix.lower() not in ('.html', '.htm'):
            raise UsageError(f'--out {args.out} is neither a folder nor a file .html')
        refuse_inputs('--out', report, inputs)
        if os.path.lexists(report):  # new files need only their folder
            check_can_write(report)


def _write_report(model: MaskRCNN, photo: Path, path: Path, layers: Sequence[str]) -> None:
    steps = trace_photo(model, photo, layers)
    make_report(steps, f'Detection in {photo.name}').write(path)
    counts = ', '.join(f'{count} {name}' for name, count in Counter(steps.detections.names).most_common(10))
    print_line(f'{photo}: {counts or "no detections"} -> {path}')


def list_layers(steps: Trace) -> list[str]:
    """Return a line for each layer: its name, and the shapes of its outputs."""
    width = max(map(len, steps.layer_shapes))
    lines = []
    for name, shapes in steps.layer_shapes.items():
        distinct = list(dict.fromkeys('x'.join(map(str, shape)) or '1' for shape in shapes))
        more = f', and {len(distinct) - _MAX_SHAPES} more' if len(distinct) > _MAX_SHAPES else ''
        lines.append(f'{name:{width}}  {", ".join(distinct[:_MAX_SHAPES])}{more}')
    return lines
