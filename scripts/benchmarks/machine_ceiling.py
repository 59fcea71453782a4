"""The peak rates of a machine and the floating-point operations of a network."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable

import mask_rcnn  # noqa: F401  # makes Chainer importable

# isort: split
import chainer
import numpy as np

from mask_rcnn.ops.cudnn_frontend import current_precision
from mask_rcnn.ops.cudnn_frontend.precision import Precision

#: Sides of the square matrices of the matmul: large enough for the peak rate.
_CPU_SIDE, _GPU_SIDE = 2048, 8192
#: Bytes of a copy: more than any cache holds.
_COPIED = 256 << 20
_REPEATS = 5


class WorkCounter(chainer.LinkHook):
    """Counts the floating-point operations of convolutions, deconvolutions and linear layers.

    A multiplication with its addition counts as two operations.  Direct convolution is assumed; an algorithm with fewer
    multiplications (Winograd) may exceed the rate of a matrix multiplication.

    Attributes:
        operations (int): Operations of the links that have run in the ``with`` block.
    """

    name = 'WorkCounter'

    def __init__(self):
        self.operations = 0

    def forward_postprocess(self, args):
        link = getattr(args.link, 'conv', args.link)  # a ConvNorm holds its convolution in conv
        weights = getattr(link, 'W', None)
        if weights is None or (link is not args.link and not hasattr(args.link, 'norm')):
            return
        # Each output element, or input element of a deconvolution, is multiplied with one filter.
        transposed = isinstance(link, chainer.links.Deconvolution2D)
        elements = args.args[0] if transposed else args.out
        self.operations += 2 * elements.size * (weights.size // len(weights))


def matmul_flops(xp) -> float | None:
    """Return the operations per second of a large matrix multiplication in the current precision.

    The operands already have that type; on a GPU, cuBLAS multiplies them.  ``None`` if the type is not available:
    bfloat16 needs CuPy 14 or later and the package ml_dtypes.
    """
    side = _CPU_SIDE if xp is np else _GPU_SIDE
    with _factors(xp, current_precision()) as dtype:
        if dtype is None:
            return None
        matrices = [
            xp.asarray(np.random.RandomState(i).uniform(-1, 1, (side, side)).astype(np.float32)).astype(dtype)
            for i in (0, 1)
        ]
        return 2 * side**3 / fastest(xp, lambda: xp.matmul(*matrices))


@contextlib.contextmanager
def _factors(xp, precision: Precision):
    """Set the precision of matrix multiplications in a block; yields the type of the factors, or ``None``."""
    if xp is np:
        yield np.dtype(np.float32)
    elif precision.name == 'bf16':
        known = int(xp.__version__.split('.')[0]) >= 14 and importlib.util.find_spec('ml_dtypes')
        yield np.dtype(importlib.import_module('ml_dtypes').bfloat16) if known else None
    else:
        blas = xp._core._routines_linalg  # CuPy has no public switch
        before = blas.get_compute_type(precision.storage)
        blas.set_compute_type(
            precision.storage, blas.COMPUTE_TYPE_TF32 if precision.name == 'tf32' else blas.COMPUTE_TYPE_DEFAULT
        )
        try:
            yield precision.storage
        finally:
            blas.set_compute_type(precision.storage, before)


def copy_bandwidth(xp) -> float:
    """Return the bytes per second, read and written, of a large copy; on a GPU within the device."""
    source = xp.ones(_COPIED // 4, np.float32)
    target = xp.empty_like(source)
    return 2 * source.nbytes / fastest(xp, lambda: xp.copyto(target, source))


def fastest(xp, work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Return the shortest time of a function in seconds; on a GPU, between two events of the stream.

    Args:
        xp: NumPy or CuPy.
        work: The function.
        repeats: Number of timed calls, after one that is not timed.
    """
    work()
    return min(seconds(xp, work) for _ in range(repeats))


def seconds(xp, work: Callable[[], object]) -> float:
    """Return the time of one call in seconds; on a GPU, between two events of the stream."""
    if xp is np:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (xp.cuda.Event() for _ in range(2))
    first.record()
    work()
    last.record()
    last.synchronize()
    return xp.cuda.get_elapsed_time(first, last) / 1000
