"""Devices of Chainer: selection and properties."""

from __future__ import annotations

import chainer
import numpy as np

#: The end of a message on CUDA, CuPy, cuDNN, NCCL or MPI that does not work.
DOCTOR = '"mask-rcnn doctor" states what is missing'


def get_device(gpu: int) -> chainer.backend.Device:
    """Return the device with a CUDA device id; a negative id selects the CPU.

    Raises:
        ValueError: The GPU does not exist, or CUDA or CuPy does not work.
    """
    if gpu < 0:
        return chainer.get_device('@numpy')
    count = cuda_device_count()
    if gpu >= count:
        raise ValueError(
            f'GPU {gpu} does not exist: '
            + (f'CUDA sees {count}' if count else f'CUDA or CuPy does not work here; {DOCTOR}')
        )
    device = chainer.get_device(f'@cupy:{gpu}')
    device.use()
    return device


def cuda_device_count() -> int:
    """Return the number of GPUs that CUDA sees; 0 if CUDA or CuPy does not work."""
    cuda = chainer.backends.cuda
    if not cuda.available:
        return 0
    try:
        return cuda.cupy.cuda.runtime.getDeviceCount()
    except cuda.cupy.cuda.runtime.CUDARuntimeError:
        return 0


def uses_padding(device: chainer.backend.Device) -> bool:
    """Return whether selected boxes are padded to a fixed number (:mod:`mask_rcnn.ops.boxes.proposals`).

    On a GPU they are padded: the host does not wait for any count before the final results, and all images of one size
    run the same kernels on the same shapes.
    """
    return device.xp is not np
