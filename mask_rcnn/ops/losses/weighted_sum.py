"""The weighted sum of scalars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import chainer
import numpy as np

from mask_rcnn.ops.runtime.array import Array


def weighted_sum(values: Sequence[chainer.Variable | Array], factors: Sequence[float]) -> chainer.Variable:
    """Return the sum of the products of some scalars and their factors.

    Chainer's operators create a function, and start a kernel on a GPU, for each product and each sum.  Here a factor
    of 1 costs nothing.  The sum has no second derivatives.

    Args:
        values: At least one float32 array without axes.
        factors: One number for each.
    """
    return _WeightedSum(factors).apply(values)[0]


class _WeightedSum(chainer.FunctionNode):
    def __init__(self, factors: Sequence[float]):
        self._factors = factors

    def forward(self, inputs):
        first, *others = map(_scaled, inputs, self._factors)
        for other in others:
            first = first + other
        return (_as_array(first),)

    def backward(self, indexes, grad_outputs):
        gradient = grad_outputs[0].array
        return [chainer.as_variable(_as_array(_scaled(gradient, self._factors[index]))) for index in indexes]


def _scaled(array: Array, factor: float) -> Array:
    return array if factor == 1 else array * np.float32(factor)


def _as_array(value: Any) -> Array:
    """Return the array for a scalar, which NumPy returns for operations on arrays without axes."""
    return np.asarray(value) if isinstance(value, np.generic) else value
