"""The mask of one class of each RoI."""

from __future__ import annotations

import chainer.functions as F
import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import channels_last


def class_mask_probs(logits: Array, labels: Array) -> Array:
    """Return the sigmoid of the logits of one class of each RoI.

    Args:
        logits: ``(R, C, M, M)``, float16 or float32.
        labels: ``(R,)`` int32, below ``C``.

    Returns:
        array: ``(R, M, M)`` float32.
    """
    implementation = probs_cpu if get_array_module(logits) is np else probs_gpu
    return implementation(logits, labels)


def probs_cpu(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The CPU implementation."""
    return F.sigmoid(logits[np.arange(len(logits)), labels].astype(np.float32, copy=False)).array


def probs_gpu(logits: Array, labels: Array) -> Array:
    """The GPU implementation: one launch, fastest with the channels innermost in memory."""
    xp, is_half = get_array_module(logits), logits.dtype == np.float16
    pixels = channels_last(logits)
    n, height, width, n_classes = pixels.shape
    probs = xp.empty((n, height, width), np.float32)
    cuda_kernels.launch(
        cuda_kernels.kernel('masks/class_masks.cu', 'class_masks_half' if is_half else 'class_masks'),
        probs.size,
        (
            cuda_kernels.as_argument(pixels),
            xp.ascontiguousarray(labels, np.int32),
            *map(np.int32, (probs.size, height * width, n_classes)),
            probs,
        ),
    )
    return probs
