"""What a machine can do at best, and how much work a network gives it."""

from __future__ import annotations

import time

import numpy as np

import mask_rcnn  # noqa: F401  (before Chainer, which it makes importable)
import chainer
from mask_rcnn.ops import cudnn
from mask_rcnn.ops.convolution import convolve

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


def product_rate(xp) -> float:
    """Return the operations a second of a large matrix product, in the current precision."""
    side = _CPU_SIDE if xp is np else _GPU_SIDE
    matrices = [xp.asarray(np.random.RandomState(i).uniform(-1, 1, (side, side)).astype(np.float32))
                for i in (0, 1)]
    if xp is not np and cudnn.is_available():   # cuBLAS's precision is not ours to choose
        x, filters = matrices[0].T.reshape(1, side, 1, side), matrices[1].reshape(side, side, 1, 1)
        return 2 * side ** 3 / _fastest(xp, lambda: convolve(x, filters))
    return 2 * side ** 3 / _fastest(xp, lambda: xp.matmul(*matrices))


def copy_bandwidth(xp) -> float:
    """Return the bytes a second, read and written, of a large copy."""
    source = xp.ones(_COPIED // 4, np.float32)
    target = xp.empty_like(source)

    def copy():
        target[...] = source

    return 2 * source.nbytes / _fastest(xp, copy)


def _fastest(xp, work) -> float:
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        work()
        if xp is not np:
            xp.cuda.get_current_stream().synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
