"""The caches of values derived from weights and from feature maps."""

import weakref

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime.cache import cache_features, cache_weights, cached


@pytest.fixture
def make():
    """Return a function that counts its calls."""

    def make(array, factor):
        make.calls += 1
        return array * factor

    make.calls = 0
    return make


def test_nothing_is_cached_outside_of_a_context(make):
    x = np.arange(3)
    cached(make, x, 2), cached(make, x, 2, scope='features')
    with cache_weights():
        cached(make, x, 2, scope='features')
    with cache_features():
        cached(make, x, 2)
    assert make.calls == 4


@pytest.mark.parametrize(('context', 'scope'), [(cache_weights, 'weights'), (cache_features, 'features')])
def test_same_sources_are_computed_once(make, context, scope):
    x, twin = np.arange(3), np.arange(3)
    with context():
        first = cached(make, x, 2, scope=scope)
        assert cached(make, x, 2, scope=scope) is first
        np.testing.assert_array_equal(cached(make, x, 3, scope=scope), [0, 3, 6])
        assert cached(make, twin, 2, scope=scope) is not first
    assert make.calls == 3
    with context():
        assert cached(make, x, 2, scope=scope) is not first


def test_a_nested_context_shares_the_cache(make):
    x = np.arange(3)
    with cache_weights():
        with cache_weights():
            first = cached(make, x, 2)
        assert cached(make, x, 2) is first
    assert chainer.config.weight_cache is None


def test_each_batch_has_a_separate_cache(make):
    x = np.arange(3)
    with cache_features():
        first = cached(make, x, 2, scope='features')
        with cache_features():
            assert cached(make, x, 2, scope='features') is not first
        assert cached(make, x, 2, scope='features') is first


def test_two_functions_of_the_same_sources_have_two_values():
    x = np.arange(3)
    with cache_weights():
        np.testing.assert_array_equal(cached(np.negative, x), [0, -1, -2])
        np.testing.assert_array_equal(cached(np.square, x), [0, 1, 4])


def test_sources_live_as_long_as_the_cache(make):
    """The address of a deleted array could be that of another array, which would get its value."""
    x = np.arange(3)
    source = weakref.ref(x)
    with cache_weights():
        cached(make, x, 2)
        del x
        assert source() is not None
    assert source() is None
