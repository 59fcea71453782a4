"""A run put together: data, train chain, optimizer, updater and what happens between the updates."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from chainer import training

from mask_rcnn.datasets.transforms import TrainingTransform
from mask_rcnn.inference.save import model_meta
from mask_rcnn.io.console import print_line, print_warning
from mask_rcnn.models import MaskRCNN
from mask_rcnn.targets.sampling import Sampling
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.extensions import (
    ConsoleTable,
    Evaluation,
    IntervalTrigger,
    LearningRateScheduler,
    SignalHandler,
    StopTrigger,
    TrainingLog,
)
from mask_rcnn.training.freezing import FROZEN_STAGES, freeze
from mask_rcnn.training.iterator import ExampleIterator
from mask_rcnn.training.optimizer import make_optimizer
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.snapshot import Snapshots
from mask_rcnn.training.tensorboard import ExampleDetections, TensorBoard
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import SubdivisionUpdater


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Args:
        out: Folder of everything that the run writes.
        iterations: Updates of the whole run, those before a snapshot included.
        schedule: The learning rates.
        batch_size: Images of an update in each process.
        subdivisions: Passes in which they go through the network.
        seed: Of the order of the images, the flips and the sampling of anchors and RoIs.
        workers: Processes that read images; 0 reads them in this one.
        gamma: Weight of the mask loss.
        sampling: How many anchors and RoIs learn.
        freeze_bn: Batch normalisation uses its running statistics and learns nothing.
        frozen_stages: How many of conv1, res2, res3 and res4 do not learn.
        clip: Largest L2 norm of the gradient, or ``None``.
        loss_scale: See :class:`~mask_rcnn.training.updater.SubdivisionUpdater`.
        snapshot_interval: Iterations between snapshots; 0 writes none, not even at the end.
        keep: How many of them are kept.
        eval_interval: Iterations between evaluations; 0 never evaluates.
        log_interval: Iterations of an entry of the log.
        tensorboard: Whether to write TensorBoard's files.
    """

    out: str
    iterations: int
    schedule: Schedule
    batch_size: int = 8
    subdivisions: int = 1
    seed: int = 0
    workers: int = 0
    gamma: float = 1.0
    sampling: Sampling = Sampling()
    freeze_bn: bool = False
    frozen_stages: int = FROZEN_STAGES
    clip: float | None = None
    loss_scale: float | str | None = None
    snapshot_interval: int = 4000
    keep: int = 3
    eval_interval: int = 0
    log_interval: int = 20
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainingRun:
    """A trainer and those of its parts that decide how it ends."""

    options: TrainingOptions
    trainer: training.Trainer
    stop_trigger: StopTrigger
    snapshots: Snapshots
    signal_handler: SignalHandler

    def start(self) -> None:
        """Train until the end, or until SIGTERM or Ctrl-C; ``stop_trigger.interrupted`` tells which.

        Raises:
            mask_rcnn.training.updater.NonFiniteLossError: The loss is not finite.
        """
        # Numbers that overflow are found in the losses, with the images that they came from.
        with self.signal_handler.installed(), np.errstate(over='ignore', invalid='ignore'):
            self.trainer.run(show_loop_exception_msg=False)


def build_training_run(
    model: MaskRCNN,
    train_set,
    options: TrainingOptions,
    *,
    evaluate: Callable | None = None,
    examples=(),
    communicator: Communicator | None = None,
) -> TrainingRun:
    """Put a run together.

    Args:
        model: What is trained, on its device.
        train_set: Data set of :class:`~mask_rcnn.datasets.example.Example`.
        options: How to train.
        evaluate: See :class:`~mask_rcnn.training.extensions.Evaluation`; needed if
            ``options.eval_interval`` is not 0.
        examples: Pairs of a name and an image whose detections TensorBoard shows after evaluations.
        communicator: How this process talks to the others; ``None``: there are none.

    Returns:
        TrainingRun: Ready to start, or to be restored from a snapshot first.
    """
    communicator = communicator or Communicator()
    freeze(model, freeze_bn=options.freeze_bn, stages=options.frozen_stages)
    chain = MaskRCNNTrainChain(model, sampling=options.sampling, gamma=options.gamma)
    chain.to_device(model.device)
    communicator.broadcast(chain)
    optimizer = make_optimizer(chain, clip=options.clip)
    iterator = ExampleIterator(
        train_set,
        TrainingTransform(model.config),
        options.batch_size,
        seed=options.seed,
        workers=options.workers,
        shard=(communicator.rank, communicator.size),
    )
    updater = SubdivisionUpdater(
        iterator, optimizer, subdivisions=options.subdivisions, loss_scale=options.loss_scale, communicator=communicator
    )
    signal_handler = SignalHandler()
    stop_trigger = StopTrigger(options.iterations, signal_handler, communicator)
    trainer = training.Trainer(updater, stop_trigger=stop_trigger, out=options.out)
    snapshots = _add_extensions(trainer, model, options, stop_trigger, evaluate, examples, communicator, signal_handler)
    return TrainingRun(options, trainer, stop_trigger, snapshots, signal_handler)


def _add_extensions(
    trainer, model, options, stop_trigger, evaluate, examples, communicator, signal_handler
) -> Snapshots:
    """Add the extensions; every process has those with a state, so that a snapshot fits all of them."""
    main, optimizer = communicator.is_main, trainer.updater.get_optimizer('main')
    evaluating = IntervalTrigger(options.eval_interval)
    saving = IntervalTrigger(options.snapshot_interval, also=stop_trigger)
    logging = IntervalTrigger(options.log_interval, also=lambda t: t.updater.iteration == options.iterations)
    plotting = IntervalTrigger(10 * options.log_interval, also=stop_trigger)
    log = TrainingLog(trigger=logging, plot_trigger=plotting, write=main, warn=print_warning)
    snapshots = Snapshots(
        model_meta(model), options_to_store(options, communicator), keep=options.keep, warn=print_warning
    )
    trainer.extend(LearningRateScheduler(options.schedule, optimizer))
    trainer.extend(log, trigger=(1, 'iteration'))
    if communicator.size > 1 and model.config.norm == 'bn' and not options.freeze_bn:
        trainer.extend(
            lambda trainer: communicator.mean_persistents(model),
            name='statistics',
            priority=350,
            trigger=lambda trainer: evaluating(trainer) or saving(trainer),
        )
    if options.eval_interval:
        trainer.extend(
            Evaluation(
                evaluate,
                snapshots,
                signal_handler=signal_handler,
                communicator=communicator,
                print_line=print_line,
                warn=print_warning,
            ),
            trigger=evaluating,
        )
    if main:
        trainer.extend(ConsoleTable(log, iterations=options.iterations, print_line=print_line))
    if main and options.tensorboard:
        tensorboard = TensorBoard(log)
        trainer.extend(tensorboard)
        trainer.extend(
            ExampleDetections(tensorboard, model, examples),
            trigger=lambda t: evaluating(t) and signal_handler.signal is None,
        )
    # In the processes that do not write it is never called, but its state is in the snapshot.
    trainer.extend(snapshots, trigger=saving if main and options.snapshot_interval else IntervalTrigger(0))
    return snapshots


def options_to_store(options: TrainingOptions, communicator: Communicator) -> Mapping[str, Any]:
    """Return what a snapshot remembers of the options, as JSON has it: those that change the losses."""
    fields = dataclasses.asdict(options)
    kept = {
        name: fields[name] for name in ('seed', 'gamma', 'sampling', 'freeze_bn', 'frozen_stages', 'clip', 'schedule')
    }
    return json.loads(json.dumps({**kept, 'batch_size': options.batch_size * communicator.size}))
