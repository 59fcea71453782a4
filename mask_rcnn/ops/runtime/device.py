"""The devices that Chainer can use."""

from __future__ import annotations

import chainer


def get_device(gpu: int) -> chainer.backend.Device:
    """Return the device with a number and make it current; -1 is the CPU.

    Raises:
        ValueError: The GPU does not exist, or CUDA or CuPy does not work.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    count = cuda_device_count()
    if gpu >= count:
        reason = f'CUDA finds {count}' if count else 'CUDA or CuPy does not work here (README, "Installing")'
        raise ValueError(f'GPU {gpu} is not available: {reason}')
    device = chainer.get_device(f'@cupy:{gpu}')
    device.use()
    return device


def cuda_device_count() -> int:
    """Return the number of GPUs that CUDA finds; 0 if CUDA or CuPy does not work."""
    cuda = chainer.backends.cuda
    if not cuda.available:
        return 0
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount()
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return 0
