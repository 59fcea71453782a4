"""MobileNetV1 (Howard et al. 2017) with the padding of TensorFlow's weights (``slim/nets/mobilenet_v1.py``).

Every convolution has TensorFlow's ``'SAME'`` padding: with stride 2, an image of even size is padded only below and
to the right.
"""

from __future__ import annotations

import chainer
import chainer.functions as F
import numpy as np

from mask_rcnn.models.initializers import he_normal
from mask_rcnn.models.layers import Backbone, ConvNorm, is_forward_only
from mask_rcnn.ops.conv.depthwise import depthwise_convolution_2d, depthwise_convolve, same_padding

#: Output channels and stride of each block (Howard et al. 2017, table 1).
BLOCKS = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (512, 1),
    (1024, 2),
    (1024, 1),
)

#: Channels of the first convolution.
_STEM_CHANNELS = 32
#: Minimum number of channels after the multiplication by the width (``min_depth`` of ``mobilenet_v1_base``).
_MIN_CHANNELS = 8
#: The last block at each of the strides 4, 8, 16 and 32: the inputs of a feature pyramid.
_LAST_BLOCKS = (3, 5, 11, 13)
#: Upper limit of ReLU6 (Krizhevsky 2010).
_RELU6_MAX = 6.0


class MobileNetV1(Backbone):
    """``conv0`` and ``block1`` to ``block13``; returns the outputs of blocks 3, 5, 11 and 13, strides 4 to 32.

    Args:
        width (float): Multiplier of all channel counts ("depth multiplier"), such as 0.25, 0.5 or 1.
        norm (str): ``'affine'``, ``'bn'`` or ``'gn'``.
    """

    outputs = tuple(1 + block for block in _LAST_BLOCKS)
    strides = (4, 8, 16, 32)

    def __init__(self, *, width=1.0, norm):
        super().__init__()
        sizes = [scale_channels(channels, width) for channels, _ in BLOCKS]
        self.out_channels = tuple(sizes[block - 1] for block in _LAST_BLOCKS)
        with self.init_scope():
            self.conv0 = ReLU6ConvNorm(3, scale_channels(_STEM_CHANNELS, width), 3, stride=2, norm=norm)
            in_channels = scale_channels(_STEM_CHANNELS, width)
            for number, (out_channels, (_, stride)) in enumerate(zip(sizes, BLOCKS, strict=True), start=1):
                block = SeparableBlock(in_channels, out_channels, stride=stride, norm=norm)
                setattr(self, f'block{number}', block)
                in_channels = out_channels

    @property
    def stages(self) -> tuple[chainer.Link, ...]:
        """``conv0``, ``block1``, ``block2`` ... in the order of execution."""
        return self.conv0, *(self[f'block{number}'] for number in range(1, len(BLOCKS) + 1))


def scale_channels(channels: int, width: float) -> int:
    """Return a channel count scaled by the width, rounded down, at least 8 (``slim/nets/mobilenet_v1.py``)."""
    return max(int(channels * width), _MIN_CHANNELS)


class SeparableBlock(chainer.Chain):
    """A depthwise 3x3 and a pointwise 1x1 convolution (Howard et al. 2017, figure 3, right).

    Args:
        in_channels, out_channels (int): Channels of input and output.
        stride (int): Stride of the depthwise convolution.
        norm (str): ``'affine'``, ``'bn'`` or ``'gn'``.
    """

    def __init__(self, in_channels, out_channels, *, stride, norm):
        super().__init__()
        with self.init_scope():
            self.depthwise = DepthwiseConvNorm(in_channels, stride=stride, norm=norm)
            self.pointwise = ReLU6ConvNorm(in_channels, out_channels, 1, norm=norm)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class ReLU6ConvNorm(ConvNorm):
    """A convolution (1x1, or 3x3 with ``'SAME'`` padding), its normalisation and ReLU6.

    Args:
        in_channels, out_channels, ksize, stride, norm: As for :class:`~mask_rcnn.models.layers.ConvNorm`.
    """

    def forward(self, x):  # type: ignore[override]  # a whole layer without options
        if self.conv.ksize != 1:
            x = F.pad(x, ((0, 0), (0, 0), *same_paddings(x, self.conv.stride[0])), 'constant')
        h = super().forward(x)
        if not is_forward_only(h):
            return F.clipped_relu(h, _RELU6_MAX)
        np.clip(h.array, 0, _RELU6_MAX, out=h.array)  # safe in place: `h` is not shared
        return h


class DepthwiseConvNorm(ConvNorm):
    """A depthwise 3x3 convolution with ``'SAME'`` padding, its normalisation and ReLU6.

    Its weight ``conv/W``, ``(C, 1, 3, 3)``, has the shape of a convolution of one channel with ``C`` outputs.

    Args:
        n_channels (int): Channels of input and output.
        stride, norm: As for :class:`~mask_rcnn.models.layers.ConvNorm`.
    """

    def __init__(self, n_channels, *, stride, norm):
        super().__init__(1, n_channels, 3, stride=stride, norm=norm)
        he_normal()(self.conv.W.array)  # each output has nine inputs

    def forward(self, x):  # type: ignore[override]  # a whole layer without options
        options = {'stride': self.conv.stride[0], 'pad': same_paddings(x, self.conv.stride[0])}
        if is_forward_only(x) and self.has_fixed_norm:
            weight, bias = self.fold()
            y = depthwise_convolve(chainer.as_array(x), weight, bias, clip_max=_RELU6_MAX, **options)
            return chainer.as_variable(y)
        h = depthwise_convolution_2d(x, self.conv.W, **options)
        return F.clipped_relu(self.normalize(h), _RELU6_MAX)


def same_paddings(x, stride: int):
    """Return the zero padding ``((above, below), (left, right))`` of ``(N, C, H, W)``; see :func:`same_padding`."""
    return tuple(same_padding(side, stride) for side in x.shape[2:])
