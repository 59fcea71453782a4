"""Cross entropy of the softmax of scores.

Losses of float16 are computed in float32, and gradients have the type of the input.
"""

from __future__ import annotations

import chainer
import numpy as np

from mask_rcnn.ops.losses.kernels import kernel, launch_sum
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import compute_dtype


def softmax_cross_entropy(scores: chainer.Variable | Array, labels: Array, weights: Array) -> chainer.Variable:
    """Return the weighted sum of the cross entropies of rows (``SoftmaxWithLoss``).

    It has no second derivatives.

    Args:
        scores: ``(R, C)`` floats; on a GPU float16 or float32.
        labels: ``(R,)`` int32, -1 for ignored rows.
        weights: ``(R,)`` float32.

    Returns:
        chainer.Variable: A float32 scalar; on the CPU float64 for float64.
    """
    return _SoftmaxCrossEntropy(labels, weights).apply((scores,))[0]


def softmax_cross_entropies(scores: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the terms of :func:`softmax_cross_entropy` without their weights, and the probabilities, on the CPU.

    Args:
        scores: ``(R, C)`` floats.
        labels: ``(R,)`` int32; the loss of an ignored row, whose weight is 0, is that of the label 0.

    Returns:
        tuple: The losses ``(R,)`` and the probabilities ``(R, C)``.
    """
    x = scores.astype(compute_dtype(scores.dtype), copy=False)
    x = x - x.max(axis=1, keepdims=True)
    e = np.exp(x)
    totals = e.sum(axis=1)
    losses = np.log(totals) - x[np.arange(len(x)), np.maximum(labels, 0)]
    e /= totals[:, None]
    return losses, e


class _SoftmaxCrossEntropy(chainer.FunctionNode):
    """The forward pass computes the gradient of each score as well, so that it retains neither input nor output."""

    def __init__(self, labels: Array, weights: Array):
        self._labels, self._weights = labels, weights

    def forward_cpu(self, inputs):
        (scores,) = inputs
        self._dtype = scores.dtype
        losses, self._gradients = softmax_cross_entropies(scores, self._labels)
        weights = self._weights * (self._labels >= 0)
        self._gradients[np.arange(len(scores)), np.maximum(self._labels, 0)] -= 1
        self._gradients *= weights[:, None]
        return (np.asarray((losses * weights).sum(dtype=np.float64), compute_dtype(scores.dtype)),)

    def forward_gpu(self, inputs):
        xp = get_array_module(inputs[0])
        scores = xp.ascontiguousarray(inputs[0])
        n_rows, n_classes = scores.shape
        self._dtype, self._gradients = scores.dtype, xp.empty(scores.shape, np.float32)
        rows = cuda_kernels.as_argument(scores), np.int32(n_classes)
        arguments = *rows, self._labels, self._weights, self._gradients
        return (launch_sum(kernel('softmax_cross_entropy', scores.dtype), n_rows, arguments, xp),)

    def backward(self, indexes, grad_outputs):
        xp = get_array_module(self._gradients)
        out = xp.empty(self._gradients.shape, self._dtype)
        return (chainer.as_variable(xp.multiply(self._gradients, grad_outputs[0].array, out=out)),)
