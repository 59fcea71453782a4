"""RoIAlign on the GPU: the launches of the kernels in ``roi_align_forward.cu`` and ``roi_align_backward.cu``.

Every block tabulates the weights that it needs: a forward block those of some bins of a RoI, a backward block those of
the RoIs that overlap a tile of the map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from mask_rcnn.ops.roi.roi_align_regions import NO_EPILOGUE, Epilogue, Regions
from mask_rcnn.ops.roi.tiles import TILE_ROWS, TILE_THREADS, choose_tile_width, tile_grid
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.memory_layout import as_nchw, channels_last, compute_dtype, vector_lanes

#: Maximum number of feature maps of the forward kernel, and of rows and columns of bins of one of its blocks.
MAX_LEVELS, _MAX_ROWS, _MAX_COLUMNS = 4, 16, 16
#: Threads of a warp, and maximum number of warps of a forward block.
_WARP, _MAX_WARPS = 32, 7
#: Number of warps of a forward launch that keeps a GPU busy.  With fewer RoIs, a block computes fewer rows of bins.
_MIN_WARPS = 4096
#: For each dtype, the numbers of channels that a thread of a forward kernel can process, in addition to 1.
_FORWARD_LANES = {np.dtype(np.float16): (8,), np.dtype(np.float32): (8, 4), np.dtype(np.float64): (4,)}
#: Maximum number of channels per thread of the backward kernels.
_BACKWARD_LANES = 4
#: Number of weights in the table of a block of the backward kernel, and the number of bins per axis for which it
#: suffices.
_TABLE_SIZE, MAX_BINS = 2048, 256


def forward_gpu(features: Sequence[Array], regions: Regions, epilogue: Epilogue = NO_EPILOGUE) -> Array:
    """Return the pooled RoIs (R, C, ...), channels last in memory."""
    xp = get_array_module(*features)
    n_images, n_channels = features[0].shape[:2]
    sources = [channels_last(x) for x in features]
    y = xp.empty((len(regions.rois), *regions.bins, n_channels), features[0].dtype)
    if y.size:
        bias = xp.empty(0, compute_dtype(y.dtype))
        if epilogue.bias is not None:
            bias = xp.ascontiguousarray(epilogue.bias, bias.dtype)
        lanes = max(vector_lanes(n, *sources, bias) for n in _FORWARD_LANES[y.dtype])
        kernel, view = _variant('forward', y.dtype, lanes)
        grid, block, n_rows = _forward_launch(len(y), regions.bins, n_channels // lanes)
        heights, widths = ([x.shape[axis] for x in sources] for axis in (1, 2))
        kernel(
            grid,
            block,
            (
                *_pad_to_max_levels(map(view, sources)),
                *_pad_to_max_levels(map(np.int32, heights)),
                *_pad_to_max_levels(map(np.int32, widths)),
                *_pad_to_max_levels(map(np.float32, regions.spatial_scales)),
                np.int32(len(features)),
                regions.rois,
                regions.roi_indices,
                regions.levels,
                *map(np.int32, (n_images, n_channels)),
                *regions.kernel_arguments,
                np.int32(n_rows),
                bias,
                *map(np.int32, (epilogue.bias is not None, epilogue.relu)),
                view(y),
            ),
        )
    return as_nchw(y)


def _forward_launch(n_rois: int, bins: tuple[int, int], n_groups: int) -> tuple[tuple[int, int], tuple[int], int]:
    """Return the grid and the block of a forward launch, and the number of rows of bins of a block.

    A warp pools a column of bins in 32 groups of channels.  It reads the fewest pixels if a block has all rows of a
    RoI.

    Args:
        n_rois: Number of RoIs.
        bins: Number of computed bins along each axis.
        n_groups: Number of threads that share the channels of a bin.
    """
    rows, columns = bins
    n_warps = -(-columns // -(-columns // _MAX_WARPS))
    blocks_per_row, slices = -(-columns // _MAX_COLUMNS), -(-n_groups // _WARP)
    n_rows = min(rows, _MAX_ROWS)
    while n_rows > 1 and n_rois * blocks_per_row * slices * n_warps * -(-rows // n_rows) < _MIN_WARPS:
        n_rows = -(-n_rows // 2)
    return (n_rois * -(-rows // n_rows) * blocks_per_row, slices), (_WARP * n_warps,), n_rows


def backward_gpu(gy: Array, regions: Regions, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, ...]:
    """Return the gradients of the feature maps, with the given shapes and channels last in memory."""
    source = channels_last(gy)
    return tuple(as_nchw(_backward_level_gpu(source, regions, level, shape)) for level, shape in enumerate(shapes))


def _backward_level_gpu(gy: Array, regions: Regions, level: int, shape: tuple[int, ...]) -> Array:
    """Return the gradient of one feature map (N, H, W, C) from ``gy`` (R, ..., C)."""
    xp = get_array_module(gy)
    n_images, n_channels, height, width = shape
    gx = xp.empty((n_images, height, width, n_channels), gy.dtype)
    if gx.size:
        kernel, view = _variant('backward', gx.dtype, _BACKWARD_LANES)
        lanes = vector_lanes(_BACKWARD_LANES, gy)
        n_groups = n_channels // lanes
        rows, columns = regions.bins
        tile_width = choose_tile_width(n_groups)
        while TILE_ROWS * rows + tile_width * columns > _TABLE_SIZE:
            tile_width //= 2
        kernel(
            tile_grid(shape, n_groups, tile_width),
            (TILE_THREADS,),
            (
                view(gy),
                regions.rois,
                regions.roi_indices,
                regions.levels,
                np.int32(len(regions.rois)),
                np.int32(level),
                np.float32(regions.spatial_scales[level]),
                *map(np.int32, shape[1:]),
                *regions.kernel_arguments,
                np.int32(tile_width),
                np.int32(lanes),
                view(gx),
            ),
        )
    return gx


def _variant(direction: str, dtype: np.dtype, lanes: int) -> tuple[Callable, Callable]:
    """Return the kernel for a dtype and a number of channels per thread, and the cast to its array types."""
    source = f'roi/roi_align_{direction}.cu'
    if dtype != np.float16:
        return cuda_kernels.kernel(source, f'roi_align_{direction}_{lanes}', dtype), lambda array: array
    kernel = cuda_kernels.kernel(source, f'roi_align_{direction}_half_{lanes}')
    return kernel, lambda array: array.view(np.uint16)


def _pad_to_max_levels(values: Iterable) -> list:
    """Repeat the first value so that there is one for each level of the kernel's signature."""
    values = list(values)
    return values + values[:1] * (MAX_LEVELS - len(values))
