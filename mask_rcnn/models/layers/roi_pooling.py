"""From feature maps to the features of RoIs."""

from __future__ import annotations

import math
from functools import partial

import chainer
import chainer.functions as F
import numpy as np
from chainer.backend import get_array_module

from mask_rcnn.config import Dialect
from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize
from mask_rcnn.ops.roi.roi_align import roi_align, roi_align_pyramid
from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling

#: A RoI of ``roi_canonical_size`` belongs to the map of stride 2 ** 4 (Lin et al. 2017, section 4.2).
_CANONICAL_LEVEL = 4


class RoIPooling:
    """Pools every RoI to a grid of bins, from the one map of a C4 network or the fitting one of a pyramid.

    Args:
        strides: Input pixels per location of each map.
        roi_size (int): Side of the grid in bins.
        config (mask_rcnn.config.Config): ``roi_align``, ``roi_canonical_size``, ``sampling_ratio`` and the
            dialect.
        bin_step (int): Return every so many bins of the grid only.
    """

    #: RoIs do not look at P6, which is there for the RPN's largest anchors (Lin et al. 2017, section 4.1).
    MAX_STRIDE = 32

    def __init__(self, strides, roi_size, *, config, bin_step=1):
        self.strides = tuple(stride for stride in strides if stride <= self.MAX_STRIDE)
        self.roi_size = roi_size
        self.bin_step = bin_step
        self.config = config

    def __call__(self, features, rois, roi_indices):
        """Return the RoIs' features.

        Args:
            features: The extractor's maps, ``(N, C, H, W)`` float32 each.
            rois: ``(R, 4)`` float32 boxes in the network input.
            roi_indices: ``(R,)`` int32: the image of each RoI.

        Returns:
            chainer.Variable: ``(R, C, roi_size / bin_step, roi_size / bin_step)``.
        """
        if len(self.strides) == 1:
            return self._pool(features[0], rois, roi_indices, self.strides[0])
        levels = assign_levels(
            rois, self.strides, canonical_size=self._canonical_size(features[0]), dialect=self.config.dialect
        )
        features = features[: len(self.strides)]
        if self._aligns:
            return roi_align_pyramid(
                features,
                rois,
                roi_indices,
                levels,
                sampling_ratio=self.config.sampling_ratio,
                spatial_scales=[1 / stride for stride in self.strides],
                **self._grid,
            )
        if get_array_module(rois) is not np and not chainer.config.enable_backprop:
            return self._pool_all_levels_masked(features, rois, roi_indices, levels)
        return self._pool_by_level(features, rois, roi_indices, levels)

    @property
    def _aligns(self) -> bool:
        return self.config.roi_align and self.config.dialect.rois.op == 'roi_align'

    @property
    def _grid(self) -> dict:
        return {'output_size': self.roi_size, 'bin_step': self.bin_step}

    def _pool_by_level(self, features, rois, roi_indices, levels):
        """Pool from every map its RoIs, and put the results in the RoIs' order."""
        xp = get_array_module(rois)
        parts, order = [], []
        for level, stride in enumerate(self.strides):
            own = xp.flatnonzero(levels == level)
            if len(own):
                parts.append(self._pool(features[level], rois[own], roi_indices[own], stride))
                order.append(own)
        if len(parts) < 2:
            return parts[0] if parts else self._pool(features[0], rois, roi_indices, self.strides[0])
        return F.permutate(F.concat(parts, axis=0), xp.concatenate(order).astype(np.int32), inv=True)

    def _pool_all_levels_masked(self, features, rois, roi_indices, levels):
        """Pool all RoIs from every map, those of other maps as zeros, and add the results up.

        For a GPU, whose host would wait to hear how many RoIs a map has; an image that is none costs the kernel
        no more than writing zeros.
        """
        xp = get_array_module(rois)
        pooled = [
            self._pool(features[level], rois, xp.where(levels == level, roi_indices, -1).astype(np.int32), stride)
            for level, stride in enumerate(self.strides)
        ]
        return sum(pooled[1:], pooled[0])

    def _canonical_size(self, finest) -> float:
        """``roi_canonical_size`` as boxes are measured in the dialect.

        Where clipped boxes are narrower than the input they cover (by ``lost``), it shrinks like them.
        """
        lost = self.config.dialect.boxes.clip_offset - self.config.dialect.boxes.offset
        side = math.sqrt(finest.shape[2] * finest.shape[3]) * self.strides[0]
        return self.config.roi_canonical_size * (side - lost) / side

    def _pool(self, feature_map, rois, roi_indices, stride):
        if self.config.dialect.rois.op == 'crop_and_resize':
            last = tuple(side * stride - 1 for side in feature_map.shape[2:])
            return crop_and_resize(feature_map, rois, roi_indices, output_size=self.roi_size, last=last)
        pool = partial(roi_align, sampling_ratio=self.config.sampling_ratio) if self._aligns else roi_max_pooling
        return pool(feature_map, rois, roi_indices, spatial_scale=1 / stride, **self._grid)


def assign_levels(rois, strides, *, canonical_size: float, dialect: Dialect):
    """Return the index of the map to which each RoI belongs.

    Lin et al. 2017, equation 1; ``detectron/utils/fpn.py`` ``map_rois_to_fpn_levels``; Matterport's
    ``PyramidROIAlign``.

    Args:
        rois: ``(R, 4)`` float32 boxes in the network input.
        strides: Of the maps, each twice the one before.
        canonical_size: Size (square root of the area, pixels) of a RoI that belongs to the map of stride 16.
        dialect: Gives ``boxes.offset``, ``rois.level_rounding`` and ``rois.level_epsilon``.

    Returns:
        ``(R,)`` integers.
    """
    xp = get_array_module(rois)
    sides = rois[:, 2:] - rois[:, :2] + rois.dtype.type(dialect.boxes.offset)
    with np.errstate(divide='ignore', invalid='ignore'):  # empty and padding RoIs belong anywhere
        sizes = xp.sqrt(sides[:, 0] * sides[:, 1])
        levels = _CANONICAL_LEVEL + xp.log2(sizes / canonical_size + dialect.rois.level_epsilon)
        levels = xp.rint(levels) if dialect.rois.level_rounding == 'nearest' else xp.floor(levels)
        levels = xp.fmax(levels - math.log2(strides[0]), 0)  # 0 for NaN
        return xp.minimum(levels, len(strides) - 1).astype(np.int32)
