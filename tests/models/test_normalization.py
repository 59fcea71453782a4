"""Batch normalisations, affine channels and the conversion between them."""

import chainer
import chainer.links as L
import numpy as np
import pytest

from mask_rcnn.models.backbones.resnet import ResNetStage
from mask_rcnn.models.norm_conversion import affine_to_bn, bn_to_affine
from mask_rcnn.models.norms import AffineChannel2D, make_norm


@pytest.fixture
def stage(rng):
    """A stage with random batch normalisations."""
    stage = ResNetStage(2, 8, 4, stride=2, norm='bn')
    for link in stage.links():
        if isinstance(link, L.BatchNormalization):
            link.gamma.array[...] = rng.uniform(0.5, 2, link.gamma.shape)
            link.beta.array[...] = rng.uniform(-1, 1, link.beta.shape)
            link.avg_mean[...] = rng.uniform(-1, 1, link.avg_mean.shape)
            link.avg_var[...] = rng.uniform(0.01, 4, link.avg_var.shape)
    return stage


def output(stage, x):
    with chainer.using_config('train', False):
        return stage(x).array


def test_bn_to_affine_keeps_the_output(stage, rng):
    x = rng.uniform(-2, 2, (2, 8, 6, 6)).astype(np.float32)
    before = output(stage, x)
    assert bn_to_affine(stage) == 7
    assert not any(isinstance(link, L.BatchNormalization) for link in stage.links())
    np.testing.assert_allclose(output(stage, x), before, rtol=1e-5, atol=1e-5 * before.std())


def test_affine_to_bn_keeps_the_output(stage, rng):
    x = rng.uniform(-2, 2, (2, 8, 6, 6)).astype(np.float32)
    bn_to_affine(stage)
    before = output(stage, x)
    assert affine_to_bn(stage) == 7
    assert not any(isinstance(link, AffineChannel2D) for link in stage.links())
    np.testing.assert_allclose(output(stage, x), before, rtol=1e-5, atol=1e-5 * before.std())


def test_folding_equals_the_definition():
    bn = chainer.Chain()
    with bn.init_scope():
        bn.norm = L.BatchNormalization(1, eps=0.5)
    bn.norm.gamma.array[0], bn.norm.beta.array[0] = 6, 1
    bn.norm.avg_mean[0], bn.norm.avg_var[0] = 10, 3.5
    bn_to_affine(bn)
    assert bn.norm.scale.array[0] == 3 and bn.norm.bias.array[0] == -29


def test_folding_without_gamma_and_beta():
    chain = chainer.Chain()
    with chain.init_scope():
        chain.norm = L.BatchNormalization(2, eps=0, use_gamma=False, use_beta=False)
    chain.norm.avg_mean[...], chain.norm.avg_var[...] = [1, 2], [4, 16]
    bn_to_affine(chain)
    np.testing.assert_array_equal(chain.norm.scale.array, [0.5, 0.25])
    np.testing.assert_array_equal(chain.norm.bias.array, [-0.5, -0.5])


def test_conversion_keeps_the_paths_of_links(stage):
    paths = {path for path, _ in stage.namedlinks()}
    bn_to_affine(stage)
    assert {path for path, _ in stage.namedlinks()} == paths
    assert '/block0/shortcut/norm/scale' in dict(stage.namedparams())


def test_new_norms_are_the_identity(rng):
    x = rng.uniform(-2, 2, (2, 3, 4, 4)).astype(np.float32)
    with chainer.using_config('train', False):
        np.testing.assert_array_equal(make_norm('affine', 3)(x).array, x)
        np.testing.assert_allclose(make_norm('bn', 3)(x).array, x, rtol=1e-5)
