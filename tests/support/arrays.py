"""Random inputs of operations."""

from __future__ import annotations

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
