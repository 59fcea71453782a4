"""The parts that the subcommands on photos share: the options of the network, and the trace of a photo."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_rcnn.cli.command import UsageError
from mask_rcnn.cli.network_options import add_conventions, add_modelfile, load_network
from mask_rcnn.cli.options import add_max_detections, fraction
from mask_rcnn.inspect.layers import LayerRecorder
from mask_rcnn.inspect.tables import Trace
from mask_rcnn.inspect.tracing import trace
from mask_rcnn.models import MaskRCNN
from mask_rcnn.preprocessing.image_io import ImageFileError


def add_network(parser: argparse.ArgumentParser) -> None:
    """Add the options of the network to the parser of a subcommand."""
    add = parser.add_argument_group('model').add_argument
    add_modelfile(add)
    add_conventions(add)
    add_max_detections(add)
    add(
        '--score-thresh',
        type=fraction,
        metavar='S',
        help='minimum score of a detection (default: that of the weights, usually 0.05)',
    )


def load_model(args: argparse.Namespace) -> MaskRCNN:
    """Load the network on the CPU; see :func:`mask_rcnn.cli.network_options.load_network`."""
    return load_network(args, score_threshold=args.score_thresh)


def check_layers(model: MaskRCNN, names: Sequence[str]) -> None:
    """Check the names of ``--layers``.

    Raises:
        UsageError: The network has no such layer.
    """
    try:
        LayerRecorder(model, names)
    except ValueError as error:
        raise UsageError(f'--layers: {error}') from error


def trace_photo(model: MaskRCNN, photo: Path, layers: Sequence[str] = ()) -> Trace:
    """Trace the detection in a photo.

    Raises:
        ImageFileError: The photo cannot be read.
        UsageError: A layer is not computed by itself.
    """
    try:
        return trace(model, photo, layers=layers)
    except ImageFileError:
        raise
    except ValueError as error:
        raise UsageError(f'--layers: {error}') from error
