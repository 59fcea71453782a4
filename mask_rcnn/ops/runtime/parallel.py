"""Compiled loops on the CPU and the threads that share them.

Numba compiles the loops and releases the interpreter's lock; plain Python threads run them.  Numba's own
threading layer stays untouched, because a process that has started it cannot safely be forked, and data
loaders fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

import numba

#: Ranges a thread gets to work on: more than one, so that a slow range does not hold up the others.
_RANGES_PER_THREAD = 4

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_worker = threading.local()


def jit(function: Callable) -> Callable:
    """Compile a loop with Numba: no lock, no Python errors for division by zero, kept on disk.

    Floating-point operations keep their order and their precision (no ``fastmath``), so that a result does
    not depend on how the compiler vectorised a loop.  Where no folder can hold the compiled code (a
    read-only installation without a home), it is compiled anew in every process.
    """
    options = dict(nogil=True, error_model='numpy')
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:
        return numba.njit(**options)(function)


def cpu_count() -> int:
    """Return the number of CPUs that this process may use."""
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parallel_for(function: Callable[[int, int], None], n: int, *, min_per_thread: int = 1) -> None:
    """Call ``function(start, stop)`` for ranges that together cover ``range(n)``, on all CPUs at once.

    Args:
        function: Must release the interpreter's lock to gain anything, and write nothing that another range
            writes.
        n: Length of the whole range.
        min_per_thread: Indices that are worth a thread; waking one takes some 30 microseconds.

    Called from inside ``function`` it runs its own function there, as one range: waiting for a thread while
    occupying one could wait for ever.  An exception of ``function`` is passed on.
    """
    threads = min(n // max(min_per_thread, 1), cpu_count())
    if threads <= 1 or getattr(_worker, 'active', False):
        if n > 0:
            function(0, n)
        return
    ranges = min(n, threads * _RANGES_PER_THREAD)
    bounds = [(n * i // ranges, n * (i + 1) // ranges) for i in range(ranges)]
    left = iter(bounds)  # a list's iterator: no other thread interrupts it while it gives the next range

    def work():
        for start, stop in left:
            function(start, stop)

    others = [_get_pool().submit(work) for _ in range(threads - 1)]
    _worker.active = True
    try:
        work()
    finally:
        _worker.active = False
        wait(others)
    for other in others:
        other.result()


def _get_pool() -> ThreadPoolExecutor:
    global _pool
    with _lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(cpu_count(), 'mask_rcnn', initializer=_mark_worker)
        return _pool


def _mark_worker() -> None:
    _worker.active = True


def _forget_pool() -> None:
    """A forked child has the pool's object but none of its threads: let it make its own."""
    global _pool, _lock, _worker
    _pool, _lock, _worker = None, threading.Lock(), threading.local()


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_pool)
