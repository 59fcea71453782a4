"""``mask-rcnn export``: one ONNX file of a network, from the image to the detections."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mask_rcnn.cli.command import UsageError, parse_command_line, run_and_report_errors
from mask_rcnn.cli.network_options import add_conventions, load_network
from mask_rcnn.cli.options import add_max_detections, fraction
from mask_rcnn.cli.outputs import check_output, output_path
from mask_rcnn.io.atomic_file import is_replaced, is_standard_output, open_for_writing
from mask_rcnn.io.console import print_line
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.weights import WeightFileError

_DESCRIPTION = """\
Export a model as one ONNX file that contains every step from the image to the detections, for ONNX Runtime and other
programs. Its input is an image of any size (bytes, RGB, height x width x 3); its outputs are boxes, labels, scores and,
where the model predicts them, masks and keypoints. The sizes and thresholds are fixed in the file."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and options to a parser."""
    parser.description = _DESCRIPTION
    add = parser.add_argument
    add('modelfile', type=Path, metavar='MODEL', help='weights of any format that convert reads')
    add('--onnx', type=output_path, required=True, metavar='FILE', help='file to write; - for the standard output')
    add('--score-thresh', type=fraction, metavar='S', help='minimum score (default: that of the preset)')
    add_max_detections(add)
    add(
        '--preset',
        choices=('visualize', 'evaluate'),
        default='evaluate',
        help='thresholds: those of the weights, for all detections, or visualize, a score above 0.7, for pictures '
        '(default: %(default)s)',
    )
    add_conventions(add)


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse the command line, export and report errors; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    args = parse_command_line(configure, argv, prog)
    return run_and_report_errors(partial(run, args), (WeightFileError,))


def run(args: argparse.Namespace) -> int:
    """Export a model; returns the exit status 0."""
    export = _import_export()
    _check_output(args)
    model = load_network(args)
    model.use_preset(args.preset)
    model.set_thresholds(score=args.score_thresh)
    try:
        content = export.serialize(export.export_model(model))
    except (export.TooLargeError, export.UnknownLayersError) as error:
        raise WeightFileError(args.modelfile, str(error)) from None
    with open_for_writing(args.onnx) as file:
        file.write(content)
    _report(model, args.onnx, len(content))
    return 0


def _import_export() -> Any:
    """Return :mod:`mask_rcnn.onnx_export.export`.

    Raises:
        UsageError: The package onnx is not installed.
    """
    try:
        from mask_rcnn.onnx_export import export
    except ImportError as error:
        if (error.name or '').partition('.')[0] != 'onnx':
            raise
        raise UsageError(f'the export needs onnx, which cannot be imported ({error}): pip install onnx') from None
    return export


def _check_output(args: argparse.Namespace) -> None:
    """Check that the output can be written, before the weights are read."""
    if is_standard_output(args.onnx) and sys.stdout.isatty():
        raise UsageError(f'--onnx {args.onnx} is the terminal; redirect the model to a file or a pipe')
    check_output('--onnx', args.onnx, [('the model', args.modelfile)])
    is_file = is_replaced(args.onnx) or not os.path.exists(args.onnx)  # pipes and devices have any name
    if is_file and args.onnx.suffix.lower() != '.onnx':
        raise UsageError(f'--onnx {args.onnx} does not end with .onnx')


def _report(model: MaskRCNN, path: Path, size: int) -> None:
    config = model.config
    outputs = ['boxes', 'labels', 'scores', *['masks'] * config.masks, *['keypoints'] * bool(config.n_keypoint)]
    limit = f'at most {counted(config.max_detections, "detection")}' if config.max_detections else 'all detections'
    stream = sys.stderr if is_standard_output(path) else sys.stdout
    for line in (
        f'  input    image (height, width, 3) uint8, RGB; resized to {config.min_size} to {config.max_size} pixels',
        f'  outputs  {", ".join(outputs)}; {limit} with scores from {config.score_threshold:g}',
        f'wrote {path} ({size / 1e6:.1f} MB)',
    ):
        print_line(line, file=stream)
