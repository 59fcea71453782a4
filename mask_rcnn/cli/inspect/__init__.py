"""``mask-rcnn inspect``: every step of a detection, of the training targets and of weight files."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mask_rcnn.cli.command import parse_command_line
from mask_rcnn.cli.subcommands import add_subcommands

#: Subcommand -> its module and its summary.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    'image': ('image', 'write a report on every step of the detection in a photo'),
    'why': ('why', 'print why an object was detected, or at which step it was lost'),
    'data': ('training_data', 'show the training with images of a dataset: inputs, anchors, RoIs, targets and losses'),
    'weights': ('weights', 'describe the values of the weights in a file, or the differences between two files'),
}

_DESCRIPTION = 'Show the steps of a detection, the training targets of a dataset, or the weights of a file.'


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse the command line and run a subcommand; see :func:`mask_rcnn.cli.command.parse_command_line`."""
    args = parse_command_line(configure, argv, prog)
    return args.run(args)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and its subcommands to a parser."""
    add_subcommands(parser, __name__, SUBCOMMANDS, _DESCRIPTION)
