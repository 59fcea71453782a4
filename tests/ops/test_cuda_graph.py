"""CUDA graphs: when a function is captured and replayed, with stand-ins for CuPy's streams, graphs and memory."""

import logging
import weakref
from types import SimpleNamespace

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime import cuda_graph
from mask_rcnn.ops.runtime.cache import cache_weights, cached, retain
from mask_rcnn.ops.runtime.cuda_graph import GraphCache, HostCopyError, run_as_graph
from tests.support.cuda_graphs import Array, Cuda, Stream


class Owner:
    """A network."""


class Function:
    """Doubles its argument; records whether a capture runs."""

    def __init__(self, cuda):
        self.cuda, self.arguments, self.error = cuda, [], None

    def __call__(self, x):
        self.cuda.events.append('captured' if self.cuda.is_capturing else 'run')
        self.arguments.append(x)
        if self.error is not None and self.cuda.is_capturing:
            raise self.error
        return 2 * x


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    cupy = SimpleNamespace(
        cuda=cuda,
        get_default_pinned_memory_pool=lambda: SimpleNamespace(malloc=cuda.default_pinned_allocator),
    )
    monkeypatch.setattr(cuda_graph, 'cuda', SimpleNamespace(cupy=cupy, ndarray=Array))
    return cuda


@pytest.fixture
def function(cuda):
    return Function(cuda)


@pytest.fixture
def owner():
    return Owner()


def image(*shape):
    return np.arange(np.prod(shape), dtype='f').reshape(shape).view(Array)


CAPTURE = ['run', 'run', 'begin', 'captured', 'end']


def test_second_call_captures_and_later_calls_replay(cuda, function, owner):
    x = image(2, 3)
    with cache_weights():
        results = [run_as_graph(function, x + i, 'key', owner) for i in range(4)]
    assert cuda.events == ['run', *CAPTURE, 'launch', 'launch']
    np.testing.assert_array_equal(results[1], 2 * (x + 1))
    # The graph has its own input, into which each call copies its argument.
    captured = function.arguments[-1]
    np.testing.assert_array_equal(captured, x + 3)
    assert results[2] is results[3]


def test_capture_has_its_own_stream_and_memory(cuda, function, owner, monkeypatch):
    seen = []
    outer = cuda.stream, cuda.allocator, cuda.pinned_allocator
    with cache_weights():
        for key in 'aabb':
            run_as_graph(lambda x: seen.append((cuda.stream, cuda.allocator)) or x, image(2), key, owner)
    assert {*seen[:2], *seen[4:6]} == {outer[:2]}
    ((stream, allocator),) = {*seen[2:4], *seen[6:]}
    assert stream is not outer[0] and allocator is not outer[1]
    assert (cuda.stream, cuda.allocator) == outer[:2] and cuda.pinned_allocator is cuda.default_pinned_allocator


def test_key_shape_and_type_have_separate_graphs(cuda, function, owner):
    with cache_weights():
        for x, key in ((image(2), 'a'), (image(3), 'a'), (image(2).astype('f8'), 'a'), (image(2), 'b')):
            run_as_graph(function, x, key, owner)
        assert cuda.events == ['run'] * 4
        run_as_graph(function, image(2), 'a', owner)
        cuda.stream = Stream(cuda, 5)
        run_as_graph(function, image(2), 'a', owner)
        run_as_graph(function, image(2), 'a', Owner())
    assert cuda.events[4:] == [*CAPTURE, 'run', 'run']


def test_graphs_live_as_long_as_the_weight_cache(cuda, function, owner):
    for _ in range(2):
        with cache_weights():
            for _ in range(2):
                run_as_graph(function, image(2), 'a', owner)
    assert cuda.events == ['run', *CAPTURE] * 2
    cuda.events.clear()
    for _ in range(3):
        run_as_graph(function, image(2), 'a', owner)
    assert cuda.events == ['run'] * 3


@pytest.mark.parametrize('setting', ['cuda_graphs', 'debug'])
def test_graphs_are_optional(cuda, function, owner, setting):
    with cache_weights(), chainer.using_config(setting, setting == 'debug'):
        for _ in range(3):
            run_as_graph(function, image(2), 'a', owner)
        assert cuda.events == ['run'] * 3
    with cache_weights():
        for _ in range(3):
            run_as_graph(function, image(2).view(np.ndarray), 'a', owner)
    assert cuda.events == ['run'] * 6


def test_least_recently_used_graph_is_evicted(cuda, function, owner):
    graphs = GraphCache(weakref.ref(owner), max_graphs=2)
    with cache_weights():
        for key in 'aabbacca':
            graphs.run(function, image(2), key)
        assert cuda.events == ['run', *CAPTURE, 'run', *CAPTURE, 'launch', 'run', *CAPTURE, 'launch']
        cuda.events.clear()
        graphs.run(function, image(2), 'b')
    assert cuda.events == ['run']


def test_sizes_that_do_not_recur_are_forgotten(cuda, function, owner):
    with cache_weights():
        for key in range(cuda_graph._MAX_SEEN + 1):
            run_as_graph(function, image(2), key, owner)
        run_as_graph(function, image(2), 0, owner)
    assert set(cuda.events) == {'run'}


@pytest.mark.parametrize('error', [RuntimeError('no\ncapture'), MemoryError('no memory'), HostCopyError('8 bytes')])
@pytest.mark.parametrize('is_invalid', [False, True])
def test_function_runs_without_graphs_after_an_error(cuda, function, owner, caplog, error, is_invalid):
    function.error, cuda.is_invalid = error, is_invalid
    for _ in range(2):
        with cache_weights():
            for _ in range(3):
                np.testing.assert_array_equal(run_as_graph(function, image(2), 'a', owner), [0, 2])
    assert cuda.events == ['run', *CAPTURE, *['run'] * 4]
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f'{type(error).__name__}: {" ".join(str(error).split())}' in record.message
    assert cuda.allocator is cuda.pinned_allocator is cuda.default_pinned_allocator


def test_an_invalid_capture_is_an_error(cuda, function, owner, caplog):
    cuda.is_invalid = True
    with cache_weights():
        for _ in range(4):
            run_as_graph(function, image(2), 'a', owner)
    assert cuda.events == ['run', *CAPTURE, 'run', 'run'] and 'StreamCaptureInvalidated' in caplog.text


def test_copies_from_the_host_are_errors_during_a_capture(cuda, function, owner, caplog):
    """Only on the thread that captures; CuPy's pinned memory is for such copies."""
    with cache_weights():
        for _ in range(3):
            run_as_graph(lambda x: cuda.pinned_allocator(24) and x, image(2), 'a', owner)
    assert 'HostCopyError: 24 bytes are copied' in caplog.text


def test_weights_are_derived_before_the_capture(cuda, owner):
    """A value that the capture derives is computed by the graph alone, and no other call may find it."""
    made = []

    def make(name):
        made.append((name, cuda.is_capturing))
        return name

    def function(x):
        cached(make, 'weight')
        return cached(make, 'new') if cuda.is_capturing else x

    with cache_weights():
        for _ in range(3):
            run_as_graph(function, image(2), 'a', owner)
        assert made == [('weight', False), ('new', True)]
        assert cached(make, 'new') == 'new' and made[2:] == [('new', False)]


def test_retained_values_live_as_long_as_the_graph(cuda, owner):
    values = []
    with cache_weights():
        for _ in range(2):
            run_as_graph(lambda x: values.append(retain(object())) or x, image(2), 'a', owner)
        (graphs,) = [value for _, value in chainer.config.weight_cache.values()]
        (graph,) = graphs._graphs.values()
    assert graph._retained == values[-1:] and len(values) == 4


def test_memory_of_the_graphs_is_released_if_a_batch_does_not_fit(cuda, function, owner):
    graphs = GraphCache(weakref.ref(owner))
    fits = [False, True]

    def large(x):
        if not fits.pop(0):
            raise MemoryError('no memory')
        return x

    with cache_weights():
        for _ in range(2):
            graphs.run(function, image(2), 'a')
        np.testing.assert_array_equal(graphs.run(large, image(2), 'b'), image(2))
        cuda.events.clear()
        graphs.run(function, image(2), 'a')
        assert cuda.events == ['run']
        fits[:] = [False]
        with pytest.raises(MemoryError):
            graphs.run(large, image(2), 'c')
