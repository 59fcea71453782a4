"""The update of all parameters with one kernel: it equals that of the update rules."""

import copy

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime import cuda_kernels, multi_array
from mask_rcnn.training.optimizer import ClipGradient, make_optimizer, set_learning_rate
from mask_rcnn.training.tensorboard_histograms import copy_gradients
from tests.support.tiny_training import TinyTrainChain, make_trainer


@pytest.fixture
def launches(emulator, monkeypatch):
    """Take NumPy arrays for CuPy arrays; return the names of the started kernels."""
    names = []

    def kernel(source, name):
        return lambda *launch: names.append(name) or emulator.kernel(source, name)(*launch)

    monkeypatch.setattr(cuda_kernels, 'kernel', kernel)
    monkeypatch.setattr(
        multi_array, '_is_supported', lambda array: array is not None and array.dtype == np.float32 and array.size > 0
    )
    monkeypatch.setattr(multi_array, '_device_id', lambda array: 0)
    monkeypatch.setattr(multi_array, '_address', lambda array: array.ctypes.data)
    return names


def make_link():
    link = chainer.Sequential(
        chainer.links.Linear(200, 100),
        chainer.links.BatchNormalization(100),
        chainer.links.Convolution2D(40, 50, (3, 5)),
    )
    rng = np.random.RandomState(0)
    for param in link.params():
        param.array[...] = rng.randn(*param.shape)
    return link


def make_gradient(rng, shape, xp):
    """Return a gradient: of a convolution, channels last as cuDNN's; of a linear layer, transposed."""
    if len(shape) == 4:
        return xp.asarray(rng.randn(*(shape[i] for i in (0, 2, 3, 1))).astype('f')).transpose(0, 3, 1, 2)
    return xp.asarray(rng.randn(*shape[::-1]).astype('f')).T


def train(link, loss_scale=None, clip=None, xp=np, n_updates=3, decay_all=False):
    """Update a link several times; return the optimizer."""
    optimizer = make_optimizer(link, weight_decay=0.01, clip=clip, decay_all=decay_all, decay_norms=decay_all)
    set_learning_rate(optimizer, 0.1)
    if loss_scale is not None:
        optimizer.set_loss_scale(loss_scale)
    rng = np.random.RandomState(1)
    for _ in range(n_updates):
        for _, param in sorted(link.namedparams()):
            param.grad = make_gradient(rng, param.shape, xp)
            param._loss_scale = loss_scale
        optimizer.update()
    return optimizer


def state(optimizer):
    serializer = chainer.serializers.DictionarySerializer()
    serializer.save(optimizer)
    serializer['target'].save(optimizer.target)
    return serializer.target


@pytest.mark.parametrize(('loss_scale', 'decay_all'), [(None, False), (3.0, False), (None, True)])
def test_the_update_equals_that_of_the_rules(launches, monkeypatch, loss_scale, decay_all):
    together = state(train(make_link(), loss_scale, decay_all=decay_all))
    assert launches == ['momentum_sgd'] * 3
    monkeypatch.setattr(multi_array, 'supports', lambda arrays, **options: False)
    expected = state(train(make_link(), loss_scale, decay_all=decay_all))
    assert launches == ['momentum_sgd'] * 3 and together.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(together[name], value, err_msg=name)


@pytest.mark.parametrize('timing', ['pre', 'post'])
def test_an_unknown_hook_is_called(launches, timing):
    link, calls = make_link(), []
    optimizer = train(link, n_updates=0)
    link[0].W.update_rule.add_hook(lambda rule, param: calls.append(rule), name='hook', timing=timing)
    optimizer.update()
    assert calls == [link[0].W.update_rule] and launches == []


def test_a_restored_state_is_used(launches):
    first, second = train(make_link()), make_optimizer(make_link(), weight_decay=0.01)
    saved = copy.deepcopy(state(first))
    set_learning_rate(second, 0.1)
    chainer.serializers.NpzDeserializer(saved).load(second)
    chainer.serializers.NpzDeserializer(saved, 'target/').load(second.target)
    for optimizer in (first, second):
        optimizer.target.cleargrads()
        optimizer.update()
    assert second.target[0].W.update_rule.t == 4
    np.testing.assert_array_equal(second.target[0].W.array, first.target[0].W.array)


@pytest.mark.parametrize('bad', [None, np.inf, np.nan])
def test_the_norm(launches, bad):
    link = make_link()
    optimizer = train(link, n_updates=1)
    expected = np.sqrt(sum((param.grad.astype('d') ** 2).sum() for param in link.params()))
    if bad is None:
        assert optimizer.grad_norm == pytest.approx(expected, rel=1e-12)
    else:
        link[2].b.grad[-1] = bad
        assert not np.isfinite(optimizer.grad_norm)
    assert launches == ['momentum_sgd', 'square_sums']


@pytest.mark.parametrize('clip', [10.0, 1e4])
def test_clipping(launches, monkeypatch, clip):
    """All gradients are scaled with one kernel, if their norm, about 200, exceeds the threshold."""
    together = state(train(make_link(), 3.0, clip))
    assert launches == (['square_sums', 'scale', 'momentum_sgd'] if clip == 10 else ['square_sums', 'momentum_sgd']) * 3
    monkeypatch.setattr(multi_array, 'supports', lambda arrays, **options: False)
    expected = state(train(make_link(), 3.0, clip))
    for name, value in expected.items():
        np.testing.assert_allclose(together[name], value, rtol=2e-6, atol=1e-7, err_msg=name)


def test_all_addresses_are_uploaded_at_once(launches, monkeypatch):
    uploads, upload = [], multi_array.upload
    monkeypatch.setattr(multi_array, 'upload', lambda array, xp: uploads.append(array.shape) or upload(array, xp))
    optimizer = train(make_link(), clip=1.0)
    assert uploads == [(2, 6), (3, 6), (3, 6), (3, 6)]  # the first update creates the velocities
    uploads.clear()
    optimizer.update()
    assert uploads == [(3, 6)]


@pytest.mark.parametrize('changed', ['grad', 'array', 'velocity'])
def test_a_hook_may_replace_arrays(launches, changed):
    """The hook runs after the addresses have been uploaded for the norm."""

    def replace(optimizer):
        param = optimizer.target[2].W
        if changed == 'grad':
            param.grad = np.full_like(param.array, 0.5)
        elif changed == 'array':
            param.array = np.full_like(param.array, 0.5)
        else:
            param.update_rule.state['v'] = np.full_like(param.array, 0.5)

    optimizer = train(make_link(), clip=1e9, n_updates=1)
    param = optimizer.target[2].W
    gradient, array = param.grad.copy(), param.array.copy()
    velocity = param.update_rule.state['v'].copy()
    gradient, array, velocity = (
        np.full_like(value, 0.5) if name == changed else value
        for name, value in (('grad', gradient), ('array', array), ('velocity', velocity))
    )
    optimizer.add_hook(replace, name='replace')
    launches.clear()
    optimizer.update()
    velocity = 0.9 * velocity - 0.1 * (gradient + 0.01 * array)
    np.testing.assert_allclose(param.array, array + velocity, rtol=1e-6, atol=1e-7)
    assert launches == ['square_sums', 'momentum_sgd']


def test_clipping_scales_the_array_of_a_hook(launches):
    """The hook copies a gradient after the norm has been computed."""
    optimizer = train(make_link(), n_updates=0)
    params = list(optimizer.target.params())

    def copy_gradient(optimizer):
        params[0].grad = params[0].grad.copy()

    optimizer.add_hook(copy_gradient, name='copy')
    optimizer.add_hook(ClipGradient(1.0))
    for param in params:
        param.grad = np.ones_like(param.array)
    optimizer.report_grad_norm({})
    optimizer.update()
    expected = sum(param.size for param in params) ** -0.5
    for param in params:
        np.testing.assert_allclose(param.grad, expected, rtol=1e-6)


def test_a_rule_with_its_own_learning_rate(launches):
    optimizer = train(make_link(), n_updates=0)
    link = optimizer.target
    for param in link.params():
        param.cleargrad()
        param.grad = np.ones_like(param.array)
    before = link[0].b.array.copy()
    link[0].b.update_rule.hyperparam.lr = 0.5
    optimizer.update()
    assert launches == []
    np.testing.assert_allclose(link[0].b.array, before - 0.5 * 2, rtol=1e-6)


def test_parameters_with_several_loss_scales(launches):
    optimizer = train(make_link(), n_updates=0)
    link = optimizer.target
    optimizer.set_loss_scale(8.0)
    for param in link.params():
        param.grad, param._loss_scale = np.ones_like(param.array), 8.0
    link[2].b._loss_scale = 2.0
    before = [param.array.copy() for param in (link[0].b, link[2].b)]
    optimizer.update()
    assert launches == []
    for param, array, loss_scale in zip((link[0].b, link[2].b), before, (8, 2), strict=True):
        np.testing.assert_allclose(param.array, array - 0.1 * 2 / loss_scale, rtol=1e-6, atol=1e-7)


def test_a_disabled_rule_updates_nothing(launches):
    optimizer = train(make_link(), n_updates=0)
    disabled, other = optimizer.target[0].W, optimizer.target[2].W
    disabled.update_rule.enabled = False
    for param in optimizer.target.params():
        param.grad = np.ones_like(param.array)
    before, other_before = disabled.array.copy(), other.array.copy()
    optimizer.update()
    np.testing.assert_array_equal(disabled.array, before)
    np.testing.assert_allclose(other.array, other_before - 0.1 * (1 + 0.01 * other_before), rtol=1e-6, atol=1e-7)


@pytest.mark.gpu
@pytest.mark.parametrize('clip', [None, 1.0])
def test_an_update_on_a_gpu_equals_that_on_the_cpu(clip):
    on_gpu = make_link()
    on_gpu.to_device('@cupy:0')
    on_cpu = train(make_link(), 3.0, clip).target
    optimizer = train(on_gpu, 3.0, clip, xp=chainer.backends.cuda.cupy)
    assert optimizer.target[0].W.update_rule.t == 3
    on_gpu.to_device('@numpy')
    for expected, param in zip(on_cpu.params(), on_gpu.params(), strict=True):
        np.testing.assert_allclose(param.array, expected.array, rtol=1e-5, atol=1e-6)


def test_the_gradients_that_tensorboard_shows_are_the_same(launches, monkeypatch, tmp_path):
    """The update rules change gradients, the kernel does not; both are read before."""

    def run():
        chain, found = TinyTrainChain(), []
        trainer = make_trainer(
            tmp_path, chain=chain, optimizer=make_optimizer(chain, clip=0.1), stop=(2, 'iteration'), loss_scale=8.0
        )
        trainer.updater.gradient_observer = lambda updater: found.append(copy_gradients(chain, 8.0))
        trainer.run()
        return found

    together = run()
    assert launches.count('momentum_sgd') == 2
    monkeypatch.setattr(multi_array, 'supports', lambda arrays, **options: False)
    expected = run()
    assert launches.count('momentum_sgd') == 2 and len(expected) == 2
    for a, b in zip(together, expected, strict=True):
        assert a.keys() == b.keys() and '/model/hidden/W' in a
        for path, gradient in b.items():
            np.testing.assert_allclose(a[path], gradient, rtol=1e-5, atol=1e-6, err_msg=path)
