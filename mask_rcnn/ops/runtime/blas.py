"""Matrix products that share the CPUs with our own threads.

NumPy's OpenBLAS has threads of its own, which wait for the next product by spinning.  A loop that changes
between its threads and ours loses more than half of the machine (measured: 3x3 convolutions at 60 of 210
GFLOP/s with tiles of 4 MB).  So our threads make their products themselves: while they run, a product takes
one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np

from mask_rcnn.ops.runtime.parallel import parallel_for

#: What the functions that set and tell the number of threads may be called, by the way OpenBLAS was built.
_NAMES = tuple(
    (f'{prefix}openblas_set_num_threads{suffix}', f'{prefix}openblas_get_num_threads{suffix}')
    for prefix in ('scipy_', '')
    for suffix in ('64_', '', '_64')
)

_lock = threading.Lock()
_users = 0
_threads_before = 1


def parallel_matmul(function: Callable[[int, int], None], n: int, *, min_per_thread: int = 1) -> None:
    """:func:`~mask_rcnn.ops.runtime.parallel.parallel_for` for a function that calls ``np.matmul``.

    With a BLAS whose threads cannot be set (any but OpenBLAS) the ranges run one after the other, and each
    product on all of the BLAS's threads.
    """
    if _find_functions() is None:
        if n > 0:
            function(0, n)
        return
    with _single_threaded_blas():
        parallel_for(function, n, min_per_thread=min_per_thread)


def sum_in_order(parts: dict[int, np.ndarray], shape, dtype) -> np.ndarray:
    """Return the sum of what ranges have added up, by the start of the range: the same bits in every run."""
    total = np.zeros(shape, dtype)
    for start in sorted(parts):
        total += parts[start].reshape(shape)
    return total


@contextlib.contextmanager
def _single_threaded_blas() -> Iterator[None]:
    """Let products take one thread until the last of those who want it has left."""
    global _users, _threads_before
    set_threads, get_threads = _find_functions()
    with _lock:
        if _users == 0:
            _threads_before = get_threads()
            set_threads(1)
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                set_threads(_threads_before)


def _find_functions():
    """Return OpenBLAS's functions that set and tell its threads, or ``None``; looked up once."""
    if not _found:
        _found.append(_look_up(ctypes.CDLL(np._core._multiarray_umath.__file__)))
    return _found[0]


_found: list = []


def _look_up(library):
    """Look for OpenBLAS's functions in a library and in those that it was linked with."""
    for set_name, get_name in _NAMES:
        if hasattr(library, set_name) and hasattr(library, get_name):
            set_threads, get_threads = getattr(library, set_name), getattr(library, get_name)
            set_threads.argtypes, set_threads.restype = [ctypes.c_int], None
            get_threads.argtypes, get_threads.restype = [], ctypes.c_int
            return set_threads, get_threads
    return None


def _forget_users() -> None:
    """A forked child has none of the threads that use BLAS here, and maybe a lock that they held."""
    global _lock, _users
    _lock, _users = threading.Lock(), 0


if hasattr(os, 'register_at_fork'):
    os.register_at_fork(after_in_child=_forget_users)
