"""Folding and translating: the same numbers come out of the layers before and after."""

import numpy as np
import pytest

from mask_rcnn.weights import WeightFileError, folding
from mask_rcnn.weights.converters.mapping import ParamMapping, apply_mappings

EPS = 1e-3


@pytest.fixture
def norm(rng):
    """gamma, beta, mean and variance of six channels."""
    return {'gamma': rng.randn(6), 'beta': rng.randn(6), 'mean': rng.randn(6), 'var': rng.rand(6) + 1e-4}


def normalised(x, gamma, beta, mean, var):
    """Ioffe and Szegedy 2015, algorithm 1, with given statistics; channels last."""
    return (x - mean) / np.sqrt(var + EPS) * gamma + beta


def test_a_normalisation_folds_into_the_layer_before_it(rng, norm):
    x, weight, bias = rng.randn(10, 4), rng.randn(6, 4), rng.randn(6)
    folded = folding.fold_norm_into_weight(weight.astype(np.float32), norm['gamma'], norm['var'], EPS)
    new_bias = folding.fold_norm_into_bias(bias, **norm, eps=EPS)
    assert folded.dtype == new_bias.dtype == np.float32
    np.testing.assert_allclose(x @ folded.T + new_bias, normalised(x @ weight.T + bias, **norm), rtol=1e-4, atol=1e-4)


def test_filters_keep_their_shape(rng, norm):
    weight = rng.randn(6, 2, 3, 3).astype(np.float32)
    folded = folding.fold_norm_into_weight(weight, norm['gamma'], norm['var'], EPS)
    scale = norm['gamma'] / np.sqrt(norm['var'] + EPS)
    np.testing.assert_allclose(folded, np.einsum('oikl,o->oikl', weight, scale), rtol=1e-6)


def test_a_bias_folds_into_the_mean(rng, norm):
    x, bias = rng.randn(10, 6), rng.randn(6)
    mean = folding.fold_bias_into_mean(bias, norm['mean'])
    np.testing.assert_allclose(
        normalised(x, norm['gamma'], norm['beta'], mean, norm['var']),
        normalised(x + bias, **norm),
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_pair_of_logits_becomes_one(rng):
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
    assert warnings == ['infinite or undefined numbers in d: did the training diverge?']


def test_what_does_not_fit_is_named():
    arrays = {'a': np.ones((2, 3)), 'b': np.ones(2, int)}
    with pytest.raises(WeightFileError) as caught:
        apply_mappings('file', arrays, [ParamMapping('x', {'a': (3, 2), 'b': (2,), 'c': (1,)}, max)], noun='blobs')
    assert caught.value.reason == (
        'missing blobs: c; a is float64 (2, 3), not float32 (3, 2); b is int64 (2,), not float32 (2,)'
    )
