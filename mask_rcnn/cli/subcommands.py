"""Commands that consist of subcommands, such as ``mask-rcnn data import``."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Mapping


def add_subcommands(
    parser: argparse.ArgumentParser, package: str, subcommands: Mapping[str, tuple[str, str]], description: str
) -> None:
    """Add the description and the subcommands to the parser of a command.

    A parsed command line has the attribute ``run``, the function of the chosen subcommand.

    Args:
        parser: The parser of the command.
        package: The package that contains a module for each subcommand, with ``configure(parser)`` and ``run(args)``.
        subcommands: Subcommand -> the name of its module and its summary.
        description: The description of the command.
    """
    parser.description = description
    subparsers = parser.add_subparsers(required=True, metavar='SUBCOMMAND')
    for name, (module_name, summary) in subcommands.items():
        module = importlib.import_module(f'{package}.{module_name}')
        subparser = subparsers.add_parser(name, help=summary)
        module.configure(subparser)
        subparser.set_defaults(run=module.run)
