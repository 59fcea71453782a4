"""The head that names the RoIs and corrects their boxes."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.models.backbones.resnet import ResNetStage
from mask_rcnn.models.layers.convolution import Linear, as_float32
from mask_rcnn.models.layers.roi_pooling import RoIPooling


class Res5BoxHead(chainer.Chain):
    """RoI pooling, res5 and two linear layers: the head of the C4 networks.

    Two ways of saving work change neither numbers nor gradients.  Of a 14 x 14 RoI grid, res5's first
    convolutions (1x1, stride 2) read every second bin of every second row: only those are computed, and res5
    runs on the 7 x 7 that result with stride 1.  And RoIAlign is linear, as these convolutions are: where the
    bins are more than the map's locations, the map is convolved, once, and then pooled (1000 RoIs on a map of
    50 x 84: 22 instead of 257 GFLOP).

    Args:
        in_channels (int): Channels of the feature map.
        strides: Input pixels per location of the feature map, one number.
        config (mask_rcnn.config.Config): ``n_fg_class``, ``norm``, ``roi_*`` and ``sampling_ratio``.
    """

    out_channels = 2048
    #: RoIs that pass at once on the CPU where no gradient is wanted: the more, the less often the 3x3 filters are
    #: transformed; the activations take up to 0.8 MB a RoI.
    cpu_chunk_size = 500

    def __init__(self, in_channels, *, strides, config):
        super().__init__()
        self.pool = RoIPooling(strides, config.roi_size, config=config, bin_step=config.roi_size // 7)
        n_class = config.n_fg_class + 1
        with self.init_scope():
            self.res5 = ResNetStage(RESNET_BLOCKS[config.backbone][3], in_channels, 512, stride=1, norm=config.norm)
            self.score = L.Linear(self.out_channels, n_class, initialW=chainer.initializers.Normal(0.01))
            self.delta = L.Linear(self.out_channels, 4 * n_class, initialW=chainer.initializers.Normal(0.001))

    def roi_features(self, features, rois, roi_indices):
        """Return the RoIs' features after res5.

        Args:
            features: The feature map ``(N, C, H, W)`` float32, in a tuple.
            rois: ``(R, 4)`` float32 boxes in the network input.
            roi_indices: ``(R,)`` int32: the image of each RoI.

        Returns:
            chainer.Variable: ``(R, 2048, 7, 7)``.
        """
        (feature_map,) = features
        bins, locations = len(rois) * 7 * 7, feature_map.size // feature_map.shape[1]
        if not self.pool.config.roi_align or bins < locations:
            return self.res5(self.pool(features, rois, roi_indices))
        return self.res5(feature_map, lambda h: self.pool((h,), rois, roi_indices))

    def forward(self, roi_features):
        """Return what the RoIs are and where their objects lie.

        Args:
            roi_features: ``(R, 2048, 7, 7)`` from :meth:`roi_features`.

        Returns:
            tuple: Logits ``(R, 1 + C)`` and deltas ``(R, 4 * (1 + C))``, both
            :class:`chainer.Variable`; class 0 is the background, each class has ``(dy, dx, dh, dw)``.
        """
        h = as_float32(F.mean(roi_features, axis=(2, 3)))
        return self.score(h), self.delta(h)


class LinearBoxHead(chainer.Chain):
    """RoI pooling and two linear layers in front of the two that answer: the head of the FPN networks.

    Lin et al. 2017, section 4.2; ``detectron/modeling/fast_rcnn_heads.py`` ``add_roi_2mlp_head``.

    Args:
        in_channels (int): Channels of the feature maps.
        strides: Input pixels per location of each map.
        config (mask_rcnn.config.Config): ``n_fg_class``, ``head_channels``, ``roi_*`` and ``sampling_ratio``.
    """

    #: As above; the linear layers' weights are read once for all of them.
    cpu_chunk_size = 1024

    def __init__(self, in_channels, *, strides, config):
        super().__init__()
        self.pool = RoIPooling(strides, config.roi_size, config=config)
        n_class, channels = config.n_fg_class + 1, config.head_channels
        init = chainer.initializers.GlorotUniform()
        with self.init_scope():
            self.fc6 = Linear(in_channels * config.roi_size**2, channels, initialW=init)
            self.fc7 = Linear(channels, channels, initialW=init)
            self.score = L.Linear(channels, n_class, initialW=chainer.initializers.Normal(0.01))
            self.delta = L.Linear(channels, 4 * n_class, initialW=chainer.initializers.Normal(0.001))

    def roi_features(self, features, rois, roi_indices):
        """Return the RoIs' features ``(R, C, roi_size, roi_size)``; see :class:`~.roi_pooling.RoIPooling`."""
        return self.pool(features, rois, roi_indices)

    def forward(self, roi_features):
        """Return what the RoIs are and where their objects lie, as :meth:`Res5BoxHead.forward`."""
        h = as_float32(self.fc7(self.fc6(roi_features, relu=True), relu=True))
        return self.score(h), self.delta(h)
