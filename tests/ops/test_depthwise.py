"""Depthwise convolution against its definition, on the CPU and with the GPU kernels emulated."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check
from chainer.utils.type_check import InvalidType

from mask_rcnn.ops.conv.depthwise import (
    _forward_gpu,
    _grad_w_cpu,
    _grad_w_gpu,
    _grad_x_cpu,
    _grad_x_gpu,
    depthwise_convolution_2d,
    depthwise_convolve,
    same_padding,
)
from mask_rcnn.ops.runtime import cuda_kernels

GEOMETRIES = [  # size, stride, pad
    ((5, 8), 1, ((1, 1), (1, 1))),
    ((8, 6), 2, ((0, 1), (0, 1))),
    ((7, 9), 2, ((1, 1), (1, 1))),
    ((8, 7), 2, ((0, 1), (1, 1))),
    ((1, 1), 2, ((1, 1), (1, 1))),
    ((3, 4), 1, ((0, 0), (0, 0))),
    ((9, 8), 3, ((2, 0), (0, 2))),
]


def reference(x, W, stride, pad):
    """Return the convolution by its definition: windows of the padded images times the filter of the channel."""
    padded = np.pad(x, ((0, 0), (0, 0), *pad))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::stride, ::stride]
    return np.einsum('nchwij,cij->nchw', windows, W[:, 0])


def arrays(rng, size, dtype=np.float32, n=3, channels=5):
    return (
        rng.uniform(-1, 1, (n, channels, *size)).astype(dtype),
        rng.uniform(-1, 1, (channels, 1, 3, 3)).astype(dtype),
    )


@pytest.mark.parametrize(('size', 'stride', 'pad'), GEOMETRIES)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(np.float64, 1e-14), (np.float32, 1e-6), (np.float16, 4e-3)])
def test_equals_the_definition(backend, rng, size, stride, pad, dtype, tolerance):
    x, W = arrays(rng, size, dtype)
    y = depthwise_convolution_2d(backend.array(x), backend.array(W), stride=stride, pad=pad)
    assert y.dtype == dtype
    np.testing.assert_allclose(
        backend.numpy(y), reference(x.astype('d'), W.astype('d'), stride, pad), rtol=0, atol=tolerance
    )


@pytest.mark.parametrize(('size', 'stride', 'pad'), GEOMETRIES[::2])
def test_gradients(backend, rng, size, stride, pad):
    inputs = [backend.array(a) for a in arrays(rng, size, np.float64, n=2, channels=2)]

    def function(x, W):
        return depthwise_convolution_2d(x, W, stride=stride, pad=pad)

    gy = backend.array(rng.uniform(-1, 1, function(*inputs).shape))
    gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)
    ggs = tuple(backend.array(rng.uniform(-1, 1, a.shape)) for a in inputs)
    gradient_check.check_double_backward(function, inputs, gy, ggs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('n', 'channels'), [(3, 2), (22, 33)])
def test_gradients_of_many_pixels(rng, emulator, monkeypatch, n, channels):
    """There are more filters than a GPU block sums, and more rows than partial sums."""
    x, W = arrays(rng, (12, 13), n=n, channels=channels)
    gy, pad = rng.uniform(-1, 1, x.shape).astype(np.float32), ((1, 1), (1, 1))
    on_cpu = _grad_x_cpu(gy, W, 1, pad, x.shape), _grad_w_cpu(x, gy, 1, pad, x.dtype)
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    on_gpu = _grad_x_gpu(gy, W, 1, pad, x.shape), _grad_w_gpu(x, gy, 1, pad, x.dtype)
    padded = np.pad(x.astype('d'), ((0, 0), (0, 0), *pad))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    rotated = W[:, :, ::-1, ::-1]
    for grad_x, grad_w in (on_cpu, on_gpu):
        # At stride 1 the gradient of the images is a convolution of the gradient of the output with the rotated filter.
        np.testing.assert_allclose(grad_x, reference(gy.astype('d'), rotated, 1, pad), rtol=0, atol=2e-6)
        expected = np.einsum('nchwij,nchw->cij', windows, gy)
        np.testing.assert_allclose(grad_w[:, 0], expected, rtol=0, atol=5e-5)


def test_bias_and_clipping_in_the_same_pass(rng):
    x, W = arrays(rng, (8, 6), np.float64)
    bias, pad = rng.uniform(-1, 1, 5), ((0, 1), (0, 1))
    y = depthwise_convolve(x, W, bias, stride=2, pad=pad, clip_max=0.7)
    expected = np.clip(reference(x, W, 2, pad) + bias[:, None, None], 0, 0.7)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-14)
    assert (y == 0).any() and (y == 0.7).any() and ((y > 0) & (y < 0.7)).any()


@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1), (2, 3, 0, 1)])
def test_any_memory_layout(backend, rng, layout):
    x, W = arrays(rng, (6, 5))
    stored = np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))
    y, expected = (
        depthwise_convolution_2d(backend.array(a), backend.array(W), pad=((1, 1), (1, 1))) for a in (stored, x)
    )
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))


def test_float16_images_and_float32_filters(backend, rng):
    """Mixed precision: the gradient of the filters is not rounded to float16, in which it would overflow here."""
    images, W = arrays(rng, (6, 5))
    x, pad = images.astype(np.float16), ((1, 1), (1, 1))
    variables = [chainer.Variable(backend.array(a)) for a in (x, W)]
    y = depthwise_convolution_2d(*variables, pad=pad)
    y.grad = backend.array(np.full(y.shape, 6e4, np.float16))
    y.backward()
    gx, gw = (backend.numpy(variable.grad) for variable in variables)
    assert (y.dtype, gx.dtype, gw.dtype) == (np.float16, np.float16, np.float32)
    np.testing.assert_allclose(backend.numpy(y), reference(x.astype('d'), W.astype('d'), 1, pad), rtol=0, atol=4e-3)
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(x.astype('d'), ((0, 0), (0, 0), *pad)), (3, 3), (2, 3))
    expected = float(np.float16(6e4)) * windows.sum(axis=(0, 2, 3))[:, None]
    assert np.abs(expected).max() > np.finfo(np.float16).max
    np.testing.assert_allclose(gw, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_the_gpu_implementation_returns_channels_last(emulator, monkeypatch, rng, dtype):
    monkeypatch.setattr(cuda_kernels, 'kernel', emulator.kernel)
    x, W = arrays(rng, (6, 5), dtype)
    pad = ((0, 1), (0, 1))
    y, gw = _forward_gpu(x, W, 2, pad), _grad_w_gpu(x, _forward_gpu(x, W, 2, pad), 2, pad, dtype)
    gx = _grad_x_gpu(y, W, 2, pad, x.shape)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous and gx.transpose(0, 2, 3, 1).flags.c_contiguous
    assert gw.flags.c_contiguous and y.dtype == gx.dtype == gw.dtype == dtype


def test_no_images(backend):
    x, W = np.zeros((0, 5, 6, 7), np.float32), np.ones((5, 1, 3, 3), np.float32)
    variables = [chainer.Variable(backend.array(a)) for a in (x, W)]
    y = depthwise_convolution_2d(*variables, stride=2, pad=((0, 1), (1, 1)))
    y.grad = backend.array(np.zeros(y.shape, np.float32))
    y.backward()
    assert y.shape == (0, 5, 3, 4) and variables[0].grad.shape == x.shape
    assert not backend.numpy(variables[1].grad).any()


@pytest.mark.parametrize(
    ('size', 'stride', 'padding'),
    [
        (8, 1, (1, 1)),
        (7, 1, (1, 1)),
        (1, 1, (1, 1)),
        (8, 2, (0, 1)),
        (7, 2, (1, 1)),
        (2, 2, (0, 1)),
        (1, 2, (1, 1)),
        (224, 2, (0, 1)),
        (9, 3, (0, 0)),
        (8, 4, (0, 0)),
    ],
)
def test_tensorflow_padding(size, stride, padding):
    """At stride 1 there is one zero on each side; at stride 2 an even size gets one zero at the end."""
    assert same_padding(size, stride) == padding


@pytest.mark.parametrize(
    ('x', 'W'),
    [
        ((2, 3, 4), (3, 1, 3, 3)),
        ((2, 3, 4, 5), (4, 1, 3, 3)),
        ((2, 3, 4, 5), (3, 3, 3, 3)),
        ((2, 3, 4, 5), (3, 1, 5, 5)),
    ],
)
def test_wrong_shapes(x, W):
    with pytest.raises(InvalidType):
        depthwise_convolution_2d(np.zeros(x, 'f'), np.zeros(W, 'f'), pad=((1, 1), (1, 1)))


def test_wrong_types():
    with pytest.raises(InvalidType):
        depthwise_convolution_2d(np.zeros((1, 2, 4, 4), 'f'), np.zeros((2, 1, 3, 3)), pad=((1, 1), (1, 1)))
