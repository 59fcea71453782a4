"""Grouped convolution on the CPU: each group of output channels reads one group of input channels.

The matmuls of a group are too small for BLAS: with 4 to 64 channels per group they have as few rows, and its im2col
matrix is nine times as large as its images.  Here a thread copies the channels of one group for a tile of output rows,
zero-padded, to planes that fit in its cache.  Rows of a plane are adjacent, so that the windows of all pixels begin at
adjacent elements and each tap reads the planes at a fixed offset; the sums at the padding between two rows are computed
but not used.  :mod:`mask_rcnn.ops.conv.register_tiles` computes the sums.  Convolutions of three rows and stride 1 need
half of the multiplications (:mod:`mask_rcnn.ops.conv.grouped_winograd`).

The gradient with respect to the images is a convolution with rotated weights, one for each remainder of the pixels'
position modulo the stride.

Images are contiguous and channels first here, ``(C, N, H, W)``.  The results do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from mask_rcnn.ops.conv import grouped_winograd
from mask_rcnn.ops.conv.grouped_kernels import Windows, convolve_tiles, correlate_groups
from mask_rcnn.ops.conv.register_tiles import CHANNELS, TAPS
from mask_rcnn.ops.conv.tuning import current_tuning
from mask_rcnn.ops.conv.winograd_transforms import COLUMN_TRANSFORM, IN_TILE, OUT_TILE
from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.parallel import parallel_for
from mask_rcnn.ops.runtime.vectors import lanes

#: The number of weights whose transform justifies a thread.
_MIN_WEIGHTS = 1 << 16


def convolve(
    images: np.ndarray,
    W: np.ndarray,
    groups: int,
    stride: int,
    pad: int,
    bias: np.ndarray | None = None,
    residual: np.ndarray | None = None,
    relu: bool = False,
) -> np.ndarray:
    """Return ``relu(convolution + bias + residual)``, ``(O, N, oh, ow)``.

    Args:
        images: ``(C, N, H, W)`` contiguous, float32 or float64.
        W: ``(O, C / groups, kh, kw)``.
        groups: Number of groups.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        bias: ``(O,)``, or ``None``.
        residual: ``(O, N, oh, ow)`` contiguous, or ``None``.
        relu: Whether to apply ReLU.
    """
    size = ((side + 2 * pad - window) // stride + 1 for side, window in zip(images.shape[2:], W.shape[2:], strict=True))
    y = array_pool.empty((len(W), images.shape[1], *size), images.dtype)
    _convolve(images, _split(W, groups), stride, (pad, pad), y, bias, residual, relu)
    return y


def convolve_transposed(
    gradients: np.ndarray, W: np.ndarray, groups: int, stride: int, pad: int, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the gradient with respect to the images, ``(C, N, H, W)``.

    Args:
        gradients: ``(O, N, oh, ow)`` contiguous, with respect to the output.
        W: ``(O, C / groups, kh, kw)``.
        groups: Number of groups.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        shape: Shape of the images, ``(C, N, H, W)``.
    """
    images = np.zeros(shape, gradients.dtype)
    weights = _split(W, groups).swapaxes(1, 2)
    for i, j in np.ndindex(stride, stride):
        # A pixel at the padded row p is in the window of output row r at the weights' row p - r * stride.
        (top, first_row), (left, first_column) = divmod(i + pad, stride), divmod(j + pad, stride)
        taps = weights[..., first_row::stride, first_column::stride][..., ::-1, ::-1]
        pixels = images if stride == 1 else np.empty_like(images[:, :, i::stride, j::stride], order='C')
        if taps.size > 0:
            _convolve(gradients, taps, 1, (taps.shape[3] - 1 - top, taps.shape[4] - 1 - left), pixels)
            if stride > 1:
                images[:, :, i::stride, j::stride] = pixels
    return images


def correlate(
    images: np.ndarray, gradients: np.ndarray, groups: int, stride: int, pad: int, w_shape: tuple[int, ...]
) -> np.ndarray:
    """Return the gradient with respect to the weights, ``(O, C / groups, kh, kw)``.

    Args:
        images: ``(C, N, H, W)`` contiguous.
        gradients: ``(O, N, oh, ow)`` contiguous, with respect to the output.
        groups: Number of groups.
        stride: Step of the windows in both directions.
        pad: Zeros around the images.
        w_shape: Shape of the weights.
    """
    split_shape = groups, w_shape[0] // groups, *w_shape[1:]
    windows = _windows(images, split_shape, stride, (pad, pad), gradients.shape[2:])
    taps = _taps(w_shape[1], windows, gradients.shape[3])
    n_taps = len(taps)
    taps = np.append(taps, np.zeros(-n_taps % TAPS, taps.dtype))
    n_out = w_shape[0] // groups
    sums = np.zeros((groups, -(-n_out // CHANNELS), len(taps), CHANNELS), images.dtype)
    parallel_for(lambda first, last: correlate_groups(images, gradients, taps, windows, sums, first, last), groups)
    gradient = sums.transpose(0, 1, 3, 2)[..., :n_taps].reshape(groups, -1, n_taps)[:, :n_out]
    return gradient.reshape(w_shape)


def _split(W: np.ndarray, groups: int) -> np.ndarray:
    """Return ``(groups, O / groups, C / groups, kh, kw)``."""
    return W.reshape(groups, -1, *W.shape[1:])


def _convolve(source, weights, stride, pad, y, bias=None, residual=None, relu=False) -> None:
    """Write the convolution to ``y`` ``(O, N, oh, ow)``.

    Args:
        source: ``(S, N, H, W)``.
        weights: ``(groups, O / groups, S / groups, kh, kw)``.
        stride: Step of the windows in both directions.
        pad: Zeros above and on the left of ``source``.
        y: Contiguous, written.
        bias: ``(O,)``, or ``None``.
        residual: ``(O, N, oh, ow)`` contiguous, or ``None``.
        relu: Whether to apply ReLU.
    """
    bias = np.zeros(len(y), y.dtype) if bias is None else np.ascontiguousarray(bias, y.dtype)
    residual = np.empty((*y.shape[:3], 0), y.dtype) if residual is None else residual
    weights = np.ascontiguousarray(weights)
    groups, _, n_in, *kernel = weights.shape
    by_winograd = _should_use_winograd(kernel[0], stride, n_in, y.shape[2])
    if by_winograd:
        windows = _windows(source, weights.shape, stride, pad, (-(-y.shape[2] // OUT_TILE), y.shape[3]), IN_TILE)
        taps = _taps(n_in, windows._replace(height=1), y.shape[3])
        packed, run = _transform_weights(weights), grouped_winograd.convolve_tiles
    else:
        windows = _windows(source, weights.shape, stride, pad, y.shape[2:])
        taps = _taps(n_in, windows, y.shape[3])
        packed, run = _pack(weights), convolve_tiles
    rows_per_tile = windows.tile_rows * (OUT_TILE if by_winograd else 1)
    multiplications = rows_per_tile * y.shape[3] * weights[0].size
    parallel_for(
        lambda first, last: run(source, packed, taps, bias, residual, relu, windows, y, first, last),
        groups * y.shape[1] * -(-y.shape[2] // rows_per_tile) if y.size else 0,
        min_per_thread=current_tuning().min_multiplications // max(multiplications, 1) + 1,
    )


def _should_use_winograd(kernel_height: int, stride: int, n_in: int, out_height: int) -> bool:
    """Return whether Winograd's algorithm applies and is faster."""
    applies = kernel_height == OUT_TILE - 1 and stride == 1 and out_height >= OUT_TILE - 1
    return applies and n_in >= current_tuning().min_grouped_winograd_channels


def _pack(weights: np.ndarray) -> np.ndarray:
    """Return ``(groups, O / groups rounded up, taps)``, the weights as they are if no channels are missing."""
    groups, n_out, *shape = weights.shape
    if n_out % CHANNELS:
        weights = np.concatenate([weights, np.zeros((groups, -n_out % CHANNELS, *shape), weights.dtype)], axis=1)
    return weights.reshape(*weights.shape[:2], -1)


def _transform_weights(weights: np.ndarray) -> np.ndarray:
    """Return the weights of Winograd's algorithm, ``(groups, 6, O / groups rounded up, taps of a row)``."""
    groups, n_out, n_in, _, width = weights.shape
    points = np.zeros((groups, IN_TILE, -(-n_out // CHANNELS) * CHANNELS, n_in, width), weights.dtype)
    matrix = COLUMN_TRANSFORM.astype(weights.dtype)
    parallel_for(
        lambda first, last: grouped_winograd.transform_weights(weights, matrix, points, first, last),
        groups,
        min_per_thread=_MIN_WEIGHTS // weights[0].size + 1,
    )
    return points.reshape(*points.shape[:3], -1)


def _windows(source, w_shape, stride, pad, out_size, n_points=1) -> Windows:
    """Return the windows, with tiles that fit in the cache and have nearly the same number of rows.

    Args:
        source: ``(S, N, H, W)``.
        w_shape: ``(groups, O / groups, S / groups, kh, kw)``.
        stride: Step of the windows in both directions.
        pad: Zeros above and on the left of ``source``.
        out_size: Rows and columns of the output; in Winograd's algorithm rows of four rows.
        n_points: Number of values per element of the output and channel.
    """
    _, n_out, n_in, *kernel = w_shape
    n_phases = min(stride, kernel[0]) * min(stride, kernel[1])
    row_bytes = (n_in * n_phases + n_out) * n_points * out_size[1] * source.itemsize
    n_tiles = -(-out_size[0] // max(current_tuning().grouped_tile_bytes // max(row_bytes, 1), 1))
    tile_rows = -(-out_size[0] // max(n_tiles, 1))
    return Windows(kernel[0], kernel[1], stride, pad[0], pad[1], tile_rows, lanes(source.dtype))


def _taps(n_channels: int, windows: Windows, out_width: int) -> np.ndarray:
    """Return the offset of each tap in the planes of :func:`~mask_rcnn.ops.conv.grouped_kernels.new_planes`."""
    height, width, stride = windows.height, windows.width, windows.stride
    rows, pitch = windows.tile_rows + (height - 1) // stride, out_width + (width - 1) // stride
    phases = min(stride, height), min(stride, width)
    c, i, j = np.ogrid[:n_channels, :height, :width]
    phase = (c * phases[0] + i % stride) * phases[1] + j % stride
    return (phase * rows * pitch + i // stride * pitch + j // stride).reshape(-1)
