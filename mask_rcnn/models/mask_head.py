"""The head that draws the masks (He et al. 2017, figure 4, left)."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L

from mask_rcnn.models.convolution import Convolution2D


class MaskHead(chainer.Chain):
    """A deconvolution (2x2, stride 2), ReLU and a 1x1 convolution on the RoIs' features.

    Args:
        in_channels (int): Channels of the RoI features.
        config (mask_rcnn.config.Config): ``n_fg_class``.
    """

    mid_channels = 256

    def __init__(self, in_channels, *, config):
        super().__init__()
        init = chainer.initializers.HeNormal(fan_option='fan_out')
        # The outputs' deviation does not depend on the number of classes; by fan-out, as Detectron draws
        # those of COCO's 81, a few classes would start with a mask loss near 10.
        with self.init_scope():
            self.deconv = L.Deconvolution2D(in_channels, self.mid_channels, 2, stride=2, initialW=init)
            self.score = Convolution2D(self.mid_channels, config.n_fg_class, 1,
                                       initialW=chainer.initializers.Normal(0.001))

    def forward(self, roi_features):
        """Return mask logits ``(R, n_fg_class, 2 * h, 2 * w)`` for ``(R, C, h, w)``."""
        return self.score(F.relu(self.deconv(roi_features)))
