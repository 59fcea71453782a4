"""Max pooling against Chainer's, on the CPU and with the GPU kernels emulated."""

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
def implementation(request, monkeypatch):
    """Use the CPU implementation, or the GPU implementation with emulated kernels."""
    if request.param == 'emulated':
        monkeypatch.setattr(cuda_kernels, 'kernel', request.getfixturevalue('emulator').kernel)
        monkeypatch.setattr(max_pooling, 'pool_cpu', pool_gpu)


@pytest.mark.parametrize(('ksize', 'stride', 'pad', 'cover_all'), GEOMETRIES)
@pytest.mark.parametrize('size', [(8, 7), (9, 12), (5, 5)])
def test_equals_chainer(implementation, rng, ksize, stride, pad, cover_all, size):
    x = rng.uniform(-1, 1, (2, 3, *size)).astype(np.float32)
    expected = F.max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    with chainer.no_backprop_mode():
        y = max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize(('ksize', 'stride', 'pad', 'cover_all'), GEOMETRIES)
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('shape', [(2, 8, 8, 7), (1, 12, 9, 12), (2, 3, 5, 5), (1, 64, 3, 150), (0, 8, 6, 6)])
@pytest.mark.parametrize('channels_last', [False, True])
def test_the_gpu_implementation(emulator, monkeypatch, rng, ksize, stride, pad, cover_all, dtype, shape, channels_last):
    """Both memory layouts; numbers of channels that are and are not a multiple of a load."""
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    x = rng.uniform(-1, 1, shape).astype(dtype)
    stored = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) if channels_last else x
    if len(x):
        expected = F.max_pooling_2d(x, ksize, stride=stride, pad=pad, cover_all=cover_all).array
    else:
        expected = np.zeros((0, 8, 3, 3), dtype)
    size = expected.shape[2:]
    y = pool_gpu(stored, ksize, stride, pad, size)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    assert (y.transpose(0, 2, 3, 1) if channels_last else y).flags.c_contiguous


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_special_values_are_ordered(emulator, monkeypatch, dtype):
    """Zeros of both signs, infinities and the smallest numbers are compared correctly; NaNs are ignored."""
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    # CuPy compiles kernels with -ftz=true, which has no effect on float16.
    tiny = np.finfo(dtype).smallest_subnormal if dtype == np.float16 else np.finfo(dtype).smallest_normal
    numbers = np.array([-np.inf, -60000, -1, -tiny, -0.0, 0.0, tiny, 1, 60000, np.inf, np.nan, -np.nan], dtype)
    for i, j in np.ndindex(12, 12):
        y = pool_gpu(numbers[[i, j]].reshape(1, 1, 1, 2), 2, 2, 0, (1, 1))
        expected = np.fmax(*numbers[[i, j]])
        assert y.item() == (-np.inf if np.isnan(expected) else expected)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_keeps_the_dtype(implementation, rng, dtype):
    x = rng.uniform(-1, 1, (1, 2, 5, 6)).astype(dtype)
    with chainer.no_backprop_mode():
        y = max_pooling_2d(x, 3, stride=2, pad=1, cover_all=False).array
    assert y.dtype == dtype
    np.testing.assert_array_equal(y[0, :, 1, 1], x[0, :, 1:4, 1:4].max(axis=(1, 2)))


def test_with_backprop_there_is_a_gradient(rng):
    x = chainer.Variable(rng.uniform(-1, 1, (1, 1, 4, 4)).astype(np.float32))
    y = max_pooling_2d(x, 2, stride=2, pad=0, cover_all=False)
    y.grad = np.ones_like(y.array)
    y.backward()
    assert (x.grad == (x.array == y.array.repeat(2, 2).repeat(2, 3))).all()


def test_windows_of_minus_infinity(implementation):
    x = np.full((1, 1, 3, 3), -np.inf, np.float32)
    with chainer.no_backprop_mode():
        assert (max_pooling_2d(x, 3, stride=2, pad=1, cover_all=False).array == -np.inf).all()
