"""Frozen layers do not change and take no part in the backward pass."""

import copy
import pickle

import chainer
import chainer.links as L
import numpy as np
import pytest

import mask_rcnn
from mask_rcnn.config import DENA, Config
from mask_rcnn.models.backbones.resnet import ResNet
from mask_rcnn.models.layers import ConvNorm
from mask_rcnn.training.freezing import FrozenParameter, freeze, uses_batch_statistics
from tests.support.small_resnet import use_narrow_resnet


class Model(chainer.Chain):
    """A narrow extractor and one normalised layer after it."""

    def __init__(self, norm):
        super().__init__()
        with self.init_scope(), pytest.MonkeyPatch.context() as patch:
            use_narrow_resnet(patch)
            self.extractor = ResNet('resnet50', norm=norm)
            self.head = ConvNorm(self.extractor.out_channels[0], 4, 1, norm=norm)

    def forward(self, x):
        return self.head(*self.extractor(x))


@pytest.fixture(params=['affine', 'bn'])
def norm(request):
    return request.param


@pytest.fixture
def x(rng):
    return rng.randn(1, 3, 64, 96).astype(np.float32)


def state(model):
    values = {}
    model.serialize(chainer.serializers.DictionarySerializer(values))
    return {path: None if value is None else np.array(value) for path, value in values.items()}


def set_statistics(model):
    for link in model.links():
        if isinstance(link, L.BatchNormalization):
            link.avg_mean[...] = np.linspace(-0.1, 0.1, link.avg_mean.size)
            link.avg_var[...] = np.linspace(0.9, 1.3, link.avg_var.size)


def is_frozen_stage(path):
    return path.startswith(('extractor/conv1/', 'extractor/res2/'))


def train_once(model, x):
    """Make one step of SGD; return the paths of changed values, and whether each parameter has a gradient."""
    optimizer = chainer.optimizers.SGD(0.1).setup(model)
    before = state(model)
    for param in model.params():
        if not param.requires_grad:
            param.update_rule.enabled = False
    model.cleargrads()
    y = model(x)
    # A plain sum would be constant after a batch normalisation.
    chainer.functions.sum(y * np.random.RandomState(1).randn(*y.shape).astype(np.float32)).backward()
    grads = {path[1:]: param.grad is not None for path, param in model.namedparams()}
    optimizer.update()
    after = state(model)
    return {path for path in after if (after[path] != before[path]).any()}, grads


@pytest.mark.parametrize('freeze_bn', [False, True])
def test_only_trained_parameters_change_in_a_step(norm, freeze_bn, x):
    model = Model(norm)
    freeze(model, freeze_bn=freeze_bn)
    changed, grads = train_once(model, x)
    for path in state(model):
        is_norm = '/norm/' in path
        is_trained = not is_frozen_stage(path) and not (is_norm and (norm == 'affine' or freeze_bn))
        assert (path in changed) == (is_trained and not path.endswith('/N')), (
            path
        )  # N counts batches of fine-tuning only
        if path in grads:
            assert grads[path] == is_trained, path


def test_frozen_stages_store_nothing_for_the_backward_pass(norm, x):
    model = Model(norm)
    freeze(model)
    seen = []
    model.extractor.res3.add_hook(Spy(seen))
    model.extractor(x)
    ((h,),) = seen
    assert h.creator is None and not h.requires_grad


class Spy(chainer.LinkHook):
    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def forward_preprocess(self, args):
        if isinstance(args.link, mask_rcnn.models.backbones.resnet.ResNetStage):
            self.seen.append(args.args)


def test_freezing_does_not_change_the_output(norm, x):
    model = Model(norm)
    set_statistics(model)
    with chainer.using_config('train', False):
        expected = model(x).array
    freeze(model, freeze_bn=True)
    scale = np.abs(expected).max()
    np.testing.assert_allclose(model(x).array, expected, rtol=0, atol=1e-5 * scale)
    with chainer.using_config('train', False), chainer.no_backprop_mode():
        np.testing.assert_allclose(model(x).array, expected, rtol=0, atol=1e-5 * scale)


def test_unfrozen_batch_normalisation_uses_the_statistics_of_the_batch(x):
    model = Model('bn')
    freeze(model)
    y = model(x).array
    np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=(0, 2, 3)), 1, atol=1e-2)


def test_without_frozen_stages_only_affine_channels_are_frozen(norm, x):
    model = Model(norm)
    freeze(model, stages=0)
    _, grads = train_once(model, x)
    for path, has_gradient in grads.items():
        assert has_gradient == (norm == 'bn' or '/norm/' not in path), path


#: The fixed statistics of DeNA's program; a model without a configuration follows Detectron.
FIXED = Config(norm='bn', dialect=DENA)


@pytest.mark.parametrize('freeze_bn', [False, True])
def test_fixed_statistics_with_trained_gamma_and_beta(freeze_bn, norm, x):
    """All parameters are trained, except the normalisation's with `freeze_bn`; statistics stay constant bit by bit."""
    model = Model(norm)
    model.config = FIXED
    set_statistics(model)
    freeze(model, freeze_bn=freeze_bn)
    assert model.extractor.frozen_stages == 0
    changed, grads = train_once(model, x)
    for path in state(model):
        is_trained = not path.endswith(('avg_mean', 'avg_var', '/N')) and not (freeze_bn and '/norm/' in path)
        assert (path in changed) == is_trained, path
        assert grads.get(path, False) == is_trained, path


def test_named_stages_are_frozen_with_fixed_statistics(x):
    model = Model('bn')
    model.config = FIXED
    freeze(model, stages=2)
    _, grads = train_once(model, x)
    assert all(has_gradient == (not is_frozen_stage(path)) for path, has_gradient in grads.items())


def test_the_gradients_of_fixed_statistics_equal_those_of_chainer(rng):
    """The reference is Chainer's normalisation with fixed statistics."""
    layer = ConvNorm(3, 5, 3, norm='bn')
    layer.norm.eps = 2e-5
    for array in (layer.norm.gamma.array, layer.norm.beta.array, layer.norm.avg_mean, layer.norm.avg_var):
        array[...] = rng.uniform(0.5, 1.5, 5)
    layer.bn_frozen = True
    x, gy = rng.randn(2, 3, 8, 9).astype('f'), rng.randn(2, 5, 6, 7).astype('f')

    def run(normalise):
        layer.cleargrads()
        images = chainer.Variable(x)
        y = normalise(images)
        y.grad = gy
        y.backward()
        return [y.array, images.grad] + [param.grad for _, param in sorted(layer.namedparams())]

    norm = layer.norm
    expected = run(
        lambda images: chainer.functions.relu(
            chainer.functions.fixed_batch_normalization(
                layer.conv(images), norm.gamma, norm.beta, norm.avg_mean, norm.avg_var, eps=norm.eps
            )
        )
    )
    for found, reference in zip(run(lambda images: layer(images, relu=True)), expected, strict=True):
        np.testing.assert_allclose(found, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


def test_freezing_keeps_names_and_values(norm):
    model = Model(norm)
    before = state(model)
    freeze(model, freeze_bn=True)
    after = state(model)
    assert list(before) == list(after)
    assert all(np.array_equal(before[path], after[path]) for path in before)
    freeze(model, freeze_bn=True)  # freezing twice is allowed
    assert list(state(model)) == list(before)


def test_copies_are_frozen():
    param = FrozenParameter(np.arange(3, dtype=np.float32), name='W')
    for copied in (copy.copy(param), copy.deepcopy(param), pickle.loads(pickle.dumps(param))):
        assert not copied.requires_grad and copied.name == 'W'
        np.testing.assert_array_equal(copied.array, param.array)


def test_group_normalisation_is_trained_after_the_frozen_stages():
    """Without statistics, ``freeze_bn`` does not affect it."""
    for options in ({}, {'freeze_bn': True}):
        model = Model('gn')
        freeze(model, stages=2, **options)
        for path, param in model.namedparams():
            assert param.requires_grad != is_frozen_stage(path.lstrip('/')), path


def test_statistics_of_the_batch(norm):
    model = Model(norm)
    assert uses_batch_statistics(model) == uses_batch_statistics(model.head) == (norm == 'bn')
    assert uses_batch_statistics(chainer.Sequential(L.BatchNormalization(4)))
    freeze(model, freeze_bn=True)
    assert not uses_batch_statistics(model)
