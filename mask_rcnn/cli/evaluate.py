"""``mask-rcnn evaluate``: COCO's metrics of a model."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import mask_rcnn
from mask_rcnn.cli import dataset_options
from mask_rcnn.cli.options import (
    UsageError,
    add_precision,
    check_precision,
    choose_device,
    gpu_number,
    run_and_report_errors,
)
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.evaluation.coco import evaluate_model
from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.trainer import print_line
from mask_rcnn.weights import WeightFileError

_DESCRIPTION = """\
Evaluate a model with COCO's metrics: boxes, and masks and keypoints where the model finds them. The folder
--out gets the detections in COCO's format, results.bbox.json, results.segm.json and results.keypoints.json,
and metrics.json. For a model with keypoints, coco2017 is person_keypoints_val2017.json."""


def configure(parser: argparse.ArgumentParser, folder: Path = Path('.')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: Of the command or of a subcommand.
        folder: Where ``COCO/`` lies.
    """
    parser.description = _DESCRIPTION
    dataset_options.add_arguments(parser, folder, parts=('val',))
    add = parser.add_argument
    add('--modelfile', type=Path, required=True, metavar='FILE', help='weights, .npz')
    add('--out', type=Path, default=Path('result'), metavar='DIR', help='(default: %(default)s)')
    add(
        '--gpu',
        type=gpu_number,
        metavar='ID',
        help='number of the GPU, -1 for the CPU (default: 0 where CUDA works, else the CPU)',
    )
    add_precision(add)
    add('--bn2affine', action='store_true', help='turn batch normalisation into affine channels first')


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit status (0, 1 for a failed run, 2 for bad arguments)."""
    return run_and_report_errors(lambda: _run(args), (WeightFileError, AnnotationFileError, ImageFileError))


def _run(args: argparse.Namespace) -> int:
    dataset_options.check(args)
    gpu = choose_device(args.gpu)
    check_precision(args.precision, gpu)
    model = mask_rcnn.load(args.modelfile, gpu=gpu, bn2affine=args.bn2affine)
    data_set = dataset_options.open_data('val', args, size=model.config.min_size, keypoints=model.config.n_keypoint > 0)
    with using_precision(args.precision):
        evaluate_to_folder(model, data_set, args.out, name=dataset_options.dataset_name('val', args))
    return 0


def main(argv: Sequence[str] | None = None, folder: Path = Path('.')) -> int:
    """Parse the command line and evaluate.

    Args:
        argv: Arguments without the program's name (default: those of the process).
        folder: Where ``COCO/`` lies.

    Returns:
        The exit status; bad arguments end the process with status 2.
    """
    parser = argparse.ArgumentParser()
    configure(parser, folder)
    return run(parser.parse_args(argv))


def check_classes(model, data_set, name: str) -> None:
    """Refuse data that a model cannot be measured on.

    A model may know more classes than the data have; classes under other names count only if they are
    equally many.

    Raises:
        UsageError: The classes do not fit; it says how.
    """
    ours, theirs = model.class_names or (), data_set.class_names
    if not set(theirs) <= set(ours) and len(theirs) != model.config.n_fg_class:
        raise UsageError(
            f'{name} has {len(theirs)} classes ({listed(theirs)}), but the model has '
            f'{model.config.n_fg_class} ({listed(ours)})'
        )


def listed(names: Sequence[str]) -> str:
    """Return a short form of a list of names."""
    return ', '.join(names) if len(names) <= 3 else f'{names[0]}, {names[1]} ... {names[-1]}'


def evaluate_to_folder(model, data_set, folder: Path, *, name: str, communicator: Communicator | None = None):
    """Evaluate a model, write what it found and the metrics, and say the metrics.

    Args:
        model (mask_rcnn.MaskRCNN): The model.
        data_set: The data.
        folder: Where ``results.*.json`` and ``metrics.json`` go.
        name: What messages call the data.
        communicator: Several processes, each of which calls this function.

    Returns:
        mask_rcnn.evaluation.Metrics: The metrics.

    Raises:
        UsageError: Classes do not fit.
        mask_rcnn.io.atomic_file.FileError: A file cannot be written.
    """
    communicator = communicator or Communicator()
    check_classes(model, data_set, name)
    folder.mkdir(parents=True, exist_ok=True)
    metrics = evaluate_model(model, data_set, results_file=folder / 'results.json', comm=communicator)
    if communicator.is_main:
        kinds = metrics.ap_per_class()
        per_class = {
            class_name: {f'{kind}/AP': aps[i] for kind, aps in kinds.items()}
            for i, class_name in enumerate(metrics.class_names)
        }
        with open_for_writing(folder / 'metrics.json') as file:
            file.write(json.dumps({**metrics.summary(), 'classes': per_class}, indent=1).encode())
        files = ', '.join(f'results.{kind}.json' for kind in kinds)
        print_line(f'{name}, {len(data_set)} images; {folder} has {files} and metrics.json')
        print_line(metrics.table())
    return metrics
