"""One training update on a GPU in every dialect: the losses and the update of the CPU, with and without CUDA graphs."""

import functools

import chainer
import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.runtime import training_graph
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import SubdivisionUpdater
from tests.support.cuda_graphs import training_graphs_on_the_cpu
from tests.support.gpu_networks import NETWORKS, SAMPLING, make_example, make_network


def make_examples(n):
    return [make_example(seed) for seed in range(1, n + 1)]


def make_chain(name, device='@numpy'):
    model = make_network(name)
    freeze(model)
    chain = MaskRCNNTrainChain(model, sampling=SAMPLING)
    chain.to_device(device)
    return chain


def update(chain, examples, *, n_before=0):
    """Update a chain once; return the reported values, and the changes of the trained parameters.

    Args:
        chain: The chain.
        examples: The batch.
        n_before: Number of updates before it with the learning rate 0.
    """
    optimizer = make_optimizer(chain)
    iterator = chainer.iterators.SerialIterator(examples, len(examples), shuffle=False)
    updater = SubdivisionUpdater(iterator, optimizer)
    reporter, reported = chainer.Reporter(), {}
    reporter.add_observer('main', chain)
    before = {path: cuda.to_cpu(parameter.array).copy() for path, parameter in chain.namedparams()}
    with chainer.using_config('train', True), reporter.scope(reported):
        for rate in (*[0.0] * n_before, 0.01):
            set_learning_rate(optimizer, rate)
            updater.update()
    changes = {
        path: cuda.to_cpu(parameter.array) - before[path]
        for path, parameter in chain.namedparams()
        if parameter.requires_grad
    }
    return {name: float(value) for name, value in reported.items()}, changes


def assert_close(found, expected, *, of_one=0.2, of_all=1e-2):
    """Compare the results of :func:`update`.

    With relative noise of 3e-6 after every convolution, as in float32 Winograd, the stand-in gives errors of 1e-5 in
    the losses, and of up to 5e-2 in the changes of single parameters: where ReLU's input is almost 0, a pixel gets
    another gradient.

    Args:
        found: The result on a GPU.
        expected: The result on the CPU.
        of_one: Maximum relative difference of the change of a parameter.
        of_all: Maximum relative difference of the changes of all parameters together.
    """
    (found_values, found_changes), (values, changes) = found, expected
    assert found_values.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_allclose(found_values[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert found_changes.keys() == changes.keys()
    differences = {path: np.linalg.norm(found_changes[path] - change) for path, change in changes.items()}
    norms = {path: np.linalg.norm(change) for path, change in changes.items()}
    for path, norm in norms.items():
        assert differences[path] <= of_one * norm + 1e-7, path
    assert np.linalg.norm([*differences.values()]) <= of_all * np.linalg.norm([*norms.values()])


@functools.cache
def update_on_the_cpu(name, n_images=2):
    """Return the result of :func:`update` on the CPU; its losses are finite."""
    values, changes = update(make_chain(name), make_examples(n_images))
    assert all(map(np.isfinite, values.values())) and values['main/n_foreground_roi'] > 0
    return values, changes


#: Those with the fewest parts in common.
FAST = ('matterport', 'torchvision_v2')


@pytest.mark.parametrize(
    'name', [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in FAST)]
)
def test_an_update_of_the_emulated_gpu_equals_that_of_the_cpu(name, request):
    expected = update_on_the_cpu(name)
    request.getfixturevalue('on_gpu')
    assert_close(update(make_chain(name), make_examples(2)), expected, of_one=2e-3, of_all=2e-3)


@pytest.mark.parametrize('name', [*FAST, pytest.param('keypoints_torchvision', marks=pytest.mark.slow)])
def test_an_update_with_recorded_passes_equals_that_of_the_cpu(name, monkeypatch):
    """With a stand-in for graphs on the CPU; no RoI is added to those whose statistics normalise the mask features."""
    expected = update_on_the_cpu(name)
    with training_graphs_on_the_cpu(monkeypatch, np.ndarray):
        monkeypatch.setattr(training_graph, '_device_and_stream', lambda array: ())
        chain = make_chain(name)
        found = update(chain, make_examples(2), n_before=3)
    assert chain._trunk_graphs._graphs and chain._head_graphs._graphs
    assert_close(found, expected, of_one=2e-3, of_all=2e-3)


@pytest.fixture
def gpu():
    """The device of a GPU with cuDNN."""
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    return '@cupy:0'


@pytest.mark.gpu
@pytest.mark.parametrize('name', NETWORKS)
def test_an_update_equals_that_of_the_cpu(name, gpu):
    with chainer.using_config('cuda_graphs', False):
        assert_close(update(make_chain(name, gpu), make_examples(2)), update_on_the_cpu(name))


@pytest.mark.gpu
@pytest.mark.parametrize('name', NETWORKS)
def test_an_update_with_graphs_equals_that_of_the_cpu(name, gpu, caplog):
    chain = make_chain(name, gpu)
    found = update(chain, make_examples(2), n_before=3)
    assert [record.message for record in caplog.records if 'without CUDA graphs' in record.message] == []
    assert chain._trunk_graphs._graphs and chain._head_graphs._graphs
    assert_close(found, update_on_the_cpu(name))


@pytest.mark.gpu
def test_an_update_of_sixteen_images_equals_that_of_the_cpu(gpu):
    chain = make_chain('detectron', gpu)
    assert_close(update(chain, make_examples(16), n_before=2), update_on_the_cpu('detectron', 16))
