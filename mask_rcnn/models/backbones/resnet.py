"""ResNet with bottleneck blocks (He et al. 2016) in the variants of Caffe, Detectron and MindSpore, and ResNeXt.

The 3x3 convolutions of a ResNeXt are wider and have groups (Xie et al. 2017, figure 3c).

A stage's stride is in the first 1x1 convolution of its first block and in the parallel shortcut, or in the 3x3
convolution if ``stride_in_3x3`` is set.
"""

from __future__ import annotations

import chainer

from mask_rcnn.config import RESNET_BLOCKS, RESNET_GROUPS
from mask_rcnn.models.layers import Backbone, ConvNorm, select_path
from mask_rcnn.models.norms import scale_and_bias
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv.convolution import convolve
from mask_rcnn.ops.conv.max_pooling import max_pooling_2d
from mask_rcnn.ops.runtime.cache import cached


class PoolAfterConv:
    """RoI pooling that a block applies after its first 1x1 convolutions instead of before them.

    RoIAlign is a weighted sum over locations, and a 1x1 convolution is a weighted sum over channels.  Both are linear,
    so their order does not matter: pooling the convolved feature map gives the same features as convolving the pooled
    RoIs.  It is cheaper if the RoIs have more bins than the map has locations, because the map is convolved only once
    per batch (:func:`mask_rcnn.ops.runtime.cache.cache_features`).

    Args:
        pool: The :class:`~mask_rcnn.models.roi_pooling.RoIPooling`, or a function with its arguments.
        rois: ``(R, 4)`` float32 boxes in the network input.
        roi_indices: ``(R,)`` int32 index of each RoI's image in the batch.
    """

    def __init__(self, pool, rois, roi_indices):
        self._pool = pool
        self._rois = rois
        self._roi_indices = roi_indices

    def __call__(self, layer: ConvNorm, x, *, relu=False):
        """Convolve a feature map with ``layer.conv``, pool the RoIs, and apply the rest of ``layer``.

        Args:
            layer: A convolution and its normalisation.
            x: The feature map, ``(N, C, H, W)`` floats.
            relu (bool): Whether to apply ReLU.

        Returns:
            chainer.Variable: ``(R, O, bins, bins)``.
        """
        path, stride, pad = select_path(x), layer.conv.stride[0], layer.conv.pad[0]
        if path in ('cpu', 'cudnn') and layer.has_fixed_norm:
            weight, bias = layer.fold()
            array = chainer.as_array(x)
            h = cached(_convolve, array, weight, stride, pad, scope='features')
            return self._pool_rois(h, bias=bias, relu=relu)
        if path == 'cudnn_graph' and layer.has_constant_norm:
            scale, bias = scale_and_bias(layer.norm)
            h = cudnn_frontend.convolution_affine(x, layer.conv.W, scale, None, stride=stride, pad=pad)
            return cudnn_frontend.apply_constant_epilogue(self._pool_rois(h), bias, relu=relu)
        return layer.normalize(self._pool_rois(layer.conv(x)), relu=relu)

    def _pool_rois(self, feature_map, **epilogue):
        return self._pool((feature_map,), self._rois, self._roi_indices, **epilogue)


def _convolve(x, weight, stride, pad):
    return convolve(x, weight, stride=stride, pad=pad)


class Bottleneck(chainer.Chain):
    """1x1, 3x3 and 1x1 convolutions and a shortcut (He et al. 2016, figure 5).

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels of the 3x3 convolution.
        out_channels (int): Channels of the output; by default ``4 * mid_channels``.
        groups (int): Number of groups of the 3x3 convolution.
        stride (int): Stride of the block: of the shortcut and, unless ``stride_in_3x3``, the first convolution.
        project (bool): Whether the shortcut has a convolution.
        norm (str): ``'affine'``, ``'bn'`` or ``'gn'``.
        stride_in_3x3 (bool): The dialect's ``backbone.stride_in_3x3``.
    """

    def __init__(
        self,
        in_channels,
        mid_channels,
        *,
        out_channels=None,
        groups=1,
        stride=1,
        project=False,
        norm,
        stride_in_3x3=False,
    ):
        super().__init__()
        out_channels = 4 * mid_channels if out_channels is None else out_channels
        strides = (1, stride) if stride_in_3x3 else (stride, 1)
        with self.init_scope():
            self.conv1 = ConvNorm(in_channels, mid_channels, 1, stride=strides[0], norm=norm)
            self.conv2 = ConvNorm(mid_channels, mid_channels, 3, stride=strides[1], pad=1, groups=groups, norm=norm)
            self.conv3 = ConvNorm(mid_channels, out_channels, 1, norm=norm)
            if project:
                self.shortcut = ConvNorm(in_channels, out_channels, 1, stride=stride, norm=norm)
        self.project = project

    def forward(self, x, pool_after_conv: PoolAfterConv | None = None, *, overwrite=False):
        """Return the block's output.

        Args:
            x: ``(N, C, H, W)`` floats.
            pool_after_conv: RoI pooling after ``conv1`` and ``shortcut``, for a block with ``project``.
            overwrite (bool): Whether the output may reuse the memory of ``x`` if backprop is disabled.

        Returns:
            chainer.Variable: ``(N, out_channels, h, w)``, or one row per RoI with ``pool_after_conv``.
        """
        if pool_after_conv is not None:
            h = self.conv2(pool_after_conv(self.conv1, x, relu=True), relu=True)
            residual = pool_after_conv(self.shortcut, x)
        else:
            h = self.conv2(self.conv1(x, relu=True), relu=True)
            residual = self.shortcut(x) if self.project else x
        return self.conv3(h, relu=True, residual=residual, overwrite_residual=overwrite or self.project)


class ResNetStage(chainer.Chain):
    """Bottleneck blocks ``block0``, ``block1`` ... of one resolution.

    Args:
        n_blocks (int): Number of blocks.
        in_channels, mid_channels, out_channels, groups, stride, norm, stride_in_3x3: Arguments of the first
            :class:`Bottleneck`.
    """

    def __init__(
        self, n_blocks, in_channels, mid_channels, *, out_channels=None, groups=1, stride, norm, stride_in_3x3=False
    ):
        super().__init__()
        self.n_blocks = n_blocks
        out_channels = 4 * mid_channels if out_channels is None else out_channels
        options = {'out_channels': out_channels, 'groups': groups, 'norm': norm}
        with self.init_scope():
            self.block0 = Bottleneck(
                in_channels, mid_channels, stride=stride, project=True, stride_in_3x3=stride_in_3x3, **options
            )
            for i in range(1, n_blocks):
                setattr(self, f'block{i}', Bottleneck(out_channels, mid_channels, **options))

    def forward(self, x, pool_after_conv: PoolAfterConv | None = None):
        """Return the output of the last block; ``pool_after_conv`` is for the first block."""
        x = self.block0(x, pool_after_conv)
        for i in range(1, self.n_blocks):
            x = self[f'block{i}'](x, overwrite=True)
        return x


def grouped_width(name: str, out_channels: int) -> dict[str, int]:
    """Return the arguments of a :class:`ResNetStage` that determine its width.

    Args:
        name: A key of :data:`mask_rcnn.config.RESNET_GROUPS`.
        out_channels: Channels of the stage's output, 256 in res2.
    """
    groups, width = RESNET_GROUPS[name]
    return {'mid_channels': groups * (width * out_channels // 256), 'out_channels': out_channels, 'groups': groups}


class Stem(ConvNorm):
    """The 7x7 convolution of stride 2 with normalisation and ReLU, and the 3x3 max pooling of stride 2 after it.

    Args:
        channels (int): Number of output channels.
        pool_pad (int): The dialect's ``backbone.stem_pool_pad``.
        norm (str): ``'affine'``, ``'bn'`` or ``'gn'``.
    """

    def __init__(self, channels, *, pool_pad, norm):
        super().__init__(3, channels, 7, stride=2, pad=3, norm=norm)
        self.pool_pad = pool_pad

    def forward(self, x):  # type: ignore[override]  # a whole layer without options
        if select_path(x) == 'cudnn' and self.has_fixed_norm:
            h = cudnn_frontend.convolve_few_channels(chainer.as_array(x), *self.fold(), pad=3, relu=True)
        else:
            h = super().forward(x, relu=True)
        return max_pooling_2d(h, 3, stride=2, pad=self.pool_pad, cover_all=self.pool_pad == 0)


class ResNet(Backbone):
    """``conv1`` (the stem) and the stages ``res2``, ``res3`` ... up to the last one that is returned.

    Args:
        name (str): A key of :data:`mask_rcnn.config.RESNET_BLOCKS`, such as ``'resnet50'``.
        norm (str): ``'affine'``, ``'bn'`` or ``'gn'``.
        outputs: Numbers of the stages whose outputs are returned: ``(4,)`` for a C4 network, ``(2, 3, 4, 5)``
            for a feature pyramid.
        pool_pad (int): The dialect's ``backbone.stem_pool_pad``.
        stride_in_3x3 (bool): The dialect's ``backbone.stride_in_3x3``.

    Attributes:
        stem_channels (int): Output channels of ``conv1``, a quarter of those of ``res2``; each stage doubles them.
    """

    stem_channels = 64

    def __init__(self, name, *, norm, outputs=(4,), pool_pad=1, stride_in_3x3=False):
        super().__init__()
        self.outputs = tuple(outputs)
        self.strides = tuple(2**stage for stage in outputs)
        self.out_channels = tuple(self.stem_channels * 2**stage for stage in outputs)
        with self.init_scope():
            self.conv1 = Stem(self.stem_channels, pool_pad=pool_pad, norm=norm)
            in_channels = self.stem_channels
            for number in range(2, max(outputs) + 1):
                out_channels = self.stem_channels * 2**number
                stage = ResNetStage(
                    RESNET_BLOCKS[name][number - 2],
                    in_channels,
                    **grouped_width(name, out_channels),
                    stride=1 if number == 2 else 2,
                    norm=norm,
                    stride_in_3x3=stride_in_3x3,
                )
                setattr(self, f'res{number}', stage)
                in_channels = out_channels
