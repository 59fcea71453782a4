"""Chainer's links with our products: those of the CPU (:mod:`mask_rcnn.ops.conv.convolution`) and cuDNN's."""

from __future__ import annotations

import math

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv.convolution import convolution_2d, convolve, deconvolution_2d, deconvolve
from mask_rcnn.ops.runtime.cache import cached


class Convolution2D(L.Convolution2D):
    """:class:`chainer.links.Convolution2D` (square stride and padding, no dilation, no groups).

    The parameters are Chainer's; only the product is computed as :mod:`mask_rcnn.ops.conv.convolution` does.
    """

    def forward(self, x, *, relu=False):
        """Convolve and, if asked to, apply ReLU."""
        if is_forward_only(x):
            return chainer.as_variable(
                convolve(
                    chainer.as_array(x), self.W.array, _array(self.b), stride=self.stride[0], pad=self.pad[0], relu=relu
                )
            )
        if cudnn_frontend.supports(x):
            return cudnn_frontend.convolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0], relu=relu)
        y = convolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0])
        return F.relu(y) if relu else y


class Deconvolution2D(L.Deconvolution2D):
    """:class:`chainer.links.Deconvolution2D` (square stride and padding), as :class:`Convolution2D` has it."""

    def forward(self, x, *, relu=False):
        """Convolve the transposed way and, if asked to, apply ReLU."""
        if is_forward_only(x):
            return chainer.as_variable(
                deconvolve(
                    chainer.as_array(x), self.W.array, _array(self.b), stride=self.stride[0], pad=self.pad[0], relu=relu
                )
            )
        if cudnn_frontend.supports(x):
            return cudnn_frontend.deconvolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0], relu=relu)
        y = deconvolution_2d(x, self.W, self.b, stride=self.stride[0], pad=self.pad[0])
        return F.relu(y) if relu else y


class Linear(L.Linear):
    """:class:`chainer.links.Linear`; on a GPU with cuDNN a 1x1 convolution of one location for each row.

    So it multiplies in the same precision as the convolutions.  RoI features are rows as they lie in memory: where
    their channels are innermost, the filters are put into that order, which are fewer and stay.
    """

    def forward(self, x, *, relu=False):
        """Multiply and, if asked to, apply ReLU; ``(R, C)`` or ``(R, C, H, W)`` to ``(R,
        O)``.
        """
        if not cudnn_frontend.supports(x):
            y = super().forward(x)
            return F.relu(y) if relu else y
        chw_shape = x.shape[1:] if _is_channels_last(x) else None
        if is_forward_only(x):
            filters = cached(_as_1x1_filters, self.W.array, chw_shape)
            y = convolve(_as_rows(chainer.as_array(x), chw_shape), filters, _array(self.b), relu=relu)
            return chainer.as_variable(y[:, :, 0, 0])
        y = cudnn_frontend.convolution_2d(
            _as_rows(chainer.as_variable(x), chw_shape), _as_1x1_filters(self.W, chw_shape), self.b, relu=relu
        )
        return F.reshape(y, y.shape[:2])


def is_forward_only(x) -> bool:
    """Whether nobody will ask for a gradient, and :func:`~mask_rcnn.ops.conv.convolution.convolve` takes ``x``."""
    if chainer.config.enable_backprop:
        return False
    if chainer.backend.get_array_module(x) is not np:
        return cudnn_frontend.supports(x)
    return x.dtype.kind == 'f' and x.dtype.itemsize >= 4


def as_float32(x):
    """Return a variable as float32, as which losses and probabilities are computed; most often it is
    already.
    """
    return x if x.dtype == np.float32 else F.cast(x, np.float32)


def _array(parameter):
    return None if parameter is None else parameter.array


def _is_channels_last(x) -> bool:
    array = chainer.as_array(x)
    return array.ndim == 4 and not array.flags.c_contiguous and array.transpose(0, 2, 3, 1).flags.c_contiguous


def _as_rows(x, chw_shape):
    """Return an array or a variable, ``(R, ...)``, as ``(R, C, 1, 1)``, in the order of its memory."""
    x = x if chw_shape is None else x.transpose(0, 2, 3, 1)
    return x.reshape(len(x), math.prod(x.shape[1:]), 1, 1)


def _as_1x1_filters(W, chw_shape):
    """Return weights ``(O, C)`` as filters for such rows: ``chw_shape`` is the features' ``(C, H, W)``, or ``None``."""
    return _as_rows(W if chw_shape is None else W.reshape(len(W), *chw_shape), chw_shape)
