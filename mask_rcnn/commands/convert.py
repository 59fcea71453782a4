"""``mask-rcnn convert`` and ``utils/detectron_parser.py``: Detectron's weight files to ours."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from mask_rcnn.datasets.coco_categories import COCO_CATEGORY_IDS, COCO_CLASS_NAMES
from mask_rcnn.weights import ModelMeta, Source, WeightFileError, detectron, write_weights
from mask_rcnn.weights.errors import printable

DEFAULT_INPUT = 'model_final.pkl'

_DESCRIPTION = """\
Convert Detectron's weights (.pkl) to weights of this program (.npz). R-50-C4 and R-101-C4 Mask R-CNN
models are recognised by their content, and so are Detectron's ImageNet files (R-50.pkl, R-101.pkl), which
become backbone weights. Nothing in the file is executed."""


def configure(parser: argparse.ArgumentParser, folder: pathlib.Path = pathlib.Path('modelfiles')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: Of the command or of a subcommand.
        folder: Where the default input and outputs lie.
    """
    parser.description = _DESCRIPTION
    parser.set_defaults(folder=folder)
    parser.add_argument('--input', type=pathlib.Path, default=folder / DEFAULT_INPUT, metavar='FILE',
                        help='Detectron weights (default: %(default)s)')
    parser.add_argument('--output', type=pathlib.Path, metavar='FILE',
                        help=f'weights to write (default: in {folder}, by content: '
                             'e2e_mask_rcnn_R-50-C4_1x_d2c.npz, e2e_mask_rcnn_R-101-C4_1x_d2c.npz, '
                             'R-50_d2c.npz or R-101_d2c.npz)')
    parser.add_argument('--class-names', type=pathlib.Path, metavar='FILE',
                        help='names of the classes without the background, one per line (default: '
                             "COCO's where there are 80 classes, class_1, class_2, ... otherwise)")


def run(args: argparse.Namespace) -> int:
    """Convert; returns the exit status (0, 1 for a failed run, 2 for bad arguments)."""
    if args.output is not None and _is_same_file(args.input, args.output):
        return _fail('--output must not be the file given by --input', 2)
    if args.output is not None and args.output.is_dir():
        return _fail(f'--output {args.output} is a folder; name a file in it', 2)
    try:
        file = detectron.read(args.input)
        meta = make_meta(args.input, file, args.class_names)
        output = args.output
        if output is None:
            args.folder.mkdir(parents=True, exist_ok=True)
            output = args.folder / detectron.default_name(file)
        write_weights(output, file.arrays, meta)
    except WeightFileError as error:
        return _fail(_with_hint(error, args))
    except OSError as error:
        return _fail(f'{error.filename}: {error.strerror}')
    sys.stdout.write(_describe(args.input, file, meta) + f'wrote {output}\n')
    return 0


def main(argv: Sequence[str] | None = None, folder: pathlib.Path = pathlib.Path('modelfiles')) -> int:
    """Parse the command line and convert.

    Args:
        argv: Arguments without the program's name (default: those of the process).
        folder: Where the default input and outputs lie.

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser()
    configure(parser, folder)
    return run(parser.parse_args(argv))


def make_meta(path: str | os.PathLike, file: detectron.DetectronFile,
              class_names_file: str | os.PathLike | None = None) -> ModelMeta:
    """Return the metadata of converted weights.

    Args:
        path: The Detectron file.
        file: What was read from it.
        class_names_file: Text file of one class name per line, or ``None`` for the default names.

    Raises:
        WeightFileError: The file of names cannot be read or has another number of names.
    """
    names, ids = _categories(file, class_names_file)
    return ModelMeta(
        kind=file.kind, config=file.config, class_names=names, category_ids=ids,
        source=Source(pathlib.Path(path).name, file.sha256, detectron.FORMAT),
        left={group: len(members) for group, members in file.report.left.items()},
        notes=file.report.notes + file.report.warnings)


def _categories(file: detectron.DetectronFile, names_file) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return class names and category numbers: COCO's, or given or made-up names counted from 1."""
    if file.kind == 'backbone':
        return (), ()
    n_class = file.config.n_fg_class
    if names_file is not None:
        names = _read_names(names_file, n_class)
    elif n_class == len(COCO_CLASS_NAMES):
        names = COCO_CLASS_NAMES
    else:
        names = tuple(f'class_{i}' for i in range(1, n_class + 1))
    return names, COCO_CATEGORY_IDS if names == COCO_CLASS_NAMES else tuple(range(1, n_class + 1))


def _read_names(path, n_class: int) -> tuple[str, ...]:
    try:
        lines = pathlib.Path(path).read_text(encoding='utf-8-sig').splitlines()
    except OSError as error:
        raise WeightFileError(path, error.strerror or str(error)) from error
    except UnicodeDecodeError:
        raise WeightFileError(path, 'is not UTF-8 text') from None
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) != n_class:
        raise WeightFileError(path, f'has {len(names)} class names, but the weights are for {n_class} '
                                    'classes (without the background)')
    return names


def _describe(path, file: detectron.DetectronFile, meta: ModelMeta) -> str:
    """The report, a few lines of text."""
    config, report = file.config, file.report
    depth = config.extractor.removeprefix('resnet')
    if file.kind == 'model':
        what = (f'R-{depth}-C4 Mask R-CNN, {config.n_fg_class} classes ({meta.class_names[0]} ... '
                f'{meta.class_names[-1]})')
    else:
        what = f'R-{depth} ImageNet weights (backbone)'
    n_number = sum(array.size for array in file.arrays.values())
    lines = [f'{path}: Detectron {what}', f'  SHA-256  {file.sha256}',
             f'  took     {len(report.taken)} blobs ({n_number / 1e6:.1f} million numbers)']
    for group, members in report.left.items():
        names = f': {", ".join(members)}' if len(members) <= 5 or group == 'unknown' else ''
        lines.append(f'  left     {len(members)} of {group}{names}')
    lines.append('  missing  nothing')
    lines.extend(f'  note     {note}' for note in report.notes)
    lines.extend(f'  WARNING  {warning}' for warning in report.warnings)
    return '\n'.join(lines) + '\n'


def _is_same_file(first: pathlib.Path, second: pathlib.Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def _with_hint(error: WeightFileError, args: argparse.Namespace) -> str:
    """The error's line; where the default input is simply not there, how to get it."""
    if error.path == os.fspath(args.folder / DEFAULT_INPUT) and not os.path.lexists(error.path):
        return f'{error}; put Detectron\'s weights there (see modelfiles/README.md) or name them with --input'
    return str(error)


def _fail(message: str, status: int = 1) -> int:
    sys.stderr.write(f'error: {message}\n')
    return status
