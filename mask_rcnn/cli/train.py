"""``mask-rcnn train`` and ``train.py``: a training run, or one evaluation of a model."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mask_rcnn.cli.auto_options import print_and_return_arguments
from mask_rcnn.cli.command import UsageError, parse_command_line, report_error, run_and_report_errors
from mask_rcnn.cli.dataset_options import SIZES, Dataset, print_dataset_warnings
from mask_rcnn.cli.evaluate import (
    annotation_inputs,
    check_classes,
    evaluate_to_folder,
    open_evaluation_data,
    reserved_folder,
)
from mask_rcnn.cli.initial_model import data_options, load_model, make_model
from mask_rcnn.cli.options import check_precision, choose_device, gpu_error
from mask_rcnn.cli.train_arguments import TrainArguments
from mask_rcnn.cli.train_options import configure
from mask_rcnn.config import Config
from mask_rcnn.config.schedules import DEFAULT_ITERATIONS
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.coco import AnnotationFileError
from mask_rcnn.evaluation.coco import Metrics, ResultsFileError, evaluate_model
from mask_rcnn.io.atomic_file import check_writable_folder, removing_empty_folder
from mask_rcnn.io.console import print_line, print_warning
from mask_rcnn.io.folder_lock import FolderInUseError, lock_folder
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime.device import get_device
from mask_rcnn.preprocessing.image_io import ImageFileError
from mask_rcnn.targets.sampling import network_sampling
from mask_rcnn.training import distributed
from mask_rcnn.training.distributed import Communicator, DistributedError, run_together
from mask_rcnn.training.earlier_run import set_aside_run
from mask_rcnn.training.failures import describe_error
from mask_rcnn.training.schedule import detectron_schedule, step_schedule
from mask_rcnn.training.snapshot import BEST_MODEL, Snapshot, is_snapshot
from mask_rcnn.training.tensorboard import TensorBoardMissingError, writer_class
from mask_rcnn.training.trainer import TrainingOptions, TrainingRun, build_training_run, flatten, options_to_store
from mask_rcnn.training.updater import NonFiniteLossError
from mask_rcnn.training.worker_pool import ExampleError, WorkerError
from mask_rcnn.weights import WeightFileError

_logger = logging.getLogger(__name__)

#: Errors whose message is a complete line.
_ERRORS = (
    WeightFileError,
    AnnotationFileError,
    ImageFileError,
    DistributedError,
    TensorBoardMissingError,
    ExampleError,
    WorkerError,
    FolderInUseError,
)


def run(namespace: argparse.Namespace) -> int:
    """Train, or evaluate a model; returns the exit status (see the command's help)."""
    try:
        args = TrainArguments.from_namespace(namespace)
        communicator = distributed.create_communicator(args.communicator)
    except UsageError as error:
        return report_error(str(error), 2)
    except (DistributedError, WeightFileError) as error:
        return report_error(str(error))
    with communicator.guard():
        action = partial(_evaluate if args.only_evaluates else _train, args, communicator)
        status = run_and_report_errors(action, _ERRORS)
        if status in (1, 2) and communicator.size > 1:
            raise SystemExit(status)  # other processes may wait for this one: the guard ends them as well
    return status


def main(argv: Sequence[str] | None = None, folder: Path = Path('.'), *, prog: str | None = None) -> int:
    """Parse the command line and train; returns the exit status.

    See :func:`configure` and :func:`mask_rcnn.cli.command.parse_command_line` for the arguments.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    namespace = parse_command_line(partial(configure, folder=folder), argv, prog)
    if not namespace.auto:
        return run(namespace)
    given = parse_command_line(partial(_configure_without_defaults, folder=folder), argv, prog)
    explicit: list[str] = []

    def choose() -> int:
        explicit.extend(print_and_return_arguments(namespace, given, argv, prog or 'mask-rcnn train'))
        return 0

    status = run_and_report_errors(choose, _ERRORS)
    return status or run(parse_command_line(partial(configure, folder=folder), explicit, prog))


def _configure_without_defaults(parser: argparse.ArgumentParser, folder: Path) -> None:
    """Configure a parser whose numbers are ``None`` if they are not given."""
    configure(parser, folder)
    parser.set_defaults(batchsize=None, subdivisions=None)


def _evaluate(args: TrainArguments, communicator: Communicator) -> int:
    """Evaluate the model of ``--resume`` while no other evaluation uses the output folder."""
    with contextlib.ExitStack() as stack:
        if communicator.is_main:
            inputs = [('the file of --resume', args.resume), *annotation_inputs(args.data)]
            stack.enter_context(reserved_folder(args.out, inputs))
        communicator.barrier()
        return _evaluate_in_locked_folder(args, communicator)


def _evaluate_in_locked_folder(args: TrainArguments, communicator: Communicator) -> int:
    gpu = _choose_gpu(args, communicator)
    check_precision(args.precision, gpu)
    model = load_model(args)
    model.to_device(get_device(gpu))
    val_set, title = open_evaluation_data(args.data, model)
    with using_precision(args.precision):
        evaluate_to_folder(model, val_set, args.out, name=title, communicator=communicator)
    return 0


def _train(args: TrainArguments, communicator: Communicator) -> int:
    """Train while no other training uses the output folder."""
    with contextlib.ExitStack() as stack:
        if communicator.is_main:
            stack.enter_context(removing_empty_folder(args.out))
        check_writable_folder(args.out)
        if communicator.is_main:
            stack.enter_context(lock_folder(args.out, user='training', warn=print_warning))
        communicator.barrier()
        return _train_in_locked_folder(args, communicator)


def _train_in_locked_folder(args: TrainArguments, communicator: Communicator) -> int:
    if args.tensorboard and communicator.is_main:
        writer_class()  # fails before the data are read, not after
    gpu = _choose_gpu(args, communicator)
    check_precision(args.precision, gpu)
    device = get_device(gpu)
    random.seed(args.seed)
    np.random.seed(args.seed)
    train_set, val_set = _open_data(args)
    model, snapshot = make_model(args, train_set, is_main=communicator.is_main)
    if args.gamma != 1 and not model.config.masks:
        raise UsageError(f'--gamma {args.gamma:g}: the network has no mask head')
    if val_set is not None:
        check_classes(model, val_set, args.data.title('val'))
    if communicator.is_main:
        _print_datasets({'training': train_set, 'evaluation': val_set})
        _warn_of_large_batch(len(train_set), args.batchsize * communicator.size)
    model.to_device(device)
    _set_aside_run(args, communicator)
    training = build_training_run(
        model,
        train_set,
        _options(args, communicator, model.config, n_images=len(train_set)),
        communicator=communicator,
        evaluate=make_evaluator(model, val_set, communicator),
        val_set=val_set,
        configuration={'command_line': _describe_arguments(args)},
    )
    if snapshot is not None:
        _restore(training, snapshot, communicator)
    try:
        with using_precision(args.precision):
            training.start()
    except (Exception, KeyboardInterrupt) as error:
        return _report_failure(training, error, args, communicator)
    communicator.barrier()  # the main process may still be writing
    return _report(training, args, communicator)


def _set_aside_run(args: TrainArguments, communicator: Communicator) -> None:
    """Move an earlier run in ``--out`` aside, after its files have been read: a new run must not overwrite it."""
    continues = (
        args.resume is not None and is_snapshot(args.resume) and args.resume.resolve().parent == args.out.resolve()
    )
    if communicator.is_main and not continues:
        target = set_aside_run(args.out)
        if target is not None:
            print_line(f'the earlier run in {args.out} is moved to {target}')
    communicator.barrier()


def _choose_gpu(args: TrainArguments, communicator: Communicator) -> int:
    if args.communicator != 'pure_nccl':
        return -1 if args.communicator else choose_device(args.gpu)
    number = communicator.intra_rank  # NCCL refuses two processes on one GPU
    reason = gpu_error(number)
    if reason is not None:
        raise UsageError(f'--communicator pure_nccl: process {communicator.rank} needs GPU {number}: {reason}')
    return number


def _open_data(args: TrainArguments) -> tuple[Dataset, Dataset | None]:
    """Return the training set, and the evaluation set or ``None``."""
    size = args.min_size or SIZES[args.data.name][0]
    options = data_options(args)
    train_set = args.data.open('train', size=size, seed=args.seed, **options)
    val_set = args.data.open('val', size=size, **options) if args.validation else None
    return train_set, val_set


def _print_datasets(datasets: Mapping[str, Dataset | None]) -> None:
    for name, dataset in datasets.items():
        if dataset is not None:
            n_skipped = getattr(dataset, 'n_skipped', 0)
            n_without_objects = getattr(dataset, 'n_without_objects', 0)
            print_line(
                f'{name}: {counted(len(dataset), "image")}, {counted(len(dataset.class_names), "class", "classes")}'
                + f' ({n_without_objects} without an object left out)' * bool(n_without_objects)
                + f' ({counted(n_skipped, "broken image or annotation", "broken images and annotations")} skipped)'
                * bool(n_skipped)
            )
            print_dataset_warnings(dataset, name)


def _warn_of_large_batch(n_images: int, batch_size: int) -> None:
    if batch_size > n_images:
        print_warning(
            f'a batch of {batch_size} images contains some images several times: the dataset has only '
            f'{counted(n_images, "training image")}'
        )


def _options(args: TrainArguments, communicator: Communicator, config: Config, *, n_images: int) -> TrainingOptions:
    if args.schedule:
        schedule, iterations = detectron_schedule(args.schedule, args.batchsize * communicator.size)
    else:
        schedule = step_schedule(
            args.lr, warmup=args.lr_initialchange, first_decay=args.step_size, second_decay=args.lr_step
        )
        iterations = DEFAULT_ITERATIONS
    iterations = args.iteration or iterations
    return TrainingOptions(
        out=os.fspath(args.out),
        iterations=iterations,
        schedule=schedule,
        batch_size=args.batchsize,
        subdivisions=args.subdivisions,
        seed=args.seed,
        workers=min(_default_workers() if args.workers is None else args.workers, n_images),
        gamma=args.gamma,
        augmentation=args.augmentation,
        sampling=network_sampling(config, roi_batch=args.roi_batch, proposals=args.train_proposals),
        freeze_bn=args.freeze_bn,
        frozen_stages=args.frozen_stages,
        clip=args.clip_gradient,
        # Small gradients underflow in float16; bfloat16 has the exponent range of float32.
        loss_scale='dynamic' if args.precision == 'fp16' else None,
        snapshot_interval=args.snapshot,
        keep=args.keep,
        eval_interval=args.validation,
        patience=args.early_stop,
        log_interval=max(1, min(100, iterations // 200)),
        tensorboard=args.tensorboard,
    )


def _default_workers() -> int:
    n_cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return min(4, max(n_cpus - 1, 0))


def make_evaluator(model: MaskRCNN, val_set: Dataset | None, communicator: Communicator) -> Callable[[Path], Metrics]:
    """Return a function that evaluates the model and writes its detections to a file; it fails in all processes."""

    def evaluate(results: Path, comm: Communicator) -> Metrics:
        try:
            return evaluate_model(model, val_set, progress=comm.is_main, results_file=results, comm=comm)
        except ResultsFileError as error:  # only in the main process
            print_warning(str(error))
            return error.metrics

    return lambda results: run_together(communicator, partial(evaluate, results))


def _describe_arguments(args: TrainArguments) -> dict[str, Any]:
    """Return the names and values of the options that are set."""
    return {name: value for name, value in flatten(dataclasses.asdict(args)).items() if value is not None}


def _restore(training: TrainingRun, snapshot: Snapshot, communicator: Communicator) -> None:
    """Continue the run of a snapshot, and warn of changed options."""
    options = training.options
    if snapshot.iteration >= options.iterations:
        raise UsageError(
            f'--resume {snapshot.path} and --iteration {options.iterations} contradict each other: '
            f'the snapshot was written after {counted(snapshot.iteration, "iteration")}'
        )
    snapshot.restore(training.trainer)
    early = training.stop_trigger.early_stopping
    if early is not None and early.is_exhausted:
        raise UsageError(
            f'--resume {snapshot.path} and --early-stop {early.patience} contradict each other: '
            f'{counted(early.n_worse, "evaluation is", "evaluations are")} done since the best one, after iteration '
            f'{early.best_iteration}'
        )
    if not communicator.is_main:
        return
    # Snapshots of earlier versions do not contain the augmentation, which could not be changed.
    unchanged = json.loads(json.dumps(dataclasses.asdict(Augmentation())))
    before = flatten({'augmentation': unchanged, **snapshot.options})
    for name, value in flatten(options_to_store(options, communicator)).items():
        if before.get(name) != value:
            print_warning(f'{name} was {before.get(name)}, and is {value} from now on')
    print_line(f'resuming after iteration {snapshot.iteration} of {snapshot.path}')


def _report(training: TrainingRun, args: TrainArguments, communicator: Communicator) -> int:
    """Print how the run ended; returns the exit status."""
    iteration, last = training.trainer.updater.iteration, training.snapshots.last
    if training.stop_trigger.interrupted:
        # The signal may have reached another process only.
        number = training.signal_handler.signal or signal.SIGTERM
        if communicator.is_main:
            if iteration >= training.options.iterations:
                advice = 'this was the last iteration, only its evaluation is missing (--lr 0 evaluates the model)'
            else:
                advice = _resume_advice(last)
            report_error(f'stopped by {signal.Signals(number).name} after iteration {iteration}; {advice}')
        return 128 + number
    if not communicator.is_main:
        return 0
    if args.snapshot and (last is None or last.name != f'snapshot_iter_{iteration}.npz'):
        model_path = args.out / f'model_iter_{iteration}.npz'
        saved = f', only the model {model_path}' if model_path.exists() else ''
        return report_error(f'the last state is not saved{saved}; {_resume_advice(last)}')
    if args.snapshot and last is not None and last.parent != args.out:
        return report_error(f'{args.out} cannot be written; the state after iteration {iteration} is saved as {last}')
    model = f'; the model is {args.out}/model_iter_{iteration}.npz' if args.snapshot else ''
    print_line(f'{_describe_early_stop(training)}done after {counted(iteration, "iteration")}{model}')
    return 0


def _describe_early_stop(training: TrainingRun) -> str:
    """Return the best evaluation as the beginning of a line; empty if the run did not stop early."""
    early = training.stop_trigger.early_stopping
    if early is None or not early.is_exhausted:
        return ''
    return (
        f'the last {counted(early.n_worse, "evaluation was", "evaluations were")} not better than that after iteration '
        f'{early.best_iteration} '
        f'(AP {early.best_score:.3f}), whose model is {Path(training.options.out) / BEST_MODEL}; '
    )


def _resume_advice(last: Path | None) -> str:
    return f'resume with --resume {last}' if last else 'no snapshot exists'


def _report_failure(
    training: TrainingRun, error: BaseException, args: TrainArguments, communicator: Communicator
) -> int:
    """Print why a run has failed and what is saved; returns the exit status."""
    _logger.debug('the run has failed', exc_info=error)
    reason, status = describe_error(error), 1
    if isinstance(error, KeyboardInterrupt):
        number = training.signal_handler.signal or signal.SIGINT
        reason, status = f'interrupted by {signal.Signals(number).name}', 128 + number
    if communicator.is_main or not communicator.failed_together:
        report_error('; '.join(filter(None, (reason, _describe_saved_state(training, error, args)))))
    if communicator.failed_together:
        communicator.barrier()  # a process that ends with an error may end the others
    if communicator.size > 1:
        raise SystemExit(status)  # other processes may wait for this one: the guard ends them as well
    return status


def _describe_saved_state(training: TrainingRun, error: BaseException, args: TrainArguments) -> str:
    """Return the snapshot to resume after an error, as text; empty if the run has not completed an iteration."""
    iteration, last = training.trainer.updater.iteration, training.snapshots.last
    if last is not None and last.name == f'snapshot_iter_{iteration}.npz':
        advice = 'resume with a lower learning rate:' if isinstance(error, NonFiniteLossError) else 'resume with'
        return f'the state after iteration {iteration} is saved; {advice} --resume {last}'
    resumed = args.resume if args.resume and args.resume.exists() else None  # it may have been set aside
    if last is not None or resumed is not None:
        return f'the last good state is {last or resumed}'
    if not args.snapshot:
        return 'no state is saved, because of --snapshot 0'
    if isinstance(error, KeyboardInterrupt):
        return 'no state is saved'
    return 'no snapshot exists yet' if isinstance(error, NonFiniteLossError) else ''
