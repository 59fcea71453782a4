"""The RPN's outputs of all feature maps as one array."""

from __future__ import annotations

from collections.abc import Sequence

import chainer

from mask_rcnn.ops.runtime.array import Array, get_array_module


def flatten_anchors(outputs: Sequence[chainer.Variable | Array], n_values: int) -> chainer.Variable:
    """Join the RPN's outputs in the order of the anchors; one function for all feature maps.

    It has no second derivatives.

    Args:
        outputs: For each feature map, ``(N, A * n_values, h, w)`` floats.
        n_values: Number of values of an anchor: 1 for logits, 4 for deltas.

    Returns:
        chainer.Variable: ``(N, K, n_values)``, or ``(N, K)`` if ``n_values`` is 1.
    """
    return _FlattenAnchors(n_values).apply(outputs)[0]


class _FlattenAnchors(chainer.FunctionNode):
    def __init__(self, n_values: int):
        self._n_values = n_values

    def forward(self, inputs):
        xp, n_images = get_array_module(inputs[0]), len(inputs[0])
        self._sizes = [x.shape[1:] for x in inputs]
        n_elements = sum(channels * height * width for channels, height, width in self._sizes)
        flat = xp.empty((n_images, n_elements), inputs[0].dtype)
        for x, anchors in zip(inputs, self._split(flat), strict=True):
            anchors[...] = x.transpose(0, 2, 3, 1)
        return (flat if self._n_values == 1 else flat.reshape(n_images, -1, self._n_values),)

    def backward(self, indexes, grad_outputs):
        gradient = grad_outputs[0].array
        parts = self._split(gradient.reshape(len(gradient), -1))
        return [chainer.as_variable(parts[index].transpose(0, 3, 1, 2)) for index in indexes]

    def _split(self, flat: Array) -> list[Array]:
        """Return the part of each feature map ``(N, h, w, A * n_values)`` of ``(N, K * n_values)``, without a copy."""
        parts, start = [], 0
        for channels, height, width in self._sizes:
            stop = start + channels * height * width
            parts.append(flat[:, start:stop].reshape(len(flat), height, width, channels))
            start = stop
        return parts
