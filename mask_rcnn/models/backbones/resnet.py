"""ResNet with bottleneck blocks (He et al. 2016), as Caffe's and Detectron's weights want it.

A stage's stride is in the first 1x1 convolution of its first block and in the shortcut beside it.
"""

from __future__ import annotations

import chainer

from mask_rcnn.config import RESNET_BLOCKS
from mask_rcnn.models.backbones.base import Backbone
from mask_rcnn.models.layers.conv_norm import ConvNorm
from mask_rcnn.ops.conv.max_pooling import max_pooling_2d


class Bottleneck(chainer.Chain):
    """1x1, 3x3, 1x1 and a shortcut (He et al. 2016, figure 5).

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels of the 3x3 convolution; the output has four times as many.
        stride (int): Stride of the block: of the shortcut and, unless ``stride_in_3x3``, the first convolution.
        project (bool): Whether the shortcut has a convolution.
        norm (str): ``'affine'`` or ``'bn'``.
        stride_in_3x3 (bool): The dialect's ``backbone.stride_in_3x3``.
    """

    def __init__(self, in_channels, mid_channels, *, stride=1, project=False, norm, stride_in_3x3=False):
        super().__init__()
        strides = (1, stride) if stride_in_3x3 else (stride, 1)
        with self.init_scope():
            self.conv1 = ConvNorm(in_channels, mid_channels, 1, stride=strides[0], norm=norm)
            self.conv2 = ConvNorm(mid_channels, mid_channels, 3, stride=strides[1], pad=1, norm=norm)
            self.conv3 = ConvNorm(mid_channels, 4 * mid_channels, 1, norm=norm)
            if project:
                self.shortcut = ConvNorm(in_channels, 4 * mid_channels, 1, stride=stride, norm=norm)
        self.project = project

    def forward(self, x, pool=None, *, overwrite=False):
        """Return the block's output.

        Args:
            x: ``(N, C, H, W)`` floats.
            pool: For the first convolutions, as in :class:`ConvNorm`.
            overwrite (bool): Whether the output may take the place of ``x``, where no gradient is wanted.
        """
        h = self.conv1(x, relu=True, pool=pool)
        h = self.conv2(h, relu=True)
        residual = self.shortcut(x, pool=pool) if self.project else x
        return self.conv3(h, relu=True, residual=residual, overwrite_residual=overwrite or self.project)


class ResNetStage(chainer.Chain):
    """Bottleneck blocks ``block0``, ``block1`` ... of one resolution.

    Args:
        n_block (int): Number of blocks.
        in_channels, mid_channels, stride, norm, stride_in_3x3: As for :class:`Bottleneck`, of the first block.
    """

    def __init__(self, n_block, in_channels, mid_channels, *, stride, norm, stride_in_3x3=False):
        super().__init__()
        self.n_block = n_block
        with self.init_scope():
            self.block0 = Bottleneck(
                in_channels, mid_channels, stride=stride, project=True, norm=norm, stride_in_3x3=stride_in_3x3
            )
            for i in range(1, n_block):
                setattr(self, f'block{i}', Bottleneck(4 * mid_channels, mid_channels, norm=norm))

    def forward(self, x, pool=None):
        """Return the last block's output; ``pool`` is for the first, see :class:`Bottleneck`."""
        x = self.block0(x, pool)
        for i in range(1, self.n_block):
            x = self[f'block{i}'](x, overwrite=True)
        return x


class ResNet(Backbone):
    """conv1 with its pooling, and res2, res3 ... up to the last stage whose output is wanted.

    Args:
        name (str): ``'resnet50'`` or ``'resnet101'``.
        norm (str): ``'affine'`` or ``'bn'``.
        outputs: Numbers of the stages whose outputs are returned: ``(4,)`` for a C4 network, ``(2, 3, 4, 5)``
            for a feature pyramid.
        pool_pad (int): The dialect's ``backbone.stem_pool_pad``.
        stride_in_3x3 (bool): The dialect's ``backbone.stride_in_3x3``.
    """

    def __init__(self, name, *, norm, outputs=(4,), pool_pad=1, stride_in_3x3=False):
        super().__init__()
        self.pool_pad = pool_pad
        self.outputs = tuple(outputs)
        self.strides = tuple(2**number for number in outputs)
        self.out_channels = tuple(64 * 2**number for number in outputs)
        with self.init_scope():
            self.conv1 = ConvNorm(3, 64, 7, stride=2, pad=3, norm=norm)
            width = 64
            for number in range(2, max(outputs) + 1):
                mid = 16 * 2**number
                setattr(
                    self,
                    f'res{number}',
                    ResNetStage(
                        RESNET_BLOCKS[name][number - 2],
                        width,
                        mid,
                        stride=1 if number == 2 else 2,
                        norm=norm,
                        stride_in_3x3=stride_in_3x3,
                    ),
                )
                width = 4 * mid

    def run_stage(self, stage, x):
        if stage is not self.conv1:
            return stage(x)
        return max_pooling_2d(stage(x, relu=True), 3, stride=2, pad=self.pool_pad, cover_all=self.pool_pad == 0)
