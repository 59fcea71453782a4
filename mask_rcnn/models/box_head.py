"""The head that names the RoIs and corrects their boxes."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L

from mask_rcnn.config import EXTRACTORS
from mask_rcnn.models.resnet import ResNetStage
from mask_rcnn.ops.roi_align import roi_align
from mask_rcnn.ops.roi_max_pooling import roi_max_pooling


class Res5BoxHead(chainer.Chain):
    """RoI pooling, res5 and two linear layers: the head of the C4 networks.

    Of a 14 x 14 RoI grid, res5's first convolutions (1x1, stride 2) read every second bin of every
    second row.  Only those are computed, and res5 runs on the 7 x 7 that result with stride 1: the same
    numbers and gradients for a quarter of the work.

    Args:
        in_channels (int): Channels of the feature map.
        stride (int): Input pixels per location of the feature map.
        config (mask_rcnn.config.Config): ``n_fg_class``, ``norm``, ``roi_*`` and ``sampling_ratio``.
    """

    out_channels = 2048

    def __init__(self, in_channels, *, stride, config):
        super().__init__()
        self.stride = stride
        self.config = config
        n_class = config.n_fg_class + 1
        with self.init_scope():
            self.res5 = ResNetStage(EXTRACTORS[config.extractor][3], in_channels, 512, stride=1,
                                    norm=config.norm)
            self.score = L.Linear(self.out_channels, n_class, initialW=chainer.initializers.Normal(0.01))
            self.delta = L.Linear(self.out_channels, 4 * n_class,
                                  initialW=chainer.initializers.Normal(0.001))

    def features(self, feature_map, rois, roi_indices):
        """Return the RoIs' features after res5.

        Args:
            feature_map: ``(N, C, H, W)`` float32.
            rois: ``(R, 4)`` float32 boxes in the network input.
            roi_indices: ``(R,)`` int32: the image of each RoI.

        Returns:
            chainer.Variable: ``(R, 2048, 7, 7)``.
        """
        grid = {'output_size': self.config.roi_size, 'spatial_scale': 1 / self.stride,
                'bin_step': self.config.roi_size // 7}
        if self.config.roi_align:
            pooled = roi_align(feature_map, rois, roi_indices,
                               sampling_ratio=self.config.sampling_ratio, **grid)
        else:
            pooled = roi_max_pooling(feature_map, rois, roi_indices, **grid)
        return self.res5(pooled)

    def forward(self, roi_features):
        """Return what the RoIs are and where their objects lie.

        Args:
            roi_features: ``(R, 2048, 7, 7)`` from :meth:`features`.

        Returns:
            tuple: Logits ``(R, 1 + C)`` and deltas ``(R, 4 * (1 + C))``, both
            :class:`chainer.Variable`; class 0 is the background, each class has ``(dy, dx, dh, dw)``.
        """
        h = F.mean(roi_features, axis=(2, 3))
        return self.score(h), self.delta(h)
