"""Between the host and a GPU: results that come back in one copy, and work beside a GPU's other work."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Sequence

import chainer
import numpy as np
from chainer.backends import cuda


class AsyncHostCopy:
    """Arrays on their way to the host, in one copy; whoever has begun it may go on.

    On the device they become the columns of one float32 array.  It is copied to memory that the GPU reaches by
    itself, and an event says when it is there: waiting for it does not wait for what the GPU was asked for
    later.

    Args:
        arrays: Of equal length; each number must be one of float32's (integers up to 2 ** 24).  ``None`` stays
            in its place.
    """

    def __init__(self, arrays: Sequence):
        self._specs = [None if array is None else (array.dtype, array.shape) for array in arrays]
        arrays = [array for array in arrays if array is not None]
        xp = chainer.backend.get_array_module(arrays[0])
        packed = xp.concatenate(
            [array.reshape(len(array), _width(array.shape)).astype(np.float32, copy=False) for array in arrays], axis=1
        )
        self._rows, self._event = (packed, None) if xp is np else _begin_copy(packed)

    def wait(self) -> list[np.ndarray | None]:
        """Return the arrays, in their order, shapes and types, as soon as they are there."""
        if self._event is not None:
            self._event.synchronize()
        arrays, start = [], 0
        for spec in self._specs:
            if spec is None:
                arrays.append(None)
                continue
            dtype, shape = spec
            stop = start + _width(shape)
            arrays.append(self._rows[:, start:stop].astype(dtype).reshape(shape))
            start = stop
        return arrays


def _width(shape: tuple[int, ...]) -> int:
    """Return how many numbers a row has."""
    return math.prod(shape[1:])


def _begin_copy(array):
    """Ask the current stream for a copy; return where it will be, and the event that says so."""
    memory = cuda.cupy.cuda.alloc_pinned_memory(array.nbytes)
    host = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
    array.get(out=host, blocking=False)
    event = cuda.cupy.cuda.Event(disable_timing=True)
    event.record()
    return host, event


@contextlib.contextmanager
def side_stream(device: chainer.backend.Device):
    """Return a context whose work on a GPU does not wait for what the GPU was asked for before.

    Only the work's results have to be waited for, and its arguments have to be made in it.

    Args:
        device: The GPU; on the CPU nothing changes.
    """
    with contextlib.ExitStack() as stack:
        if device.xp is not np:
            stack.enter_context(chainer.using_device(device))
            stack.enter_context(_get_side_stream(device.device.id))
        yield


@functools.cache
def _get_side_stream(gpu: int):
    """Return a stream of the current GPU, always the same: CuPy keeps each stream's memory for it."""
    return cuda.cupy.cuda.Stream(non_blocking=True)
