"""RoI features: pooling from one feature map or a pyramid, and chunks of RoIs for the heads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.config import Dialect
from mask_rcnn.ops.conv.convolution import apply_epilogue
from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize
from mask_rcnn.ops.roi.levels import assign_levels_gpu
from mask_rcnn.ops.roi.roi_align import roi_align, roi_align_pyramid
from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling
from mask_rcnn.ops.runtime.array import get_array_module

#: A RoI of ``roi_canonical_size`` belongs to the feature map of stride 2 ** 4 (Lin et al. 2017, section 4.2).
CANONICAL_LEVEL = 4


class RoIPooling:
    """Pools every RoI to a grid of bins, from the single map of a C4 network or from the RoI's level of a pyramid.

    Args:
        strides: Input pixels per location of each feature map.
        roi_size (int): Height and width of the grid in bins.
        config (mask_rcnn.config.Config): ``roi_align``, ``roi_canonical_size``, ``sampling_ratio`` and the
            dialect.
        bin_step (int): Only every ``bin_step``-th bin of the grid is computed, in both directions.
    """

    #: RoIs are not pooled from P6, which exists for the RPN's largest anchors (Lin et al. 2017, section 4.1).
    MAX_STRIDE = 32

    def __init__(self, strides, roi_size, *, config, bin_step=1):
        self.strides = tuple(stride for stride in strides if stride <= self.MAX_STRIDE)
        self.roi_size = roi_size
        self.bin_step = bin_step
        self.config = config
        self._uses_roi_align = config.roi_align and config.dialect.rois.op == 'roi_align'
        self._grid = {'output_size': roi_size, 'bin_step': bin_step}

    def __call__(self, features, rois, roi_indices, *, bias=None, relu=False):
        """Return the features of RoIs.

        Args:
            features: The extractor's feature maps, ``(N, C, H, W)`` floats each.
            rois: ``(R, 4)`` float32 boxes in the network input.
            roi_indices: ``(R,)`` int32 index of each RoI's image in the batch.
            bias: ``(C,)`` to add to the features, or ``None``.
            relu (bool): Whether to apply ReLU.  With a bias or ReLU the result has no graph.

        Returns:
            chainer.Variable: ``(R, C, roi_size / bin_step, roi_size / bin_step)``.
        """
        if self._uses_roi_align:
            return self._align(features, rois, roi_indices, bias=bias, relu=relu)
        pooled = self._pool_max_or_crop(features, rois, roi_indices)
        if bias is None and not relu:
            return pooled
        return chainer.as_variable(apply_epilogue(pooled.array, bias, relu=relu))

    def _align(self, features, rois, roi_indices, **epilogue):
        aligned = self.config.dialect.rois.aligned
        options = {'sampling_ratio': self.config.sampling_ratio, 'aligned': aligned, **self._grid, **epilogue}
        if len(self.strides) == 1:
            return roi_align(features[0], rois, roi_indices, spatial_scale=1 / self.strides[0], **options)
        return roi_align_pyramid(
            features[: len(self.strides)],
            rois,
            roi_indices,
            self.levels(features, rois),
            spatial_scales=[1 / stride for stride in self.strides],
            **options,
        )

    def _pool_max_or_crop(self, features, rois, roi_indices):
        if len(self.strides) == 1:
            return self._pool(features[0], rois, roi_indices, self.strides[0])
        pool = self._pool_by_level if get_array_module(rois) is np else self._pool_all_levels_masked
        return pool(features, rois, roi_indices)

    def _pool_by_level(self, features, rois, roi_indices):
        """Pool the RoIs level by level, and restore their order."""
        xp, levels = get_array_module(rois), self.levels(features, rois)
        pooled, order = [], []
        for level, stride in enumerate(self.strides):
            indices = xp.flatnonzero(levels == level)
            if len(indices):
                pooled.append(self._pool(features[level], rois[indices], roi_indices[indices], stride))
                order.append(indices)
        if len(pooled) < 2:
            return pooled[0] if pooled else self._pool(features[0], rois, roi_indices, self.strides[0])
        return F.permutate(F.concat(pooled, axis=0), xp.concatenate(order).astype(np.int32), inv=True)

    def _pool_all_levels_masked(self, features, rois, roi_indices):
        """Pool all RoIs from every level, with zeros for the RoIs of other levels, and add the results.

        For GPUs: the number of RoIs of a level would have to be copied to the host first, which waits for the GPU and
        cannot be captured as a CUDA graph.  For a RoI with image index -1 the kernel only writes zeros.
        """
        xp, levels = get_array_module(rois), self.levels(features, rois)
        pooled = [
            self._pool(features[level], rois, xp.where(levels == level, roi_indices, -1).astype(np.int32), stride)
            for level, stride in enumerate(self.strides)
        ]
        return sum(pooled[1:], pooled[0])

    def _pool(self, feature_map, rois, roi_indices, stride):
        """Pool RoIs from one feature map."""
        if self.config.dialect.rois.op == 'crop_and_resize':
            last = tuple(side * stride - 1 for side in feature_map.shape[2:])
            return crop_and_resize(feature_map, rois, roi_indices, output_size=self.roi_size, last=last)
        return roi_max_pooling(feature_map, rois, roi_indices, spatial_scale=1 / stride, **self._grid)

    def levels(self, features, rois):
        """Return the index of each RoI's level, ``(R,)`` int32; 0 for the single map of a C4 network.

        A box clipped to the input may be smaller than the input (by ``missing`` pixels).  The canonical size is reduced
        by the same ratio.

        Args:
            features: The feature maps, from the finest level; only the shape ``(N, C, H, W)`` of the first is read.
            rois: ``(R, 4)`` float32 boxes in the network input.
        """
        boxes = self.config.dialect.boxes
        missing = boxes.clip_offset - boxes.offset
        side = math.sqrt(features[0].shape[2] * features[0].shape[3]) * self.strides[0]
        canonical_size = self.config.roi_canonical_size * (side - missing) / side
        return assign_levels(rois, self.strides, canonical_size=canonical_size, dialect=self.config.dialect)


def assign_levels(rois, strides, *, canonical_size: float, dialect: Dialect):
    """Assign each RoI to a level of the pyramid.

    Lin et al. 2017, equation 1; ``detectron/utils/fpn.py`` ``map_rois_to_fpn_levels``; Matterport's
    ``PyramidROIAlign``.

    Args:
        rois: ``(R, 4)`` float32 boxes in the network input.
        strides: Strides of the levels, each twice the one before.
        canonical_size: Size (square root of the area, pixels) of a RoI that belongs to the map of stride 16.
        dialect: Provides ``boxes.offset``, ``rois.level_rounding``, ``rois.level_epsilon`` and ``rois.level_bias``.

    Returns:
        array: ``(R,)`` int32 indices of levels.
    """
    xp = get_array_module(rois)
    if xp is not np:
        return assign_levels_gpu(
            rois,
            len(strides),
            canonical_size=canonical_size,
            canonical_level=CANONICAL_LEVEL,
            first_level=math.log2(strides[0]),
            offset=dialect.boxes.offset,
            epsilon=dialect.rois.level_epsilon,
            bias=dialect.rois.level_bias,
            round_to_nearest=dialect.rois.level_rounding == 'nearest',
        )
    sides = rois[:, 2:] - rois[:, :2] + rois.dtype.type(dialect.boxes.offset)
    with np.errstate(divide='ignore', invalid='ignore'):  # degenerate and padding RoIs may get any level
        sizes = xp.sqrt(sides[:, 0] * sides[:, 1])
        levels = CANONICAL_LEVEL + xp.log2(sizes / canonical_size + dialect.rois.level_epsilon)
        levels += rois.dtype.type(dialect.rois.level_bias)
        levels = xp.rint(levels) if dialect.rois.level_rounding == 'nearest' else xp.floor(levels)
        levels = xp.fmax(levels - math.log2(strides[0]), 0)  # 0 for NaN
        return xp.minimum(levels, len(strides) - 1).astype(np.int32)


def run_in_chunks(head: Callable, features, rois: Sequence, chunk_size: int) -> list:
    """Run a head on the RoIs of all images of a batch.

    Args:
        head: Called with feature maps, RoIs ``(R, 4)`` and the index ``(R,)`` of each RoI's image; returns a tuple of
            arrays with ``R`` rows.
        features: The feature maps.
        rois: ``(R, 4)`` for each image.
        chunk_size: Maximum number of RoIs per call on the CPU.  On a GPU, all RoIs are one chunk.

    Returns:
        list: The head's output arrays, with the RoIs of all images one after the other; see :func:`split_by_image`.
    """
    xp = get_array_module(*rois)
    indices = xp.concatenate([xp.full((len(boxes),), i, np.int32) for i, boxes in enumerate(rois)])
    boxes = xp.concatenate(rois)
    n_rois = max(len(boxes), 1)
    step = chunk_size if xp is np else n_rois
    outputs = []
    for start in range(0, n_rois, step):
        chunk = slice(start, start + step)
        outputs.append(head(features, boxes[chunk], indices[chunk]))
    return [chunks[0] if len(chunks) == 1 else xp.concatenate(chunks) for chunks in zip(*outputs, strict=True)]


def split_by_image(array, rois: Sequence) -> list:
    """Split an array with a row for each RoI of a batch into one array for each image.

    Args:
        array: ``(R, ...)``.
        rois: The RoIs of each image.
    """
    ends = np.cumsum([len(boxes) for boxes in rois]).tolist()
    return [array[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]
