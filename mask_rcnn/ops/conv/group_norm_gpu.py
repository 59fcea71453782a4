"""Group normalisation on a GPU, of images whose channels are innermost in memory.

Three launches: the sums of each channel over chunks of an image's pixels, which keep a GPU busy with a single image;
the statistics of each group; and the elements.  The host does not wait for any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, channels_last, compute_dtype, vector_lanes

_SOURCE = 'conv/group_norm.cu'
#: Threads of a block that reads images, and the pixels of each of them (group_norm.cu).
_THREADS, _THREAD_PIXELS = 256, 32
#: Threads of a block that adds the sums of chunks (group_norm.cu).
_STATISTICS_THREADS = 32
#: Statistics of a group: the mean, its rounding error, and the reciprocal standard deviation.
_N_STATISTICS = 3
#: Maximum number of threads side by side that read a pixel.
_MAX_COLUMNS = 32


@dataclass(frozen=True)
class _Launch:
    """The sizes of a launch for images ``(N, H, W, C)``.

    Args:
        images: The arrays that the kernels read and write in packs of channels, as their arguments.
        groups: Number of groups.
        dtype: Type of statistics and parameters.
    """

    images: tuple[Array, ...]
    groups: int
    dtype: np.dtype

    @property
    def lanes(self) -> int:
        """The number of channels in a pack."""
        return vector_lanes(8 if self._is_half else 4, *self.images)

    @property
    def geometry(self) -> tuple[np.int32, ...]:
        """Pixels of an image, channels, channels of a group, columns and chunks, as the kernels declare them."""
        n_pixels, channels, columns, n_chunks = self._sizes
        return tuple(map(np.int32, (n_pixels, channels, channels // self.groups, columns, n_chunks)))

    @property
    def group_geometry(self) -> tuple[np.int32, ...]:
        """The geometry without the columns, for the kernels with a block per group."""
        n_pixels, channels, group_channels, _, n_chunks = self.geometry
        return n_pixels, channels, group_channels, n_chunks

    @property
    def sums_shape(self) -> tuple[int, ...]:
        """Shape of the sums of all chunks."""
        _, channels, _, n_chunks = self._sizes
        return 2, len(self.images[0]) * n_chunks, channels

    @property
    def n_groups(self) -> int:
        """The number of groups of all images."""
        return len(self.images[0]) * self.groups

    def over_pixels(self, name: str, *arguments: Any) -> None:
        """Launch a kernel that reads images."""
        _, channels, columns, n_chunks = self._sizes
        suffix = f'{"half_" if self._is_half else ""}{self.lanes}'
        grid = len(self.images[0]) * n_chunks, -(-channels // (self.lanes * columns))
        self._kernel(f'{name}_{suffix}')(grid, (_THREADS,), arguments)

    def over_groups(self, name: str, *arguments: Any) -> None:
        """Launch a kernel with a block per group."""
        self._kernel(name)((self.n_groups,), (_STATISTICS_THREADS,), arguments)

    def _kernel(self, name: str) -> Callable:
        return cuda_kernels.kernel(_SOURCE, name, self.dtype)

    @property
    def _is_half(self) -> bool:
        return self.images[0].dtype == np.uint16

    @property
    def _sizes(self) -> tuple[int, int, int, int]:
        """Pixels of an image, channels, columns and chunks."""
        _, height, width, channels = self.images[0].shape
        columns = min(1 << (channels // self.lanes - 1).bit_length(), _MAX_COLUMNS)
        n_chunks = -(-height * width // (_THREADS // columns * _THREAD_PIXELS))
        return height * width, channels, columns, n_chunks


def normalize_gpu(
    x: Array,
    gamma: Array,
    beta: Array,
    groups: int,
    eps: float,
    residual: Array | None,
    *,
    relu: bool,
    overwrite: bool,
) -> tuple[Array, Array]:
    """Normalise images; see :func:`mask_rcnn.ops.conv.group_norm.group_norm`.

    Args:
        x: ``(N, C, H, W)`` float16, float32 or float64 CuPy array, not empty.
        gamma: ``(C,)``.
        beta: ``(C,)``.
        groups: Number of groups.
        eps: Constant that is added to the variance.
        residual: ``(N, C, H, W)`` to add, or ``None``.
        relu: Whether to apply ReLU.
        overwrite: Whether the result may use the memory of ``x``.

    Returns:
        The result, ``(N, C, H, W)`` with the channels innermost, and the statistics of each group for
        :func:`gradients_gpu`, ``(N, groups, 3)`` float32 or float64.
    """
    xp, dtype = get_array_module(x), compute_dtype(x.dtype)
    source = channels_last(x)
    terms = source if residual is None else channels_last(residual, x.dtype)
    y = source if overwrite else xp.empty_like(source)
    arguments = tuple(map(cuda_kernels.as_argument, (source, terms, y)))
    launch = _Launch(arguments, groups, dtype)
    statistics, sums = xp.empty((len(x), groups, _N_STATISTICS), dtype), xp.empty(launch.sums_shape, np.float64)
    parameters = [xp.ascontiguousarray(parameter, dtype) for parameter in (gamma, beta)]
    source, terms, y = arguments
    launch.over_pixels('group_norm_sums', source, source, np.int32(0), *launch.geometry, statistics, sums)
    launch.over_groups('group_norm_statistics', sums, *launch.group_geometry, np.float64(eps), statistics)
    flags = np.int32(residual is not None), np.int32(relu)
    launch.over_pixels('group_norm', source, terms, *flags, *parameters, statistics, *launch.geometry, y)
    return as_nchw(y.view(x.dtype)), statistics


def gradients_gpu(x: Array, gamma: Array, gy: Array, statistics: Array) -> tuple[Array, Array, Array]:
    """Return the gradients with respect to ``x``, ``gamma`` and ``beta``.

    Args:
        x: ``(N, C, H, W)`` float16, float32 or float64 CuPy array, not empty.
        gamma: ``(C,)``.
        gy: ``(N, C, H, W)``, the gradient of the result before residual and ReLU.
        statistics: The second result of :func:`normalize_gpu`.

    Returns:
        ``(N, C, H, W)`` of the type of ``x`` with the channels innermost, and two ``(C,)`` float64.
    """
    xp, dtype = get_array_module(x), compute_dtype(x.dtype)
    source, upstream = channels_last(x), channels_last(gy, x.dtype)
    arguments = tuple(map(cuda_kernels.as_argument, (source, upstream, xp.empty_like(source))))
    launch = _Launch(arguments, statistics.shape[1], dtype)
    sums, means = xp.empty(launch.sums_shape, np.float64), xp.empty((*statistics.shape[:2], 2), dtype)
    channel_sums = xp.empty((2, *x.shape[:2]), np.float64)
    gamma = xp.ascontiguousarray(gamma, dtype)
    source, upstream, gx = arguments
    launch.over_pixels('group_norm_sums', source, upstream, np.int32(1), *launch.geometry, statistics, sums)
    launch.over_groups(
        'group_norm_gradient_means', sums, gamma, statistics, *launch.group_geometry, channel_sums, means
    )
    launch.over_pixels('group_norm_gradient', source, upstream, gamma, statistics, means, *launch.geometry, gx)
    grad_beta, grad_gamma = channel_sums.sum(axis=1)
    return as_nchw(gx.view(x.dtype)), grad_gamma, grad_beta
