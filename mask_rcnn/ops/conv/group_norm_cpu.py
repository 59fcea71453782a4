"""Group normalisation on the CPU, without a copy of images whose channels are outermost in memory.

A thread processes whole groups of an image, so that results do not depend on the number of threads.  Statistics and
elements are computed in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mask_rcnn.ops.runtime.memory_layout import as_images, channels_first, compute_dtype
from mask_rcnn.ops.runtime.parallel import jit, parallel_for

#: The number of elements that justify a thread.
_MIN_ELEMENTS = 1 << 15


@dataclass(frozen=True)
class _Layout:
    """The memory layout of images: rows of pixels, one for each channel of each image.

    Args:
        shape: Shape ``(N, C, H, W)`` of the images.
        channels_outermost: Whether the memory is ``(C, N, H, W)``; otherwise it is ``(N, C, H, W)``.
    """

    shape: tuple[int, ...]
    channels_outermost: bool

    @classmethod
    def of(cls, x: np.ndarray) -> _Layout:
        """Return the layout of images; channels are outermost if it is neither of the two."""
        return cls(x.shape, not x.flags.c_contiguous)

    @property
    def steps(self) -> tuple[int, int]:
        """The number of rows from an image to the next one, and from a channel to the next one."""
        n_images, n_channels = self.shape[:2]
        return (1, n_images) if self.channels_outermost else (n_channels, 1)

    def rows(self, x: np.ndarray, dtype: np.dtype) -> np.ndarray:
        """Return images as ``(N * C, H * W)`` in this layout; copy only if layout or type is another one."""
        memory = channels_first(x, dtype) if self.channels_outermost else np.ascontiguousarray(x, dtype)
        return memory.reshape(-1, self.shape[2] * self.shape[3])

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Return rows as ``(N, C, H, W)`` without a copy."""
        n_images, n_channels, height, width = self.shape
        if self.channels_outermost:
            return as_images(rows.reshape(n_channels, n_images, height, width))
        return rows.reshape(self.shape)


def normalize_cpu(
    x: np.ndarray,
    gamma: np.ndarray,
    beta: np.ndarray,
    groups: int,
    eps: float,
    residual: np.ndarray | None,
    *,
    relu: bool,
    overwrite: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Normalise images; see :func:`mask_rcnn.ops.conv.group_norm.group_norm`.

    Args:
        x: ``(N, C, H, W)`` floats, not empty.
        gamma: ``(C,)``.
        beta: ``(C,)``.
        groups: Number of groups.
        eps: Constant that is added to the variance.
        residual: ``(N, C, H, W)`` to add, or ``None``.
        relu: Whether to apply ReLU.
        overwrite: Whether the result may use the memory of ``x``.

    Returns:
        The result, ``(N, C, H, W)`` in the memory layout of ``x``, and the mean and the reciprocal standard deviation
        of each group, ``(N, groups, 2)`` float64.
    """
    layout, dtype = _Layout.of(x), compute_dtype(x.dtype)
    rows = layout.rows(x, dtype)
    terms = rows if residual is None else layout.rows(residual, dtype)
    y = rows if overwrite or not np.may_share_memory(rows, x) else np.empty_like(rows)
    statistics = np.empty((len(x), groups, 2))
    parameters = np.stack([gamma, beta]).astype(np.float64)
    options = *layout.steps, eps, residual is not None, relu
    parallel_for(
        lambda start, stop: _normalize(rows, terms, parameters, *options, start, stop, statistics, y),
        len(x) * groups,
        min_per_thread=_groups_per_thread(x, groups),
    )
    return layout.images(y).astype(x.dtype, copy=False), statistics


def gradients_cpu(
    x: np.ndarray, gamma: np.ndarray, gy: np.ndarray, statistics: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the gradients with respect to ``x``, ``gamma`` and ``beta``.

    Args:
        x: ``(N, C, H, W)`` floats, not empty.
        gamma: ``(C,)``.
        gy: ``(N, C, H, W)``, the gradient of the result before residual and ReLU.
        statistics: The second result of :func:`normalize_cpu`.

    Returns:
        ``(N, C, H, W)`` of the type and in the memory layout of ``x``, and two ``(C,)`` float64.
    """
    layout, dtype = _Layout.of(x), compute_dtype(x.dtype)
    rows, upstream = layout.rows(x, dtype), layout.rows(gy, dtype)
    gx, channel_sums = np.empty_like(rows), np.empty((2, *x.shape[:2]))
    gamma, steps, groups = gamma.astype(np.float64), layout.steps, statistics.shape[1]
    parallel_for(
        lambda start, stop: _differentiate(rows, upstream, gamma, *steps, statistics, start, stop, channel_sums, gx),
        len(x) * groups,
        min_per_thread=_groups_per_thread(x, groups),
    )
    grad_beta, grad_gamma = channel_sums.sum(axis=1)
    return layout.images(gx).astype(x.dtype, copy=False), grad_gamma, grad_beta


def _groups_per_thread(x: np.ndarray, groups: int) -> int:
    return max(_MIN_ELEMENTS * len(x) * groups // x.size, 1)


@jit
def _normalize(rows, terms, parameters, image_step, channel_step, eps, has_residual, relu, start, stop, statistics, y):
    """Normalise the groups ``start`` to ``stop`` of all images."""
    gamma, beta = parameters
    n_groups = statistics.shape[1]
    n_channels = len(gamma) // n_groups
    for index in range(start, stop):
        image, group = index // n_groups, index % n_groups
        first_row = image * image_step + group * n_channels * channel_step
        last_row = first_row + n_channels * channel_step
        # Differences from any element of the group keep the digits of the variance if the mean is much larger.
        origin = np.float64(rows[first_row, 0])
        total, square_total = 0.0, 0.0
        for row in range(first_row, last_row, channel_step):
            row_sum, row_square_sum = _sum_products(rows[row], rows[row], origin, True)
            total += row_sum
            square_total += row_square_sum
        n = n_channels * rows.shape[1]
        variance = square_total / n - (total / n) ** 2
        if variance < 0.0:  # a rounding error
            variance = 0.0
        mean, rate = origin + total / n, 1.0 / np.sqrt(variance + eps)
        statistics[image, group, 0], statistics[image, group, 1] = mean, rate
        for i in range(n_channels):
            row, channel = first_row + i * channel_step, group * n_channels + i
            scale, offset = gamma[channel] * rate, beta[channel]
            source, term, out = rows[row], terms[row], y[row]
            for j in range(len(source)):
                value = (source[j] - mean) * scale + offset
                if has_residual:
                    value += term[j]
                out[j] = 0.0 if relu and value < 0.0 else value


@jit
def _differentiate(rows, upstream, gamma, image_step, channel_step, statistics, start, stop, channel_sums, gx):
    """Write the gradients of the groups ``start`` to ``stop`` of all images; gamma's and beta's are sums over pixels.

    Wu and He 2018, the derivative of equation 1.
    """
    n_groups = statistics.shape[1]
    n_channels = len(gamma) // n_groups
    for index in range(start, stop):
        image, group = index // n_groups, index % n_groups
        first_row = image * image_step + group * n_channels * channel_step
        mean, rate = statistics[image, group]
        total, product_total = 0.0, 0.0
        for i in range(n_channels):
            row, channel = first_row + i * channel_step, group * n_channels + i
            row_sum, product_sum = _sum_products(rows[row], upstream[row], mean, False)
            product_sum *= rate
            channel_sums[0, image, channel], channel_sums[1, image, channel] = row_sum, product_sum
            total += gamma[channel] * row_sum
            product_total += gamma[channel] * product_sum
        n = n_channels * rows.shape[1]
        offset, factor = rate * total / n, rate * rate * product_total / n
        for i in range(n_channels):
            row, scale = first_row + i * channel_step, gamma[group * n_channels + i] * rate
            source, gradient, out = rows[row], upstream[row], gx[row]
            for j in range(len(source)):
                out[j] = gradient[j] * scale - offset - (source[j] - mean) * factor


@jit
def _sum_products(x, factors, origin, squares):
    """Return the sums of ``factors`` and of ``factors * (x - origin)``, or with ``squares`` of ``x - origin`` instead.

    Four sums of each kind, because the compiler keeps the order of additions and one would wait for the other.
    """
    a0, a1, a2, a3, b0, b1, b2, b3 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    n = len(x)
    for i in range(0, n - 3, 4):
        d0, d1, d2, d3 = x[i] - origin, x[i + 1] - origin, x[i + 2] - origin, x[i + 3] - origin
        if squares:
            f0, f1, f2, f3 = d0, d1, d2, d3
        else:
            f0, f1 = np.float64(factors[i]), np.float64(factors[i + 1])
            f2, f3 = np.float64(factors[i + 2]), np.float64(factors[i + 3])
        a0, a1, a2, a3 = a0 + f0, a1 + f1, a2 + f2, a3 + f3
        b0, b1, b2, b3 = b0 + f0 * d0, b1 + f1 * d1, b2 + f2 * d2, b3 + f3 * d3
    for i in range(n - n % 4, n):
        difference = x[i] - origin
        factor = difference if squares else np.float64(factors[i])
        a0 += factor
        b0 += factor * difference
    return (a0 + a1) + (a2 + a3), (b0 + b1) + (b2 + b3)
