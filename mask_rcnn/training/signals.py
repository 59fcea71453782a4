"""Signals that stop a run, and Chainer's stop trigger for them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

from chainer import training

from mask_rcnn.training.distributed import Communicator

#: The signals that stop a run.  The parent process handles them; worker processes block them.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, 'SIGUSR1') else []))


class SignalHandler:
    """Records the first stop signal, so that the run stops after its iteration, and raises on the second.

    The signals are SIGTERM, Ctrl-C and SIGUSR1.  ``mpiexec`` forwards SIGUSR1 without ending its processes itself.

    Attributes:
        signal (int or None): Number of the first signal, ``None`` before it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._may_raise = False

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals within the context; must be called in the main thread."""
        before = {signum: signal.signal(signum, self._handle) for signum in STOP_SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise ``KeyboardInterrupt`` on the first signal within the context.

        For long-running work that changes no state.
        """
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        is_second = self.signal is not None
        self.signal = self.signal or signum
        if is_second or self._may_raise:
            raise KeyboardInterrupt


class StopTrigger:
    """Stop trigger: stops after a number of iterations, or after a stop signal in any of the processes.

    The result of the first call in an iteration holds for the whole iteration and for all processes, so that a stopping
    run always writes a last snapshot.

    Args:
        iterations: Iterations of the whole run.
        signal_handler: Records the stop signals.
        communicator: Makes all processes stop after the same iteration.

    Attributes:
        interrupted (bool): True if a signal stops the run.
    """

    def __init__(self, iterations: int, signal_handler: SignalHandler, communicator: Communicator):
        self.interrupted = False
        self._iterations, self._signal_handler, self._communicator = iterations, signal_handler, communicator
        self._decided_iteration: int | None = None

    def __call__(self, trainer: training.Trainer) -> bool:
        iteration = trainer.updater.iteration
        if self._decided_iteration != iteration:
            self._decided_iteration = iteration
            self.interrupted = self._communicator.any(self._signal_handler.signal is not None)
        return self.interrupted or iteration >= self._iterations
