"""Options that commands share: the types of arguments, ``--gpu`` and ``--precision``, and the choice of the device."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any, TypeVar

import chainer

from mask_rcnn.cli.command import UsageError
from mask_rcnn.config import C4_DIALECTS
from mask_rcnn.config.fields import MAX_INT32, describe_value
from mask_rcnn.io.console import print_note
from mask_rcnn.io.wording import counted
from mask_rcnn.ops.cudnn_frontend import PRECISIONS, is_available, precision_error
from mask_rcnn.ops.runtime.device import DOCTOR, get_device
from mask_rcnn.ops.runtime.gpu_errors import is_out_of_memory

#: The type of the method ``add_argument`` of a parser or an argument group.
AddArgument = Callable[..., argparse.Action]

#: Help of ``--bn2affine``.
BN2AFFINE_HELP = (
    'convert batch normalisation to affine channels first; in files of Chainer_Mask_R-CNN: use gamma and beta as '
    'affine channels and ignore the statistics, which is right for files of its utils/detectron_parser.py'
)

_Number = TypeVar('_Number', int, float)


def non_negative_int(text: str) -> int:
    """Parse an integer that is at least 0."""
    return _parse_count(text, 0, 'a non-negative integer')


def positive_int(text: str) -> int:
    """Parse an integer that is at least 1."""
    return _parse_count(text, 1, 'a positive integer')


def non_negative_float(text: str) -> float:
    """Parse a finite number that is at least 0."""
    return _parse(text, float, lambda value: 0 <= value < math.inf, 'a non-negative number')


def positive_float(text: str) -> float:
    """Parse a finite number above 0."""
    return _parse(text, float, lambda value: 0 < value < math.inf, 'a positive number')


def seed(text: str) -> int:
    """Parse a seed of random numbers."""
    return _parse(text, int, lambda value: 0 <= value < 2**32, f'an integer from 0 to {2**32 - 1}')


def fraction(text: str) -> float:
    """Parse a number from 0 to 1."""
    return _parse(text, float, lambda value: 0 <= value <= 1, 'a number from 0 to 1')


def detection_limit(text: str) -> int:
    """Parse a maximum number of detections; 0 for no limit."""
    return _parse(text, int, lambda value: 0 <= value <= MAX_INT32, f'an integer from 0 to {MAX_INT32}')


def gpu_number(text: str) -> int:
    """Parse the number of a GPU; -1 is the CPU."""
    return _parse(text, int, lambda value: -1 <= value <= MAX_INT32, 'the number of a GPU or -1')


def _parse_count(text: str, minimum: int, expected: str) -> int:
    _parse(text, int, lambda value: value >= minimum, expected)
    return _parse(text, int, lambda value: value <= MAX_INT32, f'{expected} of at most {MAX_INT32}')


def _parse(text: str, convert: Callable[[str], _Number], fits: Callable[[_Number], bool], expected: str) -> _Number:
    try:
        value = convert(text)
    except ValueError:
        value = None
    if value is None or not fits(value):
        raise argparse.ArgumentTypeError(f'{describe_value(text)} is not {expected}')
    return value


def add_gpu(add: AddArgument, *short_flags: str) -> None:
    """Add ``--gpu``.

    Args:
        add: The ``add_argument`` of a parser or a group.
        short_flags: Other flags with the same meaning.
    """
    add(
        '--gpu',
        *short_flags,
        type=gpu_number,
        metavar='ID',
        help='number of the GPU, -1 for the CPU (default: 0 if CUDA works, otherwise the CPU)',
    )


def add_precision(add: AddArgument, detail: str = '') -> None:
    """Add ``--precision``.

    Args:
        add: The ``add_argument`` of a parser or a group.
        detail: Further text of the help.
    """
    add(
        '--precision',
        choices=tuple(PRECISIONS),
        default='fp32',
        help='arithmetic precision of GPU convolutions; accumulation is always fp32, and the CPU supports fp32 only'
        f'{detail} (default: %(default)s)',
    )


def add_dialect(add: AddArgument) -> None:
    """Add ``--dialect``.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add(
        '--dialect',
        choices=C4_DIALECTS,
        help='conventions of a C4 network: those of detectron, or of dena (Chainer_Mask_R-CNN) (default: those of the '
        'program that wrote the weights)',
    )


def add_roi_options(add: AddArgument) -> None:
    """Add ``--roialign`` and ``--roi-size``, which weight files of other programs do not contain.

    Args:
        add: The ``add_argument`` of a parser or a group.
    """
    add(
        '--roialign',
        action=argparse.BooleanOptionalAction,
        help='RoIAlign, or RoI max pooling (default: as the weights were trained, which files of the old Chainer port '
        'do not state: RoIAlign); in the old Chainer port, --roialign switched RoIAlign off, against its README',
    )
    add(
        '--roi-size',
        '-r',
        type=int,
        choices=(7, 14),
        help='height and width of the pooled RoI features (default: as the weights were trained, which files of the '
        'old Chainer port do not state: 14)',
    )


def add_max_detections(add: AddArgument, detail: str = '', default: str = 'that of the weights, usually 100') -> None:
    """Add ``--max-detections``.

    Args:
        add: The ``add_argument`` of a parser or a group.
        detail: Further text of the help.
        default: The description of the default.
    """
    add(
        '--max-detections',
        type=detection_limit,
        metavar='N',
        help=f'maximum number of detections per image{detail}, 0 for no limit (default: {default})',
    )


def roi_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of :class:`mask_rcnn.config.Config` that the options of :func:`add_roi_options` set."""
    fields = {'roi_align': args.roialign, 'roi_size': args.roi_size}
    return {name: value for name, value in fields.items() if value is not None}


def limit_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Return the field of :class:`mask_rcnn.config.Config` that ``--max-detections`` sets, if it is given."""
    return {} if args.max_detections is None else {'max_detections': args.max_detections}


def choose_device(gpu: int | None) -> int:
    """Return the number of the GPU to use, or -1 for the CPU.

    Args:
        gpu: The value of ``--gpu``, or ``None``: GPU 0 if CUDA works, otherwise the CPU and a line with the reason.

    Raises:
        UsageError: A GPU that ``--gpu`` names does not work.
    """
    if gpu == -1:
        return -1
    reason = gpu_error(gpu or 0)
    if reason is None:
        return gpu or 0
    if gpu is not None:
        raise UsageError(f'--gpu {gpu}: {reason}')
    print_note(f'running on the CPU: {reason}')
    return -1


def check_precision(name: str, gpu: int) -> None:
    """Refuse a precision that a device does not support.

    Args:
        name: The value of ``--precision``.
        gpu: The result of :func:`choose_device`.

    Raises:
        UsageError: The precision needs another device, or cuDNN.
    """
    if name == 'fp32':
        return
    reason = precision_error(name, None if gpu < 0 else capability(gpu))
    if reason is None and not is_available():
        reason = f'it needs cuDNN 9 and the package nvidia-cudnn-frontend; {DOCTOR}'
    if reason is not None:
        raise UsageError(f'--precision {name}: {reason}')


def capability(gpu: int) -> int:
    """Return a GPU's compute capability times ten.

    Raises:
        ValueError: The GPU does not exist, or CUDA or CuPy does not work.
    """
    device: Any = get_device(gpu)
    return int(device.device.compute_capability)


def gpu_error(gpu: int) -> str | None:
    """Return the reason why a GPU cannot be used, or ``None`` if it can."""
    try:
        import cupy
    except ModuleNotFoundError as error:
        reason = 'CuPy is not installed' if error.name == 'cupy' else f'CuPy cannot be imported ({error})'
        return f'{reason}; {DOCTOR}'
    except Exception as error:  # a CuPy that does not fit the driver raises errors of many types
        cause = error.__cause__ or error  # CuPy wraps it in a long text about its installation
        return f'CuPy cannot be imported ({" ".join(str(cause).split())[:100]}); {DOCTOR}'
    try:
        n_gpus = cupy.cuda.runtime.getDeviceCount()
        if n_gpus == 0:
            return f'there is no CUDA device; {DOCTOR}'
        if gpu >= n_gpus:
            return f'there {"is" if n_gpus == 1 else "are"} only {counted(n_gpus, "CUDA device")}'
        with cupy.cuda.Device(gpu):
            int((cupy.arange(2) + 1).sum())  # compiles and runs a kernel
    except Exception as error:
        reason = ' '.join(str(error).split())[:100]
        if is_out_of_memory(error):
            return f'its memory is full ({reason}); nvidia-smi lists the programs that use it'
        return f'CUDA does not work ({reason}); {DOCTOR}'
    return _chainer_error()


def _chainer_error() -> str | None:
    """Return the reason why Chainer does not use a CuPy that works, or ``None`` if it does.

    Chainer also imports cuBLAS, which a kernel does not need.
    """
    cuda: Any = chainer.backends.cuda
    if cuda.available:
        return None
    reason = ' '.join(str(getattr(cuda, '_resolution_error', None) or 'unknown reason').split())[:100]
    return f'CuPy lacks a library ({reason}); {DOCTOR}'
