"""Global average pooling: Chainer's mean, or one kernel on a GPU."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, as_nhwc, channels_last, vector_lanes


def global_average_pooling_2d(x: chainer.Variable | Array) -> chainer.Variable:
    """Return the mean over all locations of each channel.

    Args:
        x: ``(N, C, H, W)``, float32 or float16, not empty in space.

    Returns:
        chainer.Variable: ``(N, C)`` float32; on a GPU differentiable once.
    """
    if get_array_module(x) is not np and x.dtype.char in 'ef':
        return _GlobalAveragePooling().apply((x,))[0]
    mean = F.mean(x, axis=(2, 3))
    return mean if mean.dtype == np.float32 else F.cast(mean, np.float32)


class _GlobalAveragePooling(chainer.FunctionNode):
    """The mean over all locations on a GPU; the gradient of ``x`` has the channels innermost."""

    def forward(self, inputs):
        self._shape, self._dtype = inputs[0].shape, inputs[0].dtype
        return (average_gpu(inputs[0]),)

    def backward(self, indexes, grad_outputs):
        return self.backward_accumulate(indexes, grad_outputs, (None,))

    def backward_accumulate(self, target_input_indexes, grad_outputs, grad_inputs):
        n, channels, height, width = self._shape
        share = (grad_outputs[0].array / np.float32(height * width)).astype(self._dtype)[:, None, None]
        if grad_inputs[0] is None:
            xp = get_array_module(share)
            gradient = xp.ascontiguousarray(xp.broadcast_to(share, (n, height, width, channels)))
        else:
            gradient = as_nhwc(grad_inputs[0].array) + share
        return (chainer.as_variable(as_nchw(gradient)),)


def average_gpu(x: Array) -> Array:
    """Pool CuPy arrays, fastest with the channels innermost.

    CuPy's mean takes 0.4 ms for 1000 x 2048 x 7 x 7 float16 (H200).
    """
    images = channels_last(x)
    n, height, width, channels = images.shape
    y = get_array_module(x).empty((n, channels), np.float32)
    is_half = x.dtype == np.float16
    lanes = vector_lanes(8 if is_half else 4, images)
    cuda_kernels.launch(
        cuda_kernels.kernel('conv/average_pooling.cu', f'average_pooling_{"half_" if is_half else ""}{lanes}'),
        y.size // lanes,
        (cuda_kernels.as_argument(images), *map(np.int32, (n, height * width, channels)), y),
    )
    return y
