"""Signals that stop a run, and Chainer's stop trigger for them."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from chainer import training

from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.early_stopping import EarlyStopping

#: Names of the signals that stop a run: of the user, of a closed terminal, of schedulers before they kill a job, of a
#: power failure, and of time limits (``perl -e 'alarm 3600; exec @ARGV'``).
_STOP_SIGNAL_NAMES = (
    'SIGINT',
    'SIGTERM',
    'SIGHUP',
    'SIGQUIT',
    'SIGUSR1',
    'SIGUSR2',
    'SIGXCPU',
    'SIGPWR',
    'SIGBREAK',
    'SIGALRM',
)

#: The signals that stop a run.  The parent process handles them; worker processes block them.
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP_SIGNAL_NAMES if hasattr(signal, name))

#: File descriptor of the standard error.
_STANDARD_ERROR = 2

#: The number of signals that stops a run at any place, even while it writes a file.
_MAX_SIGNALS = 3


class SignalHandler:
    """Counts the stop signals.

    The first signal stops the run after its iteration.  ``KeyboardInterrupt`` is raised inside of
    :meth:`interruptible`, and by the third signal everywhere, for a run that waits for something.

    The first one is announced at once, because an iteration can take minutes.

    ``mpiexec`` forwards SIGUSR1 without ending its processes itself.

    Args:
        announces: Write a line to the standard error after the first signal.

    Attributes:
        signal (int or None): Number of the first signal, ``None`` before it.
    """

    def __init__(self, *, announces: bool = True) -> None:
        self.signal: int | None = None
        self._announces = announces
        self._count = 0
        self._limit = _MAX_SIGNALS

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the context.

        Only the main thread can do so; in other threads, signals keep their handlers.  A signal that the parent process
        made this one ignore stays ignored (``nohup``), except Ctrl-C, which shells ignore in background jobs.  A timer
        of the caller (``SIGALRM``) keeps its handler.
        """
        before = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
            before = {
                signum: handler
                for signum, handler in handlers.items()
                if handler is not None
                and (handler != signal.SIG_IGN or signum == signal.SIGINT)
                and (handler == signal.SIG_DFL or signum != getattr(signal, 'SIGALRM', None))
            }
        for signum in before:
            signal.signal(signum, self._handle)
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def interruptible(self, count: int = 1) -> Iterator[None]:
        """Raise ``KeyboardInterrupt`` on the ``count``-th signal within the context, or at its start.

        For long-running work that changes no state, or whose changes can be undone.
        """
        before, self._limit = self._limit, count
        try:
            if self._count >= count:
                raise KeyboardInterrupt
            yield
        finally:
            self._limit = before

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signum
        self._count += 1
        if self._count == 1 and self._announces:
            _announce(signum)
        if self._count >= self._limit:
            raise KeyboardInterrupt


def _announce(signum: int) -> None:
    line = (
        f'{signal.Signals(signum).name}: the run stops after this iteration; a second signal drops the iteration, a '
        'third one stops immediately\n'
    )
    # Not a print: the signal may have interrupted one, and Python's streams cannot be entered twice.
    with contextlib.suppress(OSError):
        os.write(_STANDARD_ERROR, line.encode('ascii'))


class StopTrigger:
    """Stop trigger: stops after a number of iterations, after a stop signal in any of the processes, or early.

    The result of the first call in an iteration holds for the whole iteration and for all processes, so that a stopping
    run always writes a last snapshot.

    Args:
        iterations: Iterations of the whole run.
        signal_handler: Records the stop signals.
        communicator: Makes all processes stop after the same iteration.
        early_stopping: Stops a run whose AP no longer grows, in all processes after the same iteration.

    Attributes:
        interrupted (bool): True if a signal stops the run.
        early_stopping (EarlyStopping or None): The argument.
    """

    def __init__(
        self,
        iterations: int,
        signal_handler: SignalHandler,
        communicator: Communicator,
        early_stopping: EarlyStopping | None = None,
    ):
        self.interrupted = False
        self.early_stopping = early_stopping
        self._iterations, self._signal_handler, self._communicator = iterations, signal_handler, communicator
        self._decided_iteration: int | None = None

    def __call__(self, trainer: training.Trainer) -> bool:
        iteration = trainer.updater.iteration
        if self._decided_iteration != iteration:
            self._decided_iteration = iteration
            self.interrupted = self._communicator.any(self._signal_handler.signal is not None)
        return self.interrupted or self.stops_early or iteration >= self._iterations

    @property
    def stops_early(self) -> bool:
        """True if early stopping ends the run."""
        return self.early_stopping is not None and self.early_stopping.is_exhausted
