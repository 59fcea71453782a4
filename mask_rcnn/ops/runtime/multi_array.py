"""Norm, scaling and momentum SGD of many arrays on a GPU with one kernel for all.

A network has about 100 parameters.  The host needs about 10 microseconds to start a kernel, and Chainer starts several
for each parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.ops.runtime.memory_layout import as_nhwc
from mask_rcnn.ops.runtime.transfer import upload

#: Elements that a block processes, and its threads (multi_array.cu).
_SEGMENT_SIZE, _THREADS = 1 << 14, 256
_SOURCE = 'runtime/multi_array.cu'


def supports(arrays: Sequence[Array | None], *, channels_last: bool = False) -> bool:
    """Return whether there are arrays, all of them contiguous, not empty, float32 and on one GPU.

    Args:
        arrays: The arrays.
        channels_last: Whether ``(N, C, H, W)`` may be contiguous as ``(N, H, W, C)`` instead.
    """
    if not arrays or not all(map(_is_supported, arrays)) or len(set(map(_device_id, arrays))) != 1:
        return False
    return all((channels_last_shape(array) is not None) if channels_last else _is_contiguous(array) for array in arrays)


def channels_last_shape(array: Array) -> tuple[int, int] | None:
    """Return the numbers of channels and of locations of ``(N, C, H, W)`` whose channels are innermost in memory.

    Returns:
        tuple: ``(C, H * W)``; ``(1, 1)`` for a contiguous array; ``None`` for an array with another layout.
    """
    if _is_contiguous(array):
        return 1, 1
    if array.ndim == 4 and as_nhwc(array).flags.c_contiguous:
        return array.shape[1], array.shape[2] * array.shape[3]
    return None


class ArrayTable:
    """Lists of arrays on a GPU and their addresses, which are uploaded without waiting for the GPU.

    Args:
        first: Arrays for which :func:`supports` is true; they may be channels last.
        others: Lists of contiguous arrays with the shapes of the first list.
    """

    def __init__(self, first: Sequence[Array], *others: Sequence[Array]):
        self._lists = first, *others  # the arrays live as long as their addresses
        self.device = chainer.backend.get_device_from_array(first[0])
        self.channels_last_shapes = [channels_last_shape(array) for array in first]
        with chainer.using_device(self.device):
            self.segments = _segments(tuple(array.size for array in first), self.device.name)
            addresses = np.array([[_address(array) for array in arrays] for arrays in self._lists], np.uint64)
            self.addresses = upload(addresses, self.device.xp)

    def launch(self, kernel: str, *arguments: Any) -> None:
        """Start a kernel with a block for each segment of the arrays, on the current device."""
        cuda_kernels.kernel(_SOURCE, kernel)((len(self.segments[0]),), (_THREADS,), arguments)


def square_sum(table: ArrayTable) -> Array:
    """Return the sum of the squares of all elements of the first list, float64 ``()`` on the device."""
    with chainer.using_device(table.device):
        sums = table.device.xp.empty(table.segments[0].shape, np.float64)
        table.launch('square_sums', table.addresses[0], *table.segments, sums)
        return sums.sum()


def scale(table: ArrayTable, factor: float) -> None:
    """Multiply the arrays of the first list by a factor, in float32."""
    with chainer.using_device(table.device):
        table.launch('scale', table.addresses[0], *table.segments, np.float32(factor))


def momentum_sgd(
    table: ArrayTable, *, terms: Sequence[tuple[float, float]], loss_scale: float, rate: float, momentum: float
) -> None:
    """Update parameters and velocities in place, in float32.

    With ``g = (gradient / loss_scale + decay * parameter) * factor`` the velocity becomes
    ``momentum * velocity - rate * g`` and is added to the parameter.

    Args:
        table: Gradients, parameters and velocities.
        terms: The weight decay and the factor of the learning rate of each parameter.
        loss_scale: The factor that the gradients contain.
        rate: Learning rate.
        momentum: Factor of the velocities.
    """
    device = table.device.name
    with chainer.using_device(table.device):
        layout = [_constants(values, np.int32, device) for values in zip(*table.channels_last_shapes, strict=True)]
        constants = [_constants(values, np.float32, device) for values in zip(*terms, strict=True)]
        scalars = map(np.float32, (loss_scale, rate, momentum))
        table.launch('momentum_sgd', *table.addresses, *table.segments, *layout, *constants, *scalars)


@functools.lru_cache(8)
def _segments(sizes: tuple[int, ...], device: str) -> tuple[Any, Any, Any]:
    """Return the array index and the start of each segment, and the size of each array, on a device."""
    pairs = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, _SEGMENT_SIZE)]
    indices, starts = zip(*pairs, strict=True)
    send = chainer.get_device(device).send
    return send(np.array(indices, np.int32)), send(np.array(starts, np.int64)), send(np.array(sizes, np.int64))


@functools.lru_cache(32)
def _constants(values: tuple[float, ...], dtype: type, device: str) -> Any:
    return chainer.get_device(device).send(np.array(values, dtype))


def _is_supported(array: Array | None) -> bool:
    return isinstance(array, cuda.ndarray) and array.dtype == np.float32 and 0 < array.size < 1 << 31


def _is_contiguous(array: Array) -> bool:
    return array.flags.c_contiguous


def _device_id(array: Array) -> int:
    return array.device.id


def _address(array: Array) -> int:
    return array.data.ptr
