"""Feature pyramid network (Lin et al. 2017, section 3)."""

from __future__ import annotations

from collections.abc import Callable

import chainer

from mask_rcnn.config import FPN_STRIDES
from mask_rcnn.models.initializers import glorot_uniform
from mask_rcnn.models.layers import make_convolution
from mask_rcnn.ops.conv.upsample_add import upsample_add


class FPN(chainer.Chain):
    """A backbone and a feature pyramid on top of it.

    Each level adds a 1x1 lateral convolution of the backbone's feature map to the nearest-neighbour 2x upsampled
    coarser level, and a 3x3 convolution makes the output (figure 3).  P6 is P5 subsampled by 2
    (``detectron/modeling/FPN.py``).

    Args:
        backbone (mask_rcnn.models.layers.Backbone): Returns feature maps with strides 4, 8, 16 and 32.
        n_channels (int): Channels of the pyramid's feature maps.
        norm (str): ``'none'``, or the normalisation after each convolution: ``'affine'``, ``'bn'`` or ``'gn'``.

    It is called with ``(N, 3, H, W)`` floats, ``H`` and ``W`` multiples of 32, and returns P2 ... P6, a tuple of
    feature maps ``(N, n_channels, ceil(H / s), ceil(W / s))`` with ``s`` as in ``strides``.
    """

    strides = FPN_STRIDES

    def __init__(self, backbone, n_channels, *, norm='none'):
        super().__init__()
        self.out_channels = (n_channels,) * len(self.strides)
        options = {'norm': norm, 'initialW': glorot_uniform()}
        with self.init_scope():
            self.body = backbone
            for level, in_channels in enumerate(backbone.out_channels, start=2):
                setattr(self, f'lateral{level}', make_convolution(in_channels, n_channels, 1, **options))
                setattr(self, f'output{level}', make_convolution(n_channels, n_channels, 3, pad=1, **options))

    @property
    def stages(self) -> tuple[Callable, ...]:
        """The stages of the backbone."""
        return self.body.stages

    @property
    def frozen_stages(self) -> int:
        """The number of frozen stages of the backbone."""
        return self.body.frozen_stages

    @frozen_stages.setter
    def frozen_stages(self, count: int):
        self.body.frozen_stages = count

    def forward(self, x):
        features: list = []
        coarser = None
        for level, h in reversed(list(enumerate(self.body(x), start=2))):
            h = self[f'lateral{level}'](h)
            coarser = h if coarser is None else upsample_add(h, coarser)
            features.insert(0, self[f'output{level}'](coarser))
        return *features, features[-1][:, :, ::2, ::2]
