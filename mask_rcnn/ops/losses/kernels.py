"""The kernels of the losses on a GPU, and the sums over their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array

#: Threads of a block (losses.cu).
THREADS = 256

_SUFFIXES = {np.dtype(np.float16): '_half', np.dtype(np.float32): ''}


def kernel(name: str, dtype: Any = np.float32) -> Any:
    """Return a kernel for float16 or float32 arrays."""
    return cuda_kernels.kernel('losses/losses.cu', name + _SUFFIXES[np.dtype(dtype)])


def launch_sum(launcher: Any, n_blocks: int, arguments: Sequence, xp: Any) -> Array:
    """Launch a kernel that sums losses, and a second one if the first has several blocks.

    Args:
        launcher: The kernel.
        n_blocks: Number of its blocks; without blocks the sum is 0.
        arguments: Its arguments except the last two, the sums of the blocks and the loss.
        xp: CuPy.

    Returns:
        array: A float32 scalar.
    """
    if n_blocks == 0:
        return xp.zeros((), np.float32)
    loss, partials = xp.empty((), np.float32), xp.empty(n_blocks, np.float64)
    launcher((n_blocks,), (THREADS,), (*arguments, partials, loss))
    if n_blocks > 1:
        kernel('sum_partials')((1,), (THREADS,), (partials, np.int32(n_blocks), loss))
    return loss
