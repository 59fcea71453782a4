"""``mask-rcnn info``: the description of weight files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mask_rcnn.cli.command import parse_command_line, run_and_report_errors
from mask_rcnn.cli.weight_report import classes_of, describe_file, format_description
from mask_rcnn.io.console import print_line, print_lines, protected_streams, stdout_is_broken
from mask_rcnn.weights import WeightFileError, formats

_DESCRIPTION = """\
Describe weight files: the format, the network, the classes, the dialect (the program whose conventions the weights
need), the number of weights, and which arrays mask-rcnn convert would take and skip. Files are recognised by their
contents, and nothing in them is executed."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and options to a parser."""
    parser.description = _DESCRIPTION
    parser.add_argument('files', type=Path, nargs='+', metavar='FILE', help='weight file of any format')
    parser.add_argument(
        '--json',
        action='store_true',
        help='write one line of JSON per file, with all names and the complete configuration',
    )


def run(args: argparse.Namespace) -> int:
    """Describe each file; returns the exit status (0, 1 if a file cannot be used, 130 after an interrupt)."""
    status = 0
    with protected_streams():
        for path in args.files:
            status = max(status, run_and_report_errors(partial(_describe, path, args.json), (WeightFileError,)))
            if status == 130 or stdout_is_broken():  # all files stop, not only this one
                break
    return status


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse the command line and describe the files; see :func:`mask_rcnn.cli.command.parse_command_line`."""
    return run(parse_command_line(configure, argv, prog))


def _describe(path: Path, as_json: bool) -> int:
    file = formats.read(path)
    description = describe_file(path, file, classes_of(file)[0])
    if as_json:
        print_line(json.dumps(description))
    else:
        print_lines(format_description(description))
    return 0
