"""Global average pooling against NumPy's mean in float64."""

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.conv.average_pooling import average_gpu, global_average_pooling_2d


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', [(3, 16, 7, 7), (2, 5, 3, 4), (40, 64, 1, 2), (0, 8, 7, 7)])
@pytest.mark.parametrize('channels_last', [True, False])
def test_the_mean_over_locations(backend, rng, dtype, shape, channels_last):
    x = rng.uniform(-1, 1, shape).astype(dtype)
    stored = backend.array(x)
    if channels_last:
        stored = backend.xp.ascontiguousarray(stored.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with chainer.no_backprop_mode():
        y = average_gpu(stored) if backend.name == 'emulated' else global_average_pooling_2d(stored)
    y = backend.numpy(y)
    assert y.shape == shape[:2] and y.dtype == np.float32
    # Float32 sums; Chainer rounds the mean of float16 to float16.
    tolerance = 2.0**-11 if dtype == np.float16 and backend.name == 'cpu' else 1e-6
    np.testing.assert_allclose(y, x.astype('f8').mean(axis=(2, 3)), rtol=0, atol=tolerance)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_with_backprop_there_is_a_gradient(rng, dtype):
    x = chainer.Variable(rng.uniform(-1, 1, (2, 3, 4, 5)).astype(dtype))
    y = global_average_pooling_2d(x)
    y.grad = np.ones_like(y.array)
    y.backward()
    np.testing.assert_array_equal(x.grad, np.full(x.shape, 1 / 20, dtype))
