"""Chainer's links with our products: those of the CPU (:mod:`mask_rcnn.ops.convolution`) and cuDNN's."""

from __future__ import annotations

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from mask_rcnn.ops import cudnn
from mask_rcnn.ops.convolution import convolution_2d, convolve, deconvolution_2d, deconvolve
from mask_rcnn.ops.derived import derived


class Convolution2D(L.Convolution2D):
    """:class:`chainer.links.Convolution2D` (square stride and padding, no dilation, no groups).

    The parameters are Chainer's; only the product is computed as :mod:`mask_rcnn.ops.convolution` does.
    """

    def forward(self, x, *, relu=False):
        """Convolve and, if asked to, cut off what is negative."""
        if is_forward_only(x):
            return chainer.as_variable(convolve(chainer.as_array(x), self.W.array, _array(self.b),
                                                stride=self.stride[0], pad=self.pad[0], relu=relu))
        y = convolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0])
        return F.relu(y) if relu else y


class Deconvolution2D(L.Deconvolution2D):
    """:class:`chainer.links.Deconvolution2D` (square stride and padding), as :class:`Convolution2D` has it."""

    def forward(self, x, *, relu=False):
        """Convolve the transposed way and, if asked to, cut off what is negative."""
        if is_forward_only(x):
            return chainer.as_variable(deconvolve(chainer.as_array(x), self.W.array, _array(self.b),
                                                  stride=self.stride[0], pad=self.pad[0], relu=relu))
        y = deconvolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0])
        return F.relu(y) if relu else y


class Linear(L.Linear):
    """:class:`chainer.links.Linear`; on a GPU with cuDNN the convolution that has one window, the whole
    input.

    So it multiplies in the same precision as the convolutions, and RoI features whose channels are innermost
    in memory need not be copied.
    """

    def forward(self, x, *, relu=False):
        """Multiply and, if asked to, cut off what is negative; ``(R, C)`` or ``(R, C, H, W)`` to ``(R,
        O)``."""
        if not cudnn.takes(x):
            y = super().forward(x)
            return F.relu(y) if relu else y
        window = x.shape[1:] if x.ndim == 4 else (x.shape[1], 1, 1)
        x = x if x.ndim == 4 else F.reshape(x, (*x.shape, 1, 1))
        if is_forward_only(x):
            filters = derived(_as_filters, self.W.array, window)
            y = convolve(chainer.as_array(x), filters, _array(self.b), relu=relu)
            return chainer.as_variable(y[:, :, 0, 0])
        y = convolution_2d(x, F.reshape(self.W, (len(self.W), *window)), self.b)[:, :, 0, 0]
        return F.relu(y) if relu else y


def is_forward_only(x) -> bool:
    """Whether nobody will ask for a gradient, and :func:`~mask_rcnn.ops.convolution.convolve` takes ``x``."""
    if chainer.config.enable_backprop:
        return False
    if chainer.backend.get_array_module(x) is not np:
        return cudnn.takes(x)
    return x.dtype.kind == 'f' and x.dtype.itemsize >= 4


def as_float32(x):
    """Return a variable as float32, as which losses and probabilities are computed; most often it is
    already."""
    return x if x.dtype == np.float32 else F.cast(x, np.float32)


def _array(parameter):
    return None if parameter is None else parameter.array


def _as_filters(W, window):
    return W.reshape(len(W), *window)
