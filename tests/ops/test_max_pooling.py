import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.ops.max_pooling import max_pooling_2d


@pytest.mark.parametrize('ksize, stride, pad, cover_all', [
    (3, 2, 1, False), (3, 2, 0, True), (3, 2, 1, True), (2, 2, 0, False), (3, 1, 1, False), (5, 3, 2, True)])
@pytest.mark.parametrize('size', [(8, 7), (9, 12), (5, 5)])
def test_equals_chainers(rng, ksize, stride, pad, cover_all, size):
    x = rng.uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    expected = F.max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    with chainer.no_backprop_mode():
        y = max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_keeps_the_dtype(rng, dtype):
    x = rng.uniform(-1, 1, (1, 2, 5, 6)).astype(dtype)
    with chainer.no_backprop_mode():
        y = max_pooling_2d(x, 3, stride=2, pad=1, cover_all=False).array
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[0, :, 1, 1], x[0, :, 1:4, 1:4].max(axis=(1, 2)))


def test_has_a_gradient_where_one_is_wanted(rng):
    x = chainer.Variable(rng.uniform(-1, 1, (1, 1, 4, 4)).astype(np.float32))
    y = max_pooling_2d(x, 2, stride=2, pad=0, cover_all=False)
    y.grad = np.ones_like(y.array)
    y.backward()
    assert (x.grad == (x.array == y.array.repeat(2, 2).repeat(2, 3))).all()


def test_no_number_is_larger_than_one_that_is_not():
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    with chainer.no_backprop_mode():
        assert (max_pooling_2d(x, 3, stride=2, pad=1, cover_all=False).array == -np.inf).all()
