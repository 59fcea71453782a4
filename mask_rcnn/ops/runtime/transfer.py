"""Asynchronous copies from a GPU to the host, and side streams."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda


class AsyncHostCopy:
    """An asynchronous device-to-host copy of several arrays packed into one.

    On the device the arrays become the columns of one float32 array, which is copied to pinned host memory.
    :meth:`wait` waits for an event that is recorded after this copy, not for later work of the GPU.

    Args:
        arrays: Arrays of equal length whose elements float32 represents exactly (integers up to 2 ** 24).  ``None``
            keeps its position.
    """

    def __init__(self, arrays: Sequence):
        self._specs = [None if array is None else (array.dtype, array.shape) for array in arrays]
        arrays = [array for array in arrays if array is not None]
        xp = chainer.backend.get_array_module(arrays[0])
        packed = xp.concatenate(
            [array.reshape(len(array), _row_size(array.shape)).astype(np.float32, copy=False) for array in arrays],
            axis=1,
        )
        self._rows: np.ndarray
        self._event: Any  # a CuPy event, or None if there is nothing to wait for
        self._rows, self._event = (packed, None) if xp is np else _start_copy(packed)

    def wait(self) -> list[np.ndarray | None]:
        """Wait for the copy and return the arrays in their order, with their shapes and types."""
        if self._event is not None:
            self._event.synchronize()
        arrays: list[np.ndarray | None] = []
        start = 0
        for spec in self._specs:
            if spec is None:
                arrays.append(None)
                continue
            dtype, shape = spec
            stop = start + _row_size(shape)
            arrays.append(self._rows[:, start:stop].astype(dtype).reshape(shape))
            start = stop
        return arrays


def _row_size(shape: tuple[int, ...]) -> int:
    """Return the number of elements per row."""
    return math.prod(shape[1:])


def _start_copy(array):
    """Start a copy on the current stream; return the host memory and the event that marks the end of the copy."""
    memory = cuda.cupy.cuda.alloc_pinned_memory(array.nbytes)
    host = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
    array.get(out=host, blocking=False)
    event = cuda.cupy.cuda.Event(disable_timing=True)
    event.record()
    return host, event


@contextlib.contextmanager
def side_stream(device: Any) -> Iterator[None]:
    """Run the GPU work of a ``with`` block on a side stream, so that it does not wait for the main stream.

    The arguments of the work must be created inside the block, and the block must wait for the results.

    Args:
        device: The GPU, a :class:`chainer.backend.Device`; the context has no effect for the CPU.
    """
    with contextlib.ExitStack() as stack:
        if device.xp is not np:
            stack.enter_context(chainer.using_device(device))
            stack.enter_context(_get_side_stream(device.device.id))
        yield


@functools.cache
def _get_side_stream(gpu: int):
    """Return the side stream of the current GPU; there is one, because CuPy pools memory per stream."""
    return cuda.cupy.cuda.Stream(non_blocking=True)
