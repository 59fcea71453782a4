"""Affine channels against Caffe2's outputs, their gradients and memory layouts."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check
from chainer.backends import cuda
from chainer.utils import type_check

from mask_rcnn.ops.conv import affine_channel
from mask_rcnn.ops.conv.affine_channel import affine_channel_2d, scale_output_channels
from tests.support.arrays import copy_with_strides

#: The axes ``(N, C, H, W)`` from the outermost in memory to the innermost.
LAYOUTS = [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1)]


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_affine_pool.npz')


@pytest.fixture(params=['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def to_device(request):
    if request.param == 'cpu':
        return np.asarray
    if not cuda.available:
        pytest.skip('no CUDA device')
    return cuda.to_gpu


def test_equals_caffe2(golden, to_device):
    x = chainer.Variable(to_device(golden['affine_x']))
    y = affine_channel_2d(x, to_device(golden['affine_scale']), to_device(golden['affine_bias']))
    y.grad = to_device(golden['affine_dy'])
    y.backward()
    # One unit in the last place where a GPU fuses the multiplication with the addition.
    np.testing.assert_allclose(cuda.to_cpu(y.array), golden['affine_y'], rtol=1.2e-7, atol=1e-6)
    np.testing.assert_allclose(cuda.to_cpu(x.grad), golden['affine_dx'], rtol=1.2e-7)
    assert y.dtype == x.grad.dtype == np.float32


def random_problem(rng, to_device):
    return [to_device(rng.standard_normal(shape)) for shape in ((2, 3, 4, 5), (3,), (3,))]


def test_gradients(rng, to_device):
    inputs = random_problem(rng, to_device)
    gy, ggx = (to_device(rng.standard_normal((2, 3, 4, 5))) for _ in range(2))
    ggs = (ggx, *(to_device(rng.standard_normal(3)) for _ in range(2)))
    gradient_check.check_backward(affine_channel_2d, inputs, gy, dtype=np.float64, atol=1e-7, rtol=1e-7)
    gradient_check.check_double_backward(affine_channel_2d, inputs, gy, ggs, dtype=np.float64, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('trained', [0, 1, 2])
def test_gradient_of_one_input_alone(rng, trained):
    x, scale, bias = random_problem(rng, np.asarray)
    gy = rng.standard_normal(x.shape)
    inputs = [x, scale, bias]
    inputs[trained] = chainer.Variable(inputs[trained])
    y = affine_channel_2d(*inputs)
    y.grad = gy
    y.backward()
    expected = gy * scale[:, None, None], (gy * x).sum(axis=(0, 2, 3)), gy.sum(axis=(0, 2, 3))
    np.testing.assert_allclose(inputs[trained].grad, expected[trained], rtol=1e-12)


def test_half_precision_features_with_float32_parameters(rng, to_device):
    """Each gradient has the type of its input, as after frozen layers on a GPU."""
    inputs = [
        chainer.Variable(to_device(array.astype(dtype)))
        for array, dtype in zip(random_problem(rng, np.asarray), ('f2', 'f4', 'f4'), strict=True)
    ]
    y = affine_channel_2d(*inputs)
    y.grad = y.xp.ones_like(y.array)
    y.backward()
    x, scale, bias = (cuda.to_cpu(variable.array).astype(np.float64) for variable in inputs)
    assert y.dtype == np.float16 and all(variable.grad.dtype == variable.dtype for variable in inputs)
    np.testing.assert_allclose(
        cuda.to_cpu(y.array), x * scale[:, None, None] + bias[:, None, None], rtol=2e-3, atol=2e-3
    )
    gradients = np.broadcast_to(scale[:, None, None], x.shape), x.sum(axis=(0, 2, 3)), np.full(3, 40.0)
    for variable, expected in zip(inputs, gradients, strict=True):
        np.testing.assert_allclose(cuda.to_cpu(variable.grad), expected, rtol=2e-3, atol=2e-2)
    with pytest.raises(type_check.InvalidType):  # for other types the parameters must match
        affine_channel_2d(x, scale.astype(np.float32), bias.astype(np.float32))


def test_frozen_scale_does_not_keep_x(rng):
    x, scale, bias = random_problem(rng, np.asarray)
    assert affine_channel_2d(chainer.Variable(x), scale, bias).creator.inputs[0].data is None
    y = affine_channel_2d(chainer.Variable(x), chainer.Variable(scale), bias)
    assert y.creator.inputs[0].data is x


def test_views(rng):
    x, scale, bias = random_problem(rng, np.asarray)
    y = affine_channel_2d(x[:, ::-1, ::2], scale[::-1], bias[::-1])
    np.testing.assert_array_equal(y.array, affine_channel_2d(x, scale, bias).array[:, ::-1, ::2])


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_gpu_keeps_the_layout(rng, layout, dtype):
    x, scale, bias = (array.astype(np.float32) for array in random_problem(rng, np.asarray))
    x = x.astype(dtype)
    stored = copy_with_strides(np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout)), cuda.cupy)
    y = affine_channel_2d(stored, cuda.to_gpu(scale), cuda.to_gpu(bias)).array
    assert y.dtype == dtype and y.strides == stored.strides
    expected = x * scale[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(cuda.to_cpu(y), expected, rtol=1e-3 if dtype == np.float16 else 1e-6, atol=1e-6)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_gpu_implementation_keeps_the_layout(rng, monkeypatch, layout):
    """CuPy's kernels return contiguous arrays and iterate in the order of the axes, so the axes are transposed."""

    def kernel(x, scale, bias):
        assert x.flags.c_contiguous
        return np.ascontiguousarray(x * scale + bias)

    monkeypatch.setattr(affine_channel, '_affine_kernel', lambda: kernel)
    monkeypatch.setattr(
        affine_channel.AffineChannel2DFunction, 'forward_cpu', affine_channel.AffineChannel2DFunction.forward_gpu
    )
    x, scale, bias = random_problem(rng, np.asarray)
    stored = np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))
    y = affine_channel_2d(stored, scale, bias).array
    np.testing.assert_array_equal(y, x * scale[:, None, None] + bias[:, None, None])
    assert y.strides == stored.strides


def test_empty():
    y = affine_channel_2d(np.zeros((0, 3, 4, 5), 'f'), np.ones(3, 'f'), np.ones(3, 'f'))
    assert y.shape == (0, 3, 4, 5)


@pytest.mark.parametrize(
    ('x', 'scale', 'bias'),
    [((2, 3, 4), (3,), (3,)), ((2, 3, 4, 5), (4,), (3,)), ((2, 3, 4, 5), (3,), (1,)), ((2, 3, 4, 5), (3, 1), (3,))],
)
def test_wrong_shapes(x, scale, bias):
    with pytest.raises(type_check.InvalidType):
        affine_channel_2d(np.zeros(x, 'f'), np.zeros(scale, 'f'), np.zeros(bias, 'f'))


def test_wrong_types():
    with pytest.raises(type_check.InvalidType):
        affine_channel_2d(np.zeros((2, 3, 4, 5), 'f'), np.zeros(3), np.zeros(3, 'f'))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_scaled_output_channels(rng, monkeypatch, to_device, dtype):
    monkeypatch.setattr(affine_channel, '_MIN_BYTES', 1)
    weight, scale = rng.standard_normal((300, 5, 3, 2)).astype(np.float32), rng.standard_normal(300).astype(dtype)
    scaled = scale_output_channels(to_device(weight), to_device(scale))
    assert scaled.dtype == dtype
    np.testing.assert_array_equal(cuda.to_cpu(scaled), weight * scale[:, None, None, None])
