"""Random problems, references and calls for the tests of RoI pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chainer
import numpy as np

from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize
from mask_rcnn.ops.roi.roi_align import roi_align
from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling

#: Height and width of the feature maps of :func:`random_problem`, and the network input pixels per pixel of them.
SIZE, STRIDE = (17, 23), 16


class Pooling(NamedTuple):
    """A kind of RoI pooling.

    Args:
        name: For test ids.
        function: The operation.
        options: Keyword arguments.
        pixel_roi: A RoI whose single bin is exactly pixel (1, 1) of a map with stride 1.
        has_layout: Whether the results have the channels first in memory on the CPU.
    """

    name: str
    function: Callable
    options: dict
    pixel_roi: Sequence[float]
    has_layout: bool

    def at_stride(self, size: Sequence[int], stride: int) -> dict:
        """Return the keyword arguments for RoIs in input pixels and maps of a size and a stride."""
        if self.function is crop_and_resize:
            return {'last': tuple(stride * (side - 1) for side in size), **self.options}
        return {'spatial_scale': 1 / stride, **self.options}


POOLINGS = [
    Pooling('align', roi_align, {}, (0, 0, 2, 2), True),
    Pooling('aligned', roi_align, {'aligned': True}, (1, 1, 2, 2), True),
    Pooling('max', roi_max_pooling, {}, (1, 1, 1, 1), False),
    Pooling('crop', crop_and_resize, {}, (1, 1, 1, 1), True),
]


def random_problem(rng, n=12, channels=5, size=SIZE, dtype=np.float32, distinct=False):
    """Return feature maps of two images, RoIs, and the image of each RoI.

    RoIs have all sizes and cross the borders; the first is tiny, the second reversed and the third empty.

    Args:
        rng: Source of random numbers.
        n: Number of RoIs, at least 3.
        channels: Number of channels.
        size: Height and width of the maps.
        dtype: Type of the maps.
        distinct: Whether no two values of the maps are equal.
    """
    shape = 2, channels, *size
    x = rng.permutation(np.prod(shape)).reshape(shape) if distinct else rng.standard_normal(shape)
    centre, side = rng.uniform(0, STRIDE, (n, 2)) * size, rng.uniform(1, 200, (n, 2))
    side[:3] = [[0.5], [-30], [0]]
    rois = np.concatenate((centre - side / 2, centre + side / 2), axis=1).astype(np.float32)
    return x.astype(dtype), rois, rng.randint(0, 2, n).astype(np.int32)


def pool(backend, function: Callable, x, rois, roi_indices, **options) -> chainer.Variable:
    """Pool NumPy arrays on a backend."""
    return function(backend.array(x), backend.array(rois), backend.array(roi_indices), **options)


def pool_gradient(backend, function: Callable, x, rois, roi_indices, gy, **options) -> np.ndarray:
    """Return the gradient of the feature maps for a gradient ``gy`` of the pooled RoIs."""
    x = chainer.Variable(backend.array(x))
    y = function(x, backend.array(rois), backend.array(roi_indices), **options)
    y.grad = backend.array(gy)
    y.backward()
    assert x.grad.dtype == x.dtype
    return backend.numpy(x.grad)


def pool_with_matrices(x, roi_indices, axis_matrix: Callable[[int, int], np.ndarray]) -> np.ndarray:
    """Return separable pooling as two float64 matrix products per RoI.

    Args:
        x: ``(N, C, H, W)``.
        roi_indices: ``(R,)``.
        axis_matrix: Takes the index of a RoI and an axis, 0 or 1; returns the weights ``(bins, size)``.
    """
    x = x.astype(np.float64)
    return np.stack(
        [
            np.einsum('ip,cpq,jq->cij', axis_matrix(r, 0), x[image], axis_matrix(r, 1))
            for r, image in enumerate(roi_indices)
        ]
    )
