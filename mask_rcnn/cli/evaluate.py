"""``mask-rcnn evaluate``: COCO's metrics of a model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import mask_rcnn
from mask_rcnn.cli.command import UsageError, parse_command_line
from mask_rcnn.cli.dataset_options import (
    GENERATED,
    Dataset,
    DatasetArguments,
    model_category_ids,
    print_dataset_warnings,
)
from mask_rcnn.cli.dataset_options import add_arguments as add_dataset_arguments
from mask_rcnn.cli.evaluation_report import EvaluationReport
from mask_rcnn.cli.options import (
    BN2AFFINE_HELP,
    add_dialect,
    add_gpu,
    add_max_detections,
    add_precision,
    add_roi_options,
    check_precision,
    limit_changes,
    roi_changes,
)
from mask_rcnn.cli.outputs import check_can_write, check_report, refuse_inputs
from mask_rcnn.cli.processes import choose_shared_device, quiet_unless_main, run_shared
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.evaluation.coco import COCOEvaluator, Metrics, ResultsFileError, evaluate_model
from mask_rcnn.io.atomic_file import FileError, check_writable_folder, open_for_writing, removing_empty_folder
from mask_rcnn.io.console import print_line, print_lines, print_warning
from mask_rcnn.io.folder_lock import FolderInUseError, lock_folder
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.models.builder import placeholder_names
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.weights import WeightFileError

#: Errors of a disk on which nothing can be written.
_UNWRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT)

_DESCRIPTION = """\
Evaluate a model with COCO's metrics for boxes and, where the model predicts them, masks and keypoints. The folder
--out receives the detections in COCO's format (results.bbox.json, results.segm.json, results.keypoints.json) and
metrics.json. For a keypoint model, coco2017 is person_keypoints_val2017.json."""


def configure(parser: argparse.ArgumentParser, folder: Path = Path('.')) -> None:
    """Add the command's description and options to a parser.

    Args:
        parser: The parser of the command.
        folder: The parent of the folder ``COCO``.
    """
    parser.description = _DESCRIPTION
    add_dataset_arguments(parser, folder, parts=('val',))
    add = parser.add_argument
    add('--modelfile', type=Path, required=True, metavar='FILE', help='weights of any format that convert reads')
    add('--out', type=Path, default=Path('result'), metavar='DIR', help='output folder (default: %(default)s)')
    add(
        '--report',
        type=Path,
        metavar='FILE',
        help='also write an HTML report: precision-recall curves, AP by size and class, confused classes, the cost of '
        'each kind of error (TIDE), and the worst images',
    )
    add_gpu(add, '-g')
    add_precision(add)
    add('--bn2affine', action='store_true', help=BN2AFFINE_HELP)
    add_dialect(add)
    add_roi_options(add)
    default = '100, or that of the weights if it is larger'
    add_max_detections(add, ', also in the metrics (maxDets of COCOeval)', default)


def main(argv: Sequence[str] | None = None, folder: Path = Path('.'), *, prog: str | None = None) -> int:
    """Parse the command line, evaluate and report errors; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    errors = WeightFileError, AnnotationFileError, ImageFileError, FolderInUseError
    with quiet_unless_main():
        args = parse_command_line(partial(configure, folder=folder), argv, prog)
        return run_shared(partial(run, args), errors)


def run(args: argparse.Namespace, communicator: Communicator) -> int:
    """Evaluate a model in all processes; returns the exit status 0."""
    data = DatasetArguments.from_namespace(args)
    inputs = [('the file of --modelfile', args.modelfile), *annotation_inputs(data)]
    with contextlib.ExitStack() as stack:
        if communicator.is_main:
            stack.enter_context(reserved_folder(args.out, inputs))
            if args.report is not None:  # it may be in the folder, which exists now
                check_report('--report', args.report, inputs)
        communicator.barrier()
        _evaluate(args, data, communicator)
    return 0


def _evaluate(args: argparse.Namespace, data: DatasetArguments, communicator: Communicator) -> None:
    gpu = choose_shared_device(args.gpu, communicator)
    check_precision(args.precision, gpu)
    try:
        model = mask_rcnn.load(
            args.modelfile,
            gpu=gpu,
            bn2affine=args.bn2affine,
            dialect=args.dialect,
            **roi_changes(args),
            **limit_changes(args),
        )
    except WeightFileError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    dataset, title = open_evaluation_data(data, model)
    report = None if args.report is None else _make_report(args, model, title)
    with using_precision(args.precision):
        evaluate_to_folder(
            model,
            dataset,
            args.out,
            name=title,
            communicator=communicator,
            max_detections=args.max_detections,
            report=report,
        )


def _make_report(args: argparse.Namespace, model: MaskRCNN, dataset_name: str) -> EvaluationReport:
    details = [
        ('model', str(args.modelfile)),
        ('data', dataset_name),
        ('score threshold of the model', f'{model.config.score_threshold:g}'),
    ]
    return EvaluationReport(args.report, title=f'Evaluation of {args.modelfile.name}', details=details)


def annotation_inputs(data: DatasetArguments) -> list[tuple[str, Path]]:
    """Return the annotation files that the command line names, as inputs of :func:`reserved_folder`."""
    return [('the annotation file', annotations) for annotations, _ in data.files.values()]


@contextlib.contextmanager
def reserved_folder(folder: Path, inputs: Sequence[tuple[str, Path | None]]) -> Iterator[None]:
    """Create, check and lock the folder of an evaluation's files, before its work; the lock ends with the context.

    On a disk that is read-only or full, a warning states that the evaluation only prints its figures.

    Args:
        folder: The folder of :func:`evaluate_to_folder`.
        inputs: The files that must not be replaced; see :func:`mask_rcnn.cli.outputs.refuse_inputs`.

    Raises:
        UsageError: A file of the evaluation would replace an input.
        mask_rcnn.io.atomic_file.FileError: The path is not that of a folder, or a file in it cannot be replaced.
        FolderInUseError: Another evaluation writes to the folder.
    """
    files = [folder / f'{name}.json' for name in ('metrics', 'results.bbox', 'results.segm', 'results.keypoints')]
    for file in files:
        refuse_inputs('--out', file, inputs)
    with removing_empty_folder(folder):
        try:
            check_writable_folder(folder)
        except FileError as error:
            if error.errno not in _UNWRITABLE:
                raise
            print_warning(f'{error}; the figures are only printed')
            yield
            return
        for file in filter(os.path.lexists, files):
            check_can_write(file)
        with lock_folder(folder, user='evaluation', warn=print_warning):
            yield


def open_evaluation_data(data: DatasetArguments, model: MaskRCNN) -> tuple[Dataset, str]:
    """Open the data on which a model is evaluated, and return them with their name for messages.

    If no option selects a dataset, a model with the classes of a generated dataset is evaluated on that dataset.

    Args:
        data: The dataset that the command line selects.
        model: The model, which determines the size of generated images and whether the objects have keypoints.

    Raises:
        UsageError: Generated images have no keypoints.
        mask_rcnn.datasets.coco.AnnotationFileError: The annotations cannot be used.
        mask_rcnn.preprocessing.image_io.ImageFileError: An image cannot be used.
    """
    for name, generated in GENERATED.items():
        # Before the files of coco2017, which may not exist, are read.
        if data.is_default and tuple(model.class_names or ()) == generated.class_names:
            data = dataclasses.replace(data, name=name)
            print_line(f'the model has the classes of {name}: this dataset is evaluated')
    config = model.config
    dataset = data.open(
        'val',
        size=config.min_size,
        keypoints=config.n_keypoint > 0,
        masks=config.masks,
        apply_orientation=config.dialect.input.apply_orientation,
    )
    name_classes(model, dataset)
    return dataset, data.title('val')


def name_classes(model: MaskRCNN, dataset: Dataset) -> None:
    """Give a model from a file without class names the classes of the dataset, if their number is the same."""
    n_classes = model.config.n_fg_class
    if model.class_names == placeholder_names(n_classes) and len(dataset.class_names) == n_classes:
        model.class_names, model.category_ids = tuple(dataset.class_names), model_category_ids(dataset)


def check_classes(model: MaskRCNN, dataset: Dataset, name: str) -> None:
    """Refuse a dataset on which a model cannot be evaluated.

    The model's classes must include those of the dataset.  If they do not, the numbers of classes must be equal: the
    class names may differ.

    Args:
        model: The model.
        dataset: The dataset.
        name: The dataset's name in the message.

    Raises:
        UsageError: The classes do not match.
    """
    model_names, dataset_names = model.class_names or (), dataset.class_names
    if not set(dataset_names) <= set(model_names) and len(dataset_names) != model.config.n_fg_class:
        raise UsageError(
            f'{name} has {counted(len(dataset_names), "class", "classes")} ({shorten_names(dataset_names)}), but the '
            f'model has {model.config.n_fg_class} ({shorten_names(model_names)}); select the data of the model with '
            '--dataset or --val-annotations'
        )


def shorten_names(names: Sequence[str]) -> str:
    """Return at most three names as text: all of them, or the first two and the last one."""
    return ', '.join(names) if len(names) <= 3 else f'{names[0]}, {names[1]} ... {names[-1]}'


def evaluate_to_folder(
    model: MaskRCNN,
    dataset: Dataset,
    folder: Path,
    *,
    name: str,
    communicator: Communicator | None = None,
    max_detections: int | None = None,
    report: EvaluationReport | None = None,
) -> Metrics:
    """Evaluate a model, write its detections and the metrics, and print the metrics.

    Args:
        model: The model.
        dataset: The dataset.
        folder: The folder for ``results.*.json`` and ``metrics.json``.
        name: The dataset's name in messages.
        communicator: The group of processes, each of which calls this function; ``None`` for a single process.
        max_detections: Maximum number of detections per image in the metrics (COCOeval's ``maxDets``); 0 for no limit,
            ``None`` for COCO's 100 or the limit of the model if it is larger.
        report: The report to write, or ``None``.

    Returns:
        Metrics: The metrics.

    Raises:
        UsageError: The classes of the model and the dataset do not match.
        mask_rcnn.io.atomic_file.FileError: A file cannot be written; the metrics have been printed.
    """
    communicator = communicator or Communicator()
    check_classes(model, dataset, name)
    if communicator.is_main:
        print_dataset_warnings(dataset, name)
        with contextlib.suppress(OSError):  # writing reports it
            folder.mkdir(parents=True, exist_ok=True)
    error: FileError | None = None
    try:
        metrics = evaluate_model(
            model,
            dataset,
            results_file=folder / 'results.json',
            comm=communicator,
            max_detections=model.config.rpn_post_nms if max_detections == 0 else max_detections,  # no class has more
            evaluate=COCOEvaluator.evaluate if report is None else report.evaluate,
        )
    except ResultsFileError as results_error:
        error, metrics = results_error, results_error.metrics
    if communicator.is_main:
        try:
            _write_metrics(metrics, folder / 'metrics.json')
        except FileError as metrics_error:
            error = error or metrics_error
        if error is None:
            files = ', '.join(f'results.{kind}.json' for kind in metrics.ap_per_class())
            print_line(f'{name}, {counted(len(dataset), "image")}; wrote {files} and metrics.json to {folder}')
        else:
            print_line(f'{name}, {counted(len(dataset), "image")}')
        print_lines(metrics.table())
        if report is not None:
            try:
                report.write(dataset)
                print_line(f'wrote {report.path}')
            except FileError as report_error:
                error = error or report_error
    if error is not None:
        raise error
    return metrics


def _write_metrics(metrics: Metrics, path: Path) -> None:
    kinds = metrics.ap_per_class()
    per_class = {
        class_name: {f'{kind}/AP': aps[i] for kind, aps in kinds.items()}
        for i, class_name in enumerate(metrics.class_names)
    }
    content = json.dumps({**metrics.summary(), 'classes': per_class}, indent=1).encode()
    with open_for_writing(path) as file:
        file.write(content)
