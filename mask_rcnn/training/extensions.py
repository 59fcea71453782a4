"""What happens between two updates: the rate, the log, the table, evaluation, and how a run ends early."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from chainer import training
from chainer.training import extensions

from mask_rcnn.io.atomic_file import open_for_writing
from mask_rcnn.training import plots
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.iterator import STOP_SIGNALS
from mask_rcnn.training.optimizer import set_rate
from mask_rcnn.training.schedule import Schedule
from mask_rcnn.training.snapshot import Snapshots


class IntervalTrigger:
    """Trigger: every ``n`` iterations (never if ``n`` is 0), and when ``also`` says so.

    Unlike Chainer's interval trigger it has no state, so that a resumed run can take another interval.
    """

    def __init__(self, n: int, also: Callable[[training.Trainer], bool] = lambda trainer: False):
        self._n, self._also = n, also

    def __call__(self, trainer) -> bool:
        return (self._n > 0 and trainer.updater.iteration % self._n == 0) or self._also(trainer)


class LearningRateScheduler(training.Extension):
    """Trainer extension: give every iteration its learning rate and report it as ``lr``.

    Args:
        schedule: The rates.
        optimizer (chainer.optimizers.MomentumSGD): Whose rate is set.
    """

    name = 'rate'
    priority = 400  # before everything that reads the observation

    def __init__(self, schedule: Schedule, optimizer):
        self._schedule, self._optimizer = schedule, optimizer

    def initialize(self, trainer):
        set_rate(self._optimizer, self._schedule.rate(trainer.updater.iteration))

    def __call__(self, trainer):
        trainer.observation['lr'] = self._optimizer.lr
        set_rate(self._optimizer, self._schedule.rate(trainer.updater.iteration))


class TrainingLog(extensions.LogReport):
    """Trainer extension: the means of everything reported, as JSON in the file ``log``, and as curves.

    It is Chainer's ``LogReport``, but its file is always complete, and where it cannot be written a line
    says so and the run goes on.

    Args:
        trigger: When to write an entry.
        plot_trigger: When to draw ``loss.png`` and ``ap.png``.
        write: Whether there are files at all; the entries are kept in any case.
        warn: Takes a line about a file that could not be written.
    """

    name = 'log'
    priority = 100

    def __init__(self, *, trigger, plot_trigger, write: bool, warn: Callable[[str], None]):
        super().__init__(trigger=trigger)
        self._log_name = None  # what LogReport would write to
        self._plot_trigger, self._write, self._warn = plot_trigger, write, warn

    def __call__(self, trainer):
        n_before = len(self.log)
        super().__call__(trainer)
        if self._write and len(self.log) > n_before:
            self._try(self._write_json, Path(trainer.out) / 'log')
        if self._write and self._plot_trigger(trainer):
            self.plot(trainer)

    def plot(self, trainer) -> None:
        """Draw the curves now."""
        if self._write and self.log:
            self._try(plots.plot_losses, Path(trainer.out) / 'loss.png', self.log)
            self._try(plots.plot_ap, Path(trainer.out) / 'ap.png', self.log)

    def _write_json(self, path: Path) -> None:
        with open_for_writing(path) as file:
            file.write(json.dumps(self.log, indent=1).encode())

    def _try(self, write: Callable, *args) -> None:
        try:
            write(*args)
        except OSError as error:
            self._warn(str(error))


class ConsoleTable(training.Extension):
    """Trainer extension: a line in the terminal for every entry of the log.

    Args:
        log: The log.
        iterations: Iterations of the whole run, for the time left.
        print_line: Takes a line.
    """

    name = 'table'
    priority = 50  # after the log

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
    #: Columns of what not every network finds: they are shown if its loss is in the log.
    _SOMETIMES = {
        'main/roi_mask_loss': 'main/roi_mask_loss',
        'validation/segm/AP': 'main/roi_mask_loss',
        'main/roi_keypoint_loss': 'main/roi_keypoint_loss',
        'validation/keypoints/AP': 'main/roi_keypoint_loss',
    }
    _REPEAT_HEADING = 30

    def __init__(self, log: TrainingLog, *, iterations: int, print_line: Callable[[str], None]):
        self._log, self._iterations, self._print_line = log, iterations, print_line
        self._n_shown = self._n_line = 0
        self._since = None

    def initialize(self, trainer):
        self._n_shown = len(self._log.log)  # a resumed run starts with entries of its past
        self._since = trainer.updater.iteration, time.monotonic()

    def __call__(self, trainer):
        for entry in self._log.log[self._n_shown :]:
            if self._n_line % self._REPEAT_HEADING == 0:
                heading = '  '.join(f'{title:>{width}}' for title, width, _, _ in self._columns(entry))
                self._print_line(f'{heading}  s/iter  time left')
            self._print_line(self._line(entry))
            self._n_line += 1
        self._n_shown = len(self._log.log)

    def _columns(self, entry) -> list[tuple]:
        return [column for column in self._COLUMNS if self._SOMETIMES.get(column[2], 'iteration') in entry]

    def _line(self, entry) -> str:
        cells = [
            f'{entry[key]:{width}{format_spec if entry[key] < 1e4 or format_spec == "d" else ".1e"}}'
            if key in entry
            else ' ' * width
            for _, width, key, format_spec in self._columns(entry)
        ]
        start, started_at = self._since
        seconds = (time.monotonic() - started_at) / max(entry['iteration'] - start, 1)
        left = seconds * max(self._iterations - entry['iteration'], 0)
        return '  '.join(cells) + f'  {seconds:6.2f}  {duration(left):>9}'


def duration(seconds: float) -> str:
    """Return a duration for people: ``0:05``, ``2:10:00`` or ``3 d 4 h``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f'{hours // 24} d {hours % 24} h'
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'


class SignalHandler:
    """Signals to stop, noted; the run stops when the iteration is finished.  A second one stops at once.

    SIGTERM, Ctrl-C, and SIGUSR1, which ``mpiexec`` passes on without ending its processes on its own.

    Attributes:
        signal (int or None): Number of the signal that came.
    """

    _SIGNALS = STOP_SIGNALS

    def __init__(self):
        self.signal: int | None = None
        self._may_raise = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals in the body; must be called in the main thread."""
        before = {number: signal.signal(number, self._handle) for number in self._SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """In the body, which may take long and changes no state, a signal raises ``KeyboardInterrupt``."""
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def _handle(self, number: int, frame) -> None:
        again = self.signal is not None
        self.signal = self.signal or number
        if again or self._may_raise:
            raise KeyboardInterrupt


class StopTrigger:
    """Stop trigger: after a number of iterations, or when one of the processes was interrupted.

    Who asks first in an iteration has it decided, the same for all: a run that stops has a last snapshot.

    Args:
        iterations: Iterations of the whole run.
        signal_handler: Signals to heed.
        communicator: Makes all processes stop after the same iteration.

    Attributes:
        interrupted (bool): Whether the run was told to stop.
    """

    def __init__(self, iterations: int, signal_handler: SignalHandler, communicator: Communicator):
        self.interrupted = False
        self._iterations, self._signal_handler, self._communicator = iterations, signal_handler, communicator
        self._decided_in = None

    def __call__(self, trainer) -> bool:
        iteration = trainer.updater.iteration
        if self._decided_in != iteration:
            self._decided_in = iteration
            self.interrupted = self._communicator.any(self._signal_handler.signal is not None)
        return self.interrupted or iteration >= self._iterations


#: What a model is judged by: the first of these that is measured.
_SCORES = ('keypoints/AP', 'segm/AP', 'bbox/AP')


class Evaluation(training.Extension):
    """Trainer extension: evaluate the model and report ``validation/bbox/AP`` and so on.

    Args:
        evaluate: Takes the file for the results and returns :class:`~mask_rcnn.evaluation.Metrics`.
        snapshots: Told the AP of the keypoints, masks or boxes, the first of these that the model finds, to
            keep the best model.
        signal_handler: An evaluation under way is given up when a signal comes.
        communicator: Only the first process writes and reports.
        print_line: Takes the table of the metrics.
        warn: Takes a line about results that could not be written.
    """

    name = 'evaluation'
    priority = 300  # before the log

    def __init__(
        self,
        evaluate: Callable,
        snapshots: Snapshots,
        *,
        signal_handler: SignalHandler,
        communicator: Communicator,
        print_line: Callable[[str], None],
        warn: Callable[[str], None],
    ):
        self._evaluate, self._snapshots, self._print_line, self._warn = evaluate, snapshots, print_line, warn
        self._signal_handler, self._communicator = signal_handler, communicator

    def __call__(self, trainer):
        results = Path(trainer.out) / f'results_iter_{trainer.updater.iteration}.json'
        metrics = self._measure(results)
        if metrics is None:
            return
        summary = metrics.summary()
        trainer.observation.update((f'validation/{name}', value) for name, value in summary.items())
        if self._communicator.is_main:
            self._print_line(f'evaluation after {trainer.updater.iteration} iterations: {results.stem}.*.json')
            self._print_line(metrics.table())
            scores = [summary[name] for name in _SCORES if name in summary]
            self._snapshots.save_if_best(trainer, scores[0] if scores else -1)

    def _measure(self, results: Path):
        """Return the metrics, or ``None`` if there are none."""
        if self._communicator.size > 1:  # one that gave up alone would leave the others waiting
            return self._evaluate(results)
        try:
            with self._signal_handler.interruptible():
                return self._evaluate(results)
        except KeyboardInterrupt:
            return None
        except OSError as error:
            self._warn(f'no evaluation: {error}')
            return None
