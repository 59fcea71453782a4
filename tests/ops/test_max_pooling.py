import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.ops.conv import max_pooling
from mask_rcnn.ops.conv.max_pooling import max_pooling_2d, pool_gpu
from mask_rcnn.ops.runtime import cuda_kernels

GEOMETRIES = [  # ksize, stride, pad, cover_all
    (3, 2, 1, False),
    (3, 2, 0, True),
    (3, 2, 1, True),
    (2, 2, 0, False),
    (3, 1, 1, False),
    (5, 3, 2, True),
]


@pytest.fixture(params=['cpu', 'emulated'])
def forms(request, monkeypatch):
    """The CPU's; the GPU's with its kernels on the CPU."""
    if request.param == 'emulated':
        monkeypatch.setattr(cuda_kernels, 'kernel', request.getfixturevalue('emulator').kernel)
        monkeypatch.setattr(max_pooling, 'pool_cpu', pool_gpu)


@pytest.mark.parametrize(('ksize', 'stride', 'pad', 'cover_all'), GEOMETRIES)
@pytest.mark.parametrize('size', [(8, 7), (9, 12), (5, 5)])
def test_equals_chainers(forms, rng, ksize, stride, pad, cover_all, size):
    x = rng.uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    expected = F.max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    with chainer.no_backprop_mode():
        y = max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(('ksize', 'stride', 'pad', 'cover_all'), GEOMETRIES)
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('shape', [(2, 8, 8, 7), (1, 12, 9, 12), (2, 3, 5, 5), (1, 64, 3, 150), (0, 8, 6, 6)])
@pytest.mark.parametrize('innermost', [False, True])
def test_the_gpu_form(emulator, monkeypatch, rng, ksize, stride, pad, cover_all, dtype, shape, innermost):
    """In both layouts, with as many channels as a load takes and with others."""
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    x = rng.uniform(-1, 1, shape).astype(dtype)
    stored = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if innermost else x
    if len(x):
        expected = F.max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    else:
        expected = np.zeros((0, 8, 3, 3), dtype)
    size = expected.shape[2:]
    y = pool_gpu(stored, ksize, stride, pad, size)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    assert (y.transpose(0, 2, 3, 1) if innermost else y).flags.c_contiguous


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_all_numbers_are_in_order(emulator, monkeypatch, dtype):
    """Zeros of both signs, infinities and the smallest numbers; NaNs are passed over."""
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    tiny = np.finfo(dtype).smallest_subnormal
    numbers = np.array([-np.inf, -60000, -1, -tiny, -0.0, 0.0, tiny, 1, 60000, np.inf, np.nan, -np.nan], dtype)
    for i, j in np.ndindex(12, 12):
        y = pool_gpu(numbers[[i, j]].reshape(1, 1, 1, 2), 2, 2, 0, (1, 1))
        expected = np.fmax(*numbers[[i, j]])
        assert y.item() == (-np.inf if np.isnan(expected) else expected)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_keeps_the_dtype(forms, rng, dtype):
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


def test_no_number_is_larger_than_one_that_is_not(forms):
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    with chainer.no_backprop_mode():
        assert (max_pooling_2d(x, 3, stride=2, pad=1, cover_all=False).array == -np.inf).all()
