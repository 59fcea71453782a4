"""Feature pyramid network (Lin et al. 2017, section 3)."""

from __future__ import annotations

import chainer

from mask_rcnn.config import FPN_STRIDES
from mask_rcnn.models.layers.convolution import Convolution2D
from mask_rcnn.ops.conv.upsample_add import upsample_add


class FPN(chainer.Chain):
    """A backbone and the pyramid on top of it.

    Every map is the sum of a lateral 1x1 convolution of the backbone's and of the next coarser one, enlarged to
    twice its size by repetition, and goes out through a 3x3 convolution (figure 3); P6 is every second row and
    column of P5 (``detectron/modeling/FPN.py``).

    Args:
        backbone (mask_rcnn.models.backbones.base.Backbone): Returns maps of the strides 4, 8, 16 and 32.
        n_channels (int): Channels of the pyramid's maps.

    Calling it takes ``(N, 3, H, W)`` float32, sides multiples of 32, and returns P2 ... P6, a tuple of maps
    ``(N, n_channels, ceil(H / s), ceil(W / s))``, ``s`` as in ``strides``.
    """

    strides = FPN_STRIDES

    def __init__(self, backbone, n_channels):
        super().__init__()
        self.out_channels = (n_channels,) * len(self.strides)
        init = chainer.initializers.GlorotUniform()
        with self.init_scope():
            self.body = backbone
            for level, in_channels in enumerate(backbone.out_channels, start=2):
                setattr(self, f'lateral{level}', Convolution2D(in_channels, n_channels, 1, initialW=init))
                setattr(self, f'output{level}', Convolution2D(n_channels, n_channels, 3, pad=1, initialW=init))

    @property
    def stages(self) -> tuple[chainer.Link, ...]:
        """Those of the backbone."""
        return self.body.stages

    @property
    def frozen_stages(self) -> int:
        """How many of the backbone's stages do not learn."""
        return self.body.frozen_stages

    @frozen_stages.setter
    def frozen_stages(self, count: int):
        self.body.frozen_stages = count

    def forward(self, x):
        features, above = [], None
        for level, h in reversed(list(enumerate(self.body(x), start=2))):
            h = self[f'lateral{level}'](h)
            above = h if above is None else upsample_add(h, above)
            features.insert(0, self[f'output{level}'](above))
        return *features, features[-1][:, :, ::2, ::2]
