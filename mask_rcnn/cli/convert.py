"""``mask-rcnn convert`` and ``utils/*_parser.py``: weight files of other programs to ours."""

from __future__ import annotations

import argparse
import dataclasses
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mask_rcnn.cli.options import UsageError, run_and_report_errors
from mask_rcnn.cli.weight_report import classes_of, describe_file, format_description
from mask_rcnn.weights import ModelMeta, Source, WeightFileError, formats, write_weights
from mask_rcnn.weights.converters import matterport_cfg
from mask_rcnn.weights.converters.mapping import ConvertedWeights

DEFAULT_INPUT = 'model_final.pkl'

_DESCRIPTION = """\
Convert weights of other programs to weights of this program (.npz): Detectron's Mask and Keypoint R-CNN
models and ImageNet files (.pkl), Matterport's (.h5) and its PyTorch ports' (.pth), MindSpore's (.ckpt). Files
are recognised by their contents, and nothing in them is executed."""

#: Our flags for what files cannot say, the field of our ``Config`` and Matterport's name for it.
_FLAGS = {
    'min_size': 'IMAGE_MIN_DIM',
    'max_size': 'IMAGE_MAX_DIM',
    'anchor_sizes': 'RPN_ANCHOR_SCALES',
    'score_threshold': 'DETECTION_MIN_CONFIDENCE',
}


def configure(
    parser: argparse.ArgumentParser, folder: pathlib.Path = pathlib.Path('modelfiles'), default: str = DEFAULT_INPUT
) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: Of the command or of a subcommand.
        folder: Where the default input and outputs lie.
        default: Name of the default input.
    """
    parser.description = _DESCRIPTION
    parser.set_defaults(folder=folder, default=folder / default)
    parser.add_argument(
        'file', nargs='?', type=pathlib.Path, metavar='FILE', help=f'weights to convert (default: {folder / default})'
    )
    parser.add_argument('--input', type=pathlib.Path, metavar='FILE', help='the same as FILE')
    parser.add_argument(
        '--output',
        type=pathlib.Path,
        metavar='FILE',
        help=f'weights to write (default: in {folder}, by content, such as '
        'e2e_mask_rcnn_R-50-C4_1x_d2c.npz, e2e_keypoint_rcnn_R-50-FPN_1x_d2c.npz, '
        'R-50_d2c.npz or mask_rcnn_R-101-FPN_m2c.npz)',
    )
    parser.add_argument(
        '--class-names',
        type=pathlib.Path,
        metavar='FILE',
        help='names of the classes without the background, one per line (default: '
        "COCO's where there are 80 classes, class_1, class_2, ... otherwise)",
    )
    parser.add_argument(
        '--config',
        type=pathlib.Path,
        metavar='FILE',
        help="for Matterport's network: a JSON file of values by the names of its Config "
        'class ({"IMAGE_MAX_DIM": 512, ...}), which its weight files cannot say',
    )
    parser.add_argument('--min-size', type=int, metavar='N', help="size of the network input's shorter side")
    parser.add_argument('--max-size', type=int, metavar='N', help='limit of its longer side')
    parser.add_argument('--anchor-sizes', type=float, nargs='+', metavar='N', help='sides of the anchors')
    parser.add_argument('--score-threshold', type=float, metavar='S', help='least score of a detection')


def run(args: argparse.Namespace) -> int:
    """Convert; returns the exit status (0, 1 for a failed run, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _convert(args), (WeightFileError,))


def main(
    argv: Sequence[str] | None = None, folder: pathlib.Path = pathlib.Path('modelfiles'), default: str = DEFAULT_INPUT
) -> int:
    """Parse the command line and convert.

    Args:
        argv: Arguments without the program's name (default: those of the process).
        folder: Where the default input and outputs lie.
        default: Name of the default input.

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser()
    configure(parser, folder, default)
    return run(parser.parse_args(argv))


def make_meta(
    path: str | os.PathLike, file: ConvertedWeights, class_names_file: str | os.PathLike | None = None
) -> ModelMeta:
    """Return the metadata of converted weights.

    Args:
        path: The source.
        file: What was read from it.
        class_names_file: Text file of one class name per line, or ``None`` for the default names.

    Raises:
        WeightFileError: The file of names cannot be read or has another number of names.
    """
    names, ids = classes_of(file, class_names_file)
    return ModelMeta(
        kind=file.kind,
        config=file.config,
        class_names=names,
        category_ids=ids,
        source=Source(pathlib.Path(path).name, file.sha256, file.format),
        skipped={group: len(members) for group, members in file.report.skipped.items()},
        notes=file.report.notes + file.report.warnings,
    )


def _convert(args: argparse.Namespace) -> int:
    path = _input(args)
    _check_output(path, args.output)
    file = _read(path, args)
    meta = make_meta(path, file, args.class_names)
    output = args.output
    if output is None:
        args.folder.mkdir(parents=True, exist_ok=True)
        output = args.folder / formats.default_name(file)
    write_weights(output, file.arrays, meta)
    sys.stdout.write(format_description(describe_file(path, file, meta.class_names)) + f'wrote {output}\n')
    return 0


def _input(args: argparse.Namespace) -> pathlib.Path:
    if args.file is not None and args.input is not None:
        raise UsageError('name the input once, not twice')
    path = args.file or args.input or args.default
    if path == args.default and not os.path.lexists(path):
        raise WeightFileError(
            path, 'No such file or directory; put weights there (see modelfiles/README.md) or name them with --input'
        )
    return path


def _check_output(path: pathlib.Path, output: pathlib.Path | None) -> None:
    if output is None:
        return
    if _is_same_file(path, output):
        raise UsageError('--output must not be the file given by --input')
    if output.is_dir():
        raise UsageError(f'--output {output} is a folder; name a file in it')


def _read(path: pathlib.Path, args: argparse.Namespace) -> ConvertedWeights:
    """Read the input, with what the command line says about it."""
    given = {name: getattr(args, name) for name in _FLAGS if getattr(args, name) is not None}
    settings = matterport_cfg.read_settings(args.config) if args.config is not None else {}
    format = formats.detect_format(path)
    if format.suffix is None:
        raise WeightFileError(path, f'is {format.title}, which is used as it is: there is nothing to convert')
    try:
        if not format.takes_settings:
            return _with_changes(formats.read(path, settings), given)
        settings |= {_FLAGS[name]: value for name, value in given.items()}
        return formats.read(path, settings)
    except WeightFileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from None


def _with_changes(file: ConvertedWeights, given: Mapping[str, Any]) -> ConvertedWeights:
    """Return a file with some numbers of its network replaced."""
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return dataclasses.replace(file, config=file.config.replace(**changes))


def _is_same_file(first: pathlib.Path, second: pathlib.Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
