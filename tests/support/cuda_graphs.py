"""Stand-ins for the streams, graphs and memory of CuPy, and for its arrays."""

import contextlib
from types import SimpleNamespace

import chainer
import numpy as np

from mask_rcnn.ops.runtime import cuda_graph, training_graph


class Array(np.ndarray):
    """A NumPy array that is taken for a CuPy array."""

    device = contextlib.nullcontext()
    device.id = 0


class Stream:
    """A stream that records its events; ``Cuda.stream`` is the current one."""

    def __init__(self, cuda, ptr=0):
        self._cuda, self.ptr = cuda, ptr

    def __enter__(self):
        self._outer, self._cuda.stream = self._cuda.stream, self
        return self

    def __exit__(self, *_):
        self._cuda.stream = self._outer

    def record(self):
        return self

    def wait_event(self, event):
        assert event is not self

    def begin_capture(self):
        self._cuda.is_capturing = True
        self._cuda.events.append('begin')

    def end_capture(self):
        self._cuda.is_capturing = False
        self._cuda.events.append('end')
        if self._cuda.is_invalid:
            raise RuntimeError('cudaErrorStreamCaptureInvalidated')
        return SimpleNamespace(launch=lambda: self._cuda.events.append('launch'))


class Cuda:
    """The names of ``cupy.cuda`` that the module uses."""

    def __init__(self):
        self.events, self.is_invalid, self.is_capturing, self.stream = [], False, False, Stream(self)
        self.free_memory = 0.9
        self.runtime = SimpleNamespace(memGetInfo=lambda: (self.free_memory, 1))
        self.allocator = self.pinned_allocator = self.default_pinned_allocator = lambda size: bytearray(size)

    def get_current_stream(self):
        return self.stream

    def Stream(self, *, non_blocking):
        assert non_blocking
        return Stream(self)

    def MemoryPool(self):
        return SimpleNamespace(malloc=object())

    @contextlib.contextmanager
    def using_allocator(self, allocator):
        outer, self.allocator = self.allocator, allocator
        try:
            yield
        finally:
            self.allocator = outer

    def set_pinned_memory_allocator(self, allocator):
        self.pinned_allocator = allocator


@contextlib.contextmanager
def training_graphs_on_the_cpu(monkeypatch, array_type):
    """Activate the graphs of training for a NumPy array type; the value of the context is the :class:`Cuda`.

    The stand-in for a graph runs the recorded function again and writes its results to the arrays of the recording.
    Arrays in ``persistent`` have the values from before a recording after it, because a capture runs no kernel.
    """
    cuda = Cuda()
    cuda.persistent = []
    pool = SimpleNamespace(malloc=cuda.default_pinned_allocator)
    cupy = SimpleNamespace(
        cuda=cuda,
        get_default_pinned_memory_pool=lambda: pool,
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda stream=None: None),
        zeros_like=np.zeros_like,
        empty=lambda shape, dtype: np.empty(shape, dtype).view(array_type),
    )
    for module in (cuda_graph, training_graph):
        monkeypatch.setattr(module, 'cuda', SimpleNamespace(cupy=cupy, ndarray=array_type))
    monkeypatch.setattr(training_graph, 'record', record)
    with chainer.using_config('training_graphs', True):
        yield cuda


def record(stream, function):
    """Record a function; each launch of the stand-in for a graph computes into the arrays of the result."""
    before = [(array, array.copy()) for array in stream._cuda.persistent]
    graph, result = cuda_graph.record(stream, function)
    for array, values in before:
        array[...] = values

    def launch():
        graph.launch()
        _overwrite(result, function())

    return SimpleNamespace(launch=launch), result


def _overwrite(arrays, values):
    for array, value in zip(arrays, values, strict=True):
        if isinstance(array, list):
            _overwrite(array, value)
        elif isinstance(array, np.ndarray):
            array[...] = value
