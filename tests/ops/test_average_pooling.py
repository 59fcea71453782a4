"""Global average pooling against NumPy's mean in float64."""

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.conv.average_pooling import _GlobalAveragePooling, average_gpu, global_average_pooling_2d


def as_channels_last(x):
    """Return a copy of ``(N, C, H, W)`` with the channels innermost in memory."""
    xp = chainer.backend.get_array_module(x)
    return xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', [(3, 16, 7, 7), (2, 5, 3, 4), (40, 64, 1, 2), (0, 8, 7, 7)])
@pytest.mark.parametrize('channels_last', [True, False])
def test_the_mean_over_locations(backend, rng, dtype, shape, channels_last):
    x = rng.uniform(-1, 1, shape).astype(dtype)
    stored = backend.array(x)
    if channels_last:
        stored = as_channels_last(stored)
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


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('other_reader', ['none', 'first', 'last'])
def test_the_gradient_on_a_gpu(backend, rng, dtype, other_reader):
    """It is divided among all locations and added to that of other functions; it has the channels innermost."""
    values, other, upstream = (rng.uniform(-1, 1, shape) for shape in ((2, 8, 4, 5), (2, 8, 4, 5), (2, 8)))
    x = chainer.Variable(as_channels_last(backend.array(values.astype(dtype))))
    y = _GlobalAveragePooling().apply((x,))[0] if backend.name != 'cpu' else global_average_pooling_2d(x)
    outputs, gradients = [y], [upstream.astype('f')]
    expected = np.broadcast_to(upstream[:, :, None, None] / 20, values.shape)
    if other_reader != 'none':
        position = int(other_reader == 'last')
        outputs.insert(position, x * 1)
        gradients.insert(position, other.astype(dtype))
        expected = expected + other
    gradients = [chainer.Variable(backend.array(gradient)) for gradient in gradients]
    (found,) = chainer.grad(outputs, [x], gradients)
    assert found.dtype == dtype
    np.testing.assert_allclose(backend.numpy(found.array), expected, atol=2e-3 if dtype == np.float16 else 1e-6)
    if backend.name != 'cpu' and other_reader == 'none':
        assert found.array.transpose(0, 2, 3, 1).flags.c_contiguous
