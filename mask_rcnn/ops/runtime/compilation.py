"""A callback for the compilation of Numba kernels that are not in its cache."""

from __future__ import annotations

from collections.abc import Callable

from numba.core import event

#: Numba triggers this event for every pass of its compiler, and not when it loads a kernel from the cache.
_EVENT = 'numba:run_pass'


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
