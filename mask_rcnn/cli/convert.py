"""``mask-rcnn convert`` and ``utils/*_parser.py``: conversion of weight files of other programs, and for them."""

from __future__ import annotations

import argparse
import dataclasses
import filecmp
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mask_rcnn.cli.command import UsageError, parse_command_line, run_and_report_errors
from mask_rcnn.cli.options import (
    BN2AFFINE_HELP,
    add_dialect,
    add_roi_options,
    fraction,
    non_negative_float,
    positive_float,
    positive_int,
    roi_changes,
)
from mask_rcnn.cli.outputs import check_output, output_path, refuse_inputs
from mask_rcnn.cli.weight_report import classes_of, describe_file, format_description
from mask_rcnn.config import DIALECTS
from mask_rcnn.io.atomic_file import created_folders, is_replaced, is_standard_output
from mask_rcnn.io.console import print_line, print_lines
from mask_rcnn.weights import ModelMeta, Source, WeightFileError, formats
from mask_rcnn.weights.converters.mapping import ConvertedWeights, person_class
from mask_rcnn.weights.converters.settings import OtherNetworkError, SettingError
from mask_rcnn.weights.exporters.targets import TARGETS, check_suffix, default_name, export_weights
from mask_rcnn.weights.files import sha256

DEFAULT_INPUT = 'model_final.pkl'

_DESCRIPTION = """\
Convert weights of other programs to this program's format (.npz), or weights of any program to the format of another
one (--to). It reads Detectron's Faster, Mask and Keypoint R-CNN models and ImageNet files (.pkl), models of detectron2
(.pkl, .pth) and torchvision (.pth), Matterport's models (.h5) and those of its PyTorch ports (.pth), MindSpore's
checkpoints (.ckpt), models of Chainer_Mask_R-CNN (.npz), and state dicts as safetensors. Files are recognised by their
contents, and nothing in them is executed. A converted file contains the conventions of its program (its dialect) and
the changes that the options make, so all commands run it like any other model."""

#: Options for settings that weight files may not contain; all but the last are fields of ``Config``.
_SETTINGS = ('min_size', 'max_size', 'anchor_sizes', 'score_threshold', 'bn_eps')

#: Maximum number of class names in a note.
_MAX_NAMES = 10


def configure(parser: argparse.ArgumentParser, folder: Path = Path('modelfiles'), default: str = DEFAULT_INPUT) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: The parser of the command.
        folder: The folder of the default input and the default outputs.
        default: File name of the default input.
    """
    parser.description = _DESCRIPTION
    parser.set_defaults(folder=folder, default=folder / default)
    add = parser.add_argument
    add('file', nargs='?', type=Path, metavar='FILE', help=f'weights to convert (default: {folder / default})')
    add('--input', type=Path, metavar='FILE', help='the same as FILE')
    add(
        '--to',
        choices=tuple(TARGETS),
        default='npz',
        help="format to write: npz (default) or safetensors, for this program; torchvision's state dict (.pth), "
        "detectron2's or Detectron's checkpoint (.pkl); a network that the other program does not have is refused",
    )
    add(
        '-o',
        '--output',
        type=output_path,
        metavar='FILE',
        help=f'weights to write (default: a file in {folder} named after its contents, such as '
        'e2e_mask_rcnn_R-50-C4_1x_d2c.npz, e2e_keypoint_rcnn_R-50-FPN_1x_d2c.npz, '
        'R-50_d2c.npz or mask_rcnn_R-101-FPN_m2c.npz, or with --to after FILE and the format, such as '
        'mine_torchvision.pth), whose suffix must be one of the format (.npz; .pth or .pt; .pkl; '
        '.safetensors) or missing; - for the standard output; an existing weight file of another program is kept as '
        'NAME.old.npz',
    )
    add(
        '--class-names',
        type=Path,
        metavar='FILE',
        help='text file with the names of the classes without the background, one per line (default: the names in the '
        "file; otherwise those of COCO's classes if there are 80 classes, or class_1, class_2, ...)",
    )
    add(
        '--config',
        type=Path,
        metavar='FILE',
        help="settings that weight files do not contain, by their names in the original program: for Matterport's "
        'network a JSON file of its Config class, {"IMAGE_MAX_DIM": 512, ...}; for torchvision a JSON file of the '
        'model\'s arguments, {"min_size": 512, ...}; for detectron2 its YAML file; --min-size, --max-size, '
        '--anchor-sizes, --bn-eps and --score-threshold set them one by one',
    )
    add('--min-size', type=positive_int, metavar='N', help='size of the shorter side of the network input in pixels')
    add('--max-size', type=positive_int, metavar='N', help='maximum size of its longer side in pixels')
    add('--anchor-sizes', type=positive_float, nargs='+', metavar='N', help='sizes of the anchors in pixels')
    add(
        '--bn-eps',
        type=non_negative_float,
        metavar='E',
        help="for torchvision's files: epsilon of the normalisations (default: 0 for published models and those "
        'trained from them, 1e-5 for models with BatchNorm2d)',
    )
    add('--bn2affine', action='store_true', help=BN2AFFINE_HELP)
    add_dialect(add)
    add_roi_options(add)
    add('--score-threshold', type=fraction, metavar='S', help='minimum score of a detection')


def main(
    argv: Sequence[str] | None = None,
    folder: Path = Path('modelfiles'),
    default: str = DEFAULT_INPUT,
    *,
    prog: str | None = None,
) -> int:
    """Parse the command line, convert and report errors; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    args = parse_command_line(partial(configure, folder=folder, default=default), argv, prog)
    return run_and_report_errors(partial(run, args), (WeightFileError,))


def run(args: argparse.Namespace) -> int:
    """Convert a file; returns the exit status 0."""
    path = _input_path(args)
    inputs = [
        ('the input file', path),
        ('the file of --config', args.config),
        ('the file of --class-names', args.class_names),
    ]
    _check_output(args, inputs)
    with created_folders([args.folder] if args.output is None else []):
        return _convert(path, args, inputs)


def _convert(path: Path, args: argparse.Namespace, inputs: Sequence[tuple[str, Path | None]]) -> int:
    file = _read(path, args)
    meta = make_meta(path, file, args.class_names)
    output = args.output
    if output is None:
        name = formats.default_name(file) if args.to == 'npz' else default_name(path, args.to)
        output = args.folder / name
        refuse_inputs('--output', output, inputs)
    with formats.keep_source_file(output) as kept:  # the old Chainer port used the same names
        notes = export_weights(path, output, file, meta, TARGETS[args.to])
    if TARGETS[args.to].program is not None:
        notes += _class_note(file, meta)
    stream = sys.stderr if is_standard_output(output) else sys.stdout
    if kept is not None and filecmp.cmp(kept, output, shallow=False):
        kept.unlink()  # the same file again
    elif kept is not None:
        print_line(f'the earlier {output} is kept as {kept}')
    print_lines(format_description(describe_file(path, file, meta.class_names)), file=stream)
    for note in notes:
        print_line(f'  note     {note}', file=stream)
    print_line(f'wrote {output}', file=stream)
    return 0


def _class_note(file: ConvertedWeights, meta: ModelMeta) -> tuple[str, ...]:
    """Return the line about names of classes that the other program's file does not contain, if it lacks any."""
    names, ids = person_class(file.config)
    unnamed = dataclasses.replace(file, class_names=names, category_ids=ids)
    if meta.class_names == classes_of(unnamed)[0]:
        return ()
    shown = ', '.join(meta.class_names[:_MAX_NAMES]) + ', ...' * (len(meta.class_names) > _MAX_NAMES)
    return (f'the file does not contain the names of the classes (convert --class-names): {shown}',)


def make_meta(
    path: str | os.PathLike, file: ConvertedWeights, class_names_file: str | os.PathLike | None = None
) -> ModelMeta:
    """Return the metadata of converted weights.

    Args:
        path: The source file.
        file: The contents of the source file.
        class_names_file: Text file of one class name per line, or ``None`` for the default names.

    Raises:
        WeightFileError: The file of names cannot be read or has the wrong number of names.
    """
    names, ids = classes_of(file, class_names_file)
    return ModelMeta(
        kind=file.kind,
        config=file.config,
        class_names=names,
        category_ids=ids,
        source=Source(Path(path).name, file.sha256 or sha256(path), file.format),
        skipped={group: len(members) for group, members in file.report.skipped.items()},
        notes=file.report.notes + file.report.warnings,
    )


def _input_path(args: argparse.Namespace) -> Path:
    if args.file is not None and args.input is not None:
        raise UsageError('FILE and --input both name the input; give only one of them')
    path = args.file or args.input or args.default
    if path == args.default and not os.path.lexists(path):
        raise WeightFileError(
            path, 'No such file or directory; name the weights, as in "mask-rcnn convert FILE", or put them there'
        )
    return path


def _check_output(args: argparse.Namespace, inputs: Sequence[tuple[str, Path | None]]) -> None:
    if args.output is None:
        return
    if args.output.is_dir():
        raise UsageError(f'--output {args.output} is a folder; name a file in it')
    if is_standard_output(args.output) and sys.stdout.isatty():
        raise UsageError(f'--output {args.output} is the terminal; redirect the weights to a file or a pipe')
    refuse_inputs('--output', args.output, inputs)
    if is_replaced(args.output) or not os.path.exists(args.output):  # devices and pipes have any name
        try:
            check_suffix(args.output, args.to)
        except ValueError as error:
            raise UsageError(f'--output {args.output}: {error}') from None
    check_output('--output', args.output, inputs)


def _read(path: Path, args: argparse.Namespace) -> ConvertedWeights:
    """Read the input and apply the settings of the command line."""
    changes = {name: getattr(args, name) for name in _SETTINGS if getattr(args, name) is not None}
    format = formats.detect_format(path)
    options = {'bn2affine': args.bn2affine, 'dialect': DIALECTS[args.dialect] if args.dialect else None}
    if format.suffix is None:
        is_changed = any(options.values()) or roi_changes(args) or args.to != 'npz'
        if format.name != formats.NATIVE or not is_changed:
            raise WeightFileError(path, f'is {format.title}, which needs no conversion')
        if args.output is None and args.to == 'npz':
            raise UsageError(f'{path} is {format.title}: name the file to write with --output')
    settings = _read_settings(path, format, args.config)
    names = {} if format.settings is None else format.settings.options
    given = {names[name]: changes.pop(name) for name in tuple(changes) if name in names}
    try:
        if 'bn_eps' in changes:
            raise ValueError(f'--bn-eps is for the files of torchvision; {path} is {format.title}')
        file = formats.read(path, settings | given, **options)
        return _replace_settings(file, changes | _roi_changes(args, file))
    except WeightFileError:
        raise
    except OtherNetworkError as error:  # no option has such a setting
        raise WeightFileError(args.config, str(error)) from None
    except SettingError as error:
        is_in_file = bool(settings) if error.name is None else error.name in settings
        if is_in_file and error.name not in given:
            raise WeightFileError(args.config, str(error)) from None
        raise UsageError(str(error)) from None
    except ValueError as error:
        raise UsageError(str(error)) from None


def _read_settings(path: Path, format: formats.Format, settings_file: Path | None) -> dict[str, Any]:
    """Return the settings in the file of ``--config``."""
    if settings_file is None:
        return {}
    if format.settings is None:
        raise WeightFileError(path, f'takes no settings (--config): it is {format.title}')
    return format.settings.read(settings_file)


def _roi_changes(args: argparse.Namespace, file: ConvertedWeights) -> dict[str, Any]:
    """Return the RoI pooling that the options set, which is not stored in other programs' files of C4 networks."""
    changes = roi_changes(args)
    if changes and (file.kind != 'model' or file.config.has_fpn):
        raise ValueError('--roialign and --roi-size are for C4 networks')
    return changes


def _replace_settings(file: ConvertedWeights, changes: Mapping[str, Any]) -> ConvertedWeights:
    """Return a file with some settings of its network replaced."""
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in changes.items()}
    return dataclasses.replace(file, config=file.config.replace(**fields))
