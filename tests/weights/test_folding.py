"""Folding and mapping: the layers compute the same values before and after."""

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError, folding
from mask_rcnn.weights.converters.mapping import ParamMapping, apply_mappings

EPS = 1e-3


@pytest.fixture
def norm(rng):
    """Return gamma, beta, mean and variance of six channels."""
    return {'gamma': rng.randn(6), 'beta': rng.randn(6), 'mean': rng.randn(6), 'var': rng.rand(6) + 1e-4}


def normalised(x, gamma, beta, mean, var):
    """Apply algorithm 1 of Ioffe and Szegedy 2015 with given statistics; channels last."""
    return (x - mean) / np.sqrt(var + EPS) * gamma + beta


def test_folding_a_normalisation_into_the_layer_before_it(rng, norm):
    x, weight, bias = rng.randn(10, 4), rng.randn(6, 4), rng.randn(6)
    folded = folding.fold_norm_into_weight(weight.astype(np.float32), norm['gamma'], norm['var'], EPS)
    new_bias = folding.fold_norm_into_bias(bias, **norm, eps=EPS)
    assert folded.dtype == new_bias.dtype == np.float32
    np.testing.assert_allclose(x @ folded.T + new_bias, normalised(x @ weight.T + bias, **norm), rtol=1e-4, atol=1e-4)


def test_a_folded_convolution_keeps_its_shape(rng, norm):
    weight = rng.randn(6, 2, 3, 3).astype(np.float32)
    folded = folding.fold_norm_into_weight(weight, norm['gamma'], norm['var'], EPS)
    scale = norm['gamma'] / np.sqrt(norm['var'] + EPS)
    np.testing.assert_allclose(folded, np.einsum('oikl,o->oikl', weight, scale), rtol=1e-6)


def test_folding_a_bias_into_the_mean(rng, norm):
    x, bias = rng.randn(10, 6), rng.randn(6)
    mean = folding.fold_bias_into_mean(bias, norm['mean'])
    np.testing.assert_allclose(
        normalised(x, norm['gamma'], norm['beta'], mean, norm['var']),
        normalised(x + bias, **norm),
        rtol=1e-4,
        atol=1e-4,
    )


def test_an_affine_channel_equals_the_normalisation_in_both_directions(rng, norm):
    x = rng.randn(10, 6)
    scale, bias = folding.norm_to_affine(**norm, eps=EPS)
    assert scale.dtype == bias.dtype == np.float32
    np.testing.assert_allclose(x * scale + bias, normalised(x, **norm), rtol=1e-4, atol=1e-4)
    gamma, beta, mean, var = folding.affine_to_norm(scale, bias, EPS)
    np.testing.assert_allclose(normalised(x, gamma, beta, mean, var), x * scale + bias, rtol=1e-6)


def test_the_output_stays_the_same_with_another_epsilon(rng, norm):
    x = rng.randn(10, 6)
    gamma = folding.gamma_for_epsilon(norm['gamma'], norm['var'], 1e-5, EPS)
    expected = (x - norm['mean']) / np.sqrt(norm['var'] + 1e-5) * norm['gamma'] + norm['beta']
    np.testing.assert_allclose(normalised(x, **(norm | {'gamma': gamma})), expected, rtol=1e-4, atol=1e-4)


def test_a_pair_of_logits_becomes_one_logit(rng):
    x, weight, bias = rng.randn(10, 5), rng.randn(6, 5), rng.randn(6)
    pairs = np.exp((x @ weight.T + bias).reshape(10, 3, 2))
    foreground = pairs[..., 1] / pairs.sum(axis=-1)
    logits = x @ folding.softmax_pair_to_logit(weight).T + folding.softmax_pair_to_logit(bias)
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), foreground, atol=1e-6)


def test_apply_mappings():
    arrays = {'a': np.ones((2, 3)), 'b': np.full(2, 3.0), 'c': np.zeros(1), 'd': np.array([np.inf])}
    native, taken, warnings = apply_mappings(
        'file',
        arrays,
        [
            ParamMapping('x/W', {'a': (2, 3), 'b': (2,)}, lambda a, b: a * b[:, None]),
            ParamMapping('x/b', {'b': (2,)}),
            ParamMapping('n', {}, lambda: np.float32(4)),
            ParamMapping('y', {'c': (1,), 'd': (1,)}, lambda c, d: c + d),
        ],
    )
    assert (native['x/W'] == 3).all() and native['x/W'].dtype == np.float32 and native['n'].shape == ()
    assert taken == ('a', 'b', 'c', 'd')
    assert warnings == ['infinite or undefined values in d: did the training diverge?']


def test_mismatches_are_listed():
    arrays = {'a': np.ones((2, 3)), 'b': np.ones(2, int)}
    with pytest.raises(WeightFileError) as caught:
        apply_mappings('file', arrays, [ParamMapping('x', {'a': (3, 2), 'b': (2,), 'c': (1,)}, max)], noun='blobs')
    assert caught.value.reason == (
        'missing blobs: c; a is float64 (2, 3), expected float32 (3, 2); b is int64 (2,), expected float32 (2,)'
    )
