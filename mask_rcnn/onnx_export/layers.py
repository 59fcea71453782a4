"""Layers in ONNX graphs, made from the parameters of links."""

from __future__ import annotations

from typing import Any

import chainer
import numpy as np

from mask_rcnn.models.layers import Convolution2D, Deconvolution2D
from mask_rcnn.models.norms import GroupNormalization
from mask_rcnn.onnx_export.graph import GraphBuilder, Tensor


def relu(x: Tensor) -> Tensor:
    """Apply ReLU."""
    return x.graph.op('Relu', x)


def convolve(x: Tensor, layer: Any, *, same_pad: bool = False, depthwise: bool = False) -> Tensor:
    """Apply a convolution, or a convolution and its normalisation, without an activation function.

    A normalisation with constant scale and bias is folded into the weight of the convolution.

    Args:
        x: ``(N, C, H, W)`` float32.
        layer: A :class:`~mask_rcnn.models.layers.Convolution2D` or a :class:`~mask_rcnn.models.layers.ConvNorm`.
        same_pad: Whether the images have TensorFlow's padding ``SAME`` instead of that of the link.
        depthwise: Whether each channel has its own filter, which the link does not state.
    """
    link = layer if isinstance(layer, Convolution2D) else layer.conv
    attributes = {'group': len(link.W) if depthwise else link.groups, 'strides': list(link.stride)}
    attributes |= {'auto_pad': 'SAME_UPPER'} if same_pad else {'pads': list(link.pad) * 2}
    if layer is link:
        return _convolve(x, link.W.array, _array_of(link.b), attributes)
    if isinstance(layer.norm, GroupNormalization):
        return group_norm(_convolve(x, link.W.array, None, attributes), layer.norm)
    with chainer.using_config('train', False):
        weight, bias = layer.fold()
    return _convolve(x, weight, bias, attributes)


def _convolve(x: Tensor, weight: Any, bias: Any, attributes: dict[str, Any]) -> Tensor:
    kernel_shape = list(weight.shape[2:])
    return x.graph.op('Conv', x, *parameters(x.graph, weight, bias), kernel_shape=kernel_shape, **attributes)


def deconvolve(x: Tensor, link: Deconvolution2D) -> Tensor:
    """Apply a transposed convolution without ReLU."""
    weight = link.W.array
    return x.graph.op(
        'ConvTranspose',
        x,
        *parameters(x.graph, weight, _array_of(link.b)),
        kernel_shape=list(weight.shape[2:]),
        strides=list(link.stride),
        pads=list(link.pad) * 2,
    )


def linear(x: Tensor, link: Any) -> Tensor:
    """Map ``(R, C)`` to ``(R, O)``."""
    return x.graph.op('Gemm', x, *parameters(x.graph, link.W.array, _array_of(link.b)), transB=1)


def group_norm(x: Tensor, norm: GroupNormalization) -> Tensor:
    """Normalise ``(N, C, H, W)`` in groups of channels.

    Sums are those of rows, then those of the rows' sums: ONNX Runtime's ``InstanceNormalization`` adds up all values
    of a group in single precision, which gives thirty times the error.  ONNX's ``GroupNormalization`` has other
    parameters in each version of the operators.

    Args:
        x: The feature maps, float32.
        norm: The link.
    """
    graph = x.graph
    grouped = x.reshape(x.size(0), norm.groups, -1, x.size(3))
    centred = grouped - _mean_of_rows(graph.op('ReduceMean', grouped, _axes(x, 3)))
    squares = graph.op('ReduceSumSquare', centred, _axes(x, 3)) / x.size(3).cast(np.float32)
    deviation = graph.op('Sqrt', _mean_of_rows(squares) + norm.eps)
    normalized = graph.op('Reshape', centred / deviation, x.shape())
    scale, bias = (
        graph.constant(chainer.backends.cuda.to_cpu(parameter.array)[:, None, None], name)
        for parameter, name in ((norm.gamma, 'scale'), (norm.beta, 'bias'))
    )
    return normalized * scale + bias


def _mean_of_rows(x: Tensor) -> Tensor:
    """Return the mean of ``(N, groups, rows, 1)`` over the rows."""
    return x.graph.op('ReduceMean', x, _axes(x, 2))


def _axes(x: Tensor, *axes: int) -> Tensor:
    return x.graph.constant(np.array(axes, np.int64))


def upsample_nearest_2x(x: Tensor) -> Tensor:
    """Repeat each location of ``(N, C, H, W)`` twice along both axes."""
    scales = x.graph.constant(np.array([1, 1, 2, 2], np.float32))
    return x.graph.op(
        'Resize',
        x,
        None,
        scales,
        mode='nearest',
        coordinate_transformation_mode='asymmetric',
        nearest_mode='floor',
    )


def parameters(graph: GraphBuilder, weight: Any, bias: Any = None) -> list[Tensor]:
    """Return constants of a weight and, unless it is ``None``, a bias; arrays of any device."""
    arrays = {'weight': weight} if bias is None else {'weight': weight, 'bias': bias}
    return [
        graph.constant(chainer.backends.cuda.to_cpu(array).astype(np.float32, copy=False), name)
        for name, array in arrays.items()
    ]


def _array_of(parameter: Any) -> Any:
    return None if parameter is None else parameter.array
