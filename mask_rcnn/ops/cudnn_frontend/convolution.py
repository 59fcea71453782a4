"""Convolutions of CuPy arrays.

Where cuDNN's heuristics choose the engine, the same call has the same bits in every run.  With
``chainer.config.autotune`` (and not ``cudnn_deterministic``) the few best by the heuristics are timed once for each
shape instead; which of them wins, and with it the last bits, may change from run to run.

Everywhere: ``x`` is ``(N, C, H, W)`` and ``W`` is ``(O, C / groups, kh, kw)``, float32 or float16, in any
memory layout, fastest with the channels innermost; ``stride`` is one step for both directions; ``pad`` is the
number of zeros on every side, or ``((above, below), (left, right))``; ``precision`` is a
:class:`~mask_rcnn.ops.cudnn_frontend.precision.Precision`, by default that of the configuration.
"""

from __future__ import annotations

import functools
import logging
import math

import chainer
import chainer.functions as F
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.cudnn_frontend import frontend, graphs
from mask_rcnn.ops.cudnn_frontend.graphs import ConvProblem
from mask_rcnn.ops.cudnn_frontend.precision import Precision, current_precision
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.cache import cached

logger = logging.getLogger(__name__)

#: Engines that are timed for a shape, and how often each.
_MAX_TIMED, _TIMED_RUNS = 4, 3


def is_available() -> bool:
    """Whether CuPy works and cuDNN 9 convolves on its device; warns once if only the latter is missing."""
    return cuda.available and frontend.load_frontend() is not None and _self_test()


@functools.cache
def _self_test() -> bool:
    """Convolve once: a library that is missing is often opened no sooner than that."""
    try:
        problem = ConvProblem('forward', 'float32', (1, 8, 4, 4), (8, 8, 1, 1), tensor_cores=False)
        x, w = (_empty(cuda.cupy, shape, np.float32) for shape in (problem.x, problem.w))
        x[...] = w[...] = 1
        y = _run(problem, {graphs.X: x, graphs.W: w})
        if y is None or not (cuda.to_cpu(y) == 8).all():
            raise RuntimeError('cuDNN cannot convolve a small image')
    except Exception as error:
        frontend.warn_fallback(error)
        return False
    return True


def supports(*arrays) -> bool:
    """Whether arrays (``None`` for absent ones) are CuPy's and of types known here, and cuDNN can be used."""
    arrays = [array for array in arrays if array is not None]
    return (
        all(array.dtype.str[1:] in ('f2', 'f4') for array in arrays)
        and cuda.get_array_module(*arrays) is not np
        and is_available()
    )


def convolve(
    x,
    W,
    b=None,
    *,
    stride: int = 1,
    pad=0,
    relu: bool = False,
    clip_max: float = math.inf,
    residual=None,
    precision: Precision | None = None,
):
    """Return ``relu(convolution + residual + b)`` in one pass; nothing is kept for a backward pass.

    Args:
        x, W, stride, pad, precision: See the module.
        b: ``(O,)``, or ``None``.
        relu: Whether to replace negative numbers by zero.
        clip_max: With ``relu``: larger numbers are replaced by it.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.

    Returns:
        ``(N, O, oh, ow)`` of the type ``precision.result``, channels innermost in memory.
    """
    precision = precision or current_precision()
    problem = _problem(
        'forward',
        x.shape,
        W.shape,
        stride,
        pad,
        precision,
        bias=b is not None,
        residual=residual is not None,
        relu=relu,
    )
    inputs = {
        graphs.X: _channels_last(x, precision.storage),
        graphs.W: cached(_channels_last, W, precision.storage),
        graphs.B: None if b is None else cached(_narrow, b, precision.storage),
        graphs.RESIDUAL: None if residual is None else _channels_last(residual, precision.storage),
    }
    inputs = {uid: array for uid, array in inputs.items() if array is not None}
    y = _run(problem, inputs)
    if y is None:
        conv_only = _problem('forward', x.shape, W.shape, stride, pad, precision)
        y = _compute(conv_only, {uid: inputs[uid] for uid in (graphs.X, graphs.W)})
        y = apply_epilogue(_widen(y), b, residual, relu, clip_max)
    elif not math.isinf(clip_max):  # as a part of the graph it would leave cuDNN a single, slow engine
        y = apply_epilogue(_widen(y), clip_max=clip_max)
    return _result(y, precision.result)


def convolve_backward_data(gy, W, x_shape, *, stride: int = 1, pad=0, precision: Precision | None = None):
    """Return the gradient with respect to ``x``, ``(N, C, H, W)`` of the type of ``gy``, channels innermost.

    Args:
        gy: ``(N, O, oh, ow)``, the gradient of the result.
        W, stride, pad, precision: See the module.
        x_shape: Shape of ``x``, which the other shapes leave open where the stride is not 1.
    """
    precision = precision or current_precision()
    problem = _problem('data', x_shape, W.shape, stride, pad, precision)
    inputs = {graphs.Y: _channels_last(gy, precision.storage), graphs.W: cached(_channels_last, W, precision.storage)}
    return _result(_compute(problem, inputs), gy.dtype)


def convolve_backward_filter(x, gy, w_shape, *, stride: int = 1, pad=0, precision: Precision | None = None):
    """Return the gradient with respect to ``W``, contiguous, of the shape of ``W`` and the type of ``gy``.

    Args:
        x, stride, pad, precision: See the module.
        gy: ``(N, O, oh, ow)``, the gradient of the result.
        w_shape: Shape of ``W``.
    """
    precision = precision or current_precision()
    problem = _problem('filter', x.shape, w_shape, stride, pad, precision)
    gradient = _compute(
        problem, {graphs.X: _channels_last(x, precision.storage), graphs.Y: _channels_last(gy, precision.storage)}
    )
    gradient = _result(gradient, gy.dtype)
    return cuda.get_array_module(gradient).ascontiguousarray(gradient)


def deconvolve(x, W, b=None, *, stride: int = 1, pad=0, relu: bool = False, precision: Precision | None = None):
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
    shape = (
        x.shape[0],
        W.shape[1],
        *(stride * (side - 1) + window - sum(zeros) for side, window, zeros in zip(x.shape[2:], W.shape[2:], pads)),
    )
    problem = _problem('data', shape, W.shape, stride, pads, precision)
    y = _compute(
        problem,
        {graphs.Y: _channels_last(x, precision.storage), graphs.W: cached(_channels_last, W, precision.storage)},
    )
    if b is not None or relu:
        y = apply_epilogue(_widen(y), b, relu=relu)
    return _result(y, precision.result)


def _problem(kind, x_shape, w_shape, stride, pad, precision, **epilogue) -> ConvProblem:
    return ConvProblem(
        kind,
        graphs.dtype_name(precision.storage),
        tuple(x_shape),
        tuple(w_shape),
        (stride, stride),
        _pads(pad),
        precision.tensor_cores,
        **epilogue,
    )


def _pads(pad):
    if np.ndim(pad) == 0:
        return (pad, pad), (pad, pad)
    return tuple((int(before), int(after)) for before, after in pad)


def _compute(problem: ConvProblem, inputs: dict):
    """Compute a problem without an epilogue as :func:`_run` does, by matrix products if cuDNN has no engine for it."""
    y = _run(problem, inputs)
    return _multiply(problem, inputs) if y is None else y


def _run(problem: ConvProblem, inputs: dict):
    """Compute a problem; takes and returns arrays in the storage type with the channels innermost.

    Returns:
        CuPy array: ``None`` if cuDNN has no engine for it on this device.
    """
    first = next(iter(inputs.values()))
    out = _empty(cuda.get_array_module(first), problem.out, first.dtype)
    if out.size == 0 or first.size == 0:  # no images: cuDNN has no graphs of nothing
        out[...] = 0
        return out
    pointers = {uid: _address(array) for uid, array in inputs.items()}
    pointers[graphs.OUTPUT[problem.kind]] = _address(out)
    with cuda.get_device_from_array(first):
        cache = frontend.graph_cache()

        def run(graph):
            # The workspace goes back to CuPy's pool at once: the pool hands it only to later work of this stream.
            workspace = _allocate(graph.workspace_size)
            graph.run(pointers, _pointer(workspace), cache.handle)

        is_timed = chainer.config.autotune and not chainer.config.cudnn_deterministic
        build = (
            functools.partial(_build_fastest, problem, cache, run)
            if is_timed
            else functools.partial(graphs.build, problem, cache.handle, cache.engines)
        )
        graph = cache.graph((problem, is_timed), build)
        if graph is None:
            return None
        run(graph)
    return out


def _build_fastest(problem, cache, run):
    """Return the graph of the engine that takes the least time, or ``None``."""
    built = [
        graphs.build_with_engine(engine, problem, cache.handle)
        for engine in graphs.find_engines(problem, cache.handle, _MAX_TIMED)
    ]
    if not built or None in built:
        built.append(graphs.build_default(problem, cache.handle))
    built = [graph for graph in built if graph is not None]
    for graph in built:
        run(graph)  # what a kernel does the first time does not count
    return min(built, key=lambda graph: min(_milliseconds(run, graph) for _ in range(_TIMED_RUNS)), default=None)


def _milliseconds(run, graph) -> float:
    start, stop = cuda.Event(), cuda.Event()
    start.record()
    run(graph)
    stop.record()
    stop.synchronize()
    return cuda.cupy.cuda.get_elapsed_time(start, stop)


def _multiply(problem: ConvProblem, inputs: dict):
    """Compute a problem as Chainer does without cuDNN: windows side by side, times the filters, in float32."""
    _warn_once(problem)
    first = next(iter(inputs.values()))
    xp = cuda.get_array_module(first)
    given = {uid: _widen(array).astype(np.float32, copy=False) for uid, array in inputs.items()}
    x, w = (
        chainer.Variable(given[uid] if uid in given else xp.zeros(shape, np.float32))
        for uid, shape in ((graphs.X, problem.x), (graphs.W, problem.w))
    )
    with chainer.using_config('use_cudnn', 'never'), chainer.force_backprop_mode():
        y = F.convolution_2d(
            F.pad(x, [(0, 0), (0, 0), *problem.pad], 'constant'), w, stride=problem.stride, groups=problem.groups
        )
        if problem.kind == 'forward':
            out = y.array
        else:
            y.grad = given[graphs.Y]
            y.backward()
            out = {'data': x, 'filter': w}[problem.kind].grad
    return _channels_last(out, first.dtype)


@functools.cache
def _warn_once(problem):
    logger.warning('cuDNN has no engine on this device, so that matrix products take its place, for %s', problem)


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


def _channels_last(x, storage: np.dtype):
    """Return ``(N, C, H, W)`` in a storage type, channels innermost; copies only what is not so yet."""
    return _narrow(x.transpose(0, 2, 3, 1), storage).transpose(0, 3, 1, 2)


def _narrow(x, storage: np.dtype):
    """Return a contiguous copy, or ``x`` itself, in a storage type."""
    xp = cuda.get_array_module(x)
    if storage != np.uint16:
        return xp.ascontiguousarray(x, dtype=storage)
    x = xp.ascontiguousarray(x, dtype=np.float32)
    bits = xp.empty(x.shape, np.uint16)
    cuda_kernels.launch(
        cuda_kernels.kernel('cudnn_frontend/bfloat16.cu', 'float_to_bfloat16'), x.size, (x, np.int64(x.size), bits)
    )
    return bits


def _widen(y):
    """Return float32 for the bits of bfloat16, and anything else as it is."""
    if y.dtype != np.uint16:
        return y
    bits = y.transpose(0, 2, 3, 1)
    out = cuda.get_array_module(y).empty(bits.shape, np.float32)
    cuda_kernels.launch(
        cuda_kernels.kernel('cudnn_frontend/bfloat16.cu', 'bfloat16_to_float'),
        out.size,
        (bits, np.int64(out.size), out),
    )
    return out.transpose(0, 3, 1, 2)


def _result(y, dtype):
    return as_nhwc(_widen(y)).astype(dtype, copy=False).transpose(0, 3, 1, 2)


def as_nhwc(x):
    """Return ``(N, C, H, W)`` with the channels innermost as ``(N, H, W, C)``.

    CuPy's kernels run through an array in the order of its axes, whatever its strides: neighbouring threads would
    touch numbers ``C`` apart, and results have the channels outermost.
    """
    return x.transpose(0, 2, 3, 1)


def apply_epilogue(y, b=None, residual=None, relu: bool = False, clip_max: float = math.inf):
    """Do in place, in one pass, what could not be part of the graph: return ``relu(y + residual + b)``.

    Args:
        y: ``(N, O, oh, ow)``, float32 or float16, fastest with the channels innermost in memory; overwritten.
        b: ``(O,)``, or ``None``.
        residual: ``(N, O, oh, ow)``, or ``None``.
        relu: Whether to replace negative numbers by zero.
        clip_max: Larger numbers are replaced by it.
    """
    residual, b = (0.0 if residual is None else as_nhwc(residual)), (0.0 if b is None else b)
    _epilogue_kernel()(residual, b, 0.0 if relu else -math.inf, clip_max, as_nhwc(y))
    return y


def _epilogue_kernel():
    return cuda.elementwise(
        'R residual, B b, float32 clip_min, float32 clip_max',
        'T y',
        """
        const float sum = (float)y + (float)residual + (float)b;
        y = (T)(sum < clip_min ? clip_min : sum > clip_max ? clip_max : sum);
    """,
        'convolution_epilogue',
    )
