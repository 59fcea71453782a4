"""Nearest-neighbour 2x upsampling of a feature map plus a finer one: the top-down pathway of a feature pyramid."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.ops.cudnn_frontend.gradient_sum import add_gradient
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nhwc, memory_axis_order, vector_lanes
from mask_rcnn.ops.runtime.parallel import jit, parallel_for

_BLOCK_THREADS = 256


def upsample_add(x: Array, coarse: Array) -> chainer.Variable:
    """Add a coarse feature map, upsampled by a factor of two, to ``x``; differentiable any number of times.

    Without a graph the sum overwrites the array of ``x``, in one pass over memory (on the CPU 0.02 instead of 0.1 s for
    the pyramid of an 800 x 1333 image).  The sum has the memory layout of ``x``, and gradients have that of the
    gradient of the sum.

    Args:
        x: ``(N, C, 2 * H, 2 * W)`` floats.
        coarse: ``(N, C, H, W)`` of the same type.

    Returns:
        chainer.Variable: ``(N, C, 2 * H, 2 * W)``.

    Raises:
        ValueError: Shapes or types do not match.
    """
    expected = *coarse.shape[:2], 2 * coarse.shape[2], 2 * coarse.shape[3]
    if x.shape != expected or x.dtype != coarse.dtype:
        raise ValueError(f'x is {x.dtype} {x.shape}, expected {coarse.dtype} {expected}, twice as large as coarse')
    if chainer.config.enable_backprop:
        return _Upsample2xAdd().apply((x, coarse))[0]
    features = chainer.as_array(x)
    _add(features, chainer.as_array(coarse), out=features)
    return chainer.as_variable(x)


class _Upsample2xAdd(chainer.FunctionNode):
    def forward(self, inputs):
        x, coarse = inputs
        y = get_array_module(x).empty_like(x)
        _add(x, coarse, out=y)
        return (y,)

    def backward(self, indexes, grad_outputs):
        (gy,) = grad_outputs
        return [gy if index == 0 else _SumPool2x2().apply((gy,))[0] for index in indexes]

    def backward_accumulate(self, target_input_indexes, grad_outputs, grad_inputs):
        gradients = self.backward(target_input_indexes, grad_outputs)
        return tuple(
            add_gradient(gradient, other, overwrite=index != 0)  # that of x is the gradient of the sum
            for index, gradient, other in zip(target_input_indexes, gradients, grad_inputs, strict=True)
        )


class _SumPool2x2(chainer.FunctionNode):
    """The sum over 2 x 2 locations: the gradient of the coarse feature map."""

    def forward(self, inputs):
        (gy,) = inputs
        axes = memory_axis_order(gy)
        sums = gy.transpose(*axes)
        for axis in (axes.index(2), axes.index(3)):
            even, odd = (sums[(slice(None),) * axis + (slice(start, None, 2),)] for start in (0, 1))
            sums = even + odd
        return (sums.transpose(*map(axes.index, range(4))),)

    def backward(self, indexes, grad_outputs):
        return (F.repeat(F.repeat(grad_outputs[0], 2, axis=2), 2, axis=3),)


def _add(x: Array, coarse: Array, out: Array) -> None:
    """Write the sum to ``out``, which may be ``x``; NumPy or CuPy arrays."""
    xp = get_array_module(x)
    if xp is np and x.dtype in (np.float32, np.float64):
        if out is not x:
            out[...] = x
        sums, terms = (array.transpose(1, 0, 2, 3) for array in (out, coarse))
        parallel_for(lambda start, stop: _add_channels(sums, terms, start, stop), len(sums))
        return
    if xp is not np and x.dtype.char in 'ef' and all(as_nhwc(a).flags.c_contiguous for a in (x, coarse, out)):
        add_gpu(x, coarse, out)
        return
    n, channels, height, width = coarse.shape
    sums, features = (array.reshape(n, channels, height, 2, width, 2) for array in (out, x))  # views
    axes = memory_axis_order(sums)
    sums, features, terms = (array.transpose(*axes) for array in (sums, features, coarse[:, :, :, None, :, None]))
    xp.add(features, terms, out=sums)


def add_gpu(x: Array, coarse: Array, out: Array) -> None:
    """Write the sum of CuPy arrays, float32 or float16 with the channels innermost, to ``out``, which may be ``x``.

    CuPy's addition would copy ``x`` first, because ``out`` overlaps it.
    """
    is_half = x.dtype == np.float16
    images = [cuda_kernels.as_argument(as_nhwc(array)) for array in (x, coarse, out)]
    n, height, width, channels = images[0].shape
    if x.size:
        lanes = vector_lanes(8 if is_half else 4, *images)
        cuda_kernels.kernel('conv/upsample_add.cu', f'upsample_add_{"half_" if is_half else ""}{lanes}')(
            (n * height, -(-width * channels // lanes // _BLOCK_THREADS)),
            (_BLOCK_THREADS,),
            (images[0], images[1], np.int32(channels), np.int32(width), images[2]),
        )


@jit
def _add_channels(features, coarse, start, stop):
    """Add channels ``start`` to ``stop`` of ``coarse`` ``(C, N, H, W)`` to those of ``features``."""
    for c in range(start, stop):
        for n in range(coarse.shape[1]):
            for i in range(features.shape[2]):
                row, source = features[c, n, i], coarse[c, n, i // 2]
                for j in range(coarse.shape[3]):
                    row[2 * j] += source[j]
                    row[2 * j + 1] += source[j]
