"""Inputs of operations: random boxes, and arrays with a memory layout."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

#: Swaps x and y: ``(x_min, y_min, x_max, y_max)``, Detectron's order, to ``(y_min, x_min, y_max, x_max)`` or back.
SWAP_XY = [1, 0, 3, 2]


def swap_xy(boxes: np.ndarray) -> np.ndarray:
    """Swap x and y in ``(R, 4 * K)`` boxes or deltas."""
    return boxes.reshape(len(boxes), -1, 4)[..., SWAP_XY].reshape(boxes.shape)


def random_boxes(rng: np.random.RandomState, *shape: int, limit: float = 60, min_side: float = 1, max_side: float = 30):
    """Return random boxes ``(*shape, 4)`` float32 whose first corners are less than ``limit``."""
    corners = rng.uniform(0, limit, (*shape, 2))
    sides = rng.uniform(min_side, max_side, (*shape, 2))
    return np.concatenate([corners, corners + sides], axis=-1).astype(np.float32)


def copy_with_strides(array: np.ndarray, xp: Any) -> Any:
    """Return a copy in another array module with the strides of a NumPy array, gaps included.

    CuPy's ``asarray`` returns an array in C or Fortran order.

    Args:
        array: NumPy array whose strides are multiples of the element size.  A reversed axis becomes an ordinary one.
        xp: NumPy or CuPy.
    """
    if not array.size or min(array.strides, default=0) < 0:
        return xp.array(array)
    last = sum((size - 1) * stride for size, stride in zip(array.shape, array.strides, strict=True))
    memory = xp.zeros(math.ceil(last / array.itemsize) + 1, array.dtype)
    copy = xp.lib.stride_tricks.as_strided(memory, array.shape, array.strides)
    copy[...] = xp.array(array)
    return copy
