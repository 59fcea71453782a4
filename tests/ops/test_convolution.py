import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer import gradient_check
from chainer.utils.type_check import InvalidType

from mask_rcnn.ops import convolution
from mask_rcnn.ops.convolution import convolution_2d, convolve

GEOMETRIES = [  # kernel, stride, pad, size
    ((1, 1), 1, 0, (5, 7)),
    ((1, 1), 2, 0, (5, 8)),
    ((1, 1), 1, 1, (4, 4)),
    ((3, 3), 1, 1, (7, 7)),
    ((3, 3), 2, 1, (8, 7)),
    ((7, 7), 2, 3, (13, 10)),
    ((3, 3), 1, 1, (1, 1)),
    ((2, 3), 1, 2, (3, 4)),
    ((3, 3), 3, 0, (9, 8)),
]


@pytest.fixture(params=[1 << 22, 1], ids=['one tile', 'a row a tile'])
def tile_bytes(request, monkeypatch):
    monkeypatch.setattr(convolution, '_TILE_BYTES', request.param)


def arrays(rng, kernel, size, dtype=np.float32, n=3):
    return (rng.uniform(-1, 1, (n, 4, *size)).astype(dtype), rng.uniform(-1, 1, (5, 4, *kernel)).astype(dtype),
            rng.uniform(-1, 1, 5).astype(dtype))


@pytest.mark.parametrize('kernel, stride, pad, size', GEOMETRIES)
def test_equals_chainers(rng, tile_bytes, kernel, stride, pad, size):
    x, W, b = arrays(rng, kernel, size)
    expected = F.convolution_2d(x, W, b, stride, pad).array
    y = convolution_2d(x, W, b, stride=stride, pad=pad)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.array, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize('kernel, stride, pad, size', GEOMETRIES)
def test_gradients(rng, tile_bytes, kernel, stride, pad, size):
    inputs = arrays(rng, kernel, size, np.float64, n=2)

    def function(x, W, b):
        return convolution_2d(x, W, b, stride=stride, pad=pad)

    gy = rng.uniform(-1, 1, function(*inputs).shape)
    gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)
    gradient_check.check_double_backward(
        function, inputs, gy, tuple(rng.uniform(-1, 1, a.shape) for a in inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3), (2, 3, 0, 1)])
def test_any_memory_layout(rng, layout):
    x, W, b = arrays(rng, (3, 3), (6, 5))
    stored = np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))
    np.testing.assert_array_equal(convolve(stored, W, b, pad=1), convolve(x, W, b, pad=1))


def test_layout_lets_the_next_one_read_without_a_copy(rng):
    x, W, _ = arrays(rng, (1, 1), (6, 5))
    y = convolve(x, W)
    assert np.shares_memory(convolution._channels_first(y), y)


@pytest.mark.parametrize('kernel, pad', [((1, 1), 0), ((3, 3), 1)])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
def test_fused_sum_and_relu(rng, tile_bytes, kernel, pad, relu, with_bias):
    x, W, b = arrays(rng, kernel, (6, 5))
    residual = rng.uniform(-1, 1, (3, 5, 6, 5)).astype(np.float32)
    expected = F.convolution_2d(x, W, b if with_bias else None, 1, pad).array + residual
    expected = np.maximum(expected, 0) if relu else expected
    y = convolve(x, W, b if with_bias else None, pad=pad, relu=relu, residual=residual)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert (y < 0).any() != relu


def test_no_images(rng):
    W = rng.uniform(-1, 1, (5, 4, 3, 3)).astype(np.float32)
    assert convolution_2d(np.empty((0, 4, 7, 7), np.float32), W, pad=1).shape == (0, 5, 7, 7)


def test_other_types_go_to_chainer(rng):
    x, W, b = arrays(rng, (3, 3), (5, 5), np.float16)
    assert convolution_2d(x, W, b, pad=1).dtype == np.float16


def test_wrong_shapes_are_refused(rng):
    x, W, b = arrays(rng, (3, 3), (5, 5))
    with pytest.raises(InvalidType):
        convolution_2d(x, W[:, :3])
    with pytest.raises(InvalidType):
        convolution_2d(x, W, b[:2])


def test_frozen_filters_get_no_gradient(rng):
    x, W, _ = arrays(rng, (3, 3), (5, 5))
    image, filters = chainer.Variable(x), chainer.Variable(W, requires_grad=False)
    y = convolution_2d(image, filters, pad=1)
    y.grad = np.ones_like(y.array)
    y.backward()
    assert image.grad is not None and filters.grad is None
