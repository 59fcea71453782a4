"""Convolutions of CuPy arrays.

cuDNN computes them.  The exceptions are convolutions of one group in the precision ``fp32``, because cuDNN's engines
without tensor cores reach a third of the GPU's rate (see the modules).  A rule selects the implementation, not a
measurement:

================================================== =============================================
problem                                            implementation
================================================== =============================================
windows 1x1 or as large as the stride, no padding: :mod:`~mask_rcnn.ops.cudnn_frontend.matmul`
forward and both gradients; linear layers
3x3 of stride 1, at least 64 input and output      :mod:`~mask_rcnn.ops.cudnn_frontend.winograd`
channels and 32 tiles of 4x4 output pixels:
forward and the gradient of ``x``
all others, or cuBLAS is not found                 cuDNN
================================================== =============================================

If cuDNN's heuristics choose the engine, the same call gives the same bits in every run.  With
``chainer.config.autotune`` (and without ``cudnn_deterministic``) the few best engines by the heuristics are timed once
per shape instead.  The fastest of them, and with it the last bits, may differ from run to run.

In all functions ``x`` is ``(N, C, H, W)`` and ``W`` is ``(O, C / groups, kh, kw)``, float32 or float16, in any memory
layout, fastest with the channels innermost; ``stride`` is the step in both directions; ``pad`` is the number of zeros
on all sides, or ``((top, bottom), (left, right))``; ``precision`` is a
:class:`~mask_rcnn.ops.cudnn_frontend.precision.Precision`, by default that of the configuration.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import chainer
import chainer.functions as F
import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.cudnn_frontend import cublas, frontend, graphs, matmul, winograd
from mask_rcnn.ops.cudnn_frontend.graphs import CompiledGraph, ConvProblem
from mask_rcnn.ops.cudnn_frontend.precision import Precision, current_precision
from mask_rcnn.ops.cudnn_frontend.storage import narrow, scale_weight, to_storage, widen
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.array import Array, get_array_module
from mask_rcnn.ops.runtime.cache import cached
from mask_rcnn.ops.runtime.gpu_errors import is_out_of_memory
from mask_rcnn.ops.runtime.memory_layout import as_nchw, as_nhwc, cast_nchw, vector_lanes

logger = logging.getLogger(__name__)

#: The graphs require addresses that are a multiple of this number of bytes; CuPy's pool returns multiples of 512.
_ALIGNMENT = 16

#: The number of engines that are timed for a shape, and of timed runs per engine.
_MAX_TIMED, _TIMED_RUNS = 4, 3
#: Maximum number of problems whose descriptions are kept; as many as graphs.
_MAX_PROBLEMS = 8192


def is_available() -> bool:
    """Return whether CuPy works and cuDNN 9 convolves on its device; warn once if only cuDNN is missing."""
    return cuda.available and frontend.load_frontend() is not None and _self_test()


@functools.cache
def _self_test() -> bool:
    """Run one convolution, because many missing libraries are detected only then."""
    try:
        problem = ConvProblem('forward', 'float32', (1, 8, 4, 4), (8, 8, 1, 1), tensor_cores=False)
        x, w = (_empty(cuda.cupy, shape, np.float32) for shape in (problem.x, problem.w))
        x[...] = w[...] = 1
        y = _run(problem, {graphs.X: x, graphs.W: w})
        if y is None or not (cuda.to_cpu(y) == 8).all():
            raise RuntimeError('cuDNN fails to convolve a small image')
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the next call may find memory
        frontend.warn_fallback(error)
        return False
    return True


def supports(*arrays: Array | None) -> bool:
    """Return whether cuDNN works and all arrays are CuPy arrays of supported types; ``None`` is an absent array."""
    present = [array for array in arrays if array is not None]
    return all(map(_is_supported_type, present)) and get_array_module(*present) is not np and is_available()


def _is_supported_type(array: Array) -> bool:
    return array.dtype.char in 'ef'  # float16, float32


def convolve(
    x: Array,
    W: Array,
    b: Array | None = None,
    *,
    stride: int = 1,
    pad: Any = 0,
    relu: bool = False,
    clip_max: float = math.inf,
    residual: Array | None = None,
    precision: Precision | None = None,
) -> Array:
    """Return ``relu(convolution + residual + b)``, computed in one pass and without a graph.

    Args:
        x: ``(N, C, H, W)``.
        W: ``(O, C / groups, kh, kw)``.
        b: ``(O,)``, or ``None``.
        stride: See the module.
        pad: See the module.
        relu: Whether to apply ReLU.
        clip_max: Maximum of the result.  Requires ``relu``.
        residual: ``(N, O, oh, ow)`` to add, or ``None``.
        precision: See the module.

    Returns:
        CuPy array: ``(N, O, oh, ow)`` of the type ``precision.result``, channels innermost in memory.
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
        graphs.X: to_storage(x, precision.storage),
        graphs.W: cached(to_storage, W, precision.storage),
        graphs.B: None if b is None else cached(narrow, b, precision.storage),
        graphs.RESIDUAL: None if residual is None else to_storage(residual, precision.storage),
    }
    implementation = _select(problem)
    if implementation is winograd:
        weights = cached(winograd.transform_weights, inputs[graphs.W], False)
        return winograd.convolve(
            problem, inputs[graphs.X], weights, inputs[graphs.B], inputs[graphs.RESIDUAL], relu, clip_max
        )
    inputs = {uid: array for uid, array in inputs.items() if array is not None}
    y = None if implementation is matmul else _run(problem, inputs)
    if y is None:
        conv_only = _problem('forward', x.shape, W.shape, stride, pad, precision)
        y = widen(_compute(conv_only, {uid: inputs[uid] for uid in (graphs.X, graphs.W)}))
        if b is not None or residual is not None or relu:
            y = apply_epilogue(y, b, residual, relu, clip_max)
    elif not math.isinf(clip_max):  # with a clip in the graph, cuDNN has only one, slow engine
        y = apply_epilogue(widen(y), clip_max=clip_max)
    return _result(y, precision.result)


def convolve_backward_data(
    gy: Array, W: Array, x_shape: Sequence[int], *, stride: int = 1, pad: Any = 0, precision: Precision | None = None
) -> Array:
    """Return the gradient with respect to ``x``, ``(N, C, H, W)`` of the type of ``gy``, channels innermost.

    Args:
        gy: ``(N, O, oh, ow)``, the gradient of the result.
        W: ``(O, C / groups, kh, kw)``.
        x_shape: Shape of ``x``, which is ambiguous if the stride is not 1.
        stride: See the module.
        pad: See the module.
        precision: See the module.
    """
    precision = precision or current_precision()
    problem = _problem('data', x_shape, W.shape, stride, pad, precision)
    inputs = {graphs.Y: to_storage(gy, precision.storage), graphs.W: cached(to_storage, W, precision.storage)}
    return _result(_compute(problem, inputs), gy.dtype)


def convolve_backward_filter(
    x: Array,
    gy: Array,
    w_shape: Sequence[int],
    *,
    stride: int = 1,
    pad: Any = 0,
    precision: Precision | None = None,
    dtype: Any = None,
    scale: Array | None = None,
) -> Array:
    """Return the gradient with respect to ``W``, contiguous and of the shape of ``W``.

    Args:
        x: ``(N, C, H, W)``.
        gy: ``(N, O, oh, ow)``, the gradient of the result.
        w_shape: Shape of ``W``.
        stride: See the module.
        pad: See the module.
        precision: See the module.
        dtype: Type of the result, float32 or float16; by default that of ``gy``.
        scale: ``(O, 1, 1, 1)`` factors of the result, or ``None``.
    """
    precision = precision or current_precision()
    problem = _problem('filter', x.shape, w_shape, stride, pad, precision)
    inputs = {graphs.X: to_storage(x, precision.storage), graphs.Y: to_storage(gy, precision.storage)}
    gradient = widen(_compute(problem, inputs))
    return scale_weight(gradient, scale, gy.dtype if dtype is None else dtype, channels_last=False)


def deconvolve(
    x: Array,
    W: Array,
    b: Array | None = None,
    *,
    stride: int = 1,
    pad: Any = 0,
    relu: bool = False,
    precision: Precision | None = None,
) -> Array:
    """Return the transposed convolution ``relu(deconvolution + b)``.

    Args:
        x: ``(N, I, h, w)``.
        W: ``(I, O, kh, kw)``.
        b: ``(O,)``, or ``None``.
        stride: See the module.
        pad: Zeros of the corresponding convolution; see the module.
        relu: Whether to apply ReLU.
        precision: See the module.

    Returns:
        CuPy array: ``(N, O, stride * (h - 1) + kh - zeros, ...)`` of the type ``precision.result``, channels innermost.
    """
    precision = precision or current_precision()
    pads = _pads(pad)
    size = (
        stride * (side - 1) + window - sum(zeros)
        for side, window, zeros in zip(x.shape[2:], W.shape[2:], pads, strict=True)
    )
    shape = x.shape[0], W.shape[1], *size
    problem = _problem('data', shape, W.shape, stride, pads, precision)
    y = _compute(
        problem,
        {graphs.Y: to_storage(x, precision.storage), graphs.W: cached(to_storage, W, precision.storage)},
    )
    if b is not None or relu:
        y = apply_epilogue(widen(y), b, relu=relu)
    return _result(y, precision.result)


def _problem(kind, x_shape, w_shape, stride, pad, precision, bias=False, residual=False, relu=False) -> ConvProblem:
    pads = _pads(pad)
    return _cached_problem(kind, tuple(x_shape), tuple(w_shape), stride, pads, precision, bias, residual, relu)


@functools.lru_cache(_MAX_PROBLEMS)
def _cached_problem(kind, x_shape, w_shape, stride, pads, precision, bias, residual, relu) -> ConvProblem:
    """Return the same object for the same arguments, so that its derived values are computed once."""
    dtype = graphs.dtype_name(precision.storage)
    return ConvProblem(
        kind, dtype, x_shape, w_shape, (stride, stride), pads, precision.tensor_cores, bias, residual, relu
    )


def _pads(pad: Any) -> graphs.Pads:
    if type(pad) is int:
        return (pad, pad), (pad, pad)
    if np.ndim(pad) == 0:
        pad = int(pad)
        return (pad, pad), (pad, pad)
    (top, bottom), (left, right) = pad
    return (int(top), int(bottom)), (int(left), int(right))


def _select(problem: ConvProblem):
    """Return the module that computes a problem, ``matmul`` or ``winograd``; ``None`` for cuDNN."""
    if problem.dtype != 'float32' or problem.tensor_cores:
        return None
    candidates = (module for module in (matmul, winograd) if module.should_use(problem))
    return next(candidates, None) if cublas.is_available() else None


def _compute(problem: ConvProblem, inputs: dict):
    """Compute a problem without an epilogue; fall back to im2col if cuDNN has no engine for it."""
    implementation = _select(problem)
    if implementation is matmul:
        return matmul.compute(problem, inputs)
    if implementation is winograd:
        weights = winograd.transform_weights(inputs[graphs.W], transposed=True)
        return winograd.convolve(problem, inputs[graphs.Y], weights)
    y = _run(problem, inputs)
    return _compute_by_im2col(problem, inputs) if y is None else y


def _run(problem: ConvProblem, inputs: dict):
    """Compute a problem on arrays in the storage type with the channels innermost.

    Returns:
        CuPy array: ``None`` if cuDNN has no engine for the problem on this device.
    """
    first = next(iter(inputs.values()))
    if _is_on_current_device(first):  # otherwise the context takes as long as the rest
        return _run_on_current_device(problem, inputs, first)
    with cuda.get_device_from_array(first):
        return _run_on_current_device(problem, inputs, first)


def _run_on_current_device(problem: ConvProblem, inputs: dict, first: Array):
    out = _empty(get_array_module(first), problem.out, first.dtype)
    if out.size == 0 or first.size == 0:  # cuDNN has no graphs of empty arrays
        out[...] = 0
        return out
    inputs = {uid: _aligned(array) for uid, array in inputs.items()}  # copies live until the graph has started
    pointers = {uid: _address(array) for uid, array in inputs.items()}
    pointers[graphs.OUTPUT[problem.kind]] = _address(out)
    cache = frontend.graph_cache()
    is_timed = chainer.config.autotune and not chainer.config.cudnn_deterministic
    graph = cache.graph((problem, is_timed), _build, problem, cache, pointers, is_timed)
    if graph is None:
        return None
    _start(graph, pointers, cache.handle)
    return out


def _start(graph: CompiledGraph, pointers: dict[int, int], handle: Any) -> None:
    # The workspace returns to CuPy's pool before the work is done.  The pool reuses it only on this stream.
    workspace = _allocate(graph.workspace_size)
    graph.run(pointers, _pointer(workspace), handle)


def _build(
    problem: ConvProblem, cache: frontend.GraphCache, pointers: dict[int, int], is_timed: bool
) -> CompiledGraph | None:
    if is_timed:
        return _build_fastest(problem, cache, lambda graph: _start(graph, pointers, cache.handle))
    return graphs.build(problem, cache.handle, cache.engines)


def _build_fastest(
    problem: ConvProblem, cache: frontend.GraphCache, run: Callable[[CompiledGraph], None]
) -> CompiledGraph | None:
    """Return the graph of the fastest engine, or ``None``."""
    engines = graphs.find_engines(problem, cache.handle, _MAX_TIMED)
    candidates = [graphs.build_with_engine(engine, problem, cache.handle) for engine in engines]
    if not candidates or None in candidates:
        candidates.append(graphs.build_default(problem, cache.handle))
    built = [graph for graph in candidates if graph is not None]
    for graph in built:
        run(graph)  # warm up
    return min(built, key=lambda graph: min(_milliseconds(run, graph) for _ in range(_TIMED_RUNS)), default=None)


def _milliseconds(run, graph) -> float:
    start, stop = cuda.Event(), cuda.Event()
    start.record()
    run(graph)
    stop.record()
    stop.synchronize()
    return cuda.cupy.cuda.get_elapsed_time(start, stop)


def _compute_by_im2col(problem: ConvProblem, inputs: dict):
    """Compute a problem as Chainer does without cuDNN: im2col and matmul, in float32."""
    _warn_once(problem)
    first = next(iter(inputs.values()))
    xp = get_array_module(first)
    arrays = {uid: widen(array).astype(np.float32, copy=False) for uid, array in inputs.items()}
    x, w = (
        chainer.Variable(arrays[uid] if uid in arrays else xp.zeros(shape, np.float32))
        for uid, shape in ((graphs.X, problem.x), (graphs.W, problem.w))
    )
    with chainer.using_config('use_cudnn', 'never'), chainer.force_backprop_mode():
        y = F.convolution_2d(
            F.pad(x, [(0, 0), (0, 0), *problem.pad], 'constant'), w, stride=problem.stride, groups=problem.groups
        )
        if problem.kind == 'forward':
            out = y.array
        else:
            y.grad = arrays[graphs.Y]
            y.backward()
            out = {'data': x, 'filter': w}[problem.kind].grad
    return to_storage(out, first.dtype)


@functools.cache
def _warn_once(problem: ConvProblem) -> None:
    logger.warning('cuDNN has no engine on this device, falling back to im2col, for %s', problem)


def _allocate(size: int):
    return cuda.cupy.cuda.alloc(size)


def _pointer(memory) -> int:
    return memory.ptr


def _address(array) -> int:
    return array.data.ptr


def _aligned(array: Array) -> Array:
    """Return an array at an address that cuDNN accepts: a copy if the array is a slice of another one, for example.

    The gradient of the smallest map of a pyramid is such a slice, of the gradient of the logits of all levels.
    """
    return array if _address(array) % _ALIGNMENT == 0 else array.copy('K')


def _is_on_current_device(array) -> bool:
    return isinstance(array, np.ndarray) or array.device.id == cuda.cupy.cuda.runtime.getDevice()


def _empty(xp, shape, dtype):
    n, channels, height, width = shape
    return as_nchw(xp.empty((n, height, width, channels), dtype))


def _result(y, dtype):
    return cast_nchw(widen(y), dtype)


def apply_epilogue(
    y: Array, b: Array | None = None, residual: Array | None = None, relu: bool = False, clip_max: float = math.inf
) -> Array:
    """Apply the epilogue to an existing array, in place and in one pass: return ``relu(y + residual + b)``.

    Args:
        y: ``(N, O, oh, ow)``, float32 or float16, fastest with the channels innermost in memory; overwritten.
        b: ``(O,)``, or ``None``.
        residual: ``(N, O, oh, ow)``, or ``None``; rounded to the type of ``y``.
        relu: Whether to apply ReLU.
        clip_max: Maximum of the result.
    """
    pixels = as_nhwc(y)
    out = get_array_module(y).ascontiguousarray(pixels)
    residual = None if residual is None else as_nhwc(to_storage(residual, out.dtype))
    b = None if b is None else cached(narrow, b, np.dtype(np.float32))
    _launch_epilogue(out, residual, b, 0.0 if relu else -math.inf, clip_max)
    if not pixels.flags.c_contiguous:
        pixels[...] = out
    return y


def _launch_epilogue(y, residual, b, lowest: float, highest: float) -> None:
    """Apply the epilogue to contiguous arrays ``(N, H, W, O)`` and ``b`` ``(O,)``; an absent array is ``None``."""
    is_half = y.dtype == np.float16
    lanes = vector_lanes(8 if is_half else 4, *(array for array in (y, residual, b) if array is not None))
    source, added = map(cuda_kernels.as_argument, (y, y if residual is None else residual))
    # The kernel does not read the placeholders of absent arrays.
    bias = get_array_module(y).empty(1, np.float32) if b is None else b
    cuda_kernels.launch(
        cuda_kernels.kernel('cudnn_frontend/epilogue.cu', f'epilogue_{"half_" if is_half else ""}{lanes}'),
        y.size // lanes,
        (
            source,
            added,
            np.int32(residual is not None),
            bias,
            np.int32(b is not None),
            np.float32(lowest),
            np.float32(highest),
            np.int32(y.shape[3]),
            np.int64(y.size),
        ),
    )
