"""Training in Python: :func:`train` trains a model on the images and objects of a user's class."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chainer

from mask_rcnn.config.schedules import RATE_PER_IMAGE
from mask_rcnn.datasets.user_dataset import ObjectData, UserDataset
from mask_rcnn.evaluation import Metrics
from mask_rcnn.evaluation.coco import evaluate_model
from mask_rcnn.io.atomic_file import check_writable_folder, removing_empty_folder
from mask_rcnn.io.console import print_line, print_warning
from mask_rcnn.io.folder_lock import lock_folder
from mask_rcnn.io.wording import counted
from mask_rcnn.models import MaskRCNN
from mask_rcnn.models.builder import placeholder_names
from mask_rcnn.targets.sampling import Sampling, network_sampling
from mask_rcnn.training.earlier_run import set_aside_run
from mask_rcnn.training.schedule import Schedule, run_schedule
from mask_rcnn.training.snapshot import BEST_MODEL
from mask_rcnn.training.trainer import TrainingOptions, TrainingRun, build_training_run


@dataclass(frozen=True)
class TrainingResult:
    """The result of :func:`train`.

    Args:
        losses: The mean loss of each entry of the log, in order.
        metrics: COCO's metrics of the last evaluation by name, such as ``'segm/AP'``; empty without an evaluation.
        iteration: The number of iterations that are done.
        interrupted: True if a signal such as Ctrl-C has stopped the run.
        model: Path of the trained model, or ``None`` with ``snapshot_interval=0``.
        best_model: Path of the model with the best AP, or ``None`` without an evaluation.
        snapshot: Path of the last snapshot, or ``None`` if there is none.
    """

    losses: tuple[float, ...]
    metrics: Mapping[str, float]
    iteration: int
    interrupted: bool
    model: Path | None
    best_model: Path | None
    snapshot: Path | None


def train(
    model: MaskRCNN,
    dataset: ObjectData | chainer.dataset.DatasetMixin,
    *,
    iterations: int,
    out: str | os.PathLike,
    val: ObjectData | chainer.dataset.DatasetMixin | None = None,
    batch_size: int = 2,
    lr: float | None = None,
    schedule: Schedule | None = None,
    roi_batch: int | None = None,
    sampling: Sampling | None = None,
    eval_interval: int | None = None,
    frozen_stages: int = 0,
    **options: Any,
) -> TrainingResult:
    """Train a model on its device.

    The run prints a table of the losses, and writes the files of ``mask-rcnn train`` to ``out``; an earlier run in the
    folder is moved to ``run_1``, ``run_2``, ...  Ctrl-C and the other stop signals end the run after an iteration with
    a snapshot.

    Args:
        model: The model; it is changed.  Its number of classes is that of the dataset.
        dataset: The training data: an object with ``class_names``, ``__len__``, ``image`` and ``objects``
            (:class:`~mask_rcnn.datasets.ObjectData`), or a dataset of :mod:`mask_rcnn.datasets`.
        iterations: Number of updates.
        out: Folder of all files that the run writes.
        val: The evaluation data, as ``dataset``, with the same classes or some of them.
        batch_size: Images per update.
        lr: Learning rate after the warm-up; see :func:`~mask_rcnn.training.schedule.run_schedule`.  ``None`` for
            Detectron's, 0.00125 for each image of the batch.
        schedule: The learning rates instead of ``lr``.
        roi_batch: RoIs sampled per image; ``None`` for the number of the model's dialect.
        sampling: All sampling sizes and IoU thresholds instead of ``roi_batch``.
        eval_interval: Iterations between evaluations of ``val``; ``None`` for one at the end.
        frozen_stages: Number of frozen backbone stages.  For a model with pretrained weights, ``mask-rcnn train``
            freezes 2.
        **options: Other fields of :class:`~mask_rcnn.training.trainer.TrainingOptions`, such as ``seed``, ``workers``,
            ``patience`` and ``snapshot_interval``.

    Returns:
        TrainingResult: Losses, metrics and paths.

    Raises:
        ValueError: The model and the data do not have the same classes, an option is out of range, or an image or an
            object is malformed; see :class:`~mask_rcnn.datasets.UserDataset`.
        mask_rcnn.training.updater.NonFiniteLossError: The loss is not finite.
        mask_rcnn.io.folder_lock.FolderInUseError: Another training writes to ``out``.
        mask_rcnn.io.atomic_file.FileError: ``out`` cannot be written.
    """
    if model.config.n_keypoint:
        raise ValueError('the model predicts keypoints, which only the datasets of COCO files contain')
    train_set = _adapt(dataset, model, only_annotated=True)
    val_set = None if val is None else _adapt(val, model, only_annotated=False)
    _match_classes(model, train_set.class_names)
    if val_set is not None and not set(val_set.class_names) <= set(train_set.class_names):
        raise ValueError(
            f'the classes of val are {", ".join(val_set.class_names)}, but those of the dataset are '
            f'{", ".join(train_set.class_names)}'
        )
    if schedule is None:
        schedule = run_schedule(RATE_PER_IMAGE * batch_size if lr is None else lr, iterations)
    elif lr is not None:
        raise ValueError('lr and schedule contradict each other')
    if sampling is not None and roi_batch is not None:
        raise ValueError('roi_batch and sampling contradict each other')
    if val_set is None and eval_interval:
        raise ValueError('eval_interval needs val, the evaluation data')
    settings = TrainingOptions(
        out=os.fspath(out),
        iterations=iterations,
        schedule=schedule,
        batch_size=batch_size,
        sampling=sampling or network_sampling(model.config, roi_batch=roi_batch),
        eval_interval=0 if val_set is None else eval_interval or iterations,
        frozen_stages=frozen_stages,
        **{'log_interval': max(1, min(100, iterations // 200)), **options},
    )
    with removing_empty_folder(out):
        check_writable_folder(out)
        with lock_folder(out, user='training', warn=print_warning):
            return _run(model, train_set, val_set, settings)


def _run(model: MaskRCNN, train_set: Any, val_set: Any, settings: TrainingOptions) -> TrainingResult:
    """Train in a locked folder."""
    aside = set_aside_run(Path(settings.out))
    if aside is not None:
        print_line(f'the earlier run in {settings.out} is moved to {aside}')
    latest: dict[str, float] = {}
    run = build_training_run(
        model, train_set, settings, evaluate=_make_evaluator(model, val_set, latest), val_set=val_set
    )
    run.start()
    return _describe(run, latest)


def _make_evaluator(model: MaskRCNN, val_set: Any, latest: dict[str, float]) -> Callable[[Path], Metrics]:
    """Return a function that evaluates the model, and stores the metrics in ``latest``."""

    def evaluate(results: Path) -> Metrics:
        metrics = evaluate_model(model, val_set, results_file=results)
        latest.update(metrics.summary())
        return metrics

    return evaluate


def _describe(run: TrainingRun, metrics: Mapping[str, float]) -> TrainingResult:
    out, iteration = Path(run.options.out), run.trainer.updater.iteration
    log = run.trainer.get_extension('log').log
    model, best_model = out / f'model_iter_{iteration}.npz', out / BEST_MODEL
    return TrainingResult(
        losses=tuple(entry['main/loss'] for entry in log),
        metrics=dict(metrics),
        iteration=iteration,
        interrupted=run.stop_trigger.interrupted,
        model=model if model.exists() else None,
        best_model=best_model if best_model.exists() else None,
        snapshot=run.snapshots.last,
    )


def _adapt(data: Any, model: MaskRCNN, *, only_annotated: bool) -> Any:
    """Return a dataset of examples for a user's object, or the dataset itself."""
    if isinstance(data, chainer.dataset.DatasetMixin):
        return data
    return UserDataset(
        data,
        only_annotated=only_annotated,
        masks=model.config.masks,
        apply_orientation=model.config.dialect.input.apply_orientation,
    )


def _match_classes(model: MaskRCNN, class_names: tuple[str, ...]) -> None:
    """Give a model without class names those of the data, and refuse one with others."""
    n_classes = model.config.n_fg_class
    if n_classes != len(class_names):
        raise ValueError(
            f'the model has n_fg_class={n_classes}, but the dataset has {counted(len(class_names), "class", "classes")}'
        )
    names = tuple(model.class_names or ())
    if names in ((), placeholder_names(n_classes)):
        model.class_names, model.category_ids = class_names, tuple(range(1, n_classes + 1))
    elif names != class_names:
        raise ValueError(
            f'the classes of the model are {", ".join(names)}, but those of the dataset are {", ".join(class_names)}'
        )
