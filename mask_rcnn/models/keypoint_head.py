"""Keypoint head: predicts one heat map per keypoint for each RoI (He et al. 2017, section 5)."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.models.initializers import he_normal
from mask_rcnn.models.layers import Convolution2D, Deconvolution2D, as_float32, select_path
from mask_rcnn.models.roi_pooling import run_in_chunks, split_by_image
from mask_rcnn.ops.masks.keypoints import decode_heatmaps
from mask_rcnn.ops.runtime.array import get_array_module
from mask_rcnn.ops.runtime.cache import cached
from mask_rcnn.ops.runtime.device import uses_padding


class KeypointHead(chainer.Chain):
    """Eight 3x3 convolutions, a deconvolution to twice the size and bilinear 2x upsampling.

    ``detectron/modeling/keypoint_rcnn_heads.py`` ``add_roi_pose_head_v1convX``, ``add_keypoint_outputs``.

    Args:
        in_channels (int): Channels of the feature maps.
        pool (mask_rcnn.models.roi_pooling.RoIPooling): RoI pooler.
        config (mask_rcnn.config.Config): ``n_keypoint`` and the dialect.
    """

    #: Detectron's ``KRCNN.NUM_STACKED_CONVS`` and ``CONV_HEAD_DIM``.
    n_conv, channels = 8, 512
    #: Heat map cells per bin of the RoI grid, along each axis.
    upsample_factor = 4
    #: Chunk size for CPU inference; the activations of one convolution need 0.4 MB per RoI.
    cpu_chunk_size = 64

    def __init__(self, in_channels, *, pool, config):
        super().__init__()
        self.pool = pool
        self.config = config
        init = he_normal(fan_option='fan_out')
        with self.init_scope():
            for i in range(1, self.n_conv + 1):
                setattr(self, f'conv{i}', Convolution2D(in_channels, self.channels, 3, pad=1, initialW=init))
                in_channels = self.channels
            self.deconv = Deconvolution2D(in_channels, config.n_keypoint, 4, stride=2, pad=1, initialW=init)

    def predict(self, features, boxes, transforms):
        """Predict the keypoints of the detections of a batch.

        Args:
            features: The extractor's feature maps, ``(N, C, H, W)`` floats each.
            boxes: For each image, ``(R, 4)`` float32 from :meth:`mask_rcnn.models.box_head.BoxHead.detect`.
            transforms: For each image, its :class:`~mask_rcnn.preprocessing.image_transform.ImageTransform`.

        Returns:
            list: For each image, ``(R, K, 4)`` float32; see :func:`~mask_rcnn.ops.masks.keypoints.decode_heatmaps`.
        """
        in_input = self.config.dialect.detections.postprocess_in_input_space
        converted = [
            (transform.invert_boxes if in_input else transform.apply_boxes)(image_boxes)
            for transform, image_boxes in zip(transforms, boxes, strict=True)
        ]
        rois, boxes_in_image = (boxes, converted) if in_input else (converted, boxes)
        (heatmaps,) = run_in_chunks(self._predict_heatmaps, features, rois, self.cpu_chunk_size)
        joined = self.xp.concatenate(boxes_in_image)
        if uses_padding(self.device):
            joined = self.xp.nan_to_num(joined)
        return split_by_image(decode_heatmaps(heatmaps, joined), boxes)

    def _predict_heatmaps(self, features, rois, roi_indices):
        return (as_float32(self(self.pool(features, rois, roi_indices))).array,)

    def forward(self, roi_features):
        """Return the heat maps' logits ``(R, n_keypoint, 4 * h, 4 * w)`` for ``(R, C, h, w)``."""
        h = roi_features
        for i in range(1, self.n_conv + 1):
            h = self[f'conv{i}'](h, relu=True)
        return upsample_bilinear_2x(self.deconv(h))


def upsample_bilinear_2x(x):
    """Upsample ``(R, K, H, W)`` bilinearly to ``(R, K, 2 * H, 2 * W)``, with zeros outside the maps.

    ``BilinearInterpolation`` of ``detectron/modeling/detector.py``: a deconvolution with a fixed weight, applied to
    each channel separately.
    """
    if select_path(x) == 'cudnn':
        return chainer.as_variable(_interpolate(_interpolate(chainer.as_array(x), 2), 3))
    n, k, height, width = x.shape
    weight = cached(_bilinear_weight, get_array_module(x), x.dtype)
    y = F.deconvolution_2d(F.reshape(x, (n * k, 1, height, width)), weight, stride=2, pad=1)
    return F.reshape(y, (n, k, 2 * height, 2 * width))


def _interpolate(x, axis):
    """Upsample ``(R, K, H, W)`` along an axis on a GPU; a CUDA graph cannot capture the matmul of a deconvolution."""
    xp = get_array_module(x)
    y = xp.empty((*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]), x.dtype)
    source, target = xp.moveaxis(x, axis, 0), xp.moveaxis(y, axis, 0)
    even, odd = target[::2], target[1::2]
    even[...] = odd[...] = 0.75 * source
    xp.add(even[1:], 0.25 * source[:-1], out=even[1:])
    xp.add(odd[:-1], 0.25 * source[1:], out=odd[:-1])
    return y


def _bilinear_weight(xp, dtype):
    """Return the weight ``(1, 1, 4, 4)`` of :func:`upsample_bilinear_2x`."""
    row = np.array([0.25, 0.75, 0.75, 0.25], dtype)
    return xp.asarray(np.outer(row, row)[None, None])
