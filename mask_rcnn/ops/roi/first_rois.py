"""The features of the first RoIs, which the mask head shares with the box head."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from mask_rcnn.ops.runtime.array import get_array_module
from mask_rcnn.ops.runtime.memory_layout import memory_axis_order


def first_rois(features: Any, n: int) -> Any:
    """Return the features of the first RoIs, without a copy.

    The gradient of Chainer's slices is zeros of all RoIs, to which CuPy adds: in an iteration of R-50-C4 two arrays of
    205 MB, whose memory layout the next convolution changes.

    Args:
        features: ``(R, C, h, w)`` floats.
        n: Number of RoIs, at most R.

    Returns:
        chainer.Variable: ``(n, C, h, w)``; on a GPU differentiable once.
    """
    if n == len(features):
        return features
    return features[:n] if get_array_module(features) is np else _FirstRoIs(n).apply((features,))[0]


class _FirstRoIs(chainer.FunctionNode):
    """The first rows of an array on a GPU; the gradient has the memory layout of the output's gradient."""

    def __init__(self, n: int):
        self._n = n

    def forward(self, inputs):
        self._shape = inputs[0].shape
        return (inputs[0][: self._n],)

    def backward(self, indexes, grad_outputs):
        return self.backward_accumulate(indexes, grad_outputs, (None,))

    def backward_accumulate(self, target_input_indexes, grad_outputs, grad_inputs):
        values = grad_outputs[0].array
        others = None if grad_inputs[0] is None else grad_inputs[0].array
        order = memory_axis_order(values if others is None else others)
        if others is None:
            xp = get_array_module(values)
            gradient = xp.zeros([self._shape[axis] for axis in order], values.dtype)
        else:
            gradient = others.transpose(order).copy()
        first = gradient.transpose(np.argsort(order))[: self._n].transpose(order)
        first += values.transpose(order)
        return (chainer.as_variable(gradient.transpose(np.argsort(order))),)
