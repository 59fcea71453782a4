"""Momentum SGD with Detectron's settings."""

import copy

import chainer
import chainer.links as L
import numpy as np
import pytest

from mask_rcnn.models.norms import AffineChannel2D
from mask_rcnn.training.freezing import FrozenParameter
from mask_rcnn.training.optimizer import make_optimizer, set_learning_rate


class Net(chainer.Chain):
    def __init__(self):
        super().__init__()
        with self.init_scope():
            self.conv = L.Convolution2D(2, 3, 1, initial_bias=1)
            self.norm = AffineChannel2D(3)
            self.bn = L.BatchNormalization(3)
            self.frozen = L.Linear(2, 2)
        for name in ('W', 'b'):
            with self.frozen.init_scope():
                setattr(self.frozen, name, FrozenParameter(getattr(self.frozen, name).array, name=name))


@pytest.fixture
def net():
    net = Net()
    rng = np.random.RandomState(0)
    for param in net.params():
        if param.requires_grad:
            param.array[...] = rng.randn(*param.shape)
            param.grad = rng.randn(*param.shape).astype('f')
    return net


def state(net):
    return {
        path: (param.array.copy(), None if param.grad is None else param.grad.copy())
        for path, param in net.namedparams()
    }


def test_an_update_equals_detectron(net):
    """Only weights decay, biases have twice the learning rate, frozen parameters stay constant."""
    optimizer = make_optimizer(net, weight_decay=0.01)
    set_learning_rate(optimizer, 0.1)
    before = state(net)
    optimizer.update()
    after = {path: param.array for path, param in net.namedparams()}
    factor = {'W': 1, 'b': 2}
    decay = {'W': 0.01}
    for path, (array, gradient) in before.items():
        name = path.rsplit('/', 1)[1]
        step = 0 if 'frozen' in path else 0.1 * (factor.get(name, 1) * gradient + decay.get(name, 0) * array)
        np.testing.assert_allclose(after[path], array - step, rtol=0, atol=1e-6, err_msg=path)


def test_an_update_with_decay_of_all_parameters(net):
    """Biases and normalisations decay as well, and all parameters have one learning rate."""
    optimizer = make_optimizer(net, weight_decay=0.01, decay_all=True, decay_norms=True)
    set_learning_rate(optimizer, 0.1)
    before = state(net)
    optimizer.update()
    for path, param in net.namedparams():
        array, gradient = before[path]
        step = 0 if 'frozen' in path else 0.1 * (gradient + 0.01 * array)
        np.testing.assert_allclose(param.array, array - step, rtol=0, atol=1e-6, err_msg=path)


def test_biases_decay_without_normalisations(net):
    """As in detectron2, whose ``WEIGHT_DECAY_NORM`` is 0."""
    optimizer = make_optimizer(net, weight_decay=0.01, decay_all=True)
    set_learning_rate(optimizer, 0.1)
    before = state(net)
    optimizer.update()
    for path, param in net.namedparams():
        array, gradient = before[path]
        decay = 0.01 if path.endswith(('/W', '/b')) else 0
        step = 0 if 'frozen' in path else 0.1 * (gradient + decay * array)
        np.testing.assert_allclose(param.array, array - step, rtol=0, atol=1e-6, err_msg=path)


def test_momentum_accumulates_gradients(net):
    optimizer = make_optimizer(net, momentum=0.5, weight_decay=0)
    set_learning_rate(optimizer, 0.1)
    param = net.norm.scale
    start, gradient = param.array.copy(), param.grad.copy()
    for _ in range(2):
        param.grad = gradient.copy()
        optimizer.update()
    np.testing.assert_allclose(param.array, start - 0.1 * gradient * (1 + 1.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(('rate', 'scale'), [(0.2, 2), (0.01, 0.1), (0.105, 1), (0.1, 1)])
def test_the_momentum_is_corrected_when_the_rate_jumps(net, rate, scale):
    """The momentum is scaled as if all past gradients had been multiplied by the new rate."""
    optimizer = make_optimizer(net)
    set_learning_rate(optimizer, 0.1)
    optimizer.update()
    before = net.conv.W.update_rule.state['v'].copy()
    set_learning_rate(optimizer, rate)
    np.testing.assert_allclose(net.conv.W.update_rule.state['v'], scale * before, rtol=1e-6)
    assert optimizer.lr == rate


def test_the_momentum_is_not_corrected_if_the_dialect_does_not(net):
    optimizer = make_optimizer(net, correct_momentum=False)
    set_learning_rate(optimizer, 0.1)
    optimizer.update()
    before = net.conv.W.update_rule.state['v'].copy()
    set_learning_rate(optimizer, 1.0)
    np.testing.assert_array_equal(net.conv.W.update_rule.state['v'], before)
    assert optimizer.lr == 1


def gradient_norm(link):
    return np.linalg.norm(np.concatenate([p.grad.ravel().astype('d') for p in link.params() if p.requires_grad]))


def test_the_norm_of_all_gradients(net):
    optimizer = make_optimizer(net)
    reports = optimizer.report_grad_norm({'loss': chainer.Variable(np.array(0.1, 'f')), 'n': 3})
    assert reports == {'loss': np.float32(0.1), 'n': 3, 'grad_norm': pytest.approx(gradient_norm(net), rel=1e-6)}
    assert all(type(value) is float for value in reports.values())
    net.conv.b.grad[0] = np.inf
    assert not np.isfinite(optimizer.report_grad_norm({})['grad_norm'])


def test_the_norm_of_a_failed_step_does_not_clip_the_next_one(net):
    """A step fails after its norm, for example, if its loss is not finite."""
    optimizer = make_optimizer(net, clip=1.0, weight_decay=0)
    net.conv.W.grad[...] = 1e3
    optimizer.report_grad_norm({})
    optimizer.cleargrads()
    net.conv.W.grad = np.full((3, 2, 1, 1), 0.1, 'f')
    optimizer.update()
    np.testing.assert_array_equal(net.conv.W.grad, np.float32(0.1))


def test_only_hooks_may_read_gradients_of_frozen_parameters(net):
    """Zeros for all frozen parameters take time and memory; Chainer's hooks need them."""
    optimizer = make_optimizer(net, clip=1.0, weight_decay=0)
    optimizer.cleargrads()
    optimizer.update()
    assert [param.grad is None for param in net.params()] == [not param.requires_grad for param in net.params()]
    optimizer.add_hook(chainer.optimizer_hooks.GradientClipping(0.5))
    optimizer.cleargrads()
    net.conv.W.grad = np.ones((3, 2, 1, 1), 'f')
    optimizer.update()
    np.testing.assert_allclose(net.conv.W.grad, 0.5 / 6**0.5, rtol=1e-6)
    assert all((param.grad == 0).all() for param in net.params() if param is not net.conv.W)


def test_parameters_may_change_between_updates(net):
    optimizer = make_optimizer(net)
    optimizer.update()
    with net.norm.init_scope():
        net.norm.scale = chainer.Parameter(np.ones(3, 'f'))
    net.norm.scale.update_rule = optimizer.create_update_rule()
    set_learning_rate(optimizer, 0.5)
    net.norm.scale.grad = np.full(3, 0.25, 'f')
    optimizer.update()
    np.testing.assert_allclose(net.norm.scale.array, 1 - 0.5 * 0.25)


def test_the_norm_of_float16_gradients_does_not_overflow():
    link = L.Linear(2, 2)
    for param in link.params():
        param.array = param.array.astype(np.float16)
        param.grad = np.full(param.shape, 300, np.float16)
    assert make_optimizer(link).grad_norm == pytest.approx(300 * 6**0.5, rel=1e-6)


@pytest.mark.parametrize('loss_scale', [None, 64.0])
def test_clipping_limits_the_norm(net, loss_scale):
    gradients = {path: param.grad.copy() for path, param in net.namedparams() if param.requires_grad}
    norm = gradient_norm(net)
    for threshold, factor in ((norm / 4, 0.25), (norm * 4, 1)):
        optimizer = make_optimizer(net, clip=threshold)
        if loss_scale:
            optimizer.set_loss_scale(loss_scale)
        for path, param in net.namedparams():
            if param.requires_grad:
                param.grad = gradients[path] * np.float32(loss_scale or 1)
        optimizer.call_hooks('pre')
        assert gradient_norm(net) == pytest.approx(norm * factor * (loss_scale or 1), rel=1e-5)


@pytest.mark.parametrize('bad', [np.inf, np.nan, None])
def test_an_update_that_overflows_is_skipped_and_halves_the_scale(net, bad):
    optimizer = make_optimizer(net)
    set_learning_rate(optimizer, 0.1)
    optimizer.loss_scaling()
    optimizer._loss_scale = 64.0
    if bad is not None:
        net.conv.W.grad[0, 1] = bad
    before = state(net)
    optimizer.update()
    after = state(net)
    changed = [path for path in before if (before[path][0] != after[path][0]).any()]
    assert optimizer.last_update_skipped == (bad is not None) and optimizer._loss_scale == (128 if bad is None else 32)
    assert bool(changed) == (bad is None)


def test_the_loss_scale_is_restored(net):
    """A run that was saved without a loss scale starts the search for it."""

    def saved(optimizer):
        serializer = chainer.serializers.DictionarySerializer()
        serializer.save(optimizer)
        return serializer.target

    plain, first, second = optimizers = [make_optimizer(copy.deepcopy(net)) for _ in range(3)]
    for optimizer in optimizers:
        optimizer.update()
    first.loss_scaling()
    second.loss_scaling()
    first._loss_scale, first._loss_scaling_isnan_ever = 4096.0, True
    chainer.serializers.NpzDeserializer(saved(first)).load(second)
    assert second._loss_scale == 4096 and second._loss_scaling_isnan_ever is True
    second.loss_scaling()
    chainer.serializers.NpzDeserializer(saved(plain)).load(second)
    assert second._loss_scale == 1 and second._loss_scaling_isnan_ever is False
    assert 'loss_scale' not in saved(plain)
