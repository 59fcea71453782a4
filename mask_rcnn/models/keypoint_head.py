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
from mask_rcnn.preprocessing.image_transform import ImageTransform


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
        dialect = self.config.dialect
        in_input, decode_in_input = dialect.detections.postprocess_in_input_space, dialect.keypoints.decode_in_input
        rois = boxes if in_input else _map_boxes(ImageTransform.apply_boxes, transforms, boxes)
        (heatmaps,) = run_in_chunks(self._predict_heatmaps, features, rois, self.cpu_chunk_size)
        if decode_in_input:
            decoded_boxes = rois
        else:
            decoded_boxes = _map_boxes(ImageTransform.invert_boxes, transforms, boxes) if in_input else boxes
        joined = self.xp.concatenate(decoded_boxes)
        if uses_padding(self.device):
            joined = self.xp.nan_to_num(joined)
        keypoints = decode_heatmaps(heatmaps, joined, softmax_grid=dialect.keypoints.softmax_grid)
        keypoints = split_by_image(keypoints, boxes)
        if decode_in_input:
            for transform, image_keypoints in zip(transforms, keypoints, strict=True):
                image_keypoints[:, :, :2] = transform.invert_points(image_keypoints[:, :, :2])
        return keypoints

    def _predict_heatmaps(self, features, rois, roi_indices):
        return (as_float32(self(self.pool(features, rois, roi_indices))).array,)

    def forward(self, roi_features):
        """Return the heat maps' logits ``(R, n_keypoint, 4 * h, 4 * w)`` for ``(R, C, h, w)``."""
        h = roi_features
        for i in range(1, self.n_conv + 1):
            h = self[f'conv{i}'](h, relu=True)
        return upsample_bilinear_2x(self.deconv(h), border=self.config.dialect.keypoints.upsample_border)


def _map_boxes(mapping, transforms, boxes):
    """Map the boxes of each image with a method of its transform."""
    return [mapping(transform, image_boxes) for transform, image_boxes in zip(transforms, boxes, strict=True)]


def upsample_bilinear_2x(x, *, border='zero'):
    """Upsample ``(R, K, H, W)`` bilinearly to ``(R, K, 2 * H, 2 * W)``.

    ``BilinearInterpolation`` of ``detectron/modeling/detector.py``: a deconvolution with a fixed weight, applied to
    each channel separately.  PyTorch's ``interpolate(scale_factor=2, mode='bilinear', align_corners=False)``, which
    torchvision and detectron2 use, differs at the border.

    Args:
        x: Array or variable of floats.
        border: Values outside the maps: ``'zero'``, or ``'repeat'`` for those of the border.

    Returns:
        chainer.Variable: The maps, of the dtype of ``x``.
    """
    if select_path(x) == 'cudnn':
        y = _interpolate(_interpolate(chainer.as_array(x), 2, border), 3, border)
        return chainer.as_variable(y)
    n, k, height, width = x.shape
    xp = get_array_module(x)
    weight = cached(bilinear_weight, xp, x.dtype)
    y = F.deconvolution_2d(F.reshape(x, (n * k, 1, height, width)), weight, stride=2, pad=1)
    if border == 'repeat':
        y = y * cached(border_factors, xp, x.dtype, height, width)
    return F.reshape(y, (n, k, 2 * height, 2 * width))


def _interpolate(x, axis, border):
    """Upsample ``(R, K, H, W)`` along an axis on a GPU; a CUDA graph cannot capture the matmul of a deconvolution."""
    xp = get_array_module(x)
    y = xp.empty((*x.shape[:axis], 2 * x.shape[axis], *x.shape[axis + 1 :]), x.dtype)
    source, target = xp.moveaxis(x, axis, 0), xp.moveaxis(y, axis, 0)
    even, odd = target[::2], target[1::2]
    even[...] = odd[...] = 0.75 * source
    xp.add(even[1:], 0.25 * source[:-1], out=even[1:])
    xp.add(odd[:-1], 0.25 * source[1:], out=odd[:-1])
    if border == 'repeat':
        target[0], target[-1] = source[0], source[-1]
    return y


def bilinear_weight(xp, dtype):
    """Return the weight ``(1, 1, 4, 4)`` of :func:`upsample_bilinear_2x`."""
    row = np.array([0.25, 0.75, 0.75, 0.25], dtype)
    return xp.asarray(np.outer(row, row)[None, None])


def border_factors(xp, dtype, height, width):
    """Return the reciprocals ``(1, 1, 2 * height, 2 * width)`` of the weights' sums inside the maps.

    At the border, bilinear interpolation between zeros and the border becomes the border itself.
    """
    rows, columns = np.ones(2 * height, dtype), np.ones(2 * width, dtype)
    for factors in (rows, columns):
        factors[[0, -1]] = 1 / 0.75
    return xp.asarray(np.outer(rows, columns)[None, None])
