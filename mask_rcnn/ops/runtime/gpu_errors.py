"""Errors of CUDA and its libraries: lack of memory as ``MemoryError``, and other errors as one line."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import chainer
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime.device import DOCTOR

#: The packages whose errors state that a GPU or one of its libraries has failed: CuPy and cuDNN's Frontend.
_PACKAGES = ('cupy', 'cupy_backends', 'cudnn')
#: The texts with which CUDA, cuBLAS and cuDNN report a lack of memory.
_OUT_OF_MEMORY = re.compile(r'MemoryAllocation\b|OUT_OF_MEMORY|\bout of memory\b|ALLOC(?:ATION)?_FAILED')
_MAX_CHARACTERS = 300


def is_gpu_error(error: BaseException) -> bool:
    """Return whether CuPy or a library of CUDA has raised an error."""
    return isinstance(error, Exception) and type(error).__module__.partition('.')[0] in _PACKAGES


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error reports that the memory of the host or of a GPU is short.

    CuPy's allocator raises a ``MemoryError``.  The loading of kernels, pinned memory, cuBLAS and cuDNN, whose memory is
    not that of CuPy's pool, raise ``RuntimeError`` of several types.
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Raise ``MemoryError`` in a ``with`` block where CUDA or one of its libraries reports a lack of memory.

    The free blocks of CuPy's pools return to the system before, so that a smaller computation finds memory outside of
    the pools as well.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        release_free_memory()
        raise MemoryError(_one_line(error)) from error


def release_free_memory() -> None:
    """Return the free blocks of CuPy's pools to the GPU and the system."""
    if cuda.available:
        with contextlib.suppress(Exception):  # of a GPU that has failed
            cuda.cupy.get_default_memory_pool().free_all_blocks()
            cuda.cupy.get_default_pinned_memory_pool().free_all_blocks()


def has_failed(device: Any) -> bool:
    """Return whether a GPU answers every call with an error until the process ends, as after an invalid access.

    Args:
        device: A :class:`chainer.backend.Device`; the CPU has not failed.
    """
    if device.xp is np:
        return False
    try:
        with chainer.using_device(device):
            device.xp.cuda.runtime.deviceSynchronize()
    except Exception:
        return True
    return False


def clear_frames(error: BaseException) -> None:
    """Delete the local variables of the functions that an error has left, and of those of its causes.

    An error that is kept would keep their arrays, usually the largest of the program; its traceback stays.
    """
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            _clear_traceback(current.__traceback__)
            pending += [current.__cause__, current.__context__]


def _clear_traceback(position: Any) -> None:
    while position is not None:
        with contextlib.suppress(RuntimeError):  # the function still runs
            position.tb_frame.clear()
        position = position.tb_next


def describe_gpu_error(error: BaseException) -> str | None:
    """Return an error of CuPy or a library of CUDA as one line for the user; ``None`` for other errors."""
    if is_out_of_memory(error) and not isinstance(error, MemoryError):
        return f'not enough memory: {_one_line(error)}'
    if not is_gpu_error(error):
        return None
    return f'the GPU has failed: {type(error).__name__}: {_one_line(error)}; {DOCTOR}'


def _one_line(error: BaseException) -> str:
    """Return the text of an error; NVRTC's contains the source of the kernel in many lines."""
    return ' '.join(str(error).split())[:_MAX_CHARACTERS]
