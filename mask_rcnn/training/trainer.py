"""Assembly of training runs from the train chain, optimizer, iterator, updater and extensions."""

from __future__ import annotations

import dataclasses
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import chainer
import numpy as np
from chainer import training

from mask_rcnn.config import Config, TrainingConventions, fields
from mask_rcnn.datasets.augmentation import Augmentation
from mask_rcnn.datasets.example import ExampleDataset
from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.inference.save import model_meta
from mask_rcnn.io.console import print_line, print_lines, print_warning
from mask_rcnn.models import MaskRCNN
from mask_rcnn.ops.runtime.weight_cache import drop_weight_cache
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.divergence import DivergenceWarning
from mask_rcnn.training.early_stopping import EarlyStopping
from mask_rcnn.training.extensions import (
    ConsoleTable,
    Evaluation,
    IntervalTrigger,
    LearningRateScheduler,
    Metrics,
    Tolerant,
    TrainingLog,
    Trigger,
)
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.iterator import ExampleIterator
from mask_rcnn.training.optimizer import make_optimizer
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.signals import SignalHandler, StopTrigger
from mask_rcnn.training.snapshot import Snapshots
from mask_rcnn.training.tensorboard import TensorBoard
from mask_rcnn.training.tensorboard_examples import ExampleDetections
from mask_rcnn.training.tensorboard_histograms import WeightHistograms
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import SubdivisionUpdater

#: Attempts per ``snapshot_interval`` to write a snapshot after one could not be written.
_RETRIES_PER_INTERVAL = 10

#: Entries of the log per histogram in TensorBoard, in a run without evaluations.
_LOGS_PER_HISTOGRAM = 10

#: The ranges of the numbers of :class:`TrainingOptions`.
_CHECKS = {
    **dict.fromkeys(('iterations', 'batch_size', 'subdivisions', 'keep', 'log_interval'), fields.integer(1)),
    **dict.fromkeys(('workers', 'snapshot_interval', 'eval_interval'), fields.integer(0)),
    'seed': fields.integer(0, 2**32 - 1),
    'gamma': fields.non_negative,
    'frozen_stages': fields.optional(fields.integer(0)),
    'patience': fields.optional(fields.integer(1)),
    'clip': fields.optional(fields.positive),
    'loss_scale': lambda value: value if value == 'dynamic' else fields.optional(fields.positive)(value),
}


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of a training run.

    Args:
        out: Folder of all files that the run writes.
        iterations: Total updates of the run, including those before it was resumed.
        schedule: The learning rates.
        batch_size: Images per update in each process.
        subdivisions: Number of passes into which the batch is divided, to save memory.
        seed: Seed of the order of the images, the flips and the sampling of anchors and RoIs.
        workers: Number of processes that read and transform images; 0 does both in this process.
        gamma: Weight of the mask loss.
        augmentation: The random changes of images and objects.
        sampling: Sampling sizes and IoU thresholds; ``None`` for the defaults, with the number of RoIs of the model's
            dialect (``training.roi_batch``).
        freeze_bn: Freeze all batch normalisations: use their running statistics and do not train gamma and beta.
        frozen_stages: Number of frozen backbone stages, in the order conv1, res2, res3, res4; ``None`` for that of the
            model's dialect (``training.frozen_stages``).
        clip: Maximum L2 norm of the gradient; ``None`` disables clipping.
        loss_scale: See :class:`~mask_rcnn.training.updater.SubdivisionUpdater`.
        snapshot_interval: Iterations between snapshots; 0 writes no snapshot, not even at the end.
        keep: Number of snapshots to keep.
        eval_interval: Iterations between evaluations; 0 never evaluates.
        patience: Number of evaluations without a better AP after which the run ends; ``None`` never ends it early.
        log_interval: Iterations per entry of the log.
        tensorboard: Write event files for TensorBoard.

    Raises:
        ValueError: A number is out of range, or ``patience`` is set without evaluations.
    """

    out: str
    iterations: int
    schedule: Schedule
    batch_size: int = 8
    subdivisions: int = 1
    seed: int = 0
    workers: int = 0
    gamma: float = 1.0
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    sampling: Sampling | None = None
    freeze_bn: bool = False
    frozen_stages: int | None = None
    clip: float | None = None
    loss_scale: float | str | None = None
    snapshot_interval: int = 4000
    keep: int = 3
    eval_interval: int = 0
    patience: int | None = None
    log_interval: int = 20
    tensorboard: bool = False

    def __post_init__(self) -> None:
        fields.check_fields(self, _CHECKS)
        if self.patience is not None and not self.eval_interval:
            raise ValueError('patience needs evaluations: eval_interval is 0')


@dataclass(frozen=True)
class TrainingRun:
    """A trainer, with the components that the caller needs after the run."""

    options: TrainingOptions
    trainer: training.Trainer
    stop_trigger: StopTrigger
    snapshots: Snapshots
    signal_handler: SignalHandler
    communicator: Communicator

    def start(self) -> None:
        """Train until the last iteration or a stop signal; ``stop_trigger.interrupted`` is true after a signal.

        If the run fails, the state after the last complete iteration is saved before the error is raised:
        ``snapshots.last`` is then the snapshot of ``trainer.updater.iteration``, unless ``options.snapshot_interval``
        is 0, no iteration was completed, or the state is lost.  If the last state cannot be written to ``options.out``,
        ``snapshots.last`` is in a temporary folder.

        Raises:
            mask_rcnn.training.updater.NonFiniteLossError: The loss is not finite.
            mask_rcnn.training.worker_pool.ExampleError: An image cannot be read.
            mask_rcnn.training.worker_pool.WorkerError: A worker process was killed.
            mask_rcnn.training.distributed.ProcessError: Another process has failed.
            KeyboardInterrupt: After the second stop signal.
        """
        start, target = self.trainer.updater.iteration, self.trainer.updater.get_optimizer('main').target
        # No NumPy warnings: the updater checks the losses and names the images of the batch.
        ignored = np.errstate(over='ignore', invalid='ignore')
        # The model may be on another GPU than the current one of this thread.
        with self.signal_handler.installed(), ignored, chainer.using_device(target.device):
            try:
                self.trainer.run(show_loop_exception_msg=False)
            except BaseException as error:
                traceback.clear_frames(error.__traceback__)  # frees the memory of the failed iteration
                updater = self.trainer.updater
                if not updater.is_consistent:
                    print_warning(f'the error came during update {updater.iteration + 1}, so its state is not saved')
                elif updater.iteration > start:
                    self._save_last_state()
                raise
            self.snapshots.rescue(self.trainer)

    def _save_last_state(self) -> None:
        """Save the state of a run that has failed; all processes call this if they have failed together."""
        communicator, model = self.communicator, self.trainer.updater.get_optimizer('main').target.model
        if communicator.failed_together and averages_statistics(model, self.options, communicator):
            communicator.mean_persistents(model)
        if communicator.is_main and self.options.snapshot_interval:
            # Older snapshots stay: after a loss that is not finite, the last state may be useless.
            self.snapshots.write(self.trainer, keep_old=True)
            self.snapshots.rescue(self.trainer)
        if communicator.failed_together:
            communicator.barrier()  # a process that ends with an error may end the others


def build_training_run(
    model: MaskRCNN,
    train_set: ExampleDataset,
    options: TrainingOptions,
    *,
    evaluate: Callable[[Path], Metrics] | None = None,
    val_set: Any = None,
    configuration: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    communicator: Communicator | None = None,
) -> TrainingRun:
    """Build a run.  It can be restored from a snapshot before it is started.

    Args:
        model: The model to train, on its device.
        train_set: The training images.
        options: Settings of the run.
        evaluate: See :class:`~mask_rcnn.training.extensions.Evaluation`; required if
            ``options.eval_interval`` is not 0.
        val_set: The evaluation data; TensorBoard shows some of the images after evaluations.
        configuration: Title -> the names and values of a table, for TensorBoard, in addition to those of the network
            and of ``options``.
        communicator: Communication with the other processes; ``None`` for a single process.
    """
    communicator = communicator or Communicator()
    conventions = model.config.dialect.training
    options = _fill_in(options, conventions)
    freeze(model, freeze_bn=options.freeze_bn, stages=options.frozen_stages)
    drop_weight_cache(model)  # earlier predictions have filled it, and the training needs the memory of a GPU
    chain = MaskRCNNTrainChain(model, sampling=options.sampling, gamma=options.gamma)
    chain.to_device(model.device)
    communicator.broadcast(chain)
    optimizer = make_optimizer(
        chain,
        clip=options.clip,
        decay_all=conventions.decay_all,
        decay_norms=conventions.decay_norms,
        correct_momentum=conventions.correct_momentum,
    )
    iterator = ExampleIterator(
        train_set,
        TrainingTransform(model.config, options.augmentation),
        options.batch_size,
        seed=options.seed,
        workers=options.workers,
        shard=(communicator.rank, communicator.size),
    )
    signal_handler = SignalHandler(announces=communicator.is_main)
    updater = SubdivisionUpdater(
        iterator,
        optimizer,
        subdivisions=options.subdivisions,
        loss_scale=options.loss_scale,
        communicator=communicator,
        sum_images=conventions.sum_images,
        signal_handler=signal_handler,
    )
    early_stopping = None if options.patience is None else EarlyStopping(options.patience)
    stop_trigger = StopTrigger(options.iterations, signal_handler, communicator, early_stopping)
    trainer = training.Trainer(updater, stop_trigger=stop_trigger, out=options.out)
    snapshots = _add_extensions(trainer, model, options, stop_trigger, evaluate, communicator, signal_handler)
    if communicator.is_main and options.tensorboard:
        tables = {**configuration, **describe_configuration(model.config, options)}
        _add_tensorboard(trainer, model, options, val_set, tables, signal_handler)
    return TrainingRun(options, trainer, stop_trigger, snapshots, signal_handler, communicator)


def averages_statistics(model: MaskRCNN, options: TrainingOptions, communicator: Communicator) -> bool:
    """Return whether the processes have different running statistics, whose mean is evaluated and saved."""
    conventions = model.config.dialect.training
    is_fixed = options.freeze_bn or conventions.freeze_norms or conventions.fix_statistics
    return communicator.size > 1 and 'bn' in (model.config.norm, model.config.head_norm) and not is_fixed


def _fill_in(options: TrainingOptions, conventions: TrainingConventions) -> TrainingOptions:
    """Replace the options that are ``None`` by those of the dialect."""
    stages = conventions.frozen_stages if options.frozen_stages is None else options.frozen_stages
    sampling = options.sampling or Sampling(roi_batch=conventions.roi_batch)
    return dataclasses.replace(options, frozen_stages=stages, sampling=sampling)


def _add_extensions(
    trainer: training.Trainer,
    model: MaskRCNN,
    options: TrainingOptions,
    stop_trigger: StopTrigger,
    evaluate: Callable[[Path], Metrics] | None,
    communicator: Communicator,
    signal_handler: SignalHandler,
) -> Snapshots:
    """Add the extensions to a trainer.

    The state of extensions is part of a snapshot, and every process restores from the same snapshot.  Stateful
    extensions are therefore added in all processes; those that only print or write are added in the main process.
    """
    main, optimizer = communicator.is_main, trainer.updater.get_optimizer('main')
    evaluating = IntervalTrigger(options.eval_interval)
    saving = IntervalTrigger(options.snapshot_interval, also=stop_trigger)
    logging = IntervalTrigger(
        options.log_interval, also=lambda t: t.updater.iteration == options.iterations or stop_trigger.stops_early
    )
    plotting = IntervalTrigger(10 * options.log_interval, also=stop_trigger)
    log = TrainingLog(trigger=logging, plot_trigger=plotting, write=main, warn=print_warning)
    snapshots = Snapshots(
        model_meta(model),
        options_to_store(options, communicator),
        keep=options.keep,
        warn=print_warning,
        print_line=print_line,
    )

    def tolerate(extension: training.Extension, **kwargs: Any) -> None:
        trainer.extend(Tolerant(extension, print_warning, signal_handler), **kwargs)

    trainer.extend(LearningRateScheduler(options.schedule, optimizer))
    trainer.extend(log, trigger=(1, 'iteration'))
    if averages_statistics(model, options, communicator):
        trainer.extend(
            lambda trainer: communicator.mean_persistents(model),
            name='statistics',
            priority=350,
            trigger=lambda trainer: evaluating(trainer) or saving(trainer),
        )
    evaluation = None
    if options.eval_interval:
        if evaluate is None:
            raise ValueError(f'eval_interval is {options.eval_interval}, but evaluate is None')
        evaluation = Evaluation(
            evaluate,
            snapshots,
            signal_handler=signal_handler,
            communicator=communicator,
            print_line=print_lines,
            warn=print_warning,
        )
        for extension in filter(None, (evaluation, stop_trigger.early_stopping)):
            trainer.extend(extension, trigger=evaluating)
    if main:
        tolerate(ConsoleTable(log, iterations=options.iterations, print_line=print_line, evaluation=evaluation))
        tolerate(DivergenceWarning(log, print_warning), trigger=logging)
    never = IntervalTrigger(0)  # the extension is stateful, so processes that write no snapshots need it as well
    if communicator.size == 1:  # in several processes, the main process would retry alone
        retrying = IntervalTrigger(max(options.snapshot_interval // _RETRIES_PER_INTERVAL, 1))
        saving = IntervalTrigger(
            options.snapshot_interval, also=lambda t: stop_trigger(t) or (snapshots.has_failed and retrying(t))
        )
    trainer.extend(snapshots, trigger=saving if main and options.snapshot_interval else never)
    return snapshots


def _add_tensorboard(
    trainer: training.Trainer,
    model: MaskRCNN,
    options: TrainingOptions,
    val_set: Any,
    configuration: Mapping[str, Mapping[str, Any]],
    signal_handler: SignalHandler,
) -> None:
    """Add the extensions that write event files; a run whose stop was requested does without images and histograms."""
    evaluating = IntervalTrigger(options.eval_interval)
    interval = options.eval_interval or _LOGS_PER_HISTOGRAM * options.log_interval

    def is_due(iteration: int) -> bool:
        return iteration % interval == 0 or iteration == options.iterations

    def add(extension: training.Extension, is_triggered: Trigger) -> None:
        trainer.extend(
            Tolerant(extension, print_warning, signal_handler),
            trigger=lambda t: is_triggered(t) and signal_handler.signal is None,
        )

    tensorboard = TensorBoard(trainer.get_extension('log'), configuration=configuration)
    trainer.extend(Tolerant(tensorboard, print_warning, signal_handler))
    add(WeightHistograms(tensorboard, model, is_due), lambda t: is_due(t.updater.iteration))
    if val_set is not None and options.eval_interval:
        add(ExampleDetections(tensorboard, model, val_set), evaluating)


def describe_configuration(config: Config, options: TrainingOptions) -> dict[str, dict[str, Any]]:
    """Return tables of the network, its dialect, the sampling and the other options of a run, as names and values."""
    network = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    dialect = dataclasses.asdict(config.dialect)
    values = dataclasses.asdict(options)
    return {
        'training': flatten({name: value for name, value in values.items() if name != 'sampling'}),
        'sampling': dict(values['sampling'] or {}),
        'network': {**network, 'dialect': config.dialect.name},
        'dialect': flatten(dialect),
    }


def flatten(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with the fields of groups as separate values: ``augmentation.crop``."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        members = value if isinstance(value, Mapping) else {'': value}
        flat |= {f'{name}.{member}'.rstrip('.'): member_value for member, member_value in members.items()}
    return flat


def options_to_store(options: TrainingOptions, communicator: Communicator) -> Mapping[str, Any]:
    """Return the options stored in a snapshot, as plain JSON values: those that affect the losses."""
    values = dataclasses.asdict(options)
    kept = {
        name: values[name]
        for name in ('seed', 'gamma', 'augmentation', 'sampling', 'freeze_bn', 'frozen_stages', 'clip', 'schedule')
    }
    return json.loads(json.dumps({**kept, 'batch_size': options.batch_size * communicator.size}))
