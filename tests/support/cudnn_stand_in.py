"""A stand-in for the module ``cudnn`` that interprets graphs on the CPU, in the memory of NumPy arrays.

It has the names that the project uses, with the contract of cuDNN Frontend 1.10 to 1.32: tensors have shapes, strides
and types; a graph must be validated, planned and built in that order; buffers are addresses by tensor number.  Sums are
float64, so that a result differs from the exact one only by the rounding to its type.  All engines (:class:`Engine`)
compute the same result.
"""

from __future__ import annotations

import ctypes
import enum
import types
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from mask_rcnn.ops.cudnn_frontend import convolution, cublas, frontend, graphs
from mask_rcnn.ops.runtime import cuda_kernels

data_type = enum.Enum('data_type', 'NOT_SET FLOAT HALF BFLOAT16')
heur_mode = enum.Enum('heur_mode', 'A B FALLBACK')
numerical_note = enum.Enum(
    'numerical_note',
    'TENSOR_CORE DOWN_CONVERT_INPUTS REDUCED_PRECISION_REDUCTION '
    'NONDETERMINISTIC WINOGRAD WINOGRAD_TILE_4x4 WINOGRAD_TILE_6x6 WINOGRAD_TILE_13x13',
)

_DTYPES = {data_type.FLOAT: np.float32, data_type.HALF: np.float16, data_type.BFLOAT16: np.uint16}


class cudnnGraphNotSupportedError(RuntimeError):
    """Raised by :meth:`Pygraph.check_support`."""


class Tensor:
    """A tensor of a graph; ``compute`` returns its values unless it is an input."""

    def __init__(self, dim=None, stride=None, dtype=None, compute=None):
        self.dim, self.stride, self.dtype, self.compute = dim, stride, dtype, compute
        self.uid, self.output = None, False

    def set_uid(self, uid):
        self.uid = uid
        return self

    def set_output(self, output):
        self.output = output
        return self

    def set_data_type(self, dtype):
        self.dtype = dtype
        return self

    def set_dim(self, dim):
        self.dim = dim
        return self

    def set_stride(self, stride):
        self.stride = stride
        return self

    def memory(self, address: int) -> np.ndarray:
        """Return the array at an address; writes to it change the memory."""
        dtype = np.dtype(_DTYPES[self.dtype])
        size = 1 + sum((n - 1) * step for n, step in zip(self.dim, self.stride, strict=True))
        flat = np.frombuffer((ctypes.c_char * (size * dtype.itemsize)).from_address(address), dtype)
        return np.lib.stride_tricks.as_strided(
            flat, self.dim, [s * dtype.itemsize for s in self.stride], writeable=True
        )

    def values(self, buffers) -> np.ndarray:
        """Return the tensor in the type of sums."""
        if self.compute is not None:
            return self.compute(buffers)
        array = self.memory(buffers[self.uid])
        if self.dtype is data_type.BFLOAT16:
            array = (array.astype(np.uint32) << 16).view(np.float32)
        return array.astype(STAND_IN.sum_type)


@dataclass(frozen=True)
class Engine:
    """An engine that the heuristics return.

    Args:
        number: Number of the engine.
        notes: The ``numerical_note`` values of the engine.
        milliseconds: Duration of a run.
        is_selectable: Whether it can be selected by number and settings, which Frontend 1.32 fails to do for some.
    """

    number: int
    notes: frozenset = frozenset()
    milliseconds: float = 1.0
    is_selectable: bool = True


class Pygraph:
    """``cudnn.pygraph`` of Frontend 1.10."""

    def __init__(self, *, io_data_type, intermediate_data_type, compute_data_type, handle):
        assert intermediate_data_type is compute_data_type is data_type.FLOAT
        assert isinstance(handle, Handle)
        self.tensors, self.steps, self.notes, self.state, self.plans, self.engine = [], [], [], [], [], None

    def tensor(self, *, name, dim, stride, data_type):
        tensor = Tensor(dim, stride, data_type)
        self.tensors.append(tensor)
        return tensor

    def _step(self, name, compute):
        self.steps.append(name)
        tensor = Tensor(compute=compute)
        self.tensors.append(tensor)
        return tensor

    def conv_fprop(self, *, image, weight, **geometry):
        return self._step('conv', lambda buffers: conv(image.values(buffers), weight.values(buffers), **geometry))

    def conv_dgrad(self, *, loss, filter, **geometry):
        out = self._step(
            'dgrad', lambda buffers: dgrad(loss.values(buffers), filter.values(buffers), out.dim, **geometry)
        )
        return out

    def conv_wgrad(self, *, image, loss, **geometry):
        out = self._step(
            'wgrad', lambda buffers: wgrad(image.values(buffers), loss.values(buffers), out.dim, **geometry)
        )
        return out

    def add(self, *, a, b):
        return self._step('add', lambda buffers: a.values(buffers) + b.values(buffers))

    def bias(self, *, input, bias):
        return self._step('bias', lambda buffers: input.values(buffers) + bias.values(buffers))

    def relu(self, *, input):
        return self._step('relu', lambda buffers: np.maximum(input.values(buffers), 0))

    def validate(self):
        uids = [tensor.uid for tensor in self.tensors if tensor.compute is None or tensor.output]
        assert None not in uids and len(set(uids)) == len(uids)
        self._advance('validate')

    def build_operation_graph(self):
        self._advance('build_operation_graph', 'validate')

    def create_execution_plans(self, heuristics):
        assert heuristics == [heur_mode.A, heur_mode.FALLBACK]
        self._advance('create_execution_plans', 'build_operation_graph')
        self.plans = list(STAND_IN.engines)
        STAND_IN.queries.append(self)

    def deselect_numeric_notes(self, notes):
        assert self.state[-1] == 'create_execution_plans'
        self.notes += notes

    def deselect_workspace_greater_than(self, size):
        assert self.state[-1].startswith('create_execution_plan') and size >= STAND_IN.workspace

    def check_support(self):
        self._possible()
        self._advance('check_support', 'create_execution_plans')

    def build_plans(self):
        self.engine = self._possible()[0]
        self._advance('build_plans', 'check_support', 'create_execution_plan')
        STAND_IN.graphs.append(self)

    def _possible(self):
        possible = [engine for engine in self.plans if not engine.notes & set(self.notes)]
        if STAND_IN.unsupported(self.steps) or not possible:
            raise cudnnGraphNotSupportedError('No valid engine configs')
        return possible

    def _advance(self, name, *after):
        assert (self.state[-1] in after) if after else not self.state
        self.state.append(name)

    def get_workspace_size(self):
        return STAND_IN.workspace

    def execute(self, pointers, workspace, handle):
        self._execute(pointers, workspace, handle)

    def _execute(self, pointers, workspace, handle):
        assert self.state[-1] == 'build_plans' and isinstance(handle, Handle)
        assert handle.stream == STAND_IN.stream
        assert all(type(value) is int for value in (*pointers, *pointers.values(), workspace))
        (out,) = [tensor for tensor in self.tensors if tensor.output]
        if any(pointer % 16 for pointer in pointers.values()):
            raise RuntimeError('CUDNN_STATUS_BAD_PARAM_MISALIGNED_POINTER')
        assert set(pointers) == {tensor.uid for tensor in self.tensors if tensor.uid is not None}
        values = out.values(pointers)
        memory = out.memory(pointers[out.uid])
        assert values.shape == memory.shape
        if out.dtype is data_type.BFLOAT16:
            bits = values.astype(np.float32).view(np.uint32)
            memory[...] = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        else:
            memory[...] = values
        STAND_IN.runs.append(self.steps)


class NewPygraph(Pygraph):
    """``cudnn.pygraph`` of Frontend 1.32: engines can be listed, and shapes can be overridden."""

    select_plan = None  # the attribute exists

    def get_execution_plan_count(self):
        return len(self.plans)

    def build_plan_at_index(self, index):
        assert self.state[-1] == 'create_execution_plans'
        if self.plans[index] not in self._possible():
            raise cudnnGraphNotSupportedError('Deselecting execution plan')

    def get_engine_and_knobs_at_index(self, index):
        return self.plans[index].number, {'tile': index}

    def create_execution_plan(self, number, knobs):
        self.plans = [engine for engine in STAND_IN.engines if engine.number == number]
        if knobs != {'tile': STAND_IN.engines.index(self.plans[0])} or not self.plans[0].is_selectable:
            raise RuntimeError('convert_to_backend_knob_type failed')
        self._advance('create_execution_plan', 'build_operation_graph')

    def execute(
        self, pointers, workspace=None, handle=None, override_uids=None, override_shapes=None, override_strides=None
    ):
        assert override_uids == override_shapes == override_strides == []  # otherwise 1.32 takes twice the time
        self._execute(pointers, workspace, handle)


def pad_image(x, pre_padding, post_padding):
    return np.pad(x, [(0, 0), (0, 0), *zip(pre_padding, post_padding, strict=True)])


def windows(x, w_shape, stride):
    """Return ``(N, C, oh, ow, kh, kw)``."""
    view = np.lib.stride_tricks.sliding_window_view(x, w_shape[2:], axis=(2, 3))
    return view[:, :, :: stride[0], :: stride[1]]


def conv(x, w, *, pre_padding, post_padding, stride, dilation):
    """Return the convolution; if ``w`` has fewer channels than ``x``, it is grouped."""
    assert dilation == [1, 1]
    groups = x.shape[1] // w.shape[1]
    view = windows(pad_image(x, pre_padding, post_padding), w.shape, stride)
    parts = [
        np.tensordot(part, filters, axes=((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
        for part, filters in zip(np.split(view, groups, axis=1), np.split(w, groups), strict=True)
    ]
    return np.concatenate(parts, axis=1)


def dgrad(gy, w, x_shape, *, pre_padding, post_padding, stride, dilation):
    """Return the gradient with respect to ``x``: the sum over the taps of all windows."""
    n, channels, height, width = x_shape
    groups = channels // w.shape[1]
    padded = np.zeros(
        (n, channels, height + pre_padding[0] + post_padding[0], width + pre_padding[1] + post_padding[1]), gy.dtype
    )
    rows, columns = (step * side for step, side in zip(stride, gy.shape[2:], strict=True))
    for i, j in np.ndindex(w.shape[2:]):
        parts = [
            np.tensordot(part, filters, axes=((1,), (0,))).transpose(0, 3, 1, 2)
            for part, filters in zip(np.split(gy, groups, axis=1), np.split(w[:, :, i, j], groups), strict=True)
        ]
        padded[:, :, i : i + rows : stride[0], j : j + columns : stride[1]] += np.concatenate(parts, axis=1)
    return padded[:, :, pre_padding[0] : pre_padding[0] + height, pre_padding[1] : pre_padding[1] + width]


def wgrad(x, gy, w_shape, *, pre_padding, post_padding, stride, dilation):
    """Return the gradient with respect to ``w``."""
    groups = x.shape[1] // w_shape[1]
    view = windows(pad_image(x, pre_padding, post_padding), w_shape, stride)
    view = view[:, :, : gy.shape[2], : gy.shape[3]]
    parts = [
        np.tensordot(part, image, axes=((0, 2, 3), (0, 2, 3)))
        for part, image in zip(np.split(gy, groups, axis=1), np.split(view, groups, axis=1), strict=True)
    ]
    return np.concatenate(parts)


class Handle:
    """``cudnn.Handle``."""

    stream = None


class StandIn:
    """The state of the stand-in, which tests read and set.

    Attributes:
        graphs: All graphs built.
        queries: The graphs that queried the heuristics.
        runs: The steps of each graph run, and ``['matmul']`` for each call of cuBLAS.
        workspace: Bytes of workspace per graph.
        stream: CuPy's current stream.
        device: CuPy's current device.
        engines: The engines that the heuristics return, the best first.
        unsupported: Function that returns whether a list of steps has no engine.
        sum_type: The type of sums; with float32 they take half the time.
    """

    sum_type: type = np.float64

    def __init__(self):
        self.graphs, self.queries, self.runs = [], [], []
        self.workspace, self.stream, self.device = 1000, 77, 0
        self.engines = [Engine(5)]
        self.unsupported = lambda steps: False


STAND_IN = StandIn()


def module(pygraph=NewPygraph) -> types.SimpleNamespace:
    """Return the stand-in for ``import cudnn``."""

    def set_stream(*, handle, stream):
        handle.stream = stream

    return types.SimpleNamespace(
        backend_version=lambda: 92800,
        create_handle=Handle,
        set_stream=set_stream,
        pygraph=pygraph,
        data_type=data_type,
        heur_mode=heur_mode,
        numerical_note=numerical_note,
        cudnnGraphNotSupportedError=cudnnGraphNotSupportedError,
    )


def matmul(a, b, out, *, transpose_a=False, transpose_b=False):
    """Multiply matrices as ``mask_rcnn.ops.cudnn_frontend.cublas.matmul`` does."""
    assert all(array.flags.c_contiguous and array.dtype == np.float32 and array.size for array in (a, b, out))
    a, b = (m.swapaxes(-1, -2) if is_transposed else m for m, is_transposed in ((a, transpose_a), (b, transpose_b)))
    out[...] = a.astype(np.float64) @ b.astype(np.float64)
    STAND_IN.runs.append(['matmul'])


def milliseconds(run, graph) -> float:
    """Run a graph and return the duration of its engine."""
    run(graph)
    return graph._graph.engine.milliseconds


@contextmanager
def installed(monkeypatch, kernel, pygraph=NewPygraph):
    """Make the project compute on NumPy arrays with the code for CuPy arrays.

    Args:
        monkeypatch: Pytest's fixture.
        kernel: Replaces ``mask_rcnn.ops.runtime.cuda_kernels.kernel``.
        pygraph: The class of graphs, for the version of Frontend.
    """
    stand_in = module(pygraph)
    STAND_IN.__init__()
    for owner in (frontend, graphs):
        monkeypatch.setattr(owner, 'load_frontend', lambda: stand_in)
    monkeypatch.setattr(frontend, '_graph_caches', frontend._GraphCaches())
    monkeypatch.setattr(frontend, '_current_device', lambda: STAND_IN.device)
    monkeypatch.setattr(frontend, '_current_stream', lambda: STAND_IN.stream)
    monkeypatch.setattr(convolution, '_allocate', lambda size: size)
    monkeypatch.setattr(convolution, '_pointer', lambda memory: int(memory))
    monkeypatch.setattr(convolution, '_address', lambda array: array.ctypes.data)
    monkeypatch.setattr(convolution, '_milliseconds', milliseconds)
    monkeypatch.setattr(cublas, 'is_available', lambda: True)
    monkeypatch.setattr(cublas, 'matmul', matmul)
    monkeypatch.setattr(cuda_kernels, 'kernel', kernel)
    yield STAND_IN
