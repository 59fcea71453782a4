"""The linear layer on the CPU, whose bits do not depend on the number of threads.

OpenBLAS divides a matmul among its threads, and selects its kernels by the sizes of the parts, which add in different
orders.  Here the blocks have a fixed size, and each is computed by one thread.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.runtime.parallel import parallel_for

#: Output channels per block.  The rows are packed once per block: blocks of 64 to 512 channels take the same time.
_CHANNELS = 128


def linear(x: np.ndarray, W: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    """Return ``x @ W.T + bias``, ``(R, O)``.

    Args:
        x: ``(R, C)`` floats.
        W: ``(O, C)``.
        bias: ``(O,)``, or ``None``.
    """
    y = np.empty((len(x), len(W)), np.result_type(x, W))

    def compute_blocks(first: int, last: int) -> None:
        for start in range(first * _CHANNELS, min(last * _CHANNELS, len(W)), _CHANNELS):
            channels = slice(start, start + _CHANNELS)
            block = x @ W[channels].T
            y[:, channels] = block if bias is None else block + bias[channels]

    parallel_for(compute_blocks, -(-len(W) // _CHANNELS), uses_blas=True)
    return y
