"""The arguments that name a dataset, common to the subcommands that inspect one."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from mask_rcnn.io.console import progress_bar

_Item = TypeVar('_Item')


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the positional arguments ``ANNOTATIONS`` and ``IMAGES``."""
    parser.add_argument('annotations', type=Path, metavar='ANNOTATIONS', help="annotations in COCO's format (JSON)")
    parser.add_argument('images', type=Path, metavar='IMAGES', help='folder to which the names of the images refer')


def show_progress(items: Iterable[_Item], n_items: int, unit: str) -> Iterator[_Item]:
    """Yield items while a progress bar counts them."""
    with progress_bar(n_items, unit=unit) as bar:
        for item in items:
            yield item
            bar.update()
