"""Chainer's convolution links with our convolution on the CPU."""

from __future__ import annotations

import chainer
import chainer.links as L
import numpy as np

from mask_rcnn.ops.convolution import convolution_2d, convolve


class Convolution2D(L.Convolution2D):
    """:class:`chainer.links.Convolution2D` (square stride and padding, no dilation, no groups).

    The parameters are Chainer's; only the product is computed as :mod:`mask_rcnn.ops.convolution` does.
    """

    def forward(self, x, *, relu=False):
        """Convolve and, if asked to, cut off what is negative."""
        if is_forward_only(x):
            bias = None if self.b is None else self.b.array
            return chainer.as_variable(convolve(chainer.as_array(x), self.W.array, bias, stride=self.stride[0],
                                                pad=self.pad[0], relu=relu))
        y = convolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0])
        return chainer.functions.relu(y) if relu else y


def is_forward_only(x) -> bool:
    """Whether results may be computed in place: ``x`` is NumPy's and nobody will ask for a gradient."""
    return (not chainer.config.enable_backprop and x.dtype.kind == 'f' and x.dtype.itemsize >= 4
            and chainer.backend.get_array_module(x) is np)
