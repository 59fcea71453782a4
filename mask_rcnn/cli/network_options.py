"""The options of commands that run a network on photos, and the loading of its weights."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.options import (
    BN2AFFINE_HELP,
    AddArgument,
    add_dialect,
    add_roi_options,
    limit_changes,
    roi_changes,
)
from mask_rcnn.models import MaskRCNN, load
from mask_rcnn.weights import WeightFileError
from mask_rcnn.weights.pretrained_files import default_model_advice

DEFAULT_MODEL = 'e2e_mask_rcnn_R-50-C4_1x_d2c.npz'


def add_modelfile(add: AddArgument, folder: Path = Path('modelfiles')) -> None:
    """Add ``--modelfile``.

    Args:
        add: The ``add_argument`` of a parser or a group.
        folder: The folder of the default weights.
    """
    add(
        '--modelfile',
        type=Path,
        default=folder / DEFAULT_MODEL,
        metavar='FILE',
        help='weights of any format that convert reads (default: %(default)s)',
    )


def add_conventions(add: AddArgument) -> None:
    """Add ``--bn2affine``, ``--dialect``, ``--roialign`` and ``--roi-size``.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add('--bn2affine', action='store_true', help=BN2AFFINE_HELP)
    add_dialect(add)
    add_roi_options(add)


def check_modelfile(path: Path) -> None:
    """Check that the file of ``--modelfile`` exists.

    Raises:
        WeightFileError: It does not; the message names the ways to get the default weights.
    """
    if not os.path.lexists(path):
        raise WeightFileError(
            path,
            'no such file; give weights of any program with --modelfile, or run "make demo-coco" in a checkout, which '
            f"downloads and converts Detectron's; without a checkout, {default_model_advice()}",
        )


def load_network(args: argparse.Namespace, *, gpu: int = -1, **changes: Any) -> MaskRCNN:
    """Load the network of ``--modelfile`` with the changes that the options make.

    Args:
        args: Parsed options of :func:`add_modelfile`, :func:`add_conventions` and ``--max-detections``.
        gpu: Number of the GPU, or -1.
        **changes: Other fields of :class:`mask_rcnn.config.Config`; ``None`` for no change.

    Raises:
        WeightFileError: The file does not exist, or cannot be read.
        UsageError: An option does not fit the weights.
    """
    check_modelfile(args.modelfile)
    overrides = {name: value for name, value in changes.items() if value is not None}
    overrides |= roi_changes(args) | limit_changes(args)
    try:
        return load(args.modelfile, gpu=gpu, bn2affine=args.bn2affine, dialect=args.dialect, **overrides)
    except WeightFileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
