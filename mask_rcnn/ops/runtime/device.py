"""The devices that Chainer can use."""

from __future__ import annotations

import chainer


def get_device(gpu: int) -> chainer.backend.Device:
    """Return the device of a number, -1 being the CPU.

    Raises:
        ValueError: There is no such GPU, or CUDA or CuPy does not work.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    count = cuda_device_count()
    if gpu >= count:
        raise ValueError(
            f'GPU {gpu} is not there: '
            + (f'CUDA sees {count}' if count else 'CUDA or CuPy does not work here (README, "Installing")')
        )
    device = chainer.get_device(f'@cupy:{gpu}')
    device.use()
    return device


def cuda_device_count() -> int:
    """Return how many GPUs CUDA sees; 0 where CUDA or CuPy does not work."""
    cuda = chainer.backends.cuda
    if not cuda.available:
        return 0
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount()
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return 0
