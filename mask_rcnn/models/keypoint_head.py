"""The head that finds the keypoints (He et al. 2017, section 5)."""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.models.layers.convolution import Convolution2D, Deconvolution2D
from mask_rcnn.ops.runtime.cache import cached


class KeypointHead(chainer.Chain):
    """Eight 3x3 convolutions, a deconvolution to twice the size and a bilinear enlargement to four times.

    ``detectron/modeling/keypoint_rcnn_heads.py`` ``add_roi_pose_head_v1convX``, ``add_keypoint_outputs``.

    Args:
        in_channels (int): Channels of the feature maps.
        pool (mask_rcnn.models.layers.roi_pooling.RoIPooling): Makes the RoI features.
        config (mask_rcnn.config.Config): ``n_keypoint``.
    """

    #: Detectron's ``KRCNN.NUM_STACKED_CONVS`` and ``CONV_HEAD_DIM``.
    n_conv, channels = 8, 512
    #: Side of the heat maps in bins of the RoI grid.
    upsample_factor = 4
    #: RoIs that pass at once on the CPU where no gradient is wanted; between two convolutions one takes 0.4 MB.
    cpu_chunk_size = 64

    def __init__(self, in_channels, *, pool, config):
        super().__init__()
        self.pool = pool
        init = chainer.initializers.HeNormal(fan_option='fan_out')
        with self.init_scope():
            for i in range(1, self.n_conv + 1):
                setattr(self, f'conv{i}', Convolution2D(in_channels, self.channels, 3, pad=1, initialW=init))
                in_channels = self.channels
            self.deconv = Deconvolution2D(in_channels, config.n_keypoint, 4, stride=2, pad=1, initialW=init)

    def forward(self, roi_features):
        """Return the heat maps' logits ``(R, n_keypoint, 4 * h, 4 * w)`` for ``(R, C, h, w)``."""
        h = roi_features
        for i in range(1, self.n_conv + 1):
            h = self[f'conv{i}'](h, relu=True)
        return upsample_bilinear_2x(self.deconv(h))


def upsample_bilinear_2x(x):
    """Interpolate ``(R, K, H, W)`` to ``(R, K, 2 * H, 2 * W)``, with zeros around the maps.

    ``BilinearInterpolation`` of ``detectron/modeling/detector.py``: a deconvolution that never learns, every
    channel by itself.
    """
    n, k, height, width = x.shape
    weights = cached(_bilinear_filter, chainer.backend.get_array_module(x), x.dtype)
    y = F.deconvolution_2d(F.reshape(x, (n * k, 1, height, width)), weights, stride=2, pad=1)
    return F.reshape(y, (n, k, 2 * height, 2 * width))


def _bilinear_filter(xp, dtype):
    """Return the weights ``(1, 1, 4, 4)`` of :func:`upsample_bilinear_2x`."""
    row = np.array([0.25, 0.75, 0.75, 0.25], dtype)
    return xp.asarray(np.outer(row, row)[None, None])
