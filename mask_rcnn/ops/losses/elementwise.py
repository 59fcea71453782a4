"""Losses of selected elements: binary cross entropy and smooth L1.

An image has 268,000 anchors, of which 256 are sampled, and a RoI has the deltas and the masks of all classes, of which
those of one class are trained.  So each loss selects its elements; a separate selection would need two more functions.

Losses of float16 are computed in float32, and gradients have the type of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chainer
import numpy as np

from mask_rcnn.ops.losses.kernels import kernel, launch_sum
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import compute_dtype, memory_axis_order

#: Elements per block, 16 per thread, so that one block sums the losses of the sampled anchors; and the most blocks.
_BLOCK_ELEMENTS, _MAX_BLOCKS = 1 << 12, 1 << 10


def sigmoid_cross_entropy(
    logits: chainer.Variable | Array, indices: Array, labels: Array, weights: Array
) -> chainer.Variable:
    """Return the weighted sum of the binary cross entropies of ``logits[indices[0], indices[1]]``.

    This is Detectron's ``SigmoidCrossEntropyLoss``, with soft labels that of PyTorch
    (``binary_cross_entropy_with_logits``).  It has no second derivatives.

    Args:
        logits: ``(A, B, ...)`` floats; on a GPU float16 or float32.
        indices: ``(2, S)`` int32: the indices along the first two axes.  No two columns are equal.
        labels: ``(S, ...)``: int32, 1 or 0; or float32 soft labels from 0 to 1.  Elements with -1 are ignored.
        weights: ``(S,)`` float32.

    Returns:
        chainer.Variable: A float32 scalar; on the CPU float64 for float64.
    """
    return _SelectedLoss(_cross_entropy_name(labels), indices, labels, weights).apply((logits,))[0]


def smooth_l1(
    predicted: chainer.Variable | Array, indices: Array, targets: Array, weights: Array, *, beta: float
) -> chainer.Variable:
    """Return the weighted sum of smooth L1 losses of ``predicted[indices[0], indices[1]]``.

    The loss of an element is ``d * d / (2 * beta)`` where ``d < beta``, else ``d - beta / 2``; ``d`` is the absolute
    difference from the target (Girshick 2015, equation 3; ``SmoothL1Loss``).  Where ``beta`` and ``d`` are 0, so is the
    gradient.  It has no second derivatives.

    Args:
        predicted: ``(A, B, ...)`` floats; on a GPU float16 or float32.
        indices: ``(2, S)`` int32: the indices along the first two axes.  No two columns are equal.
        targets: ``(S, ...)`` float32.
        weights: ``(S,)`` float32.
        beta: Difference at which the loss becomes linear; 0 for the L1 loss.

    Returns:
        chainer.Variable: A float32 scalar; on the CPU float64 for float64.
    """
    return _SelectedLoss('smooth_l1', indices, targets, weights, beta).apply((predicted,))[0]


def sigmoid_cross_entropies(logits: np.ndarray, indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the terms of :func:`sigmoid_cross_entropy` without their weights, on the CPU.

    Args:
        logits: See :func:`sigmoid_cross_entropy`.
        indices: See :func:`sigmoid_cross_entropy`.
        labels: See :func:`sigmoid_cross_entropy`.

    Returns:
        numpy.ndarray: ``(S, ...)`` floats; 0 for ignored elements.
    """
    return _select_losses(_cross_entropy_name(labels), logits, indices, labels, 1.0)[0]


def smooth_l1_losses(predicted: np.ndarray, indices: np.ndarray, targets: np.ndarray, *, beta: float) -> np.ndarray:
    """Return the terms of :func:`smooth_l1` without their weights, on the CPU.

    Args:
        predicted: See :func:`smooth_l1`.
        indices: See :func:`smooth_l1`.
        targets: See :func:`smooth_l1`.
        beta: See :func:`smooth_l1`.

    Returns:
        numpy.ndarray: ``(S, ...)`` floats.
    """
    return _select_losses('smooth_l1', predicted, indices, targets, beta)[0]


def _cross_entropy_name(labels: Array) -> str:
    """Return the name of the cross entropy of some labels."""
    return 'soft_sigmoid_cross_entropy' if labels.dtype.kind == 'f' else 'sigmoid_cross_entropy'


def _select_losses(
    name: str, x: np.ndarray, indices: np.ndarray, targets: np.ndarray, beta: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the gradient of each selected element, on the CPU."""
    selected = x[tuple(indices)].astype(compute_dtype(x.dtype), copy=False)
    return _FUNCTIONS[name](selected, targets, selected.dtype.type(beta))


class _SelectedLoss(chainer.FunctionNode):
    """A weighted sum of the losses of selected elements.

    The forward pass computes the gradient of each element as well, so that it retains neither input nor output.

    Args:
        name: A name of :data:`_FUNCTIONS`, which is also that of the kernel.
        indices: ``(2, S)`` int32.
        targets: ``(S, ...)``: labels or targets.
        weights: ``(S,)`` float32.
        beta: See :func:`smooth_l1`.
    """

    def __init__(self, name: str, indices: Array, targets: Array, weights: Array, beta: float = 1.0):
        self._name, self._indices, self._targets, self._weights, self._beta = name, indices, targets, weights, beta

    def forward_cpu(self, inputs):
        (x,) = inputs
        self._shape, self._dtype, self._axes = x.shape, x.dtype, memory_axis_order(x)
        losses, gradients = _select_losses(self._name, x, self._indices, self._targets, self._beta)
        weights = self._weights.reshape(-1, *[1] * (losses.ndim - 1))
        self._gradients = gradients * weights
        return (np.asarray((losses * weights).sum(dtype=np.float64), compute_dtype(x.dtype)),)

    def forward_gpu(self, inputs):
        x, axes = _as_dense(inputs[0])
        xp, n = get_array_module(x), self._targets.size
        self._shape, self._dtype, self._axes = inputs[0].shape, x.dtype, axes
        self._gradients = xp.empty(self._targets.shape, np.float32)
        self._selection = _selection(inputs[0].shape, axes, self._indices, n)
        selected = cuda_kernels.as_argument(x), *self._selection
        arguments = *selected, self._targets, self._weights, np.float32(self._beta), self._gradients
        n_blocks = min(-(-n // _BLOCK_ELEMENTS), _MAX_BLOCKS)
        return (launch_sum(kernel(self._name, x.dtype), n_blocks, arguments, xp),)

    def backward(self, indexes, grad_outputs):
        gradient = grad_outputs[0].array
        is_on_cpu = isinstance(gradient, np.ndarray)
        return (chainer.as_variable(self.gradient_cpu(gradient) if is_on_cpu else self.gradient_gpu(gradient)),)

    def gradient_cpu(self, loss_gradient):
        """Return the gradient of the input for that of the loss, on the CPU."""
        gradient = self._zeros(np).transpose(np.argsort(self._axes))
        gradient[tuple(self._indices)] = self._gradients * loss_gradient
        return gradient

    def gradient_gpu(self, loss_gradient):
        """Return the gradient of the input for that of the loss, on a GPU."""
        gradient = self._zeros(get_array_module(loss_gradient))
        cuda_kernels.launch(
            kernel('scatter_gradients', gradient.dtype),
            self._gradients.size,
            (self._gradients, loss_gradient, *self._selection, cuda_kernels.as_argument(gradient)),
        )
        return gradient.transpose(np.argsort(self._axes).tolist())

    def _zeros(self, xp: Any) -> Array:
        """Return zeros with the axes of the input in the order of its memory."""
        return xp.zeros([self._shape[axis] for axis in self._axes], self._dtype)


def _selection(shape: tuple[int, ...], axes: Sequence[int], indices: Array, n: int) -> tuple:
    """Return the arguments of a kernel that describe the selected elements.

    Args:
        shape: The shape of the input.
        axes: Its axes in the order of its memory.
        indices: ``(2, S)`` int32.
        n: Number of selected elements.
    """
    strides, stride = [0] * len(shape), 1
    for axis in reversed(axes):
        strides[axis], stride = stride, stride * shape[axis]
    step = strides[-1] if len(shape) > 2 else 0
    return indices, np.int32(n), np.int32(n // max(indices.shape[1], 1)), *map(np.int64, (*strides[:2], step))


def _binary_cross_entropies(x: np.ndarray, labels: np.ndarray, _: np.floating) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the gradient of each element."""
    predicted, counted, e = x >= 0, (labels >= 0).astype(x.dtype), np.exp(-np.abs(x))
    losses = (np.log1p(e) - x * (labels - predicted).astype(x.dtype)) * counted
    gradients = np.where(predicted == labels, e, counted) / (1 + e)
    return losses, np.negative(gradients, out=gradients, where=labels == 1)


def _soft_cross_entropies(x: np.ndarray, labels: np.ndarray, _: np.floating) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the gradient of each element; small ones of labels 0 and 1 suffer from no cancellation."""
    labels = labels.astype(x.dtype, copy=False)
    predicted, counted, e = x >= 0, (labels >= 0).astype(x.dtype), np.exp(-np.abs(x))
    losses = (np.log1p(e) - x * (labels - predicted.astype(x.dtype))) * counted
    gradients = np.where(predicted, (1 - labels) - labels * e, (1 - labels) * e - labels)
    return losses, gradients * counted / (1 + e)


def _smooth_l1_losses(x: np.ndarray, targets: np.ndarray, beta: np.floating) -> tuple[np.ndarray, np.ndarray]:
    """Return the loss and the gradient of each element."""
    differences = x - targets
    distances = np.abs(differences)
    if beta == 0:
        return distances, np.sign(differences)
    clipped = np.minimum(distances, beta)
    return clipped * (distances - clipped / 2) / beta, np.copysign(clipped, differences) / beta


_FUNCTIONS = {
    'sigmoid_cross_entropy': _binary_cross_entropies,
    'soft_sigmoid_cross_entropy': _soft_cross_entropies,
    'smooth_l1': _smooth_l1_losses,
}


def _as_dense(x: Array) -> tuple[Array, list[int]]:
    """Return an array with its axes in the order of its memory, contiguous, and this order.

    The array is copied if it has gaps, or if the elements of a vector ``x[i, j]`` have no common distance.
    """
    axes = memory_axis_order(x)
    inner = [axis for axis in axes if axis >= 2]
    first = axes.index(2) if inner else 0
    memory = x.transpose(axes)
    if not memory.flags.c_contiguous or axes[first : first + len(inner)] != list(range(2, x.ndim)):
        memory, axes = get_array_module(x).ascontiguousarray(x), list(range(x.ndim))
    return memory, axes
