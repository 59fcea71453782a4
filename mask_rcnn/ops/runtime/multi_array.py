"""Norm and momentum SGD of many arrays on a GPU with one kernel for all.

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

#: Elements that a block processes, and its threads (multi_array.cu).
_SEGMENT_SIZE, _THREADS = 1 << 14, 256
_SOURCE = 'runtime/multi_array.cu'


def supports(arrays: Sequence[Array | None]) -> bool:
    """Return whether there are arrays, all of them contiguous, not empty, float32 and on one GPU."""
    return bool(arrays) and all(map(_is_supported, arrays)) and len(set(map(_device_id, arrays))) == 1


def norm(arrays: Sequence[Array]) -> float:
    """Return the L2 norm of all elements together, summed in float64; synchronises.

    Args:
        arrays: Arrays for which :func:`supports` is true.
    """
    device = chainer.backend.get_device_from_array(*arrays)
    with chainer.using_device(device):
        segments = _segments(tuple(array.size for array in arrays), device.name)
        sums = device.xp.empty(segments[0].shape, np.float64)
        addresses = device.send(np.array([_address(array) for array in arrays], np.uint64))
        kernel = cuda_kernels.kernel(_SOURCE, 'square_sums')
        kernel((len(sums),), (_THREADS,), (addresses, *segments, sums))
        return float(sums.sum()) ** 0.5


def momentum_sgd(
    parameters: Sequence[Array],
    gradients: Sequence[Array],
    velocities: Sequence[Array],
    *,
    terms: Sequence[tuple[float, float]],
    loss_scale: float,
    rate: float,
    momentum: float,
) -> None:
    """Update parameters and velocities in place, in float32.

    With ``g = (gradient / loss_scale + decay * parameter) * factor`` the velocity becomes
    ``momentum * velocity - rate * g`` and is added to the parameter.

    Args:
        parameters: Arrays for which :func:`supports` is true.
        gradients: The same, of the same sizes.
        velocities: The same, of the same sizes.
        terms: The weight decay and the factor of the learning rate of each parameter.
        loss_scale: The factor that the gradients contain.
        rate: Learning rate.
        momentum: Factor of the velocities.
    """
    device = chainer.backend.get_device_from_array(*parameters)
    with chainer.using_device(device):
        sizes = tuple(array.size for array in parameters)
        segments = _segments(sizes, device.name)
        lists = parameters, gradients, velocities
        addresses = device.send(np.array([[_address(array) for array in arrays] for arrays in lists], np.uint64))
        constants = [_constants(tuple(values), device.name) for values in zip(*terms, strict=True)]
        scalars = map(np.float32, (loss_scale, rate, momentum))
        kernel = cuda_kernels.kernel(_SOURCE, 'momentum_sgd')
        kernel((len(segments[0]),), (_THREADS,), (*addresses, *segments, *constants, *scalars))


@functools.lru_cache(8)
def _segments(sizes: tuple[int, ...], device: str) -> tuple[Any, Any, Any]:
    """Return the array index and the start of each segment, and the size of each array, on a device."""
    pairs = [(i, start) for i, size in enumerate(sizes) for start in range(0, size, _SEGMENT_SIZE)]
    indices, starts = zip(*pairs, strict=True)
    send = chainer.get_device(device).send
    return send(np.array(indices, np.int32)), send(np.array(starts, np.int64)), send(np.array(sizes, np.int64))


@functools.lru_cache(8)
def _constants(values: tuple[float, ...], device: str) -> Any:
    return chainer.get_device(device).send(np.array(values, np.float32))


def _is_supported(array: Array | None) -> bool:
    return isinstance(array, cuda.ndarray) and array.dtype == np.float32 and array.size and array.flags.c_contiguous


def _device_id(array: Array) -> int:
    return array.device.id


def _address(array: Array) -> int:
    return array.data.ptr
