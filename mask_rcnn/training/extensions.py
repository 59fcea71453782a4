"""Trainer extensions: learning rate, log, console table and evaluation."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import chainer
from chainer import training
from chainer.training import extensions

from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.io.wording import counted
from mask_rcnn.training import plots
from mask_rcnn.training.distributed import Communicator, ProcessError
from mask_rcnn.training.early_stopping import selection_score
from mask_rcnn.training.failures import describe_error
from mask_rcnn.training.optimizer import MomentumSGD, set_learning_rate
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.signals import SignalHandler
from mask_rcnn.training.snapshot import Snapshots

#: A Chainer trigger: called with the trainer, returns whether to run an extension.
Trigger = Callable[[training.Trainer], bool]


class IntervalTrigger:
    """Trigger: fires every ``n`` iterations (never if ``n`` is 0), and when ``also`` returns true.

    Unlike Chainer's interval trigger it has no state, so that a resumed run can use another interval.
    """

    def __init__(self, n: int, also: Trigger = lambda trainer: False):
        self._n, self._also = n, also

    def __call__(self, trainer: training.Trainer) -> bool:
        return (self._n > 0 and trainer.updater.iteration % self._n == 0) or self._also(trainer)


class Tolerant(training.Extension):
    """Trainer extension: calls an extension that the run does not depend on; its errors are warnings.

    Args:
        extension: The extension, with a name.
        warn: Called with one line if the extension fails, once for each text.
        signal_handler: The second stop signal interrupts the extension.
    """

    def __init__(self, extension: training.Extension, warn: Callable[[str], None], signal_handler: SignalHandler):
        self._extension, self._warn, self._signal_handler = extension, warn, signal_handler
        self.name, self.priority = extension.name, extension.priority
        self._warnings: set[str] = set()

    def initialize(self, trainer: training.Trainer) -> None:
        self._try(self._extension.initialize, trainer)

    def __call__(self, trainer: training.Trainer) -> None:
        with contextlib.suppress(KeyboardInterrupt), self._signal_handler.interruptible(2):
            self._try(self._extension, trainer)

    def finalize(self) -> None:
        self._try(self._extension.finalize)

    def serialize(self, serializer: chainer.Serializer | chainer.Deserializer) -> None:
        self._extension.serialize(serializer)

    def _try(self, function: Callable, *args: Any) -> None:
        try:
            function(*args)
        except Exception as error:
            line = f'{self.name}: {describe_error(error)}'
            if line not in self._warnings:
                self._warnings.add(line)
                self._warn(line)


class LearningRateScheduler(training.Extension):
    """Trainer extension: sets the learning rate of every iteration and reports it as ``lr``.

    Args:
        schedule: The learning rates.
        optimizer: The optimizer whose learning rate is set.
    """

    name = 'rate'  # type: ignore[assignment]  # Chainer declares None
    priority = 400  # before every extension that reads the observation

    def __init__(self, schedule: Schedule, optimizer: MomentumSGD):
        self._schedule, self._optimizer = schedule, optimizer

    def initialize(self, trainer: training.Trainer) -> None:
        set_learning_rate(self._optimizer, self._schedule.rate(trainer.updater.iteration))

    def __call__(self, trainer: training.Trainer) -> None:
        trainer.observation['lr'] = self._optimizer.lr
        set_learning_rate(self._optimizer, self._schedule.rate(trainer.updater.iteration))


class TrainingLog(extensions.LogReport):
    """Trainer extension: writes the means of all reported values to the JSON file ``log`` and plots them.

    It differs from Chainer's ``LogReport`` in that its file is always complete, and in that the run continues with a
    warning if the file cannot be written.

    Args:
        trigger: Fires when an entry is due.
        plot_trigger: Fires when ``loss.png`` and ``ap.png`` are due.
        write: Write files; the entries are kept in memory in any case.
        warn: Called with one line if a file cannot be written.
    """

    name = 'log'  # type: ignore[assignment]  # Chainer declares None
    priority = 100

    def __init__(self, *, trigger: Trigger, plot_trigger: Trigger, write: bool, warn: Callable[[str], None]):
        super().__init__(trigger=trigger)
        self._log_name = None  # disables the file of LogReport
        self._plot_trigger, self._write, self._warn = plot_trigger, write, warn

    def __call__(self, trainer: training.Trainer) -> None:
        n_before = len(self.log)
        super().__call__(trainer)
        if self._write and len(self.log) > n_before:
            self._try(self._write_json, Path(trainer.out) / 'log')
        if self._write and self._plot_trigger(trainer):
            self.plot(trainer)

    def plot(self, trainer: training.Trainer) -> None:
        """Plot the curves now."""
        if self._write and self.log:
            self._try(plots.plot_losses, Path(trainer.out) / 'loss.png', self.log)
            self._try(plots.plot_ap, Path(trainer.out) / 'ap.png', self.log)

    def _write_json(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)  # it may have been deleted during the run
        with open_for_writing(path) as file:
            file.write(json.dumps(self.log, indent=1).encode())

    def _try(self, write: Callable, *args: Any) -> None:
        try:
            write(*args)
        except Exception as error:
            self._warn(describe_error(error))


class ConsoleTable(training.Extension):
    """Trainer extension: prints one line for every entry of the log.

    Args:
        log: The log.
        iterations: Total iterations of the run, used to estimate the time left.
        print_line: Called with each line.
        evaluation: The evaluation, whose time is not part of ``s/iter``, but of the time left.
    """

    name = 'table'  # type: ignore[assignment]  # Chainer declares None
    priority = 50  # after the log

    #: Heading, width, key in the log and format.
    _COLUMNS = (
        ('iteration', 9, 'iteration', 'd'),
        ('epoch', 6, 'epoch', 'd'),
        ('rate', 9, 'lr', '.2e'),
        ('loss', 7, 'main/loss', '.3f'),
        ('rpn cls', 7, 'main/rpn_cls_loss', '.3f'),
        ('rpn box', 7, 'main/rpn_loc_loss', '.3f'),
        ('class', 7, 'main/roi_cls_loss', '.3f'),
        ('box', 7, 'main/roi_loc_loss', '.3f'),
        ('mask', 7, 'main/roi_mask_loss', '.3f'),
        ('keypts', 7, 'main/roi_keypoint_loss', '.3f'),
        ('box AP', 6, 'validation/bbox/AP', '.3f'),
        ('mask AP', 7, 'validation/segm/AP', '.3f'),
        ('keypt AP', 8, 'validation/keypoints/AP', '.3f'),
    )
    #: Columns of optional heads -> the loss that is logged only if the network has the head.
    _OPTIONAL: ClassVar = {
        'main/roi_mask_loss': 'main/roi_mask_loss',
        'validation/segm/AP': 'main/roi_mask_loss',
        'main/roi_keypoint_loss': 'main/roi_keypoint_loss',
        'validation/keypoints/AP': 'main/roi_keypoint_loss',
    }
    _LINES_PER_HEADING = 30

    def __init__(
        self,
        log: TrainingLog,
        *,
        iterations: int,
        print_line: Callable[[str], None],
        evaluation: Evaluation | None = None,
    ):
        self._log, self._iterations, self._print_line, self._evaluation = log, iterations, print_line, evaluation
        self._n_printed = self._n_lines = 0
        self._first_iteration, self._start_time = 0, time.monotonic()

    def initialize(self, trainer: training.Trainer) -> None:
        self._n_printed = len(self._log.log)  # a resumed run starts with the entries of the interrupted one
        self._first_iteration, self._start_time = trainer.updater.iteration, time.monotonic()

    def __call__(self, trainer: training.Trainer) -> None:
        for entry in self._log.log[self._n_printed :]:
            if self._n_lines % self._LINES_PER_HEADING == 0:
                heading = '  '.join(f'{title:>{width}}' for title, width, _, _ in self._columns(entry))
                self._print_line(f'{heading}  s/iter  time left')
            self._print_line(self._line(entry))
            self._n_lines += 1
        self._n_printed = len(self._log.log)

    def _columns(self, entry: Mapping[str, float]) -> list[tuple[str, int, str, str]]:
        return [column for column in self._COLUMNS if self._OPTIONAL.get(column[2], 'iteration') in entry]

    def _line(self, entry: Mapping[str, float]) -> str:
        cells = [
            f'{entry[key]:{width}{format_spec if entry[key] < 1e4 or format_spec == "d" else ".1e"}}'
            if key in entry
            else ' ' * width
            for _, width, key, format_spec in self._columns(entry)
        ]
        iteration = entry['iteration']
        n_done = max(iteration - self._first_iteration, 1)
        seconds = time.monotonic() - self._start_time
        evaluating = 0.0 if self._evaluation is None else self._evaluation.seconds
        time_left = seconds / n_done * max(self._iterations - iteration, 0)
        return '  '.join(cells) + f'  {(seconds - evaluating) / n_done:6.2f}  {format_duration(time_left):>9}'


def format_duration(seconds: float) -> str:
    """Return a duration as text: ``0:05``, ``2:10:00`` or ``3 d 4 h``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f'{hours // 24} d {hours % 24} h'
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class Metrics(Protocol):
    """The interface of :class:`mask_rcnn.evaluation.Metrics` that :class:`Evaluation` requires."""

    def summary(self) -> dict[str, float]:
        """Return the values for the log, by name."""

    def table(self) -> str:
        """Return all values as text."""


class Evaluation(training.Extension):
    """Trainer extension: evaluates the model and reports ``validation/bbox/AP`` and the other metrics.

    Args:
        evaluate: Called with the file for the results, returns :class:`~mask_rcnn.evaluation.Metrics`.  If it raises,
            the run continues with a warning; with several processes, only if it raises ``ProcessError`` in all of them
            (:func:`~mask_rcnn.training.distributed.run_together`).
        snapshots: Saves the best model, by the AP of keypoints, masks or boxes: the first of these that the model
            predicts.
        signal_handler: A stop signal ends an evaluation in progress.
        communicator: Only the main process writes and reports.
        print_line: Called with the table of the metrics.
        warn: Called with one line if the evaluation fails.

    Attributes:
        seconds (float): The time of all evaluations in this process.
    """

    name = 'evaluation'  # type: ignore[assignment]  # Chainer declares None
    priority = 300  # before the log

    def __init__(
        self,
        evaluate: Callable[[Path], Metrics],
        snapshots: Snapshots,
        *,
        signal_handler: SignalHandler,
        communicator: Communicator,
        print_line: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        self._evaluate, self._snapshots, self._print_line, self._warn = evaluate, snapshots, print_line, warn
        self._signal_handler, self._communicator = signal_handler, communicator
        self.seconds = 0.0

    def __call__(self, trainer: training.Trainer) -> None:
        start = time.monotonic()
        try:
            self._evaluate_and_report(trainer)
        finally:
            self.seconds += time.monotonic() - start

    def _evaluate_and_report(self, trainer: training.Trainer) -> None:
        iteration = trainer.updater.iteration
        results = Path(trainer.out) / f'results_iter_{iteration}.json'
        try:
            metrics = self._try_evaluate(results)
            if metrics is None:
                return
            summary, table = metrics.summary(), metrics.table()
        except Exception as error:
            if self._communicator.size > 1 and not isinstance(error, ProcessError):
                raise  # the other processes do not know of it
            if self._communicator.is_main:
                self._warn(
                    f'the evaluation after {counted(iteration, "iteration")} has failed: {describe_error(error)}'
                )
            return
        trainer.observation.update((f'validation/{name}', value) for name, value in summary.items())
        if self._communicator.is_main:
            self._print_line(f'evaluation after {counted(iteration, "iteration")}: {results.stem}.*.json')
            self._print_line(table)
            score = selection_score(summary)
            self._snapshots.save_if_best(trainer, -1 if score is None else score)

    def _try_evaluate(self, results: Path) -> Metrics | None:
        """Return the metrics, or ``None`` after an interrupt."""
        if self._communicator.size > 1:  # if one process stopped alone, the others would wait forever
            return self._evaluate(results)
        try:
            with self._signal_handler.interruptible():
                results.parent.mkdir(parents=True, exist_ok=True)  # it may have been deleted during the run
                return self._evaluate(results)
        except KeyboardInterrupt:
            return None
