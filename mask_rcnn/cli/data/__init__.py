"""``mask-rcnn data``: import, check, describe, show and split datasets; one module per subcommand."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from mask_rcnn.cli.command import parse_command_line
from mask_rcnn.cli.subcommands import add_subcommands

#: Subcommand -> its module (a package cannot contain a module named ``import``) and its summary.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    'import': ('import_annotations', "convert the annotations of a labelling tool to COCO's format"),
    'check': ('check', 'list everything that is missing, broken or doubtful'),
    'show': ('show', 'draw a contact sheet of annotated images'),
    'split': ('split', 'divide a dataset into training and validation data'),
    'stats': ('stats', 'objects per class and image, sizes, and suggested settings for training'),
}

_DESCRIPTION = "Prepare your own data for training: any labelling tool's annotations become COCO's format."


def main(argv: Sequence[str] | None = None, *, prog: str | None = None) -> int:
    """Parse the command line and run a subcommand; see :func:`mask_rcnn.cli.command.parse_command_line`."""
    args = parse_command_line(configure, argv, prog)
    return args.run(args)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's description and its subcommands to a parser."""
    add_subcommands(parser, __name__, SUBCOMMANDS, _DESCRIPTION)
