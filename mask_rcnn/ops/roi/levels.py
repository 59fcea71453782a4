"""The level of the feature pyramid of each RoI on a GPU: one launch instead of one per operation."""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module


def assign_levels_gpu(
    rois: Array,
    n_levels: int,
    *,
    canonical_size: float,
    canonical_level: float,
    first_level: float,
    offset: float,
    epsilon: float,
    bias: float,
    round_to_nearest: bool,
) -> Array:
    """Return ``canonical_level + log2(size / canonical_size + epsilon) + bias``, rounded, counted from ``first_level``.

    Args:
        rois: CuPy array ``(R, 4)`` float32; NaN for padding, whose level is 0.
        n_levels: Number of levels.
        canonical_size: Size (square root of the area, pixels) of a RoI of the canonical level.
        canonical_level: The logarithm of the stride of the canonical level.
        first_level: The logarithm of the stride of the first level.
        offset: 1 or 0; see :mod:`mask_rcnn.ops.boxes.boxes`.
        epsilon: A term of the logarithm's argument.
        bias: A term of the level before it is rounded.
        round_to_nearest: Whether to round to the nearest integer or down.

    Returns:
        ``(R,)`` int32 indices of levels.
    """
    xp = get_array_module(rois)
    levels = xp.empty(len(rois), np.int32)
    cuda_kernels.launch(
        cuda_kernels.kernel('roi/levels.cu', 'assign_levels'),
        len(rois),
        (
            xp.ascontiguousarray(rois, np.float32),
            np.int32(len(rois)),
            *map(np.float32, (offset, canonical_size, epsilon, bias, canonical_level, first_level)),
            np.int32(round_to_nearest),
            np.int32(n_levels),
            levels,
        ),
    )
    return levels
