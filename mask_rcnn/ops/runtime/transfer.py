"""Asynchronous copies between the host and a GPU, and side streams."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import chainer
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.parallel import jit, parallel_for

#: Bytes that justify a thread in a copy on the host: 0.2 ms.
_BYTES_PER_THREAD = 1 << 21
#: Bytes to which arrays that are uploaded together are aligned: those of the widest load of a kernel.
_ALIGNMENT = 16
#: The bits of float32 that are all set in NaN and infinity.
_EXPONENT = np.uint32(0x7F800000)

#: The event at the end of each copy that may be in progress, and its pinned memory.
_copies: deque[tuple[Any, Any]] = deque()
_copies_lock = threading.Lock()


def upload(array: np.ndarray, xp: Any, *, check_finite: bool = False) -> Array:
    """Copy an array to the current GPU without waiting for the GPU.

    All CPUs copy the values to pinned memory, from where the current stream copies them to the GPU.  The caller may
    change ``array`` afterwards.  Pinned memory returns to CuPy's pool when its copy has ended.

    Args:
        array: An array on the host.
        xp: CuPy; for NumPy, the result is the array itself or its contiguous copy.
        check_finite: Whether to check the values of a float32 array, in the same pass as the copy.

    Returns:
        A contiguous array on the current GPU.

    Raises:
        ValueError: ``check_finite`` is set, and the array contains NaN or infinity.
    """
    array = np.ascontiguousarray(array)
    if xp is np:
        if check_finite:
            _require_finite(bool(np.isfinite(array).all()))
        return array
    if not array.size:  # nothing to copy, and no memory to copy it to
        return cuda.cupy.empty(array.shape, array.dtype)
    # Blocks of few different sizes, so that images of other sizes use them again.
    memory = _allocate_pinned(1 << max(array.nbytes - 1, 0).bit_length())
    staging = np.frombuffer(memory, array.dtype, array.size)
    if check_finite:
        _require_finite(_copy_and_check(array.reshape(-1), staging))
    else:
        _copy_on_host(array.reshape(-1), staging)
    uploaded = cuda.cupy.empty(array.shape, array.dtype)
    uploaded.set(staging.reshape(array.shape), stream=cuda.cupy.cuda.get_current_stream())
    _keep_until_copied(memory)
    return uploaded


def upload_together(arrays: Sequence[np.ndarray], xp: Any) -> list[Array]:
    """Copy small arrays to the current GPU in one copy, as :func:`upload` copies one.

    Args:
        arrays: Arrays on the host.
        xp: CuPy; for NumPy, the result are the arrays themselves or their contiguous copies.

    Returns:
        list: Contiguous arrays; on a GPU they share their memory.
    """
    if xp is np:
        return [np.ascontiguousarray(array) for array in arrays]
    starts = np.cumsum([0, *(-(-array.nbytes // _ALIGNMENT) * _ALIGNMENT for array in arrays)]).tolist()
    packed = np.empty(starts[-1], np.uint8)
    for array, start in zip(arrays, starts[:-1], strict=True):
        packed[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    uploaded = upload(packed, xp)
    return [
        uploaded[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        for array, start in zip(arrays, starts[:-1], strict=True)
    ]


def _allocate_pinned(size: int) -> Any:
    """Return pinned memory of CuPy's pool, after that of ended copies has returned to it."""
    with _copies_lock:
        while _copies and _copies[0][0].done:
            _copies.popleft()
    return cuda.cupy.cuda.alloc_pinned_memory(size)


def _keep_until_copied(memory: Any) -> Any:
    """Keep pinned memory until the work of the current stream has ended; return the event at its end.

    CuPy's pool would lend the memory of deleted arrays at once, and the copy would overwrite or read other values.
    """
    event = cuda.cupy.cuda.Event(disable_timing=True)
    event.record()
    with _copies_lock:
        _copies.append((event, memory))
    return event


def _copy_on_host(source: np.ndarray, target: np.ndarray) -> None:
    """Copy a vector on all CPUs."""

    def copy(start: int, stop: int) -> None:
        target[start:stop] = source[start:stop]

    parallel_for(copy, len(source), min_per_thread=_BYTES_PER_THREAD // source.itemsize)


def _copy_and_check(source: np.ndarray, target: np.ndarray) -> bool:
    """Copy a float32 vector on all CPUs and return whether all values are finite."""
    source, target = source.view(np.uint32), target.view(np.uint32)
    results: list[bool] = []
    parallel_for(
        lambda start, stop: results.append(_copy_bits(source[start:stop], target[start:stop])),
        len(source),
        min_per_thread=_BYTES_PER_THREAD // source.itemsize,
    )
    return all(results)


@jit
def _copy_bits(source, target):
    """Copy the bits of float32 values, uint32, and return whether all values are finite."""
    max_exponent = np.uint32(0)
    for i in range(len(source)):
        bits = source[i]
        target[i] = bits
        max_exponent = max(max_exponent, bits & _EXPONENT)
    return max_exponent != _EXPONENT


def _require_finite(is_finite: bool) -> None:
    if not is_finite:
        raise ValueError('an image array must not contain NaN or infinity')


def read_scalars(values: Sequence[Any]) -> list[float]:
    """Return numbers, and arrays or variables of one element each, as floats.

    One copy, for which the host waits, takes all arrays that are on a GPU to the host.
    """
    arrays: list[Any] = [chainer.as_array(value) for value in values]
    on_gpu = [i for i, array in enumerate(arrays) if isinstance(array, cuda.ndarray)]
    if on_gpu:
        with chainer.using_device(chainer.backend.get_device_from_array(arrays[on_gpu[0]])):
            packed = cuda.cupy.concatenate([arrays[i].reshape(1).view(np.uint8) for i in on_gpu]).get()
        stop = 0
        for i in on_gpu:
            start, stop = stop, stop + arrays[i].itemsize
            arrays[i] = packed[start:stop].view(arrays[i].dtype)
    return [float(array.item() if isinstance(array, np.ndarray) else array) for array in arrays]


class PackedArrays(NamedTuple):
    """Several arrays as the columns of one, so that a single copy takes them to the host.

    Attributes:
        rows: ``(N, M)`` float32.
        specs: The dtype and the shape of each array, or ``None`` for an absent array.
    """

    rows: Array
    specs: list[tuple[np.dtype, tuple[int, ...]] | None]


def pack_arrays(arrays: Sequence) -> PackedArrays:
    """Pack arrays into one array on their device.

    Args:
        arrays: Arrays of equal length whose elements float32 represents exactly (integers up to 2 ** 24).  ``None``
            keeps its position.
    """
    specs = [None if array is None else (array.dtype, array.shape) for array in arrays]
    arrays = [array for array in arrays if array is not None]
    xp = get_array_module(arrays[0])
    columns = [array.reshape(len(array), _row_size(array.shape)).astype(np.float32, copy=False) for array in arrays]
    return PackedArrays(xp.concatenate(columns, axis=1), specs)


class AsyncHostCopy:
    """An asynchronous device-to-host copy of packed arrays.

    They are copied to pinned host memory.  :meth:`wait` waits for an event that is recorded after this copy, not for
    later work of the GPU.  Work that is submitted to the current stream later may overwrite the arrays.

    Args:
        packed: The arrays.
    """

    def __init__(self, packed: PackedArrays):
        self._specs = packed.specs
        self._rows: np.ndarray
        self._event: Any  # a CuPy event, or None if there is nothing to wait for
        is_on_host = get_array_module(packed.rows) is np
        self._rows, self._event = (packed.rows, None) if is_on_host else _start_copy(packed.rows)

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
    if not array.size:  # nothing to copy, and no memory to copy it to
        return np.empty(array.shape, array.dtype), None
    memory = _allocate_pinned(array.nbytes)
    host = np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
    array.get(out=host, blocking=False)
    return host, _keep_until_copied(memory)


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
