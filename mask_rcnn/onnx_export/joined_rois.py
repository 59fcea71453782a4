"""Convolution of RoIs that are one image in an ONNX graph.

Runtimes convolve the images of a batch one after the other and read the weights again for each of them.  For RoIs of
7 x 7 bins, that takes most of the time.  Here the RoIs are rows of one image, with a row of zeros after each RoI, which
is the padding of a 3x3 convolution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mask_rcnn.onnx_export.graph import Tensor


def convolve_joined(x: Tensor, height: int, layers: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> Tensor:
    """Apply convolutions of stride 1 that keep the size of the RoIs.

    Args:
        x: ``(R, C, height, W)`` float32, the features of at least one RoI.
        height: Height of the RoIs.
        layers: Called with the joined RoIs, ``(1, C, R * (height + 1), W)``, and a function that sets the rows between
            them to zero, as 3x3 convolutions with a padding of 1 require; returns joined RoIs.

    Returns:
        Tensor: ``(R, O, height, W)``.
    """
    graph, n_rois = x.graph, x.size(0)
    gap = graph.constant(np.array([0, 0, 0, 0, 0, 0, 1, 0]))
    y = layers(_join(graph.op('Pad', x.transpose(1, 0, 2, 3), gap)), lambda h: _clear_gaps(h, height))
    rows = y.reshape(y.size(1), n_rois, height + 1, y.size(3))
    return rows.slice(0, height, axis=2).transpose(1, 0, 2, 3)


def _join(x: Tensor) -> Tensor:
    """Reshape ``(C, R, rows, W)`` to ``(1, C, R * rows, W)``."""
    return x.reshape(1, x.size(0), x.size(1) * x.size(2), x.size(3))


def _clear_gaps(x: Tensor, height: int) -> Tensor:
    """Set the rows after the RoIs to zero."""
    is_row = np.ones((height + 1, 1), np.float32)
    is_row[height] = 0
    rows = x.reshape(x.size(1), x.size(2) / (height + 1), height + 1, x.size(3))
    return _join(rows * is_row)
