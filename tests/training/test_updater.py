"""The updater: subdivisions, loss scaling, and values that are not finite."""

import re

import chainer
import numpy as np
import pytest

from mask_rcnn.training import optimizer as optimizer_module
from mask_rcnn.training.distributed import Communicator
from mask_rcnn.training.optimizer import make_optimizer
from mask_rcnn.training.updater import NonFiniteLossError, split
from tests.support.tiny_training import TinyTrainChain, arrays, make_trainer, rows


def gradients(out, **options):
    """Return the gradients, the reported values and the batch sizes of the passes of one update at rate 0."""
    optimizer = make_optimizer(TinyTrainChain(), weight_decay=0)
    trainer = make_trainer(out, rate=0, stop=(1, 'iteration'), optimizer=optimizer, **options)
    trainer.run()
    chain = trainer.updater.get_optimizer('main').target
    return {path: param.grad for path, param in chain.namedparams()}, trainer.observation, chain.sizes


@pytest.mark.parametrize(
    ('subdivisions', 'sizes'), [(1, [6]), (2, [3, 3]), (4, [1, 2, 1, 2]), (6, [1] * 6), (9, [1] * 6)]
)
def test_a_subdivided_batch_has_the_gradient_of_the_whole(tmp_path, subdivisions, sizes):
    whole, reported, _ = gradients(tmp_path, batch_size=6)
    parts, reported_by_parts, seen_sizes = gradients(tmp_path, batch_size=6, subdivisions=subdivisions)
    assert seen_sizes == sizes
    for path in whole:
        np.testing.assert_allclose(parts[path], whole[path], rtol=1e-5, atol=1e-6, err_msg=path)
    assert reported_by_parts == pytest.approx(reported, rel=1e-5)


def test_one_pass_equals_momentum_sgd(tmp_path):
    """The reference is an independent loop of forward, backward and momentum SGD."""
    trainer = make_trainer(tmp_path, batch_size=6, optimizer=make_optimizer(TinyTrainChain(), weight_decay=0))
    trainer.run()
    expected = TinyTrainChain()
    velocity = {path: 0 for path, _ in expected.namedparams()}
    data = rows()
    reporter = chainer.Reporter()
    reporter.add_observer('main', expected)
    for i in range(5):
        expected.cleargrads()
        with reporter:
            expected([data[j % 12] for j in range(6 * i, 6 * i + 6)]).backward()
        for path, param in expected.namedparams():
            step = 0.1 * (2 if path.endswith('/b') else 1) * param.grad
            velocity[path] = 0.9 * velocity[path] - step
            param.array += velocity[path]
    after = arrays(trainer.updater.get_optimizer('main').target)
    for path, array in arrays(expected).items():
        np.testing.assert_allclose(after[path], array, rtol=0, atol=2e-6, err_msg=path)
    assert trainer.updater.epoch == 2 and trainer.updater.iteration == 5


def test_reported_values_are_means_over_the_images(tmp_path):
    """The parts of the batch have different sizes."""
    _, reported, _ = gradients(tmp_path, batch_size=5, subdivisions=2)
    chain = TinyTrainChain()
    reporter = chainer.Reporter()
    reporter.add_observer('main', chain)
    with reporter:
        losses = [float(chain([row]).array) for row in rows()[:5]]
    assert reported['main/loss'] == pytest.approx(np.mean(losses), rel=1e-6)
    assert reported['main/twice'] == pytest.approx(2 * np.mean(losses), rel=1e-6)
    assert set(reported) == {'main/loss', 'main/twice', 'grad_norm'}


@pytest.mark.parametrize('loss_scale', [None, 128.0, 'dynamic'])
def test_loss_scaling_changes_nothing_in_float32(tmp_path, loss_scale):
    plain = make_trainer(tmp_path, subdivisions=2)
    scaled = make_trainer(tmp_path, subdivisions=2, loss_scale=loss_scale)
    for trainer in (plain, scaled):
        trainer.run()
    expected = arrays(plain.updater.get_optimizer('main').target)
    for path, array in arrays(scaled.updater.get_optimizer('main').target).items():
        np.testing.assert_allclose(array, expected[path], rtol=1e-5, atol=1e-6, err_msg=path)
    assert scaled.observation['grad_norm'] == pytest.approx(plain.observation['grad_norm'], rel=1e-5)


def float16_optimizer(chain=None):
    chain = chain or TinyTrainChain(np.float16)
    optimizer = make_optimizer(chain, weight_decay=0)
    for param in chain.params():
        param.update_rule.use_fp32_update()
    return optimizer


def test_the_loss_scale_preserves_gradients_that_float16_cannot_represent(tmp_path):
    """Values below 3e-8 are 0 in float16; the update divides by the loss scale in float32."""

    class Chain(TinyTrainChain):
        def forward(self, rows):
            return super().forward(rows) * 1e-8

    velocity = {}
    for scale in (None, 2.0**16):
        chain = Chain(np.float16)
        trainer = make_trainer(
            tmp_path, optimizer=float16_optimizer(chain), loss_scale=scale, subdivisions=2, stop=(1, 'iteration')
        )
        trainer.run()
        velocity[scale] = chain.model.out.W.update_rule.state['v']
    single = make_trainer(tmp_path, optimizer=make_optimizer(Chain(), weight_decay=0), stop=(1, 'iteration'))
    single.run()
    expected = single.updater.get_optimizer('main').target.model.out.W.update_rule.state['v']
    assert (velocity[None] == 0).all() and (expected != 0).all()
    np.testing.assert_allclose(velocity[2.0**16], expected, rtol=0.02)


def test_mixed_precision_follows_float32(tmp_path):
    single = make_trainer(
        tmp_path, subdivisions=2, rate=0.01, optimizer=make_optimizer(TinyTrainChain(), weight_decay=0)
    )
    half = make_trainer(tmp_path, optimizer=float16_optimizer(), loss_scale=64.0, subdivisions=2, rate=0.01)
    for trainer in (single, half):
        trainer.run()
    expected = arrays(single.updater.get_optimizer('main').target)
    for path, array in arrays(half.updater.get_optimizer('main').target).items():
        assert array.dtype == np.float16
        np.testing.assert_allclose(array, expected[path], rtol=0, atol=5e-3, err_msg=path)


@pytest.mark.filterwarnings('error:Non finite number')
def test_dynamic_scaling_skips_updates_that_overflow(tmp_path, caplog):
    trainer = make_trainer(
        tmp_path, optimizer=float16_optimizer(), loss_scale='dynamic', rate=0.001, stop=(30, 'iteration')
    )
    before = arrays(trainer.updater.get_optimizer('main').target)
    trainer.run()
    after = arrays(trainer.updater.get_optimizer('main').target)
    assert all(np.isfinite(array).all() for array in after.values())
    assert any((after[path] != before[path]).any() for path in after)
    assert 1 < trainer.updater.get_optimizer('main')._loss_scale < 65504
    # One line for each skipped update, for any number of parameters.
    lines = [record.getMessage() for record in caplog.records]
    assert lines and len(set(lines)) == len(lines) < 30
    assert all(re.fullmatch(r'iteration \d+ is skipped: .* the loss scale is now [\d.]+', line) for line in lines)


@pytest.mark.parametrize('loss_scale', [None, 128.0, 'dynamic'])
def test_the_gradient_norm_is_computed_once_per_update(tmp_path, monkeypatch, loss_scale):
    """Reporting, overflow check and clipping share one computation, because each synchronises with the GPU."""
    calls, square_sum = [], optimizer_module._square_sum
    monkeypatch.setattr(optimizer_module, '_square_sum', lambda params: calls.append(1) or square_sum(params))
    trainer = make_trainer(tmp_path, optimizer=make_optimizer(TinyTrainChain(), clip=0.5), loss_scale=loss_scale)
    trainer.run()
    assert len(calls) == trainer.updater.iteration == 5


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_images(tmp_path, bad):
    data = rows()
    data[6] = data[6]._replace(t=np.array([bad, 0]))
    trainer = make_trainer(tmp_path, data=data, subdivisions=2)
    chain = trainer.updater.get_optimizer('main').target
    states = []
    trainer.extend(lambda t: states.append(arrays(chain)), name='states')
    with pytest.raises(NonFiniteLossError) as error, np.errstate(all='ignore'):
        trainer.run(show_loop_exception_msg=False)
    assert error.value.iteration == 2
    assert error.value.names == ('row4.jpg', 'row5.jpg', 'row6.jpg', 'row7.jpg')
    assert 'iteration 2: twice is' not in str(error.value)
    assert 'iteration 2: loss is' in str(error.value) and '\n' not in str(error.value)
    assert 'row6.jpg' in str(error.value)
    after = arrays(chain)
    assert all((after[path] == states[-1][path]).all() for path in after)


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_update(tmp_path):
    class Chain(TinyTrainChain):
        def forward(self, rows):
            loss = super().forward(rows)
            return loss + chainer.functions.sum(chainer.functions.sqrt(self.model.out.b * 0))

    trainer = make_trainer(tmp_path, chain=Chain())
    before = arrays(trainer.updater.get_optimizer('main').target)
    with pytest.raises(NonFiniteLossError, match='the gradient is'), np.errstate(all='ignore'):
        trainer.run(show_loop_exception_msg=False)
    after = arrays(trainer.updater.get_optimizer('main').target)
    assert all((after[path] == before[path]).all() for path in after)


class Steep(chainer.FunctionNode):
    """The identity with a gradient of 2048 instead of 1, computed in float16."""

    def forward(self, inputs):
        return inputs

    def backward(self, indexes, grad_outputs):
        return (grad_outputs[0] * np.float16(2048),)


class SteepChain(TinyTrainChain):
    """A chain whose loss has the derivative ``2048 ** n_steps`` with respect to ``model/out/b``."""

    def __init__(self, n_steps):
        super().__init__(np.float16)
        self.n_steps = n_steps

    def forward(self, rows):
        b = self.model.out.b
        for _ in range(self.n_steps):
            (b,) = Steep().apply((b,))
        return super().forward(rows) + chainer.functions.sum(chainer.functions.cast(b, np.float32))


@pytest.mark.filterwarnings('ignore:overflow encountered:RuntimeWarning')
def test_a_gradient_that_overflows_without_scaling_is_scaled_down(tmp_path, caplog):
    """With Chainer's minimum of 1, every update of such a network is skipped."""
    optimizer = float16_optimizer(SteepChain(2))
    trainer = make_trainer(tmp_path, optimizer=optimizer, loss_scale='dynamic', rate=1e-9, stop=(8, 'iteration'))
    trainer.run()
    assert [record.getMessage().rsplit(' ', 1)[1] for record in caplog.records] == [
        f'{2.0**-k:g}' for k in range(1, 8)
    ]  # 2 ** 22 * 2 ** -6 is above 65504
    assert 2**-7 < optimizer._loss_scale < 2**-6 and not optimizer.last_update_skipped
    np.testing.assert_allclose(optimizer.target.model.out.b.update_rule.state['v'], -2e-9 * 2**22, rtol=1e-3)


@pytest.mark.filterwarnings('ignore:overflow encountered:RuntimeWarning')
def test_a_gradient_that_always_overflows_stops_the_run(tmp_path):
    """Otherwise the run would go on without a single update."""
    optimizer = float16_optimizer(SteepChain(3))
    before = arrays(optimizer.target)
    trainer = make_trainer(tmp_path, optimizer=optimizer, loss_scale='dynamic', stop=(50, 'iteration'))
    with pytest.raises(NonFiniteLossError, match='^iteration 17: the gradient is inf with the loss scale 1.52588e-05;'):
        trainer.run(show_loop_exception_msg=False)
    after = arrays(optimizer.target)
    assert all((after[path] == before[path]).all() for path in after)


class TwoProcesses(Communicator):
    """A communicator of two processes, the other of which has twice the gradients and values."""

    size = 2

    def __init__(self):
        self.calls = []

    def mean_gradients(self, link):
        self.calls.append('gradients')
        for param in link.params():
            param.grad *= np.float32(1.5)

    def mean(self, values):
        self.calls.append('reports')
        return {name: 1.5 * float(value) for name, value in values.items()}


class ShortOfMemory(TinyTrainChain):
    """Has running statistics; fails in the second update, after the passes of some rows, as long as it has graphs.

    Args:
        has_graphs: Whether it has CUDA graphs.
    """

    def __init__(self, has_graphs):
        super().__init__()
        self.has_graphs = has_graphs
        with self.init_scope():
            self.norm = chainer.links.BatchNormalization(4, use_gamma=False, use_beta=False)

    def forward(self, rows):
        self.norm(np.stack([row.x for row in rows]).astype(np.float32))
        loss = super().forward(rows)
        if self.has_graphs and len(self.sizes) == 4:
            raise MemoryError('full')
        return loss

    def disable_graphs(self):
        had_graphs, self.has_graphs = self.has_graphs, False
        return had_graphs


def test_an_update_without_memory_is_repeated_without_graphs(tmp_path):
    """With the same rows and statistics, and without the gradients of the passes that succeeded."""
    chains = ShortOfMemory(has_graphs=False), ShortOfMemory(has_graphs=True)
    for chain in chains:
        make_trainer(tmp_path, chain=chain, subdivisions=2, stop=(3, 'iteration')).run()
    expected, found = ({**arrays(chain), 'mean': chain.norm.avg_mean, 'var': chain.norm.avg_var} for chain in chains)
    assert not chains[1].has_graphs and len(chains[1].sizes) == len(chains[0].sizes) + 2
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_without_graphs_a_lack_of_memory_ends_the_run(tmp_path):
    chain = ShortOfMemory(has_graphs=True)
    chain.disable_graphs = lambda: False
    with pytest.raises(MemoryError, match='full'):
        make_trainer(tmp_path, chain=chain, subdivisions=2, stop=(3, 'iteration')).run()
    assert len(chain.sizes) == 4


def test_processes_average_once_per_update(tmp_path):
    alone, reported, _ = gradients(tmp_path, subdivisions=2)
    communicator = TwoProcesses()
    together, mean_reported, _ = gradients(tmp_path, subdivisions=2, communicator=communicator)
    assert communicator.calls == ['gradients', 'reports']
    for path in alone:
        np.testing.assert_allclose(together[path], 1.5 * alone[path], rtol=1e-6)
    assert mean_reported['main/loss'] == pytest.approx(1.5 * float(reported['main/loss']))


@pytest.mark.parametrize('subdivisions', [1, 2, 4])
def test_gradients_of_images_are_added_and_losses_averaged(tmp_path, subdivisions):
    """The reference is a backward pass of each image; the batch has parts of different sizes."""
    added, reported, _ = gradients(tmp_path, batch_size=5, subdivisions=subdivisions, sum_images=True)
    chain = TinyTrainChain()
    chain.cleargrads()
    reporter = chainer.Reporter()
    reporter.add_observer('main', chain)
    losses = []
    for row in rows()[:5]:
        with reporter:
            loss = chain([row])
        loss.backward()
        losses.append(float(loss.array))
    for path, param in chain.namedparams():
        expected = param.grad * (2 if path.endswith('/b') else 1)  # the update doubles the gradients of biases
        np.testing.assert_allclose(added[path], expected, rtol=1e-5, atol=1e-5, err_msg=path)
    assert reported['main/loss'] == pytest.approx(np.mean(losses), rel=1e-6)
    norm = np.sqrt(sum((param.grad.astype('d') ** 2).sum() for param in chain.params()))
    assert reported['grad_norm'] == pytest.approx(norm, rel=1e-5)


def test_gradients_of_all_processes_are_added(tmp_path):
    """The other process has four images as well, with twice the gradient."""
    mean, reported, _ = gradients(tmp_path, batch_size=4)
    added, added_reported, _ = gradients(
        tmp_path, batch_size=4, subdivisions=2, sum_images=True, communicator=TwoProcesses()
    )
    for path in mean:
        np.testing.assert_allclose(added[path], 4 * (1 + 2) * mean[path], rtol=1e-5, atol=1e-6)
    assert added_reported['main/loss'] == pytest.approx(1.5 * float(reported['main/loss']), rel=1e-6)


@pytest.mark.parametrize('n', [1, 2, 3, 5, 8])
def test_parts_are_equal_in_size_and_complete(n):
    parts = split(list(range(5)), n)
    assert [row for part in parts for row in part] == list(range(5)) and all(parts)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    with pytest.raises(ValueError, match='subdivisions'):
        make_trainer('.', subdivisions=0)
