"""The differences between the weights of two networks, such as before and after fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.inspect.weights.network_order import part_of
from mask_rcnn.inspect.weights.source import WeightSource, read_network_weights


@dataclass(frozen=True)
class ArrayChange:
    """The difference between two arrays ``a`` and ``b`` of one name and shape, computed in float64.

    Values that are not finite in one of the arrays are left out of the numbers.

    Args:
        name: The path of the arrays.
        part: The part of the network, one of :data:`mask_rcnn.inspect.weights.network_order.PARTS`.
        shape: Their shape.
        dtypes: The names of their types.
        max_difference: ``max(abs(a - b))``; 0 without finite values.
        relative_change: ``norm(a - b) / norm(a)`` with L2 norms: 0 for equal values, infinite if only ``a`` is zero.
        cosine: The cosine of the angle between ``a`` and ``b`` as vectors; NaN if one of them is zero.
        is_identical: True if the types and all bits are equal.  Equal values of different types, such as float16 and
            float32, are not identical: one file does not replace the other.  Their ``relative_change`` is 0.
        n_not_finite: The number of values that are NaN or infinite in one of the arrays.
        n_not_finite_changes: The number of these that differ between the arrays; NaN is equal to NaN.
    """

    name: str
    part: str
    shape: tuple[int, ...]
    dtypes: tuple[str, str]
    max_difference: float
    relative_change: float
    cosine: float
    is_identical: bool
    n_not_finite: int
    n_not_finite_changes: int


@dataclass(frozen=True)
class WeightComparison:
    """The differences between two networks.

    Args:
        changes: The differences of the arrays that both have in one shape, in descending order of
            ``relative_change``; arrays with equal changes are in the order of the layers.  Arrays of which values that
            are not finite have changed are first.
        only_first: Names of the arrays that only the first network has, in the order of its layers.
        only_second: The same for the second one.
        other_shapes: The shapes of the arrays whose shapes differ, by name.
        settings: The values of the configuration and of the description that differ, by field; ``None`` for a field
            that one network does not have.
    """

    changes: tuple[ArrayChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    other_shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
    settings: Mapping[str, tuple[Any, Any]]

    @property
    def n_identical(self) -> int:
        """The number of arrays whose types and bits are equal."""
        return sum(change.is_identical for change in self.changes)


def compare_weights(first: WeightSource, second: WeightSource) -> WeightComparison:
    """Compare two networks array by array.

    Args:
        first: A weight file of any format, a model, or arrays by parameter path; see
            :func:`mask_rcnn.inspect.weights.source.read_network_weights`.
        second: Another one.

    Raises:
        mask_rcnn.weights.WeightFileError: A file cannot be read.
    """
    a, b = read_network_weights(first), read_network_weights(second)
    common = [name for name in a.arrays if name in b.arrays]
    shapes = {name: (a.arrays[name].shape, b.arrays[name].shape) for name in common}
    changes = [
        compare_arrays(name, a.arrays[name], b.arrays[name]) for name in common if shapes[name][0] == shapes[name][1]
    ]
    return WeightComparison(
        changes=tuple(sorted(changes, key=lambda change: (-change.n_not_finite_changes, -change.relative_change))),
        only_first=tuple(name for name in a.arrays if name not in b.arrays),
        only_second=tuple(name for name in b.arrays if name not in a.arrays),
        other_shapes={name: pair for name, pair in shapes.items() if pair[0] != pair[1]},
        settings=_differing(a.settings, b.settings),
    )


def compare_arrays(name: str, a: np.ndarray, b: np.ndarray) -> ArrayChange:
    """Return the difference between two arrays of one shape.

    Args:
        name: Their path.
        a: Floats or integers.
        b: Floats or integers of the same shape.
    """
    x, y = (np.asarray(array, np.float64).ravel() for array in (a, b))
    is_finite = np.isfinite(x) & np.isfinite(y)
    others = x[~is_finite], y[~is_finite]
    n_equal = np.count_nonzero((others[0] == others[1]) | (np.isnan(others[0]) & np.isnan(others[1])))
    if others[0].size:
        x, y = x[is_finite], y[is_finite]
    with np.errstate(over='ignore'):  # of float64 values near the largest float64
        difference = x - y
    change, norm = _norm(difference), _norm(x)
    return ArrayChange(
        name=name,
        part=part_of(name),
        shape=tuple(a.shape),
        dtypes=(a.dtype.name, b.dtype.name),
        max_difference=float(np.abs(difference).max(initial=0.0)),
        relative_change=_ratio(change, norm),
        cosine=_cosine(x, y),
        is_identical=a.dtype == b.dtype and a.tobytes() == b.tobytes(),
        n_not_finite=int(others[0].size),
        n_not_finite_changes=int(others[0].size - n_equal),
    )


def _ratio(change: float, norm: float) -> float:
    if change == 0:
        return 0.0
    return change / norm if norm > 0 and math.isfinite(change) else math.inf


def _norm(values: np.ndarray) -> float:
    """Return the L2 norm; it does not overflow where the squares would."""
    largest = float(np.abs(values).max(initial=0.0))
    if largest == 0 or math.isinf(largest):
        return largest
    return largest * float(np.linalg.norm(values / largest))


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    largest = [float(np.abs(values).max(initial=0.0)) for values in (x, y)]
    if not all(largest):
        return math.nan
    x, y = x / largest[0], y / largest[1]
    return float(np.clip(x @ y / (np.linalg.norm(x) * np.linalg.norm(y)), -1, 1))


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = dict.fromkeys([*first, *second])
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}
