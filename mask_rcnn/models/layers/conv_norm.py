"""A convolution and its normalisation: what the backbones are made of."""

from __future__ import annotations

import chainer
import chainer.functions as F

from mask_rcnn.models.layers.convolution import Convolution2D, is_forward_only
from mask_rcnn.models.layers.normalization import fixed_batch_normalization, is_fixed, make_norm, scale_and_bias
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv.convolution import apply_epilogue, convolve
from mask_rcnn.ops.runtime.cache import cached


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
                in_channels,
                out_channels,
                ksize,
                stride,
                pad,
                nobias=True,
                initialW=chainer.initializers.HeNormal(fan_option='fan_out'),
            )
            self.norm = make_norm(norm, out_channels)

    def forward(self, x, *, relu=False, residual=None, pool=None, overwrite_residual=False):
        """Convolve and normalise; then add ``residual`` and apply ReLU, if asked to.

        Args:
            x: ``(N, C, H, W)`` floats.
            relu (bool): Whether to apply ReLU.
            residual: What to add, ``(N, O, oh, ow)``, or ``None``.
            pool: Called between convolution and normalisation, or ``None``.  As a linear function it gives
                what it would give before a 1x1 convolution, which may have less to do this way: once an image
                (:func:`mask_rcnn.ops.runtime.cache.cache_features`), whatever is pooled.
            overwrite_residual (bool): Whether the result may take the place of ``residual``, where no gradient is
                wanted.

        Returns:
            chainer.Variable: ``(N, O, oh, ow)``.
        """
        if is_forward_only(x) and (self.bn_frozen or is_fixed(self.norm)):
            return self._fused(chainer.as_array(x), relu, residual, pool, overwrite_residual)
        if pool is None and self._is_constant() and cudnn_frontend.supports(x):
            return cudnn_frontend.convolution_affine(
                x,
                self.conv.W,
                *scale_and_bias(self.norm),
                residual,
                relu=relu,
                stride=self.conv.stride[0],
                pad=self.conv.pad[0],
            )
        h = self.conv(x) if pool is None else pool(self.conv(x))
        h = fixed_batch_normalization(self.norm, h) if self.bn_frozen else self.norm(h)
        if residual is not None:
            h = h + residual
        return F.relu(h) if relu else h

    def _is_constant(self) -> bool:
        """Whether the normalisation neither looks at the batch nor learns."""
        return self.bn_frozen or (
            is_fixed(self.norm) and not any(parameter.requires_grad for parameter in self.norm.params())
        )

    def _fused(self, x, relu, residual, pool, overwrite_residual):
        """The same with the scale folded into the filters, in one pass over the result."""
        filters, bias = cached(folded, self.conv.W.array, self.norm)
        residual = None if residual is None else chainer.as_array(residual)
        geometry = {'stride': self.conv.stride[0], 'pad': self.conv.pad[0]}
        epilogue = {'b': bias, 'relu': relu, 'residual': residual}
        if pool is None:
            return chainer.as_variable(
                convolve(x, filters, **geometry, **epilogue, overwrite_residual=overwrite_residual)
            )
        h = cached(_convolve_plainly, x, filters, *geometry.values(), scope='features')
        return chainer.as_variable(apply_epilogue(pool(h).array, **epilogue))


def _convolve_plainly(x, filters, stride, pad):
    return convolve(x, filters, stride=stride, pad=pad)


def folded(filters, norm):
    """Return filters ``(O, I, kh, kw)`` times the scale of their normalisation, and its bias ``(O,)``."""
    scale, bias = scale_and_bias(norm)
    return filters * scale[:, None, None, None], bias
