"""A convolution and its normalisation: what the bodies are made of."""

from __future__ import annotations

import chainer
import chainer.functions as F

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
