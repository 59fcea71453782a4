"""``mask-rcnn info``: what a weight file is, without changing anything."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from mask_rcnn.cli.options import run_and_report_errors
from mask_rcnn.cli.weight_report import classes_of, describe_file, format_description
from mask_rcnn.weights import WeightFileError, formats

_DESCRIPTION = """\
Say what weight files are: format, network, classes, dialect (the program whose numbers they go with), how
many numbers, and what mask-rcnn convert would take and leave. Files are recognised by their contents, and
nothing in them is executed."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and options to a parser."""
    parser.description = _DESCRIPTION
    parser.add_argument('files', type=pathlib.Path, nargs='+', metavar='FILE', help='weight file of any kind')
    parser.add_argument(
        '--json',
        action='store_true',
        help='write a line of JSON for each file, with all names and the whole configuration',
    )


def run(args: argparse.Namespace) -> int:
    """Report on each file; returns the exit status (0, 1 if one of them cannot be used, 130 if interrupted)."""
    status = 0
    for path in args.files:
        status = max(status, run_and_report_errors(lambda: _report(path, args.json), (WeightFileError,)))
        if status == 130:  # Ctrl-C means all of them
            break
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and report.

    Args:
        argv: Arguments without the program's name (default: those of the process).

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser()
    configure(parser)
    return run(parser.parse_args(argv))


def _report(path: pathlib.Path, as_json: bool) -> int:
    file = formats.read(path)
    known = describe_file(path, file, classes_of(file)[0])
    sys.stdout.write(json.dumps(known) + '\n' if as_json else format_description(known))
    return 0
