"""Convolutions of CuPy arrays.

Everywhere: ``x`` is ``(N, C, H, W)`` and ``W`` is ``(O, C / groups, kh, kw)``, float32 or float16, in any
memory layout, fastest with the channels innermost; ``stride`` is one step for both directions; ``pad`` is the
number of zeros on every side, or ``((above, below), (left, right))``; ``precision`` is a
:class:`~mask_rcnn.ops.cudnn.precision.Precision`, by default that of the configuration.
"""

from __future__ import annotations

import math

import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops import _cuda
from mask_rcnn.ops.cudnn import graphs, library
from mask_rcnn.ops.cudnn.graphs import Convolution
from mask_rcnn.ops.cudnn.precision import Precision, current_precision
from mask_rcnn.ops.derived import derived


class UnsupportedError(Exception):
    """cuDNN has no engine for a convolution on this device."""


def takes(*arrays) -> bool:
    """Whether arrays (``None`` for absent ones) are CuPy's and of types known here, and cuDNN can be used."""
    arrays = [array for array in arrays if array is not None]
    return (all(array.dtype.str[1:] in ('f2', 'f4') for array in arrays)
            and cuda.get_array_module(*arrays) is not np and library.is_available())


def convolve(x, W, b=None, *, stride: int = 1, pad=0, relu: bool = False, limit: float = math.inf,
             residual=None, precision: Precision | None = None):
    """Return ``relu(convolution + residual + b)`` in one pass; nothing is kept for a backward pass.

    Args:
        x, W, stride, pad, precision: See the module.
        b: ``(O,)``, or ``None``.
        relu: Whether to replace negative numbers by zero.
        limit: With ``relu``: larger numbers are replaced by it.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.

    Returns:
        ``(N, O, oh, ow)`` of the type ``precision.result``, channels innermost in memory.
    """
    precision = precision or current_precision()
    task = _task('forward', x.shape, W.shape, stride, pad, precision, bias=b is not None,
                 residual=residual is not None, relu=relu)
    inputs = {graphs.X: _channels_last(x, precision), graphs.W: derived(_channels_last, W, precision),
              graphs.B: None if b is None else derived(_narrow, b, precision),
              graphs.RESIDUAL: None if residual is None else _channels_last(residual, precision)}
    inputs = {uid: array for uid, array in inputs.items() if array is not None}
    try:
        y = _run(task, inputs)
    except UnsupportedError:
        if not (task.bias or task.residual or task.relu):
            raise
        product = _task('forward', x.shape, W.shape, stride, pad, precision)
        y = _run(product, {uid: inputs[uid] for uid in (graphs.X, graphs.W)})
        y = finish(_widen(y), b, residual, relu)
    y = _result(y, precision.result)
    if not math.isinf(limit):  # as a part of the graph it would leave cuDNN a single, slow engine
        cuda.get_array_module(y).minimum(y, limit, out=y)
    return y


def convolve_backward_data(gy, W, x_shape, *, stride: int = 1, pad=0, precision: Precision | None = None):
    """Return the gradient with respect to ``x``, ``(N, C, H, W)`` of the type of ``gy``, channels innermost.

    Args:
        gy: ``(N, O, oh, ow)``, the gradient of the result.
        W, stride, pad, precision: See the module.
        x_shape: Shape of ``x``, which the other shapes leave open where the stride is not 1.
    """
    precision = precision or current_precision()
    task = _task('data', x_shape, W.shape, stride, pad, precision)
    inputs = {graphs.Y: _channels_last(gy, precision), graphs.W: derived(_channels_last, W, precision)}
    return _result(_run(task, inputs), gy.dtype)


def convolve_backward_filter(x, gy, w_shape, *, stride: int = 1, pad=0, precision: Precision | None = None):
    """Return the gradient with respect to ``W``, contiguous, of the shape of ``W`` and the type of ``gy``.

    Args:
        x, stride, pad, precision: See the module.
        gy: ``(N, O, oh, ow)``, the gradient of the result.
        w_shape: Shape of ``W``.
    """
    precision = precision or current_precision()
    task = _task('filter', x.shape, w_shape, stride, pad, precision)
    gradient = _run(task, {graphs.X: _channels_last(x, precision), graphs.Y: _channels_last(gy, precision)})
    gradient = _result(gradient, gy.dtype)
    return cuda.get_array_module(gradient).ascontiguousarray(gradient)


def deconvolve(x, W, b=None, *, stride: int = 1, pad=0, relu: bool = False,
               precision: Precision | None = None):
    """Return the transposed convolution ``relu(deconvolution + b)``.

    Args:
        x: ``(N, I, h, w)``; see the module for its types, for ``stride``, ``pad`` and ``precision``.
        W: ``(I, O, kh, kw)``.
        b: ``(O,)``, or ``None``.
        relu: Whether to replace negative numbers by zero.

    Returns:
        ``(N, O, stride * (h - 1) + kh - zeros, ...)`` of the type ``precision.result``, channels innermost.
    """
    precision = precision or current_precision()
    pads = _pads(pad)
    shape = (x.shape[0], W.shape[1], *(stride * (side - 1) + window - sum(zeros) for side, window, zeros
                                       in zip(x.shape[2:], W.shape[2:], pads)))
    task = _task('data', shape, W.shape, stride, pads, precision)
    y = _run(task, {graphs.Y: _channels_last(x, precision), graphs.W: derived(_channels_last, W, precision)})
    if b is not None or relu:
        y = finish(_widen(y), b, None, relu)
    return _result(y, precision.result)


def _task(kind, x_shape, w_shape, stride, pad, precision, **epilogue) -> Convolution:
    return Convolution(kind, graphs.dtype_name(precision.storage), tuple(x_shape), tuple(w_shape),
                       (stride, stride), _pads(pad), precision.tensor_cores, **epilogue)


def _pads(pad):
    if np.ndim(pad) == 0:
        return (pad, pad), (pad, pad)
    return tuple((int(before), int(after)) for before, after in pad)


def _run(task: Convolution, inputs: dict):
    """Compute a task; takes and returns arrays in the storage type with the channels innermost.

    Raises:
        UnsupportedError: cuDNN has no engine for it on this device.
    """
    first = next(iter(inputs.values()))
    out = _empty(cuda.get_array_module(first), task.out, first.dtype)
    if out.size == 0 or first.size == 0:  # no images: cuDNN has no graphs of nothing
        out[...] = 0
        return out
    with cuda.get_device_from_array(first):
        session = library.session()
        graph = session.graph(task, graphs.build)
        if graph is None:
            raise UnsupportedError(f'cuDNN cannot compute {task}')
        workspace = _allocate(graph.workspace_size)
        pointers = {uid: _address(array) for uid, array in inputs.items()}
        pointers[graphs.OUTPUT[task.kind]] = _address(out)
        # The workspace goes back to CuPy's pool at once: the pool hands it only to later work of this stream.
        graph.run(pointers, _pointer(workspace), session.handle)
    return out


def _allocate(size: int):
    return cuda.cupy.cuda.alloc(size)


def _pointer(memory) -> int:
    return memory.ptr


def _address(array) -> int:
    return array.data.ptr


# Layouts and types

def _empty(xp, shape, dtype):
    n, channels, height, width = shape
    return xp.empty((n, height, width, channels), dtype).transpose(0, 3, 1, 2)


def _channels_last(x, precision: Precision):
    """Return ``(N, C, H, W)`` in the storage type, channels innermost; copies only what is not so yet."""
    return _narrow(x.transpose(0, 2, 3, 1), precision).transpose(0, 3, 1, 2)


def _narrow(x, precision: Precision):
    """Return a contiguous copy, or ``x`` itself, in the storage type."""
    xp = cuda.get_array_module(x)
    if precision.storage != np.uint16:
        return xp.ascontiguousarray(x, dtype=precision.storage)
    x = xp.ascontiguousarray(x, dtype=np.float32)
    bits = xp.empty(x.shape, np.uint16)
    _cuda.launch(_cuda.kernel('bfloat16.cu', 'float_to_bfloat16'), x.size, (x, np.int64(x.size), bits))
    return bits


def _widen(y):
    """Return float32 for the bits of bfloat16, and anything else as it is."""
    if y.dtype != np.uint16:
        return y
    bits = y.transpose(0, 2, 3, 1)
    out = cuda.get_array_module(y).empty(bits.shape, np.float32)
    _cuda.launch(_cuda.kernel('bfloat16.cu', 'bfloat16_to_float'), out.size, (bits, np.int64(out.size), out))
    return out.transpose(0, 3, 1, 2)


def _result(y, dtype):
    return _widen(y).astype(dtype, order='K', copy=False)


def finish(y, b, residual, relu: bool):
    """Do in place what could not be part of the graph: return ``relu(y + residual + b)``.

    Args:
        y: ``(N, O, oh, ow)``, float32 or float16, in any layout; overwritten.
        b: ``(O,)``, or ``None``.
        residual: ``(N, O, oh, ow)``, or ``None``.
        relu: Whether to replace negative numbers by zero.
    """
    if residual is not None:
        y += residual.astype(y.dtype, copy=False)
    if b is not None:
        y += b.astype(y.dtype, copy=False)[:, None, None]
    if relu:
        cuda.get_array_module(y).maximum(y, 0, out=y)
    return y
