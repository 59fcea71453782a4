"""Threads on the CPU: compiled loops and matrix multiplications that share the CPUs.

Numba compiles the loops and releases the global interpreter lock; plain Python threads run them.  Numba's built-in
threading layer stays unused, because a process that has started it cannot be forked safely, and data loaders fork.

NumPy's OpenBLAS has a separate thread pool, whose threads spin while they wait for the next matmul.  A loop that
alternates between those threads and the threads of this module loses more than half of the throughput (3x3 convolutions
with tiles of 4 MB: 60 instead of 210 GFLOP/s).  Therefore the threads of this module call ``np.matmul`` themselves, and
OpenBLAS is limited to one thread while they run.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import numba
import numpy as np

from mask_rcnn.ops.runtime import kernel_cache
from mask_rcnn.ops.runtime.compilation import delay_signals_during_compilation
from mask_rcnn.ops.runtime.thread_pool import DaemonThreadPool

#: The smallest ranges per thread, so that all threads end at nearly the same time.
_SMALLEST_RANGES = 16

#: Names of OpenBLAS's setter and getter of the thread count in its various builds.
_OPENBLAS_SYMBOLS = tuple(
    (f'{prefix}openblas_set_num_threads{suffix}', f'{prefix}openblas_get_num_threads{suffix}')
    for prefix in ('scipy_', '')
    for suffix in ('64_', '', '_64')
)

_lock = threading.Lock()
_pool: DaemonThreadPool | None = None
_worker = threading.local()
_max_threads: int | None = None

_openblas_found: list[tuple[Callable, Callable] | None] = []
_openblas_lock = threading.Lock()
_openblas_users = 0
_openblas_threads_before = 1


def jit(function: Callable) -> Callable:
    """Compile a loop with Numba: without the interpreter lock, cached on disk, with NumPy's division by zero.

    Floating-point operations keep their order and precision (no ``fastmath``), so that a result does not depend on
    the vectorisation of a loop.  A cache that cannot be used costs time, but raises nothing: see
    :mod:`mask_rcnn.ops.runtime.kernel_cache`.
    """
    kernel: Any = numba.njit(nogil=True, error_model='numpy')(function)
    if hasattr(kernel, 'enable_caching'):  # not with NUMBA_DISABLE_JIT
        kernel._cache = kernel_cache.make_cache(function)
    return kernel


def available_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs on which the operating system lets this process run."""
    if hasattr(os, 'sched_getaffinity'):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_count() -> int:
    """Return the number of CPUs that this process may use; see :func:`limit_threads`."""
    n_cpus = len(available_cpus())
    return n_cpus if _max_threads is None else min(n_cpus, _max_threads)


def limit_threads(n: int) -> None:
    """Limit this process to ``n`` threads, because other processes use the other CPUs.

    OpenBLAS gets at most this number as well.
    """
    global _max_threads
    _max_threads = n
    openblas = _find_openblas()
    if openblas is not None:
        set_threads, get_threads = openblas
        set_threads(min(get_threads(), n))


def blas_threads() -> int | None:
    """Return the number of OpenBLAS's threads; ``None`` for another BLAS, whose number is unknown."""
    openblas = _find_openblas()
    return None if openblas is None else openblas[1]()


def parallel_for(
    function: Callable[[int, int], object], n: int, *, min_per_thread: int = 1, uses_blas: bool = False
) -> None:
    """Call ``function(start, stop)`` on all CPUs for ranges that together cover ``range(n)``.

    A call from inside ``function`` runs as one range on the calling thread: if it waited for a thread while it
    occupies one, it could wait forever.  The caller gets the exceptions of ``function``.

    Args:
        function: Writes nothing that another range writes.  It must release the interpreter lock to gain speed.
        n: Length of the whole range.
        min_per_thread: The number of indices that justify a thread; waking one takes about 30 microseconds.
        uses_blas: Whether ``function`` calls ``np.matmul``.  OpenBLAS is limited to one thread meanwhile.  The thread
            count of other BLAS libraries cannot be set; they get the whole range in one call and use their threads.
    """
    if n <= 0:
        return
    threads = min(n // max(min_per_thread, 1), cpu_count())
    openblas = _find_openblas() if uses_blas else None
    if uses_blas and openblas is None:
        function(0, n)
        return
    with contextlib.nullcontext() if openblas is None else _single_threaded(*openblas):
        if threads <= 1 or getattr(_worker, 'active', False):
            function(0, n)
            return
        pool = _get_pool()
        threads = min(threads, 1 + pool.n_threads)
        # The threads share the iterator of a list: a thread switch cannot interrupt ``next``.
        ranges = iter(_divide(n, threads))

        # A thread may keep run_ranges some time after its end, but must not keep the arrays of the function.
        functions = [function]

        def run_ranges():
            for start, stop in ranges:
                functions[0](start, stop)

        futures = [pool.submit(run_ranges) for _ in range(threads - 1)]
        _worker.active = True
        try:
            run_ranges()
        finally:
            _worker.active = False
            wait(futures)
            functions.clear()
        for future in futures:
            future.result()


def _divide(n: int, threads: int) -> list[tuple[int, int]]:
    """Return ranges that cover ``range(n)``: large ones first, and small ones for the threads that end early.

    Source: Polychronopoulos and Kuck 1987, "Guided Self-Scheduling".
    """
    ranges, start = [], 0
    while start < n:
        size = max((n - start) // (2 * threads), n // (_SMALLEST_RANGES * threads), 1)
        ranges.append((start, min(start + size, n)))
        start += size
    return ranges


def sum_in_order(partial_sums: dict[int, np.ndarray], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Add the partial sums of the ranges in the order of the ranges, which gives the same bits in every run.

    Args:
        partial_sums: Start of a range -> its partial sum, with as many elements as ``shape``.
        shape: Shape of the result.
        dtype: Type of the result.
    """
    total = np.zeros(shape, dtype)
    for start in sorted(partial_sums):
        total += partial_sums[start].reshape(shape)
    return total


def _get_pool() -> DaemonThreadPool:
    global _pool
    with _lock:
        if _pool is None:
            _pool = DaemonThreadPool(cpu_count(), 'mask_rcnn', _mark_worker)
        return _pool


def _mark_worker() -> None:
    _worker.active = True
    np.seterr(over='ignore', invalid='ignore')  # in this thread; the callers' contexts do not reach it


@contextlib.contextmanager
def _single_threaded(set_threads: Callable, get_threads: Callable) -> Iterator[None]:
    """Limit OpenBLAS to one thread until the last user leaves this context."""
    global _openblas_users, _openblas_threads_before
    with _openblas_lock:
        if _openblas_users == 0:
            _openblas_threads_before = get_threads()
            set_threads(1)
        _openblas_users += 1
    try:
        yield
    finally:
        with _openblas_lock:
            _openblas_users -= 1
            if _openblas_users == 0:
                set_threads(_openblas_threads_before)


def _find_openblas() -> tuple[Callable, Callable] | None:
    """Return the setter and the getter of OpenBLAS's thread count; ``None`` for another BLAS."""
    if not _openblas_found:
        found = (_find_symbols(ctypes.CDLL(path)) for path in _blas_libraries())
        _openblas_found.append(next(filter(None, found), None))
    return _openblas_found[0]


def _blas_libraries() -> Iterator[str]:
    """Yield the libraries that may contain the symbols of NumPy's BLAS; all of them are loaded.

    Most systems search a symbol also in the libraries with which the first one is linked.  Windows does not: there, the
    second one is that of NumPy's wheel.
    """
    module = importlib.import_module('numpy._core._multiarray_umath')  # linked with the BLAS
    assert module.__file__ is not None
    yield module.__file__
    yield from map(str, sorted(Path(np.__file__).parents[1].glob('numpy.libs/*openblas*')))


def _find_symbols(library: Any) -> tuple[Callable, Callable] | None:
    """Find OpenBLAS's setter and getter in a library or in the libraries that it is linked with."""
    for set_name, get_name in _OPENBLAS_SYMBOLS:
        if hasattr(library, set_name) and hasattr(library, get_name):
            set_threads, get_threads = getattr(library, set_name), getattr(library, get_name)
            set_threads.argtypes, set_threads.restype = [ctypes.c_int], None
            get_threads.argtypes, get_threads.restype = [], ctypes.c_int
            return set_threads, get_threads
    return None


def _reset_after_fork() -> None:
    """Forget the threads of the parent process, which a forked child does not have, and locks that they may hold."""
    global _pool, _lock, _worker, _openblas_lock, _openblas_users
    _pool, _lock, _worker = None, threading.Lock(), threading.local()
    if _openblas_users and _openblas_found[0] is not None:  # a thread of the parent would have restored it
        _openblas_found[0][0](_openblas_threads_before)
    _openblas_lock, _openblas_users = threading.Lock(), 0


delay_signals_during_compilation()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_reset_after_fork)
