"""CUDA graphs of training: equal gradients, with stand-ins for CuPy's streams, graphs and memory."""

import copy
import logging
import pickle

import chainer
import chainer.functions as F
import chainer.links as L
import numpy as np
import pytest

from mask_rcnn.ops.runtime import training_graph
from mask_rcnn.ops.runtime.cache import retain
from mask_rcnn.ops.runtime.training_graph import TrainingGraphs
from mask_rcnn.training.freezing import FrozenParameter
from tests.support.cuda_graphs import Array, training_graphs_on_the_cpu


class Net(chainer.Chain):
    """A linear layer that computes a variable with a gradient, an unused one, and an array."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.linear = L.Linear(3, 2)
            self.unused = L.Linear(3, 5)
        self.n_runs = 0

    def __call__(self, x, factor):
        self.n_runs += 1
        h = self.linear(x)
        return [F.tanh(h) * factor, h + 1, h.array * 10]


@pytest.fixture
def cuda(monkeypatch):
    with training_graphs_on_the_cpu(monkeypatch, Array) as cuda:
        monkeypatch.setattr(training_graph, 'weights_of', lambda link: [parameter.array for parameter in link.params()])
        yield cuda


@pytest.fixture
def net():
    return Net()


def arrays(seed, n=4):
    rng = np.random.RandomState(seed)
    return [rng.uniform(-1, 1, shape).astype('f').view(Array) for shape in ((n, 3), (n, 2))]


def run_pass(run, net, seed=0, n=4):
    """Make a forward pass with new inputs, of which the first one has a gradient."""
    x, factor = arrays(seed, n)
    return run(net, [chainer.Variable(x), factor])


def step(run, net, seed=0, n=4):
    """Make a forward and a backward pass; return the outputs, and the gradients of the input and the layer."""
    x, factor = arrays(seed, n)
    x = chainer.Variable(x)
    net.cleargrads()
    tanh, shifted, scaled = run(net, [x, factor])
    F.sum(tanh * tanh).backward()
    gradients = [x.grad, *[parameter.grad for parameter in net.linear.params() if parameter.requires_grad]]
    return [result.copy() for result in (tanh.array, shifted.array, scaled, *gradients)]


def eager(function, inputs):
    return function(*inputs)


def using(graphs, net, key='key'):
    return lambda function, inputs: graphs.run(function, inputs, [net], key)


def assert_equal(found, expected):
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_results_and_gradients_follow_the_inputs_and_the_parameters(cuda, net):
    graphs = TrainingGraphs()
    for seed in range(5):
        expected = step(eager, net, seed)
        assert_equal(step(using(graphs, net), net, seed), expected)
        assert net.unused.W.grad is None
        net.linear.W.array[...] *= 0.7  # in place, as optimizers do


def test_the_second_call_captures_both_passes_and_later_calls_replay_them(cuda, net):
    graphs, events = TrainingGraphs(), []
    for seed in range(3):
        cuda.events.clear()
        step(using(graphs, net), net, seed)
        events.append(list(cuda.events))
    assert events == [[], ['begin', 'end', 'begin', 'end', 'launch', 'launch'], ['launch', 'launch']]


def test_the_capture_has_its_own_stream_and_memory(cuda, net):
    """The run before the recording fills caches, whose values must not lie in the temporary memory of graphs."""
    seen, outer = [], (cuda.stream, cuda.allocator)
    graphs = TrainingGraphs()

    def function(*inputs):
        seen.append((cuda.stream, cuda.allocator))
        return net(*inputs)

    for _ in range(2):
        step(lambda _, inputs: graphs.run(function, inputs, [net], 'key'), net)
    first, before, recorded = seen[:3]
    assert first == outer
    assert before == (recorded[0], outer[1])
    assert recorded[0] is not outer[0] and recorded[1] is not outer[1]
    assert (cuda.stream, cuda.allocator, cuda.pinned_allocator) == (*outer, cuda.default_pinned_allocator)


def test_gradients_of_two_passes_are_accumulated(cuda, net):
    """The second replay overwrites the arrays of the first one before Chainer adds them."""
    graphs = TrainingGraphs()
    for _ in range(2):
        step(using(graphs, net), net)

    def accumulate(run):
        net.cleargrads()
        for seed in (1, 2):
            F.sum(run_pass(run, net, seed)[0]).backward()
        return net.linear.W.grad.copy(), net.linear.b.grad.copy()

    for found, expected in zip(accumulate(using(graphs, net)), accumulate(eager), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_output_without_a_gradient_has_the_gradient_zero(cuda, net):
    graphs = TrainingGraphs()

    def gradient(run, names):
        net.cleargrads()
        tanh, shifted, _ = run_pass(run, net)
        F.sum(sum({'tanh': tanh, 'shifted': shifted}[name] for name in names)).backward()
        return net.linear.W.grad.copy()

    for names in (['tanh'], ['tanh', 'shifted'], ['tanh', 'shifted'], ['tanh']):
        expected = gradient(eager, names)
        np.testing.assert_array_equal(gradient(using(graphs, net), names), expected)


@pytest.mark.parametrize('n', [4, 5])
def test_two_forward_passes_before_the_backward_pass_have_their_gradients(cuda, net, n):
    """The second one is not replayed, because it would overwrite the intermediate results of the first one."""
    graphs = TrainingGraphs()
    for _ in range(2):
        for size in (4, 5):
            step(using(graphs, net), net, n=size)

    def differentiate_sum(run):
        net.cleargrads()
        outputs = [run_pass(run, net, seed, size)[0] for seed, size in ((1, 4), (2, n))]
        F.sum(outputs[0] * outputs[0]).backward()
        F.sum(outputs[1] * outputs[1]).backward()
        return net.linear.W.grad.copy(), net.linear.b.grad.copy()

    assert_equal(differentiate_sum(using(graphs, net)), differentiate_sum(eager))
    cuda.events.clear()
    run_pass(using(graphs, net), net)  # a pass whose results are deleted needs no backward pass
    step(using(graphs, net), net)
    assert cuda.events == ['launch'] * 3


def test_a_backward_pass_after_another_forward_pass_is_an_error(cuda, net):
    graphs = TrainingGraphs()
    for _ in range(2):
        step(using(graphs, net), net)
    loss = F.sum(run_pass(using(graphs, net), net)[0])
    loss.backward()
    loss.backward()
    step(using(graphs, net), net)
    with pytest.raises(RuntimeError, match='a later forward pass has overwritten'):
        loss.backward()


def test_an_input_variable_that_requires_no_gradient(cuda, net):
    graphs = TrainingGraphs()

    def gradients(run, seed):
        x, factor = arrays(seed)
        net.cleargrads()
        F.sum(run(net, [chainer.Variable(x, requires_grad=False), factor])[0]).backward()
        return net.linear.W.grad.copy(), net.linear.b.grad.copy()

    for seed in range(3):
        assert_equal(gradients(using(graphs, net), seed), gradients(eager, seed))


def test_gradients_have_the_types_of_the_parameters(cuda, net):
    graphs = TrainingGraphs()
    for parameter in net.linear.params():
        parameter.array = parameter.array.astype('e')

    def gradient(run):
        net.cleargrads()
        h = run(lambda x: [net.linear(x)], [arrays(0)[0].astype('e')])[0]
        F.sum(h).backward()
        return net.linear.W.grad

    for _ in range(3):
        found = gradient(using(graphs, net))
        assert found.dtype == np.float16
        np.testing.assert_array_equal(found, gradient(eager))


def test_a_frozen_function_is_not_captured(cuda, net, caplog):
    for link in (net.linear, net.unused):
        with link.init_scope():
            link.W, link.b = FrozenParameter(link.W.array, name='W'), FrozenParameter(link.b.array, name='b')
    graphs = TrainingGraphs()
    for seed in range(3):
        found = [chainer.as_array(y) for y in graphs.run(net, arrays(seed), [net], 'key')]
        assert_equal(found, [chainer.as_array(y) for y in net(*arrays(seed))])
    assert cuda.events == [] and caplog.records == []


@pytest.mark.parametrize('change', ['key', 'shape', 'type', 'array', 'parameter', 'frozen', 'stream'])
def test_other_inputs_are_not_replayed(cuda, net, change):
    graphs = TrainingGraphs()
    for _ in range(2):
        step(using(graphs, net), net)
    if change == 'array':
        net.linear.W.array = net.linear.W.array * 2
    if change == 'parameter':
        with net.linear.init_scope():
            net.linear.W = chainer.Parameter(net.linear.W.array)
    if change == 'frozen':
        with net.linear.init_scope():
            net.linear.b = FrozenParameter(net.linear.b.array, name='b')
    if change == 'stream':
        cuda.stream.ptr += 1
    n, key = 5 if change == 'shape' else 4, 'other' if change == 'key' else 'key'

    def convert(inputs):
        return [inputs[0], inputs[1].astype('e')] if change == 'type' else inputs

    for events in ([], ['begin', 'end', 'begin', 'end', 'launch', 'launch'], ['launch', 'launch']):
        cuda.events.clear()
        expected = step(lambda function, inputs: function(*convert(inputs)), net, n=n)
        found = step(lambda function, inputs: using(graphs, net, key)(function, convert(inputs)), net, n=n)
        assert_equal(found, expected)
        assert cuda.events == events


def test_a_failed_capture_is_reported_once(cuda, net, caplog):
    graphs = TrainingGraphs()

    def function(*inputs):
        if cuda.is_capturing:
            raise ValueError('two\nlines')
        return net(*inputs)

    with caplog.at_level(logging.WARNING):
        for seed in range(4):
            expected = step(eager, net, seed)
            assert_equal(step(lambda _, inputs: graphs.run(function, inputs, [net], 'key'), net, seed), expected)
    (record,) = caplog.records
    assert record.message.endswith('the capture failed: ValueError: two lines')


def test_copies_from_the_host_fail_the_capture(cuda, net, caplog):
    graphs = TrainingGraphs()

    def function(*inputs):
        cuda.pinned_allocator(16)
        return net(*inputs)

    for _ in range(2):
        step(lambda _, inputs: graphs.run(function, inputs, [net], 'key'), net)
    assert '16 bytes are copied from the host to the GPU' in caplog.text
    assert cuda.pinned_allocator is cuda.default_pinned_allocator


def test_a_capture_without_memory_is_not_repeated(cuda, net, caplog):
    """The graphs that exist are used further."""
    graphs, attempts = TrainingGraphs(), []
    for _ in range(2):
        step(using(graphs, net), net)

    def function(*inputs):
        if cuda.is_capturing:
            attempts.append(inputs)
            raise MemoryError('full')
        return net(*inputs)

    for _ in range(4):
        step(lambda _, inputs: graphs.run(function, inputs, [net], 'other'), net)
    assert len(attempts) == 1 and caplog.records == []
    constants = [run_pass(using(graphs, net), net)[2] for _ in range(2)]
    assert constants[0] is constants[1]  # the array of the graph


def test_the_graphs_keep_values_of_the_recording_only(cuda, net):
    graphs, values = TrainingGraphs(), []

    def function(*inputs):
        values.append(retain(object()))
        return net(*inputs)

    for _ in range(2):
        step(lambda _, inputs: graphs.run(function, inputs, [net], 'key'), net)
    (graph,) = graphs._graphs.values()
    assert graph._retained == values[2:3]  # the third run


def test_no_graph_takes_the_last_half_of_the_memory(cuda, net, caplog):
    graphs = TrainingGraphs()
    cuda.free_memory = 0.4
    for _ in range(3):
        step(using(graphs, net), net)
    assert cuda.events == [] and caplog.records == []


def test_a_first_capture_without_memory_keeps_none(cuda, net):
    graphs = TrainingGraphs()

    def function(*inputs):
        if cuda.is_capturing:
            raise MemoryError('full')
        return net(*inputs)

    for _ in range(3):
        step(lambda _, inputs: graphs.run(function, inputs, [net], 'key'), net)
    assert graphs._memory is None and graphs._gradients is None


def test_the_outer_stream_waits_for_a_failed_capture(cuda, net):
    """Values that the run before the recording has computed remain in caches, from which the outer stream reads."""
    graphs, outer = TrainingGraphs(), cuda.stream
    outer.waited = []
    outer.wait_event = outer.waited.append

    def function(*inputs):
        if cuda.stream is not outer:
            raise ValueError
        return net(*inputs)

    for _ in range(2):
        step(lambda _, inputs: graphs.run(function, inputs, [net], 'key'), net)
    (stream,) = outer.waited
    assert stream is not outer


def test_disabled_graphs_are_deleted(cuda, net):
    graphs = TrainingGraphs()
    assert not graphs.disable()
    graphs = TrainingGraphs()
    for _ in range(2):
        step(using(graphs, net), net)
    assert graphs.disable()
    cuda.events.clear()
    for _ in range(3):
        step(using(graphs, net), net)
    assert cuda.events == []


class Normalised(chainer.Chain):
    """A batch normalisation that fails at the end of a run as long as there are ``failures``."""

    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.norm = L.BatchNormalization(3)
        for name in ('avg_mean', 'avg_var'):
            setattr(self.norm, name, getattr(self.norm, name).view(Array))
        self.failures = []

    def __call__(self, x):
        y = self.norm(x)
        if self.failures:
            raise self.failures.pop()
        return [y]


@pytest.mark.parametrize('fails', [False, True])
def test_statistics_are_updated_once_per_call(cuda, fails):
    """Also if memory is short in the run before a recording."""
    expected, found, graphs = Normalised(), Normalised(), TrainingGraphs()
    cuda.persistent = [found.norm.avg_mean, found.norm.avg_var]
    for seed in range(5):
        x = arrays(seed)[0]
        if fails and seed == 1:
            found.failures.append(MemoryError('full'))
        F.sum(expected(x)[0]).backward()
        F.sum(graphs.run(found, [x], [found], 'key')[0]).backward()
        assert found.failures == []
        np.testing.assert_array_equal(found.norm.avg_mean, expected.norm.avg_mean)
        np.testing.assert_array_equal(found.norm.avg_var, expected.norm.avg_var)


def test_graphs_in_use_are_kept_and_idle_ones_replaced(cuda, net, monkeypatch):
    monkeypatch.setattr(training_graph, '_MAX_IDLE', 5)
    graphs = TrainingGraphs(max_graphs=2)

    def sizes():
        return {shapes[0][1][0] for _, (shapes, *_), *_ in graphs._graphs}

    for n in (*[1, 2] * 5, 3, 3, 3):
        step(using(graphs, net), net, n=n)
    assert sizes() == {1, 2}
    for n in (1, 1, 3, 3):
        step(using(graphs, net), net, n=n)
    assert sizes() == {1, 3}


def test_few_keys_are_remembered(cuda, net, monkeypatch):
    """A key that recurs after many others counts as new."""
    monkeypatch.setattr(training_graph, '_MAX_SEEN', 2)
    graphs = TrainingGraphs()
    for n in (1, 2, 3, 1):
        step(using(graphs, net), net, n=n)
    assert cuda.events == []
    step(using(graphs, net), net, n=1)
    assert cuda.events[:1] == ['begin']


@pytest.mark.parametrize('reason', ['training_graphs', 'cuda_graphs', 'enable_backprop', 'debug', 'numpy'])
def test_graphs_are_not_always_active(cuda, net, reason):
    graphs, inputs = TrainingGraphs(), arrays(0)
    if reason == 'numpy':
        inputs = [array.view(np.ndarray) for array in inputs]
    with chainer.using_config(reason, reason == 'debug'):
        assert not graphs.is_active(inputs)
        for _ in range(3):
            graphs.run(net, inputs, [net], 'key')
    assert net.n_runs == 3 and not cuda.events
    assert graphs.is_active(arrays(0))


def test_copies_are_empty(cuda, net):
    graphs = TrainingGraphs(max_graphs=3)
    for _ in range(2):
        step(using(graphs, net), net)
    for other in (copy.deepcopy(graphs), pickle.loads(pickle.dumps(graphs))):
        assert other._max_graphs == 3 and not other._graphs
