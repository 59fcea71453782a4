"""Layers shared by the backbones and heads: convolutions, also normalised ones, and the base class of backbones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np

from mask_rcnn.models.initializers import he_normal
from mask_rcnn.models.norms import AffineChannel2D, GroupNormalization, apply_frozen_bn, make_norm, scale_and_bias
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv.affine_channel import scale_output_channels
from mask_rcnn.ops.conv.convolution import convolution_2d, convolve, deconvolution_2d, deconvolve
from mask_rcnn.ops.conv.linear import linear
from mask_rcnn.ops.runtime.array import get_array_module
from mask_rcnn.ops.runtime.cache import cached
from mask_rcnn.ops.runtime.memory_layout import flatten_rows

#: Output channels that all engines of cuDNN accept are a multiple of this.
_CHANNEL_ALIGNMENT = 8


def select_path(x) -> str:
    """Select the implementation of convolutional and linear layers for an input.

    ============================= ==================== ====================
    Input                         backprop disabled    backprop enabled
    ============================= ==================== ====================
    NumPy, float32 or float64     ``'cpu'``            ``'graph'``
    NumPy, float16                ``'graph'``          ``'graph'``
    CuPy, cuDNN Frontend works    ``'cudnn'``          ``'cudnn_graph'``
    CuPy, otherwise               ``'graph'``          ``'graph'``
    ============================= ==================== ====================

    ``'cpu'`` and ``'cudnn'`` apply bias, residual and ReLU in the same pass and keep nothing for a backward pass
    (:func:`mask_rcnn.ops.conv.convolution.convolve`).  ``'cudnn_graph'`` has a fused forward and backward pass
    (:mod:`mask_rcnn.ops.cudnn_frontend.functions`).  ``'graph'`` applies differentiable functions one after the other;
    :func:`mask_rcnn.ops.conv.convolution.choose_backend` selects that of the convolution.

    Args:
        x: Array or :class:`chainer.Variable`.

    Returns:
        str: One of the four names in the table.
    """
    forward_only = not chainer.config.enable_backprop
    if get_array_module(x) is np:
        return 'cpu' if forward_only and x.dtype.kind == 'f' and x.dtype.itemsize >= 4 else 'graph'
    if not cudnn_frontend.supports(x):
        return 'graph'
    return 'cudnn' if forward_only else 'cudnn_graph'


def is_forward_only(x) -> bool:
    """Return whether the layers for ``x`` keep nothing for a backward pass; see :func:`select_path`."""
    return select_path(x) in ('cpu', 'cudnn')


class _WithoutInitialGradient:
    """Mixin for a link of Chainer's: the gradient of its weight is not allocated before a backward pass.

    Chainer fills it with NaN at construction, which doubles the memory of a network, also on a GPU: 169 MB of a
    ResNet-50 FPN network.
    """

    W: Any

    def _initialize_params(self, in_channels: int) -> None:
        self.W.cleargrad()
        super()._initialize_params(in_channels)  # type: ignore[misc]  # that of the link


class Convolution2D(_WithoutInitialGradient, L.Convolution2D):
    """:class:`chainer.links.Convolution2D` (square stride and padding, no dilation) with optional ReLU.

    The parameters are Chainer's.  :func:`select_path` selects the implementation.
    """

    def forward(self, x, *, relu=False):
        """Convolve ``(N, C, H, W)`` and apply ReLU if ``relu`` is set."""
        options = {'stride': self.stride[0], 'pad': self.pad[0]}
        path = select_path(x)
        if path in ('cpu', 'cudnn'):
            y = convolve(chainer.as_array(x), self.W.array, _array_of(self.b), relu=relu, groups=self.groups, **options)
            return chainer.as_variable(y)
        if path == 'cudnn_graph':  # the shape of the weight determines the groups
            return cudnn_frontend.convolution_2d(x, self.W, self.b, relu=relu, **options)
        y = convolution_2d(x, self.W, self.b, groups=self.groups, **options)
        return F.relu(y) if relu else y


class Deconvolution2D(_WithoutInitialGradient, L.Deconvolution2D):
    """:class:`chainer.links.Deconvolution2D` (square stride and padding) with optional ReLU.

    The counterpart of :class:`Convolution2D`.
    """

    def forward(self, x, *, relu=False):
        """Apply the transposed convolution to ``(N, C, H, W)``, and ReLU if ``relu`` is set."""
        options = {'stride': self.stride[0], 'pad': self.pad[0]}
        path = select_path(x)
        if path in ('cpu', 'cudnn'):
            y = deconvolve(chainer.as_array(x), self.W.array, _array_of(self.b), relu=relu, **options)
            return chainer.as_variable(y)
        if path == 'cudnn_graph':
            return cudnn_frontend.deconvolution_2d(x, self.W, self.b, relu=relu, **options)
        y = deconvolution_2d(x, self.W, self.b, **options)
        return F.relu(y) if relu else y


class Linear(_WithoutInitialGradient, L.Linear):
    """:class:`chainer.links.Linear` with optional ReLU; with cuDNN, a 1x1 convolution over one location per row.

    As a convolution it uses the precision of the convolutions.  RoI features are flattened in memory order.  If they
    are channels last, the weight is reordered instead, because it is smaller and the result is cached.
    """

    def forward(self, x, *, relu=False):  # type: ignore[override]  # no n_batch_axes
        """Map ``(R, C)`` or ``(R, C, H, W)`` to ``(R, O)``, and apply ReLU if ``relu`` is set."""
        path = select_path(x)
        if path == 'cpu':
            y = _linear_cpu(x, self)
            return F.relu(y) if relu else y
        if path == 'graph':
            y = super().forward(F.reshape(x, (len(x), math.prod(x.shape[1:]))))  # Chainer fails to flatten 0 rows
            return F.relu(y) if relu else y
        chw_shape = x.shape[1:] if _is_channels_last(x) else None
        if path == 'cudnn':
            weight = cached(_as_1x1_weight, self.W.array, chw_shape)
            y = convolve(_as_rows(chainer.as_array(x), chw_shape), weight, _array_of(self.b), relu=relu)
            return chainer.as_variable(y[:, :, 0, 0])
        y = cudnn_frontend.convolution_2d(
            _as_rows(chainer.as_variable(x), chw_shape), _as_1x1_weight(self.W, chw_shape), self.b, relu=relu
        )
        return F.reshape(y, y.shape[:2])


def output_layers(x, *links: Any) -> tuple[chainer.Variable, ...]:
    """Map ``(R, C)`` float32 to ``(R, O)`` for each linear link, in float32 in every precision.

    With cuDNN the links are 1x1 convolutions, which a CUDA graph can capture: CuPy (14) raises an exception if it calls
    cuBLAS during a capture.  Without backprop, all links are one convolution, which takes fewer launches.

    Args:
        x: Array or :class:`chainer.Variable`.
        links: :class:`chainer.links.Linear` with a bias.
    """
    path, precision = select_path(x), cudnn_frontend.PRECISIONS['fp32']
    if path == 'cudnn_graph':
        rows = _as_rows(chainer.as_variable(x), None)
        outputs = [
            cudnn_frontend.convolution_2d(rows, _as_rows(link.W, None), link.b, precision=precision) for link in links
        ]
        return tuple(F.reshape(y, y.shape[:2]) for y in outputs)
    if path == 'cpu':
        return tuple(_linear_cpu(x, link) for link in links)
    if path == 'graph':
        return tuple(link(x) for link in links)
    weight, bias = cached(_join_links, *(parameter.array for link in links for parameter in (link.W, link.b)))
    rows = _as_rows(chainer.as_array(x), None)
    y = cudnn_frontend.convolve(rows, weight, bias, precision=precision)[:, :, 0, 0]
    ends = np.cumsum([len(link.b) for link in links]).tolist()
    return tuple(chainer.as_variable(y[:, end - len(link.b) : end]) for link, end in zip(links, ends, strict=True))


def _linear_cpu(x, link: Any) -> chainer.Variable:
    """Map ``(R, C)`` or ``(R, C, H, W)`` on the CPU to ``(R, O)`` with a linear link, without backprop."""
    return chainer.as_variable(linear(flatten_rows(chainer.as_array(x)), link.W.array, _array_of(link.b)))


def _join_links(*parameters):
    """Return weight ``(O, C, 1, 1)`` and bias ``(O,)`` of all links; ``O`` is padded to a multiple of eight.

    Args:
        parameters: The weight and the bias of each link.
    """
    xp = get_array_module(*parameters)
    weights, biases = parameters[::2], parameters[1::2]
    n_padding = -sum(map(len, biases)) % _CHANNEL_ALIGNMENT
    padding = xp.zeros((n_padding, weights[0].shape[1]), weights[0].dtype)
    weight = xp.concatenate([*weights, padding])
    return weight[:, :, None, None], xp.concatenate([*biases, padding[:, 0]])


def as_float32(x) -> chainer.Variable:
    """Cast a variable to float32 (a no-op in fp32 mode)."""
    return x if x.dtype == np.float32 else F.cast(x, np.float32)


def _array_of(parameter):
    return None if parameter is None else parameter.array


def _is_channels_last(x) -> bool:
    array = chainer.as_array(x)
    return array.ndim == 4 and not array.flags.c_contiguous and array.transpose(0, 2, 3, 1).flags.c_contiguous


def _as_rows(x, chw_shape):
    """Reshape ``(R, ...)`` to ``(R, C, 1, 1)``; channels-last features keep the order of their memory."""
    x = x if chw_shape is None else x.transpose(0, 2, 3, 1)
    return x.reshape(len(x), math.prod(x.shape[1:]), 1, 1)


def _as_1x1_weight(W, chw_shape):
    """Reshape a weight ``(O, C)`` to ``(O, C, 1, 1)`` for rows of features ``(C, H, W)``, or plain rows if ``None``."""
    return _as_rows(W if chw_shape is None else W.reshape(len(W), *chw_shape), chw_shape)


class ConvNorm(chainer.Chain):
    """A convolution without bias, followed by its normalisation.

    Args:
        in_channels, out_channels, ksize, stride, pad, groups: As for :class:`chainer.links.Convolution2D`.
        norm (str): ``'affine'``, ``'bn'`` or ``'gn'``.

    Attributes:
        bn_frozen (bool): Whether a batch normalisation uses its running statistics even in training, with a trained
            or a frozen scale and offset; see :func:`mask_rcnn.training.freezing.freeze`.
    """

    bn_frozen = False

    def __init__(self, in_channels, out_channels, ksize, *, stride=1, pad=0, groups=1, norm):
        super().__init__()
        init = he_normal(fan_option='fan_out', groups=groups)
        with self.init_scope():
            self.conv = Convolution2D(
                in_channels, out_channels, ksize, stride, pad, nobias=True, initialW=init, groups=groups
            )
            self.norm = make_norm(norm, out_channels)

    def forward(self, x, *, relu=False, residual=None, overwrite_residual=False):
        """Apply convolution and normalisation, then optionally add ``residual`` and apply ReLU.

        Args:
            x: ``(N, C, H, W)`` floats.
            relu (bool): Whether to apply ReLU.
            residual: ``(N, O, oh, ow)`` to be added, or ``None``.
            overwrite_residual (bool): Whether the result may reuse the memory of ``residual`` if backprop is disabled.

        Returns:
            chainer.Variable: ``(N, O, oh, ow)``.
        """
        options = {'stride': self.conv.stride[0], 'pad': self.conv.pad[0], 'relu': relu}
        path = select_path(x)
        if path in ('cpu', 'cudnn') and self.has_fixed_norm:
            weight, bias = self.fold()
            residual = None if residual is None else chainer.as_array(residual)
            options.update(groups=self.conv.groups, residual=residual, overwrite_residual=overwrite_residual)
            return chainer.as_variable(convolve(chainer.as_array(x), weight, bias, **options))
        if path == 'cudnn_graph' and self.has_constant_norm:
            return cudnn_frontend.convolution_affine(x, self.conv.W, *scale_and_bias(self.norm), residual, **options)
        return self.normalize(self.conv(x), relu=relu, residual=residual)

    @property
    def has_fixed_norm(self) -> bool:
        """True if the normalisation does not depend on the features in the current mode."""
        if isinstance(self.norm, GroupNormalization):
            return False
        return self.bn_frozen or isinstance(self.norm, AffineChannel2D) or not chainer.config.train

    @property
    def has_constant_norm(self) -> bool:
        """True if the normalisation neither depends on the features nor is trained."""
        return self.has_fixed_norm and not any(parameter.requires_grad for parameter in self.norm.params())

    def fold(self) -> tuple[Any, Any]:
        """Return the weight ``(O, I / groups, kh, kw)`` and the bias ``(O,)`` of convolution and normalisation."""
        return cached(_fold_norm, self.conv.W.array, self.norm)

    def normalize(self, h, *, relu=False, residual=None) -> chainer.Variable:
        """Normalise ``(N, O, oh, ow)``, then optionally add ``residual`` and apply ReLU.

        ``h`` must be the result of the convolution, whose memory is reused if backprop is disabled.
        """
        if isinstance(self.norm, GroupNormalization):
            return self.norm(h, residual=residual, relu=relu, overwrite=True)
        h = apply_frozen_bn(self.norm, h) if self.bn_frozen else self.norm(h)
        if residual is not None:
            h = h + residual
        return F.relu(h) if relu else h


def make_convolution(
    in_channels: int, out_channels: int, ksize: int, *, pad: int = 0, norm: str, initialW: Any
) -> Convolution2D | ConvNorm:
    """Return a convolution of stride 1 with a bias, or with a normalisation instead of the bias.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        ksize: Height and width of the windows.
        pad: Zeros around the images.
        norm: ``'none'``, or the normalisation of a :class:`ConvNorm`.
        initialW: Initialiser of the weight of a convolution without normalisation.
    """
    if norm == 'none':
        return Convolution2D(in_channels, out_channels, ksize, pad=pad, initialW=initialW)
    return ConvNorm(in_channels, out_channels, ksize, pad=pad, norm=norm)


def _fold_norm(weight, norm):
    scale, bias = scale_and_bias(norm)
    return scale_output_channels(weight, scale), bias


class Backbone(chainer.Chain):
    """A chain of stages, of which the first ``frozen_stages`` are frozen.

    A subclass has the attributes below.  It is called with ``(N, 3, H, W)`` floats and returns a tuple of feature maps
    ``(N, C, ceil(H / s), ceil(W / s))`` with ``C`` and ``s`` as in ``out_channels`` and ``strides``.

    Attributes:
        outputs (tuple of int): The stages, counted from 1, whose outputs are returned.
        strides (tuple of int): Input pixels per location of each output.
        out_channels (tuple of int): Channels of each output.
        frozen_stages (int): Number of frozen stages, which keep nothing for a backward pass; see
            :func:`mask_rcnn.training.freezing.freeze`.
    """

    outputs: tuple[int, ...]
    strides: tuple[int, ...]
    out_channels: tuple[int, ...]
    frozen_stages = 0

    @property
    def stages(self) -> tuple[Callable, ...]:
        """The links that are applied one after the other."""
        return tuple(self.children())

    def forward(self, x):
        features = []
        for number, stage in enumerate(self.stages, start=1):
            if number <= self.frozen_stages:
                with chainer.no_backprop_mode():
                    x = stage(x)
                x = chainer.as_variable(x.array)  # detach: no gradient flows into frozen stages
            else:
                x = stage(x)
            if number in self.outputs:
                features.append(x)
        return tuple(features)
