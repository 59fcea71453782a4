"""The head that draws the masks (He et al. 2017, figure 4)."""

from __future__ import annotations

import chainer

from mask_rcnn.models.layers.convolution import Convolution2D, Deconvolution2D


class MaskHead(chainer.Chain):
    """Convolutions, a deconvolution (2x2, stride 2), ReLU and a 1x1 convolution on the RoIs' features.

    Args:
        in_channels (int): Channels of the RoI features.
        n_conv (int): Number of 3x3 convolutions in front: 0 in C4 networks, 4 in FPN networks.
        pool: What makes the RoI features, a :class:`~mask_rcnn.models.layers.roi_pooling.RoIPooling`, or ``None``:
            the head looks at the box head's features, as that of the C4 networks does at res5's.
        config (mask_rcnn.config.Config): ``n_fg_class`` and ``mask_channels``.
    """

    #: RoIs that pass at once on the CPU where no gradient is wanted: most often all detections of an image.
    cpu_chunk_size = 128

    def __init__(self, in_channels, *, n_conv=0, pool=None, config):
        super().__init__()
        self.pool = pool
        self.n_conv = n_conv
        channels = config.mask_channels
        init = chainer.initializers.HeNormal(fan_option='fan_out')
        # The outputs' deviation does not depend on the number of classes; by fan-out, as Detectron draws
        # those of COCO's 81, a few classes would start with a mask loss near 10.
        with self.init_scope():
            for i in range(1, n_conv + 1):
                setattr(self, f'conv{i}', Convolution2D(in_channels, channels, 3, pad=1, initialW=init))
                in_channels = channels
            self.deconv = Deconvolution2D(in_channels, channels, 2, stride=2, initialW=init)
            self.score = Convolution2D(channels, config.n_fg_class, 1, initialW=chainer.initializers.Normal(0.001))

    def forward(self, roi_features):
        """Return mask logits ``(R, n_fg_class, 2 * h, 2 * w)`` for ``(R, C, h, w)``."""
        h = roi_features
        for i in range(1, self.n_conv + 1):
            h = self[f'conv{i}'](h, relu=True)
        return self.score(self.deconv(h, relu=True))
