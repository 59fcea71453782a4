"""The features of the first RoIs and their gradients."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.ops.roi.first_rois import _FirstRoIs, first_rois
from tests.ops.test_average_pooling import as_channels_last


@pytest.fixture
def features(backend, rng):
    x = rng.uniform(-1, 1, (5, 4, 3, 2)).astype('f')
    return x, chainer.Variable(as_channels_last(backend.array(x)))


def slice_rois(backend, features, n):
    return _FirstRoIs(n).apply((features,))[0] if backend.name == 'emulated' else first_rois(features, n)


@pytest.mark.parametrize('n', [1, 3, 5])
@pytest.mark.parametrize('other', ['none', 'before', 'after'])
def test_the_gradient_of_other_rois_is_zero_or_that_of_other_functions(backend, rng, features, n, other):
    x, variable = features
    weights, all_weights = (rng.uniform(-1, 1, shape).astype('f') for shape in ((n, 4, 3, 2), (5, 4, 3, 2)))
    uses = [F.sum(slice_rois(backend, variable, n) * as_channels_last(backend.array(weights)))]
    expected = np.zeros_like(x)
    expected[:n] = weights
    if other != 'none':
        uses.insert(other == 'after', F.sum(variable * as_channels_last(backend.array(all_weights))))
        expected += all_weights
    sum(uses).backward()
    np.testing.assert_array_equal(backend.numpy(variable.grad), expected)


def test_the_gradient_of_another_function_is_not_overwritten(backend, rng, features):
    """The gradient of the identity is the upstream gradient itself."""
    variable = features[1]
    outputs = [F.identity(variable), slice_rois(backend, variable, 2)]
    values = [rng.uniform(-1, 1, output.shape).astype('f') for output in outputs]
    upstream = [chainer.Variable(as_channels_last(backend.array(array))) for array in values]
    (gradient,) = chainer.grad(outputs, [variable], upstream)
    np.testing.assert_array_equal(backend.numpy(upstream[0]), values[0])
    values[0][:2] += values[1]
    np.testing.assert_array_equal(backend.numpy(gradient), values[0])


def test_the_features_are_not_copied(backend, features):
    x, variable = features
    y = slice_rois(backend, variable, 2).array
    np.testing.assert_array_equal(backend.numpy(y), x[:2])
    assert y.base is not None


def test_gradients_keep_the_memory_layout(rng):
    x = chainer.Variable(as_channels_last(rng.uniform(-1, 1, (5, 4, 3, 2)).astype('f')))
    y = _FirstRoIs(2).apply((x,))[0]
    upstream = chainer.Variable(as_channels_last(np.ones((2, 4, 3, 2), np.float32)))
    (gradient,) = chainer.grad([y], [x], [upstream])
    assert gradient.array.transpose(0, 2, 3, 1).flags.c_contiguous


def test_all_rois_are_the_features_themselves(features):
    assert first_rois(features[1], 5) is features[1]
