"""Reuse of the memory of large arrays on the host.

The system provides the pages of a new large array at their first access and takes them back when the array is deleted.
For the masks of 100 detections, 107 MB, this takes longer than the computation of the masks, and the page faults of
several threads wait for each other.  Therefore the memory of a deleted array is kept for the next array: with pages of
4 KB, masks with boxes of 40 % of the image take 23 instead of 63 ms of CPU time; their deletion, 0.02 instead of 10 ms.

Processes share no memory: a forked child has a private copy of the free blocks and of the arrays (copy-on-write), and
returns blocks to its own list.
"""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable

import numpy as np

#: Size in bytes of the arrays whose memory is reused; the allocator of the C library itself reuses smaller blocks.
_MIN_BYTES, _MAX_BYTES = 1 << 22, 1 << 28
#: Maximum number of free blocks.  Two, because a program usually reads the masks of an image and then of the next one.
_MAX_FREE = 2

#: Free blocks, vectors of uint8; the last one was used most recently.  Single operations of a deque are atomic.  A lock
#: could deadlock: the garbage collector may delete an array, and thus call `_release`, while its thread holds the lock.
_free: deque[np.ndarray] = deque()


class _Lease:
    """The owner of the memory of an array: NumPy makes it the base of the array, and views refer to the array.

    Args:
        block: The memory.
        shape: Shape of the array.
        dtype: Type of the array.
    """

    def __init__(self, block: np.ndarray, shape: tuple[int, ...], dtype: np.dtype):
        self._block = block
        self.__array_interface__ = {**block.__array_interface__, 'shape': shape, 'typestr': dtype.str}


def lease(
    block: np.ndarray, shape: tuple[int, ...], dtype: np.dtype, release: Callable[[np.ndarray], object]
) -> np.ndarray:
    """Return a contiguous array at the start of a block; the block is released when it and all views are deleted.

    Args:
        block: Contiguous memory, at least as large as the array.
        shape: Shape of the array.
        dtype: A numeric or boolean type.
        release: Called with ``block``, by the thread that deletes the last view or by the garbage collector of any
            thread, so that it must not wait for a lock.
    """
    owner = _Lease(block, shape, dtype)
    # At the end of the process, blocks that arrays still use are not reused.
    weakref.finalize(owner, release, block).atexit = False
    return np.asarray(owner)


def allocate(shape: tuple[int, ...], dtype: type) -> tuple[np.ndarray, bool]:
    """Return a contiguous array, in the memory of a deleted array if possible.

    The memory is reused when the array and all of its views are deleted.

    Args:
        shape: Shape of the array.
        dtype: A numeric or boolean type.

    Returns:
        tuple: The array, and whether all of its elements are zero; otherwise they are undefined.
    """
    item = np.dtype(dtype)
    n_bytes = math.prod(shape) * item.itemsize
    if not _MIN_BYTES <= n_bytes <= _MAX_BYTES:
        return np.zeros(shape, item), True
    block = _take(n_bytes)
    is_zero = block is None
    if block is None:
        block = np.zeros(_rounded(n_bytes), np.uint8)  # does not access the memory
    return lease(block, shape, item, _release), is_zero


def _take(n_bytes: int) -> np.ndarray | None:
    """Remove a block of sufficient size, but at most twice as large as necessary, from the free blocks."""
    for _ in range(len(_free)):
        try:
            block = _free.pop()
        except IndexError:  # another thread has taken it
            return None
        if n_bytes <= block.nbytes <= 2 * n_bytes:
            return block
        _free.appendleft(block)
    return None


def _release(block: np.ndarray) -> None:
    """Add a block to the free blocks and delete those that have not been used for longest."""
    _free.append(block)
    while len(_free) > _MAX_FREE:
        try:
            _free.popleft()
        except IndexError:  # another thread has taken it
            return


def _rounded(n_bytes: int) -> int:
    """Round the size of a block up to four sizes per power of two, so that arrays of similar sizes share blocks."""
    step = 1 << (n_bytes.bit_length() - 3)
    return -(-n_bytes // step) * step
