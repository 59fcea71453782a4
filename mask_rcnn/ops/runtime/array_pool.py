"""Aligned memory for large NumPy arrays, which predictions reuse.

NumPy returns the memory of a large array to the system when the array is deleted, and the system fills the pages of a
new one with zeros at their first access.  Inside of :func:`reuse_arrays`, the memory of deleted arrays is kept for the
next ones, also for those of the next prediction: one of an 800 x 1333 image with a ResNet-50-FPN allocates 2.1 GB.

NumPy's arrays start at a multiple of 16 bytes.  A vector of 64 bytes that crosses a cache line takes two accesses.
"""

from __future__ import annotations

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import chainer
import numpy as np

from mask_rcnn.ops.runtime.host_memory import lease

#: Arrays of at least :data:`_MIN_BYTES` start at a multiple of this address: a cache line, a vector of AVX-512.
ALIGNMENT = 64

#: Smaller arrays are NumPy's: the C library keeps their memory itself.
_MIN_BYTES = 1 << 16

#: Maximum number of unused bytes in a pool, also between predictions.  With less, each prediction above takes more new
#: memory from the system: 0.4 GB with 128 MB, 0.1 GB with 256 MB.
_MAX_UNUSED_BYTES = 384 << 20

#: A block may be this many times as large as the array that is placed in it.
_MAX_EXCESS = 1.5

chainer.global_config.array_pool = None  # type: ignore[attr-defined]  # Chainer accepts any entry


class ArrayPool:
    """Blocks of memory for arrays.  Several threads may use a pool.

    Args:
        max_unused_bytes: Maximum number of bytes in the blocks that are not in use.
    """

    def __init__(self, max_unused_bytes: int = _MAX_UNUSED_BYTES):
        self._max_unused_bytes = max_unused_bytes
        self._unused: list[np.ndarray] = []  # vectors of uint8; the last one was used most recently
        self._returned: deque[np.ndarray] = deque()  # not yet in `_unused`
        self._lock = threading.Lock()

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an array as :func:`empty` does, whose memory is reused when it and all of its views are deleted."""
        shape, dtype = _as_tuple(shape), np.dtype(dtype)
        n_bytes = math.prod(shape) * dtype.itemsize
        if n_bytes < _MIN_BYTES:
            return np.empty(shape, dtype)
        block = self._take(n_bytes)
        return lease(_new_block(n_bytes) if block is None else block, shape, dtype, self._return)

    def close(self) -> None:
        """Delete the unused blocks, and those of the remaining arrays as soon as these are deleted."""
        with self._lock:
            self._max_unused_bytes = 0
            self._update_unused()

    def _take(self, n_bytes: int) -> np.ndarray | None:
        """Remove the smallest block in which an array fits and return it; ``None`` if there is none."""
        with self._lock:
            self._update_unused()
            sizes = [block.nbytes for block in self._unused]
            size = min((size for size in sizes if n_bytes <= size <= _MAX_EXCESS * n_bytes), default=None)
            return None if size is None else self._unused.pop(sizes.index(size))

    def _return(self, block: np.ndarray) -> None:
        """Add an unused block."""
        self._returned.append(block)
        # Waiting for the lock could take forever: the garbage collector may delete an array, and thus call this method,
        # while its thread holds the lock.
        if self._lock.acquire(blocking=False):
            try:
                self._update_unused()
            finally:
                self._lock.release()

    def _update_unused(self) -> None:
        """Add the returned blocks to the unused ones and delete those that have not been used for longest."""
        while self._returned:
            self._unused.append(self._returned.popleft())
        excess = sum(block.nbytes for block in self._unused) - self._max_unused_bytes
        while excess > 0:
            excess -= self._unused.pop(0).nbytes


#: The pool that the next context uses, if any: one for the process.  Single operations of a deque are atomic.
_kept: deque[ArrayPool] = deque(maxlen=1)


@contextlib.contextmanager
def reuse_arrays() -> Iterator[None]:
    """Return a context in which :func:`empty` reuses memory, on this thread; a nested context shares the pool.

    The process keeps the unused memory of one context for the next one, unless an exception ends the context.  Arrays
    that are still in use remain valid.
    """
    if chainer.config.array_pool is not None:
        yield
        return
    try:
        pool = _kept.pop()
    except IndexError:
        pool = ArrayPool()
    try:
        with chainer.using_config('array_pool', pool):
            yield
    except BaseException:
        pool.close()
        raise
    _kept.append(pool)


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return a contiguous array with undefined values, inside of :func:`reuse_arrays` in the memory of a deleted one.

    Arrays of at least 64 KB start at a multiple of :data:`ALIGNMENT` bytes; smaller ones are those of
    :func:`numpy.empty`.

    Args:
        shape: Shape of the array.
        dtype: A numeric or boolean type.
    """
    return allocator()(shape, dtype)


def allocator() -> Callable[[int | tuple[int, ...], Any], np.ndarray]:
    """Return the function :func:`empty` of the calling thread, for the threads that work for it."""
    pool = chainer.config.array_pool
    return _aligned_empty if pool is None else pool.empty


def _aligned_empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    shape, dtype = _as_tuple(shape), np.dtype(dtype)
    n_bytes = math.prod(shape) * dtype.itemsize
    return np.empty(shape, dtype) if n_bytes < _MIN_BYTES else _new_block(n_bytes).view(dtype).reshape(shape)


def _as_tuple(shape: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(int, shape)) if isinstance(shape, tuple) else (int(shape),)


def _new_block(n_bytes: int) -> np.ndarray:
    """Return aligned memory, a vector of uint8."""
    memory = np.empty(n_bytes + ALIGNMENT - 1, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + n_bytes]
