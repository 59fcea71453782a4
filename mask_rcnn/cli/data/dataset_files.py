"""The arguments that name a dataset, common to the subcommands that inspect one."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments ``ANNOTATIONS`` and ``IMAGES``."""
    parser.add_argument('annotations', type=Path, metavar='ANNOTATIONS', help="annotations in COCO's format (JSON)")
    parser.add_argument('images', type=Path, metavar='IMAGES', help='folder to which the names of the images refer')
