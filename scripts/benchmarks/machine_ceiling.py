"""What a machine can do at best, and how much work a network gives it."""

from __future__ import annotations

import contextlib
import importlib.util
import time
from collections.abc import Callable

import chainer
import numpy as np

import mask_rcnn  # noqa: F401  (before Chainer, which it makes importable)
from mask_rcnn.ops.cudnn_frontend import current_precision
from mask_rcnn.ops.cudnn_frontend.precision import Precision

#: Side of the square matrices that are multiplied: large enough for full speed.
_CPU_SIDE, _GPU_SIDE = 2048, 8192
#: Bytes that are copied: more than any cache holds.
_COPIED = 256 << 20
_REPEATS = 5


class WorkCounter(chainer.LinkHook):
    """Counts the floating-point operations of products, two for each multiplication and addition.

    Convolutions, deconvolutions and linear layers are counted as they are written down; an implementation
    that gets by with fewer multiplications (Winograd) may exceed the rate of matrix products.

    Attributes:
        operations (int): What the links below the ``with`` block have computed so far.
    """

    name = 'WorkCounter'

    def __init__(self):
        self.operations = 0

    def forward_postprocess(self, args):
        link = getattr(args.link, 'conv', args.link)  # a ConvNorm's convolution, or one of its own
        weights = getattr(link, 'W', None)
        if weights is None or (link is not args.link and not hasattr(args.link, 'norm')):
            return
        # Every number of the output, of a deconvolution every number of the input, meets one filter.
        transposed = isinstance(link, chainer.links.Deconvolution2D)
        numbers = args.args[0] if transposed else args.out
        self.operations += 2 * numbers.size * (weights.size // len(weights))


def matmul_flops(xp) -> float | None:
    """Return the operations a second of a large matrix product, in the current precision.

    Its operands are of that type already, and on a GPU it is cuBLAS's.  ``None`` where there is no such product:
    CuPy knows bfloat16 from version 14 on, with the package ml_dtypes.
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
    """Return a context in which matrices are multiplied in a precision: the type of its factors, or ``None``."""
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
    """Return the bytes a second, read and written, of a large copy; on a GPU from the device to itself."""
    source = xp.ones(_COPIED // 4, np.float32)
    target = xp.empty_like(source)
    return 2 * source.nbytes / fastest(xp, lambda: xp.copyto(target, source))


def fastest(xp, work: Callable[[], object], repeats: int = _REPEATS) -> float:
    """Return the seconds that a function takes at best; on a GPU those between two events of its stream.

    Args:
        xp: NumPy or CuPy.
        work: What is timed.
        repeats: How often, after one time that is not.
    """
    work()
    return min(seconds(xp, work) for _ in range(repeats))


def seconds(xp, work: Callable[[], object]) -> float:
    """Return the seconds that a function takes, once; on a GPU those between two events of its stream."""
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
