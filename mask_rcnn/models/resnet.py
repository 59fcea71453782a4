"""ResNet with bottleneck blocks (He et al. 2016), as Caffe's and Detectron's weights want it.

A stage's stride is in the first 1x1 convolution of its first block and in the shortcut beside it.
"""

from __future__ import annotations

import chainer
import chainer.functions as F

from mask_rcnn.config import EXTRACTORS
from mask_rcnn.models.convolution import Convolution2D, is_forward_only
from mask_rcnn.models.normalization import (fixed_batch_normalization, is_fixed, make_norm,
                                            scale_and_bias)
from mask_rcnn.ops.convolution import convolve


class ConvNorm(chainer.Chain):
    """A convolution without bias and its normalisation.

    Args:
        in_channels, out_channels, ksize, stride, pad: As for :class:`chainer.links.Convolution2D`.
        norm (str): ``'affine'`` or ``'bn'``.

    Attributes:
        bn_frozen (bool): Whether a batch normalisation keeps to its running statistics also while the
            network is trained; see :func:`mask_rcnn.training.freezing.freeze`.
    """

    bn_frozen = False

    def __init__(self, in_channels, out_channels, ksize, *, stride=1, pad=0, norm):
        super().__init__()
        with self.init_scope():
            self.conv = Convolution2D(
                in_channels, out_channels, ksize, stride, pad, nobias=True,
                initialW=chainer.initializers.HeNormal(fan_option='fan_out'))
            self.norm = make_norm(norm, out_channels)

    def forward(self, x, *, relu=False, residual=None):
        """Convolve and normalise; then add ``residual`` and cut off what is negative, if asked to."""
        if is_forward_only(x) and (self.bn_frozen or is_fixed(self.norm)):
            return self._fused(chainer.as_array(x), relu, residual)
        h = self.conv(x)
        h = fixed_batch_normalization(self.norm, h) if self.bn_frozen else self.norm(h)
        if residual is not None:
            h = h + residual
        return F.relu(h) if relu else h

    def _fused(self, x, relu, residual):
        """The same with the scale folded into the filters, in one pass over the result."""
        scale, bias = scale_and_bias(self.norm)
        filters = self.conv.W.array * scale[:, None, None, None]
        residual = None if residual is None else chainer.as_array(residual)
        return chainer.as_variable(convolve(x, filters, bias, stride=self.conv.stride[0],
                                            pad=self.conv.pad[0], relu=relu, residual=residual))


class Bottleneck(chainer.Chain):
    """1x1, 3x3, 1x1 and a shortcut (He et al. 2016, figure 5).

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels of the 3x3 convolution; the output has four times as many.
        stride (int): Stride of the first convolution and of the shortcut.
        project (bool): Whether the shortcut has a convolution.
        norm (str): ``'affine'`` or ``'bn'``.
    """

    def __init__(self, in_channels, mid_channels, *, stride=1, project=False, norm):
        super().__init__()
        with self.init_scope():
            self.conv1 = ConvNorm(in_channels, mid_channels, 1, stride=stride, norm=norm)
            self.conv2 = ConvNorm(mid_channels, mid_channels, 3, pad=1, norm=norm)
            self.conv3 = ConvNorm(mid_channels, 4 * mid_channels, 1, norm=norm)
            if project:
                self.shortcut = ConvNorm(in_channels, 4 * mid_channels, 1, stride=stride, norm=norm)
        self.project = project

    def forward(self, x):
        h = self.conv1(x, relu=True)
        h = self.conv2(h, relu=True)
        return self.conv3(h, relu=True, residual=self.shortcut(x) if self.project else x)


class ResNetStage(chainer.Chain):
    """Bottleneck blocks ``block0``, ``block1`` ... of one resolution.

    Args:
        n_block (int): Number of blocks.
        in_channels, mid_channels, stride, norm: As for :class:`Bottleneck`, of the first block.
    """

    def __init__(self, n_block, in_channels, mid_channels, *, stride, norm):
        super().__init__()
        self.n_block = n_block
        with self.init_scope():
            self.block0 = Bottleneck(in_channels, mid_channels, stride=stride, project=True, norm=norm)
            for i in range(1, n_block):
                setattr(self, f'block{i}', Bottleneck(4 * mid_channels, mid_channels, norm=norm))

    def forward(self, x):
        for i in range(self.n_block):
            x = self[f'block{i}'](x)
        return x


class ResNetC4(chainer.Chain):
    """conv1 to res4: the feature extractor of the C4 networks.

    Args:
        name (str): ``'resnet50'`` or ``'resnet101'``.
        norm (str): ``'affine'`` or ``'bn'``.

    Calling it takes ``(N, 3, H, W)`` float32 and returns ``(N, 1024, ceil(H / 16), ceil(W / 16))``.

    Attributes:
        frozen_stages (int): The first so many of conv1, res2, res3 and res4 do not learn, and nothing of
            them is kept for a backward pass; see :func:`mask_rcnn.training.freezing.freeze`.
    """

    stride = 16
    out_channels = 1024
    frozen_stages = 0

    def __init__(self, name, *, norm):
        super().__init__()
        n_blocks = EXTRACTORS[name]
        with self.init_scope():
            self.conv1 = ConvNorm(3, 64, 7, stride=2, pad=3, norm=norm)
            self.res2 = ResNetStage(n_blocks[0], 64, 64, stride=1, norm=norm)
            self.res3 = ResNetStage(n_blocks[1], 256, 128, stride=2, norm=norm)
            self.res4 = ResNetStage(n_blocks[2], 512, 256, stride=2, norm=norm)

    @property
    def stages(self) -> tuple[chainer.Link, ...]:
        """conv1, res2, res3 and res4."""
        return self.conv1, self.res2, self.res3, self.res4

    def forward(self, x):
        with chainer.no_backprop_mode():
            for stage in self.stages[:self.frozen_stages]:
                x = self._run(stage, x)
        if self.frozen_stages:
            x = chainer.as_variable(x.array)  # an input like any other: nobody derives by it
        for stage in self.stages[self.frozen_stages:]:
            x = self._run(stage, x)
        return x

    def _run(self, stage, x):
        if stage is not self.conv1:
            return stage(x)
        return F.max_pooling_2d(stage(x, relu=True), 3, stride=2, pad=1, cover_all=False)
