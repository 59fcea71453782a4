"""What several commands share: errors in one line, and the choice of the device."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from tqdm import tqdm

from mask_rcnn.ops.cudnn_frontend import PRECISIONS, is_available, precision_error


class UsageError(Exception):
    """Arguments that contradict each other, the machine or the files; exit status 2."""


def print_error(message: str, status: int = 1) -> int:
    """Write an error line; returns the exit status."""
    sys.stderr.write(f'error: {message}\n')
    return status


def run_and_report_errors(body: Callable[[], int], errors: tuple[type[Exception], ...]) -> int:
    """Turn the errors that a user can do something about into one line and an exit status.

    Args:
        body: The command's work; returns the status where nothing goes wrong.
        errors: Types whose messages say everything in one line.
    """
    try:
        return body()
    except UsageError as error:
        return print_error(str(error), 2)
    except errors as error:
        return print_error(str(error))
    except OSError as error:
        return print_error(f'{error.filename}: {error.strerror}' if error.filename else str(error))
    except KeyboardInterrupt:
        return print_error('interrupted', 130)


def write_line(line: str, stream) -> None:
    """Write a line without breaking a progress bar."""
    tqdm.write(line, file=stream)


def gpu_number(text: str) -> int:
    """Parse ``--gpu``."""
    gpu = int(text)
    if gpu < -1:
        raise argparse.ArgumentTypeError(f'{gpu} is neither a GPU nor -1')
    return gpu


gpu_number.__name__ = 'integer'  # argparse names the type in its messages


def choose_device(gpu: int | None) -> int:
    """Return the GPU to use, -1 for the CPU.

    Args:
        gpu: What ``--gpu`` says, or ``None``: GPU 0 where CUDA works, else the CPU, with a line that says so.

    Raises:
        UsageError: A GPU that is named explicitly does not work.
    """
    if gpu == -1:
        return -1
    reason = gpu_error(gpu or 0)
    if reason is None:
        return gpu or 0
    if gpu is not None:
        raise UsageError(f'--gpu {gpu}: {reason}')
    write_line(f'running on the CPU: {reason}', sys.stderr)
    return -1


def add_precision(add: Callable) -> None:
    """Add ``--precision`` to the options of a command; ``add`` is a parser's or a group's
    ``add_argument``.
    """
    add(
        '--precision',
        choices=tuple(PRECISIONS),
        default='fp32',
        help='in which numbers a GPU multiplies; it adds up in fp32 always, and the CPU knows fp32 only '
        '(default: %(default)s)',
    )


def check_precision(name: str, gpu: int) -> None:
    """Refuse a precision that a device does not have.

    Args:
        name: What ``--precision`` says.
        gpu: What :func:`choose_device` returned.

    Raises:
        UsageError: It needs another device, or cuDNN.
    """
    if name == 'fp32':
        return
    reason = precision_error(name, None if gpu < 0 else capability(gpu))
    if reason is None and not is_available():
        reason = 'it needs cuDNN 9 and the package nvidia-cudnn-frontend'
    if reason is not None:
        raise UsageError(f'--precision {name}: {reason}')


def capability(gpu: int) -> int:
    """Return a GPU's compute capability times ten."""
    import cupy

    return int(cupy.cuda.Device(gpu).compute_capability)


def gpu_error(gpu: int) -> str | None:
    """Say why a GPU cannot be used; ``None`` if it can."""
    try:
        import cupy
    except Exception:  # a CuPy that does not fit the driver fails with many kinds of errors
        return 'CuPy is not installed or does not work here'
    try:
        n_gpu = cupy.cuda.runtime.getDeviceCount()
        if gpu >= n_gpu:
            return f'there {"is" if n_gpu == 1 else "are"} only {n_gpu} CUDA device{"s" if n_gpu > 1 else ""}'
        with cupy.cuda.Device(gpu):
            int((cupy.arange(2) + 1).sum())  # compiles and runs a kernel
    except Exception as error:
        return f'CUDA does not work ({" ".join(str(error).split())[:100]})'
    return None
