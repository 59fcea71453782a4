"""Compilation of a convolution problem to a cuDNN graph.

cuDNN's heuristics return the engines that can compute a graph, the fastest by their estimate first.  Their query takes
5 to 20 ms, and the graph that runs it keeps the whole result, up to 1.9 MB.  Therefore they are queried once for all
sizes that round to the same size, and each graph is built with one engine: 1 ms and 0.1 MB (Frontend 1.32, cuDNN 9.28).
The engine, and with it the last bits, depends on the problem alone, not on earlier computations.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mask_rcnn.ops.cudnn_frontend.frontend import load_frontend, supports_engine_query

#: Uids of the tensors in a graph.
X, W, B, RESIDUAL, Y = 1, 2, 3, 4, 5
#: The tensor that each kind of problem computes.
OUTPUT = {'forward': Y, 'data': X, 'filter': W}

#: Maximum workspace of an engine in bytes; each problem has an engine without a workspace.
_MAX_WORKSPACE = 256 << 20

Shape = tuple[int, int, int, int]
Pads = tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class ConvProblem:
    """The description of a convolution ``y = relu(conv(x, w) + residual + b)``, or of one of its gradients.

    Args:
        kind: ``'forward'`` (x, w to y), ``'data'`` (y, w to x) or ``'filter'`` (x, y to w).
        dtype: Type of all arrays: ``'float32'``, ``'float16'`` or ``'bfloat16'``.
        x: Shape of x, ``(N, C, H, W)``.
        w: Shape of w, ``(O, C / groups, kh, kw)``.
        stride: Vertical and horizontal.
        pad: Zeros ``((top, bottom), (left, right))``.
        tensor_cores: Whether engines may round float32 factors.
        bias: Whether to add a bias; forward only.
        residual: Whether to add a residual; forward only.
        relu: Whether to apply ReLU; forward only.
    """

    kind: str
    dtype: str
    x: Shape
    w: Shape
    stride: tuple[int, int] = (1, 1)
    pad: Pads = ((0, 0), (0, 0))
    tensor_cores: bool = True
    bias: bool = False
    residual: bool = False
    relu: bool = False

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, field.name) for field in fields(self)))

    @functools.cached_property
    def y(self) -> Shape:
        """Shape of y, ``(N, O, oh, ow)``."""
        height, width = (
            (side + sum(pad) - window) // stride + 1
            for side, window, stride, pad in zip(self.x[2:], self.w[2:], self.stride, self.pad, strict=True)
        )
        return self.x[0], self.w[0], height, width

    @functools.cached_property
    def out(self) -> Shape:
        """Shape of the result."""
        return {'forward': self.y, 'data': self.x, 'filter': self.w}[self.kind]

    @property
    def groups(self) -> int:
        """The number of groups of channels."""
        return self.x[1] // self.w[1]

    def rounded(self) -> ConvProblem:
        """Return the problem with the size rounded up, which represents all problems with the same rounded size.

        Height and width keep four significant bits, which adds less than an eighth; the number of RoIs becomes a
        multiple of eight.
        """
        n, channels, *size = self.x
        height, width = (_round_up(side, 1 << max(0, side.bit_length() - 4)) for side in size)
        return replace(self, x=(_round_up(n, 8 if n > 8 else 1), channels, height, width))


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


class CompiledGraph:
    """A compiled graph.

    Args:
        graph: ``cudnn.pygraph`` with its plan built.

    Attributes:
        workspace_size (int): Bytes of workspace.
    """

    def __init__(self, graph: Any):
        self._graph = graph
        self._no_overrides: dict[str, list] = {}
        # Frontend 1.32 accepts plain addresses only if shape overrides are passed, even empty.  This halves the time.
        if _accepts_overrides(graph) and getattr(graph, 'selected_engine', None) is None:
            self._no_overrides = {'override_uids': [], 'override_shapes': [], 'override_strides': []}
        self.workspace_size = graph.get_workspace_size()

    def run(self, pointers: dict[int, int], workspace: int, handle: Any) -> None:
        """Start the graph on the stream of the handle; ``pointers`` maps tensor uids to device addresses."""
        self._graph.execute(pointers, workspace, handle=handle, **self._no_overrides)


def _accepts_overrides(graph: Any) -> bool:
    return 'override_uids' in inspect.signature(graph.execute).parameters


def build(problem: ConvProblem, handle: Any, engines: dict) -> CompiledGraph | None:
    """Compile a graph with the first engine for the rounded size or, if that fails, for the size itself.

    Args:
        problem: The convolution.
        handle: The cuDNN handle of the device.
        engines: Rounded problem -> engines that the heuristics returned; updated.

    Returns:
        CompiledGraph: ``None`` if no engine computes the problem on the device of the handle.
    """
    rounded = problem.rounded()
    if rounded not in engines:
        engines[rounded] = find_engines(rounded, handle)
    built = (build_with_engine(engine, problem, handle) for engine in engines[rounded])
    return next(built, None) or build_default(problem, handle)


def find_engines(problem: ConvProblem, handle: Any, max_engines: int = 1) -> list[tuple]:
    """Return up to ``max_engines`` engines that compute a problem, the fastest by cuDNN's heuristics first.

    Returns:
        list: Pairs of an engine's id and its knob settings; empty if this Frontend does not list engines.
    """
    cudnn = load_frontend()
    found: list[tuple] = []
    if not supports_engine_query(cudnn):
        return found
    for excluded in _excluded_numeric_notes(cudnn, problem):
        graph = _plan(problem, cudnn, handle, excluded)
        for index in range(0 if graph is None else graph.get_execution_plan_count()):
            with contextlib.suppress(cudnn.cudnnGraphNotSupportedError):  # excluded engines, among others
                graph.build_plan_at_index(index)
                found.append(graph.get_engine_and_knobs_at_index(index))
            if len(found) == max_engines:
                return found
        if found:
            return found
    return []


def build_with_engine(engine: tuple, problem: ConvProblem, handle: Any) -> CompiledGraph | None:
    """Compile a graph with an engine of :func:`find_engines`; return ``None`` if the engine cannot compute it.

    Frontend 1.32 raises a RuntimeError for some engines that it has listed (for three channels).
    """
    cudnn = load_frontend()
    graph = describe(problem, cudnn, handle=handle)
    try:
        graph.build_operation_graph()
        # Otherwise Frontend 1.32 also queries the heuristics and keeps their answer; other versions ignore this.
        graph._cpp_plans_created = True
        graph.create_execution_plan(*engine)
        graph.deselect_workspace_greater_than(_MAX_WORKSPACE)
        graph.build_plans()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
        return None
    return CompiledGraph(graph)


def build_default(problem: ConvProblem, handle: Any) -> CompiledGraph | None:
    """Compile a graph with the first engine of the heuristics, whether or not it can be selected by id."""
    cudnn = load_frontend()
    for excluded in _excluded_numeric_notes(cudnn, problem):
        graph = _plan(problem, cudnn, handle, excluded)
        with contextlib.suppress(cudnn.cudnnGraphNotSupportedError):
            if graph is not None:
                graph.check_support()
                graph.build_plans()
                return CompiledGraph(graph)
    return None


def _plan(problem: ConvProblem, cudnn: Any, handle: Any, excluded: list) -> Any:
    """Return a graph with the engines of the heuristics, or ``None`` if there are none."""
    graph = describe(problem, cudnn, handle=handle)
    try:
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except cudnn.cudnnGraphNotSupportedError:
        return None
    graph.deselect_numeric_notes(excluded)
    graph.deselect_workspace_greater_than(_MAX_WORKSPACE)
    return graph


def describe(problem: ConvProblem, cudnn: Any, **options: Any) -> Any:
    """Return an uncompiled, validated ``cudnn.pygraph``; ``options`` are passed to its constructor."""
    types = {'float32': cudnn.data_type.FLOAT, 'float16': cudnn.data_type.HALF, 'bfloat16': cudnn.data_type.BFLOAT16}
    io_type = types[problem.dtype]
    graph = cudnn.pygraph(
        io_data_type=io_type,
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        **options,
    )
    operation = {'forward': _forward, 'data': _data, 'filter': _filter}[problem.kind]
    out = operation(graph, problem, _tensor_maker(graph, io_type))
    out.set_output(True).set_data_type(io_type)
    out.set_dim(list(problem.out)).set_stride(strides(problem.out)).set_uid(OUTPUT[problem.kind])
    graph.validate()
    return graph


def strides(shape: Shape) -> list[int]:
    """Return the strides, in elements, of ``(N, C, H, W)`` with the channels innermost."""
    _, channels, height, width = shape
    return [channels * height * width, 1, width * channels, channels]


def _tensor_maker(graph, io_type):
    def tensor(name, uid, shape):
        return graph.tensor(name=name, dim=list(shape), stride=strides(shape), data_type=io_type).set_uid(uid)

    return tensor


def _geometry(problem):
    return {
        'pre_padding': [pad[0] for pad in problem.pad],
        'post_padding': [pad[1] for pad in problem.pad],
        'stride': list(problem.stride),
        'dilation': [1, 1],
    }


def _forward(graph, problem, tensor):
    y = graph.conv_fprop(image=tensor('x', X, problem.x), weight=tensor('w', W, problem.w), **_geometry(problem))
    # First the residual, then the bias, with the type of the other tensors: the order of cuDNN's fused convolution
    # ("ConvBiasAct").  For any other order the heuristics (9.28, H200) return only the slower engines that are compiled
    # at run time.
    if problem.residual:
        y = graph.add(a=y, b=tensor('residual', RESIDUAL, problem.y))
    if problem.bias:
        y = graph.bias(input=y, bias=tensor('b', B, (1, problem.w[0], 1, 1)))
    if problem.relu:
        y = graph.relu(input=y)
    return y


def _data(graph, problem, tensor):
    return graph.conv_dgrad(loss=tensor('gy', Y, problem.y), filter=tensor('w', W, problem.w), **_geometry(problem))


def _filter(graph, problem, tensor):
    return graph.conv_wgrad(image=tensor('x', X, problem.x), loss=tensor('gy', Y, problem.y), **_geometry(problem))


def _excluded_numeric_notes(cudnn: Any, problem: ConvProblem) -> list[list]:
    """Return the numeric notes of engines to exclude: the preferred set, then the minimum set.

    The minimum set excludes products in less than the precision of the storage and sums in less than float32 and,
    without tensor cores, TF32 (PyTorch filters engines by the same notes,
    ``aten/src/ATen/native/cudnn/Conv_v8.cpp``) and Winograd transforms of large tiles, which amplify rounding errors
    (Lavin and Gray 2016, section 5.3).  The preferred set also excludes sums whose order changes from run to run.
    """
    note = cudnn.numerical_note
    excluded = [note.DOWN_CONVERT_INPUTS, note.REDUCED_PRECISION_REDUCTION]
    if not problem.tensor_cores:
        excluded += [note.TENSOR_CORE, note.WINOGRAD_TILE_6x6, note.WINOGRAD_TILE_13x13]
    return [excluded + [note.NONDETERMINISTIC], excluded]


def dtype_name(storage: np.dtype) -> str:
    """Return the name of a storage type in :class:`ConvProblem`; uint16 holds bfloat16."""
    return {'f2': 'float16', 'f4': 'float32', 'u2': 'bfloat16'}[storage.str[1:]]
