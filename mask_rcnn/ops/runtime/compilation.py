"""Compilation of Numba kernels: a callback for the first one that is not in the cache, and delayed signals."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable
from typing import Any

from numba.core import event

#: Numba triggers this event for every pass of its compiler, and not when it loads a kernel from the cache.
_EVENT = 'numba:run_pass'

#: Numba triggers this event around everything that it compiles, loads from the cache or stores there.
_LOCK_EVENT = 'numba:compiler_lock'


class _FirstPass(event.Listener):
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback

    def on_start(self, event_: event.Event) -> None:
        event.unregister(_EVENT, self)
        self._callback()

    def on_end(self, event_: event.Event) -> None:
        pass


def on_first_compilation(callback: Callable[[], None]) -> None:
    """Call a function once, at the first compilation of a kernel in this process.

    Args:
        callback: Called without arguments, in the thread that compiles.  It is not called if the cache holds all
            kernels that the process uses.
    """
    event.register(_EVENT, _FirstPass(callback))


class _SignalDelay(event.Listener):
    """Delays the signals that the main thread handles in Python until it has finished a compilation."""

    def __init__(self) -> None:
        self._depth = 0
        self._handlers: dict[int, Callable] = {}
        self._pending: list[tuple[int, Any]] = []

    def on_start(self, event_: event.Event) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        if self._depth == 0:  # a signal may raise here as well, so the depth changes last
            for number in signal.valid_signals():
                handler = signal.getsignal(number)
                if callable(handler) and handler != self._handle:
                    self._handlers[number] = handler
                    signal.signal(number, self._handle)
        self._depth += 1

    def on_end(self, event_: event.Event) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth == 0:
            pending, self._pending = self._pending, []
            for number, handler in self._handlers.items():
                if signal.getsignal(number) == self._handle:
                    signal.signal(number, handler)
            for number, frame in pending:
                self._handlers[number](number, frame)

    def _handle(self, number: int, frame: Any) -> None:
        if self._depth:
            self._pending.append((number, frame))
        else:
            self._handlers[number](number, frame)


@functools.cache
def delay_signals_during_compilation() -> None:
    """Delay Ctrl-C and other signals with a handler in Python while the main thread compiles a kernel.

    LLVM calls back into Python, and Python prints and drops an exception in such a callback.  A ``KeyboardInterrupt``
    is therefore raised after the kernel, which takes a few seconds at most.
    """
    event.register(_LOCK_EVENT, _SignalDelay())
