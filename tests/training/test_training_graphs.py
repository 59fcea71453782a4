"""Training with CUDA graphs: the losses, gradients and statistics of training without them."""

import chainer
import numpy as np
import pytest
from chainer.backends import cuda

import mask_rcnn
from mask_rcnn.config import DETECTRON
from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.runtime import training_graph
from mask_rcnn.training.freezing import freeze
from mask_rcnn.training.optimizer import make_optimizer
from mask_rcnn.training.train_chain import MaskRCNNTrainChain
from mask_rcnn.training.updater import SubdivisionUpdater
from tests.support.cuda_graphs import training_graphs_on_the_cpu
from tests.support.small_resnet import use_narrow_resnet
from tests.support.training_examples import SAMPLING, example

NARROW = {'rpn_channels': 64, 'fpn_channels': 64, 'head_channels': 128, 'mask_channels': 64}

#: Maximum relative differences of losses and of gradients.  The mask head runs on more RoIs with graphs than without,
#: for which cuDNN may select another engine.
TOLERANCE = {'fp32': (1e-5, 1e-3), 'fp16': (1e-3, 2e-2)}


#: Two sizes in one batch.
EXAMPLES = [example(64, 96, seed=1), example(96, 64, seed=2), example(64, 96, seed=3)]


def make_chain(extractor, norm='affine', *, device='@cupy:0'):
    """Return a narrow network with random weights, whose first two stages are frozen."""
    np.random.seed(0)
    changes = {'width': 0.25} if 'mobile' in extractor else {}
    if norm == 'gn':
        changes = {'head_norm': norm, 'box_convs': 1, 'dialect': DETECTRON.replace(backbone={'gn_groups': 8})}
    model = mask_rcnn.build(extractor, n_fg_class=3, norm=norm, rpn_pre_nms=100, rpn_post_nms=20, **NARROW, **changes)
    freeze(model, stages=0 if norm == 'bn' else 2)
    chain = MaskRCNNTrainChain(model, sampling=SAMPLING)
    chain.to_device(device)
    return chain


def repeat(chain, examples, precision, n_updates=4):
    """Update with the learning rate 0; return the reports and the gradients of the last update, and all statistics."""
    optimizer = make_optimizer(chain)
    iterator = chainer.iterators.SerialIterator(examples, len(examples), shuffle=False)
    updater = SubdivisionUpdater(iterator, optimizer, loss_scale=128.0 if precision == 'fp16' else None)
    reporter, reported = chainer.Reporter(), {}
    reporter.add_observer('main', chain)
    with chainer.using_config('train', True), cudnn_frontend.using_precision(precision), reporter.scope(reported):
        for _ in range(n_updates):
            updater.update()
    gradients = {path: cuda.to_cpu(p.grad) for path, p in chain.namedparams() if p.grad is not None}
    statistics = {
        f'{path}/{name}': cuda.to_cpu(getattr(link, name))
        for path, link in chain.namedlinks()
        for name in ('avg_mean', 'avg_var')
        if hasattr(link, name)
    }
    return {name: float(value) for name, value in reported.items()}, gradients, statistics


def assert_close(found, expected, loss_tolerance, gradient_tolerance):
    """Compare the results of :func:`repeat`."""
    (found_losses, found_gradients, found_statistics), (losses, gradients, statistics) = found, expected
    assert found_losses.keys() == losses.keys()
    for name, value in losses.items():
        np.testing.assert_allclose(found_losses[name], value, rtol=loss_tolerance, err_msg=name)
    assert found_gradients.keys() == gradients.keys()
    for path, gradient in gradients.items():
        difference = np.linalg.norm(found_gradients[path] - gradient)
        assert difference <= gradient_tolerance * np.linalg.norm(gradient) + 1e-7, path
    for path, values in statistics.items():
        np.testing.assert_allclose(found_statistics[path], values, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ('extractor', 'norm'),
    [
        ('resnet50', 'affine'),
        pytest.param('mobilenet_v1_fpn', 'affine', marks=pytest.mark.slow),
        pytest.param('resnet50_fpn', 'gn', marks=pytest.mark.slow),
    ],
)
def test_recorded_passes_have_the_same_gradients_on_the_cpu(extractor, norm, monkeypatch):
    """With a stand-in for graphs, which runs the recorded functions again."""
    use_narrow_resnet(monkeypatch)
    expected = repeat(make_chain(extractor, norm, device='@numpy'), EXAMPLES, 'fp32')
    with training_graphs_on_the_cpu(monkeypatch, np.ndarray):
        monkeypatch.setattr(training_graph, '_device_and_stream', lambda array: ())
        chain = make_chain(extractor, norm, device='@numpy')
        found = repeat(chain, EXAMPLES, 'fp32')
    assert len(chain._trunk_graphs._graphs) == 2 and len(chain._head_graphs._graphs) == 2
    assert_close(found, expected, 1e-6, 3e-6)


def test_graphs_follow_the_configuration_of_a_part(monkeypatch):
    use_narrow_resnet(monkeypatch)

    def losses(n_updates):
        chain = make_chain('resnet50', device='@numpy')
        for n in n_updates:
            reported, _, _ = repeat(chain, EXAMPLES[:1], 'fp32', n)
            chain.model.rpn.config = chain.model.rpn.config.replace(rpn_nms_threshold=0.1)
        return reported

    expected = losses([1, 1])
    with training_graphs_on_the_cpu(monkeypatch, np.ndarray):
        monkeypatch.setattr(training_graph, '_device_and_stream', lambda array: ())
        assert losses([3, 1]) == pytest.approx(expected, rel=1e-6)


class TwoViews(MaskRCNNTrainChain):
    """A train chain with two forward passes for a backward pass."""

    def forward(self, examples):
        return super().forward(examples) + super().forward(examples[::-1])

    def passes(self, examples):
        return [examples]


@pytest.mark.slow
def test_a_chain_may_run_several_forward_passes_before_a_backward_pass(monkeypatch):
    """For images of two sizes, four passes are pending."""
    use_narrow_resnet(monkeypatch)

    def gradients():
        chain = TwoViews(make_chain('resnet50', device='@numpy').model, sampling=SAMPLING)
        return repeat(chain, EXAMPLES, 'fp32', n_updates=3)

    expected = gradients()
    with training_graphs_on_the_cpu(monkeypatch, np.ndarray):
        monkeypatch.setattr(training_graph, '_device_and_stream', lambda array: ())
        assert_close(gradients(), expected, 1e-6, 3e-6)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ('extractor', 'norm', 'precision'),
    [
        ('resnet50', 'affine', 'fp32'),
        ('resnet50', 'affine', 'fp16'),
        ('resnet50_fpn', 'affine', 'fp32'),
        ('resnet50_fpn', 'affine', 'fp16'),
        ('resnet50_fpn', 'bn', 'fp32'),
        ('resnet50_fpn', 'gn', 'fp32'),
        ('resnet50_fpn', 'gn', 'fp16'),
        ('mobilenet_v1_fpn', 'affine', 'fp32'),
        ('mobilenet_v1_fpn', 'bn', 'fp32'),
    ],
)
def test_graphs_change_no_gradient(extractor, norm, precision, monkeypatch, caplog):
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    use_narrow_resnet(monkeypatch)
    with chainer.using_config('cuda_graphs', False):
        expected = repeat(make_chain(extractor, norm), EXAMPLES, precision)
    chain = make_chain(extractor, norm)
    found = repeat(chain, EXAMPLES, precision)
    assert [record.message for record in caplog.records if 'the capture failed' in record.message] == []
    assert len(chain._trunk_graphs._graphs) == 2 and chain._head_graphs._graphs
    assert_close(found, expected, *TOLERANCE[precision])


@pytest.mark.gpu
def test_graphs_follow_the_weights(monkeypatch):
    """After a change in place, the losses are those of a network with these weights."""
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    use_narrow_resnet(monkeypatch)
    chain, examples = make_chain('resnet50_fpn'), [example(64, 96, seed=1)]
    before = repeat(chain, examples, 'fp32')[0]
    for param in chain.params():
        param.array[...] *= 1.01
    found = repeat(chain, examples, 'fp32', n_updates=1)[0]
    with chainer.using_config('cuda_graphs', False):
        expected = repeat(chain, examples, 'fp32', n_updates=1)[0]
    assert chain._trunk_graphs._graphs and found['main/loss'] != before['main/loss']
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.gpu
def test_memory_does_not_grow(monkeypatch):
    """Each update allocates the same arrays; the graphs allocate theirs once."""
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    use_narrow_resnet(monkeypatch)
    chain, examples, pool = make_chain('resnet50_fpn'), [example(64, 96, seed=1)], cuda.cupy.get_default_memory_pool()
    repeat(chain, examples, 'fp32')
    graph_pools = [graphs._memory.pool for graphs in (chain._trunk_graphs, chain._head_graphs)]
    before = [pool.total_bytes() for pool in (pool, *graph_pools)]
    repeat(chain, examples, 'fp32', n_updates=20)
    assert [pool.total_bytes() for pool in (pool, *graph_pools)] == before
