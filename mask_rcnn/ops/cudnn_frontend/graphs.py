"""From the description of a convolution to a compiled cuDNN graph.

cuDNN's heuristics name the engines that may compute a graph, the fastest first by their estimate.  To ask them
takes 5 to 20 ms, and the graph that asked keeps the whole answer, up to 1.9 MB.  So they are asked once for all
sizes that are near one another, and each graph is made of one engine: 1 ms and 0.1 MB (Frontend 1.32, cuDNN 9.28).
Which engine that is depends on the description alone, not on what was computed before, and so do the last bits.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from dataclasses import dataclass, replace

import numpy as np

from mask_rcnn.ops.cudnn_frontend.frontend import load_frontend, supports_engine_query

#: Numbers by which a graph knows its tensors.
X, W, B, RESIDUAL, Y = 1, 2, 3, 4, 5
#: Which of them a kind of convolution computes.
OUTPUT = {'forward': Y, 'data': X, 'filter': W}

#: Engines may not ask for more scratch memory than this; each problem here has one that needs none.
_MAX_WORKSPACE = 256 << 20


@dataclass(frozen=True)
class ConvProblem:
    """A convolution ``y = relu(conv(x, w) + residual + b)``, or one of its gradients, for certain shapes.

    Args:
        kind: ``'forward'`` (x, w to y), ``'data'`` (y, w to x) or ``'filter'`` (x, y to w).
        dtype: ``'float32'``, ``'float16'`` or ``'bfloat16'``, of all arrays.
        x: ``(N, C, H, W)``.
        w: ``(O, C / groups, kh, kw)``.
        stride: Vertical and horizontal.
        pad: Zeros ``((above, below), (left, right))``.
        tensor_cores: Whether engines may round float32 factors.
        bias, residual, relu: What follows the product; of a forward convolution only.
    """

    kind: str
    dtype: str
    x: tuple[int, int, int, int]
    w: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    pad: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    tensor_cores: bool = True
    bias: bool = False
    residual: bool = False
    relu: bool = False

    @property
    def y(self) -> tuple[int, int, int, int]:
        """``(N, O, oh, ow)``."""
        return (
            self.x[0],
            self.w[0],
            *(
                (side + sum(pad) - window) // stride + 1
                for side, window, stride, pad in zip(self.x[2:], self.w[2:], self.stride, self.pad)
            ),
        )

    @property
    def out(self) -> tuple[int, int, int, int]:
        """Shape of what is computed."""
        return {'forward': self.y, 'data': self.x, 'filter': self.w}[self.kind]

    @property
    def groups(self) -> int:
        return self.x[1] // self.w[1]

    def rounded(self) -> ConvProblem:
        """Return the convolution of the next larger round size, which stands for all that are near it.

        Rows and columns get four significant bits and so grow by less than an eighth; RoIs get a multiple of eight.
        """
        n, channels, height, width = self.x
        return replace(
            self,
            x=(
                _round_up(n, 8 if n > 8 else 1),
                channels,
                *(_round_up(side, 1 << max(0, side.bit_length() - 4)) for side in (height, width)),
            ),
        )


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


class CompiledGraph:
    """A compiled graph.

    Args:
        graph: ``cudnn.pygraph`` with its plan built.

    Attributes:
        workspace_size (int): Bytes of scratch memory that it needs.
    """

    def __init__(self, graph):
        self._graph = graph
        self._no_overrides = {}
        # Frontend 1.32 takes addresses as they are only where shapes may be overridden, be it none: half the time.
        if _can_override(type(graph)) and getattr(graph, 'selected_engine', None) is None:
            self._no_overrides = {'override_uids': [], 'override_shapes': [], 'override_strides': []}
        self.workspace_size = graph.get_workspace_size()

    def run(self, pointers: dict[int, int], workspace: int, handle) -> None:
        """Start it on the handle's stream; device addresses by tensor number."""
        self._graph.execute(pointers, workspace, handle=handle, **self._no_overrides)


@functools.cache
def _can_override(graph_type) -> bool:
    return 'override_uids' in inspect.signature(graph_type.execute).parameters


def build(problem: ConvProblem, handle, engines: dict) -> CompiledGraph | None:
    """Compile a graph, with the engine that comes first for the rounded size or, if it cannot, for this one.

    Args:
        problem: What is computed.
        handle: Of the device.
        engines: What the heuristics have answered for rounded sizes, which is added to.

    Returns:
        CompiledGraph: ``None`` if no engine computes it on the handle's device.
    """
    rounded = problem.rounded()
    if rounded not in engines:
        engines[rounded] = find_engines(rounded, handle)
    known = (build_with_engine(engine, problem, handle) for engine in engines[rounded])
    return next(known, None) or build_default(problem, handle)


def find_engines(problem: ConvProblem, handle, max_engines: int = 1) -> list[tuple]:
    """Return up to ``max_engines`` engines that compute a convolution, by cuDNN's heuristics the fastest first.

    Returns:
        list: Pairs of an engine's number and its settings; nothing where this Frontend names none.
    """
    cudnn, found = load_frontend(), []
    if not supports_engine_query(cudnn):
        return found
    for excluded in _excluded_numeric_notes(cudnn, problem):
        graph = _plan(problem, cudnn, handle, excluded)
        for index in range(0 if graph is None else graph.get_execution_plan_count()):
            with contextlib.suppress(cudnn.cudnnGraphNotSupportedError):  # what is unwanted, among others
                graph.build_plan_at_index(index)
                found.append(graph.get_engine_and_knobs_at_index(index))
            if len(found) == max_engines:
                return found
        if found:
            return found
    return []


def build_with_engine(engine: tuple, problem: ConvProblem, handle) -> CompiledGraph | None:
    """Compile a graph with one of :func:`find_engines`; ``None`` if that cannot compute it.

    Frontend 1.32 cannot ask again for some engines that it has named (for three channels: a RuntimeError).
    """
    cudnn = load_frontend()
    graph = describe(problem, cudnn, handle=handle)
    try:
        graph.build_operation_graph()
        # Else Frontend 1.32 asks the heuristics, too, and keeps their answer; to others the name means nothing.
        graph._cpp_plans_created = True
        graph.create_execution_plan(*engine)
        graph.deselect_workspace_greater_than(_MAX_WORKSPACE)
        graph.build_plans()
    except (cudnn.cudnnGraphNotSupportedError, RuntimeError):
        return None
    return CompiledGraph(graph)


def build_default(problem: ConvProblem, handle) -> CompiledGraph | None:
    """Compile a graph with the heuristics' first engine, even if it cannot be asked for by name; or ``None``."""
    cudnn = load_frontend()
    for excluded in _excluded_numeric_notes(cudnn, problem):
        graph = _plan(problem, cudnn, handle, excluded)
        with contextlib.suppress(cudnn.cudnnGraphNotSupportedError):
            if graph is not None:
                graph.check_support()
                graph.build_plans()
                return CompiledGraph(graph)
    return None


def _plan(problem, cudnn, handle, excluded):
    """Return a graph that has asked the heuristics, or ``None`` if they know no engine."""
    graph = describe(problem, cudnn, handle=handle)
    try:
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    except cudnn.cudnnGraphNotSupportedError:
        return None
    graph.deselect_numeric_notes(excluded)
    graph.deselect_workspace_greater_than(_MAX_WORKSPACE)
    return graph


def describe(problem: ConvProblem, cudnn, **options):
    """Return an uncompiled, valid ``cudnn.pygraph``; ``options`` go to its constructor."""
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


def strides(shape) -> list[int]:
    """Return the steps, in elements, of ``(N, C, H, W)`` with the channels innermost."""
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
    # First the residual, then the bias, in the type of the rest: the order of cuDNN's own fused convolution
    # ("ConvBiasAct").  For any other order its heuristics (9.28, asked for an H200) offer only the slower
    # engines that are compiled at run time.
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


def _excluded_numeric_notes(cudnn, problem):
    """Return what an engine must not do to the numbers, and what it must not do even if no other is left.

    Products in less than the storage's precision and sums in less than float32 never; without tensor cores
    no TF32 (PyTorch sorts engines by the same notes, ``aten/src/ATen/native/cudnn/Conv_v8.cpp``) and no
    Winograd transform of large tiles, which amplifies rounding errors (Lavin and Gray 2016, section 5.3).
    Sums in an order that changes from run to run only where there is no other way.
    """
    note = cudnn.numerical_note
    excluded = [note.DOWN_CONVERT_INPUTS, note.REDUCED_PRECISION_REDUCTION]
    if not problem.tensor_cores:
        excluded += [note.TENSOR_CORE, note.WINOGRAD_TILE_6x6, note.WINOGRAD_TILE_13x13]
    return [excluded + [note.NONDETERMINISTIC], excluded]


def dtype_name(storage: np.dtype) -> str:
    """Return the name that :class:`ConvProblem` has for a storage type (uint16 holds bfloat16)."""
    return {'f2': 'float16', 'f4': 'float32', 'u2': 'bfloat16'}[storage.str[1:]]
