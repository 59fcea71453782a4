"""Grouped convolution and its gradients against a loop over the groups, for every implementation on the CPU."""

import re
from dataclasses import replace

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer import gradient_check
from chainer.utils.type_check import InvalidType

from mask_rcnn.ops.conv import convolution, grouped
from mask_rcnn.ops.conv.convolution import Backend, convolution_2d, convolve
from mask_rcnn.ops.conv.depthwise import depthwise_convolution_2d
from mask_rcnn.ops.conv.tuning import ConvTuning, current_tuning, using_tuning
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime import parallel
from tests.support import cudnn_stand_in

GEOMETRIES = [  # groups, output and input channels per group, kernel, stride, pad, size
    (4, 4, 4, (3, 3), 1, 1, (11, 14)),
    (4, 4, 4, (3, 3), 2, 1, (11, 14)),
    (2, 8, 8, (3, 3), 1, 1, (9, 37)),
    (2, 3, 5, (3, 3), 2, 1, (8, 71)),
    (3, 2, 1, (3, 3), 1, 1, (7, 7)),
    (3, 2, 2, (1, 1), 1, 0, (4, 5)),
    (3, 2, 2, (1, 1), 2, 0, (5, 8)),
    (3, 2, 2, (7, 7), 2, 3, (13, 10)),
    (2, 5, 3, (2, 3), 1, 2, (3, 4)),
    (2, 3, 3, (3, 3), 3, 0, (9, 8)),
    (2, 2, 2, (3, 3), 1, 3, (7, 6)),
    (2, 3, 3, (3, 3), 1, 1, (1, 1)),
    (2, 1, 1, (1, 1), 3, 1, (7, 6)),
]
#: Uses all threads and never Winograd's algorithm.
DIRECT = ConvTuning(min_multiplications=0, min_grouped_winograd_channels=1 << 30)
#: Uses all threads, and Winograd's algorithm for all groups that allow it.
WINOGRAD = ConvTuning(min_multiplications=0, min_grouped_winograd_channels=1)


@pytest.fixture(
    params=[
        pytest.param(DIRECT, id='direct'),
        pytest.param(replace(DIRECT, grouped_tile_bytes=1), id='direct, small tiles'),
        pytest.param(WINOGRAD, id='Winograd'),
        pytest.param(replace(WINOGRAD, grouped_tile_bytes=1), id='Winograd, small tiles'),
    ]
)
def tuning(request):
    with using_tuning(request.param):
        yield request.param


def make(rng, groups, n_out, n_in, kernel, size, dtype=np.float32, n=2):
    return (
        rng.uniform(-1, 1, (n, groups * n_in, *size)).astype(dtype),
        rng.uniform(-1, 1, (groups * n_out, n_in, *kernel)).astype(dtype),
        rng.uniform(-1, 1, groups * n_out).astype(dtype),
    )


def convolve_groups(x, W, groups, stride, pad):
    """Return the convolutions of the groups, one after the other, in float64."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), (pad, pad), (pad, pad)])
    windows = np.lib.stride_tricks.sliding_window_view(x, W.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    parts = zip(np.split(windows, groups, axis=1), np.split(W.astype(np.float64), groups), strict=True)
    return np.concatenate([np.einsum('nchwij,ocij->nohw', part, weights) for part, weights in parts], axis=1)


def gradients(x, W, gy, **options):
    """Return the result and the gradients with respect to images and weights."""
    image, weights = chainer.Variable(x), chainer.Variable(W)
    y = convolution_2d(image, weights, **options)
    y.grad = gy
    y.backward()
    return y.array, image.grad, weights.grad


@pytest.mark.parametrize(('groups', 'n_out', 'n_in', 'kernel', 'stride', 'pad', 'size'), GEOMETRIES)
def test_equals_a_loop_over_the_groups(rng, tuning, groups, n_out, n_in, kernel, stride, pad, size):
    x, W, b = make(rng, groups, n_out, n_in, kernel, size)
    expected = convolve_groups(x, W, groups, stride, pad)
    y = convolution_2d(x, W, b, stride=stride, pad=pad, groups=groups)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.array, expected + b[:, None, None], rtol=0, atol=2e-5)


@pytest.mark.parametrize(('groups', 'n_out', 'n_in', 'kernel', 'stride', 'pad', 'size'), GEOMETRIES)
def test_gradients(rng, tuning, groups, n_out, n_in, kernel, stride, pad, size):
    """The gradients of the sum of the products with ``gy``: those of each group's plain convolution in float64."""
    x, W, _ = make(rng, groups, n_out, n_in, kernel, size)
    options = {'stride': stride, 'pad': pad}
    gy = rng.uniform(-1, 1, convolve_groups(x, W, groups, **options).shape).astype(np.float32)
    images, weights = chainer.Variable(x.astype(np.float64)), chainer.Variable(W.astype(np.float64))
    parts = zip(F.split_axis(images, groups, axis=1), F.split_axis(weights, groups, axis=0), strict=True)
    F.sum(F.concat([F.convolution_2d(part, w, **options) for part, w in parts]) * gy.astype(np.float64)).backward()
    _, gx, gW = gradients(x, W, gy, groups=groups, **options)
    assert gx.dtype == gW.dtype == np.float32
    np.testing.assert_allclose(gx, images.grad, rtol=0, atol=2e-5)
    np.testing.assert_allclose(gW, weights.grad, rtol=0, atol=1e-6 * gy[:, 0].size + 1e-5)


@pytest.mark.slow  # compiles the kernels for float64
@pytest.mark.parametrize('stride', [1, 2])
def test_numerical_gradients(rng, stride):
    inputs = make(rng, 2, 3, 2, (3, 3), (5, 6), np.float64)

    def function(x, W, b):
        return convolution_2d(x, W, b, stride=stride, pad=1, groups=2)

    gy = rng.uniform(-1, 1, function(*inputs).shape)
    with using_tuning(WINOGRAD):
        gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)
        gradient_check.check_double_backward(
            function, inputs, gy, tuple(rng.uniform(-1, 1, a.shape) for a in inputs), rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize('name', ['g8_s1', 'g8_s2', 'g16_s2'])
@pytest.mark.parametrize('channels', [1, 1 << 30], ids=['Winograd', 'direct'])
def test_equals_caffe2(golden, name, channels):
    if not (golden / 'detectron_zoo').is_dir():
        pytest.skip(f'no outputs of grouped convolutions in {golden}')
    arrays = np.load(golden / 'detectron_zoo' / 'ops_zoo.npz')
    x, W, gy, y = (arrays[f'gconv_{key}'] for key in ('x', f'{name}_w', f'{name}_dy', f'{name}_y'))
    groups, stride = (int(part[1:]) for part in name.split('_'))
    with using_tuning(replace(current_tuning(), min_grouped_winograd_channels=channels)):
        results = gradients(x, W, gy, stride=stride, pad=1, groups=groups)
    for actual, expected in zip(results, (y, arrays[f'gconv_{name}_dx'], arrays[f'gconv_{name}_dw']), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=3e-6 * np.abs(expected).max())


@pytest.mark.parametrize('size', [(6, 5), (9, 37)])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('with_residual', [False, True])
def test_fused_epilogue(rng, tuning, size, relu, with_bias, with_residual):
    x, W, b = make(rng, 2, 4, 3, (3, 3), size)
    residual = rng.uniform(-1, 1, (2, 8, *size)).astype(np.float32) if with_residual else None
    expected = convolve_groups(x, W, 2, 1, 1) + (b[:, None, None] if with_bias else 0)
    expected = expected if residual is None else expected + residual
    y = convolve(x, W, b if with_bias else None, pad=1, groups=2, relu=relu, residual=residual)
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, rtol=0, atol=2e-5)
    assert (y < 0).any() != relu


def test_one_group_is_the_plain_convolution(rng):
    x, W, b = make(rng, 1, 16, 16, (3, 3), (24, 40))
    np.testing.assert_array_equal(convolve(x, W, b, pad=1, groups=1), convolve(x, W, b, pad=1))
    gy = rng.uniform(-1, 1, (2, 16, 24, 40)).astype(np.float32)
    for actual, expected in zip(gradients(x, W, gy, pad=1, groups=1), gradients(x, W, gy, pad=1), strict=True):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize('stride', [1, 2])
def test_one_channel_per_group_is_a_depthwise_convolution(rng, stride):
    x, W, _ = make(rng, 6, 1, 1, (3, 3), (9, 20))
    expected = depthwise_convolution_2d(x, W, stride=stride, pad=((1, 1), (1, 1)))
    y = convolution_2d(x, W, stride=stride, pad=1, groups=6)
    np.testing.assert_allclose(y.array, expected.array, rtol=0, atol=2e-6)


@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3), (2, 3, 0, 1)])
def test_any_memory_layout(rng, layout):
    x, W, b = make(rng, 2, 4, 3, (3, 3), (6, 5))
    stored = np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))
    weights = np.asfortranarray(W)
    np.testing.assert_array_equal(convolve(stored, weights, b, pad=1, groups=2), convolve(x, W, b, pad=1, groups=2))


@pytest.mark.parametrize('stride', [1, 2])
def test_the_number_of_threads_does_not_change_the_bits(rng, tuning, monkeypatch, stride):
    x, W, _ = make(rng, 4, 8, 8, (3, 3), (17, 30))
    gy = rng.uniform(-1, 1, convolve_groups(x, W, 4, stride, 1).shape).astype(np.float32)
    monkeypatch.setattr(parallel, 'cpu_count', lambda: 1)
    expected = gradients(x, W, gy, stride=stride, pad=1, groups=4)
    for n_threads in (2, 5):
        monkeypatch.setattr(parallel, 'cpu_count', lambda n=n_threads: n)
        for actual, array in zip(gradients(x, W, gy, stride=stride, pad=1, groups=4), expected, strict=True):
            np.testing.assert_array_equal(actual, array)


def test_precision_of_winograd(rng):
    """The error of Winograd's algorithm along the columns is up to a few times that of direct sums."""
    x, W, _ = make(rng, 2, 8, 64, (3, 3), (24, 48))
    expected = convolve_groups(x, W, 2, 1, 1)
    errors = []
    for tuning in (DIRECT, WINOGRAD):
        with using_tuning(tuning):
            errors.append(np.sqrt(((convolve(x, W, pad=1, groups=2) - expected) ** 2).mean()) / expected.std())
    assert 1e-8 < errors[0] < 1e-6 and 1.2 * errors[0] < errors[1] < 1.5e-6


def test_the_implementation_follows_from_the_channels(rng, monkeypatch):
    calls = []
    monkeypatch.setattr(grouped, 'convolve_tiles', lambda *args: calls.append('direct'))
    monkeypatch.setattr(grouped.grouped_winograd, 'convolve_tiles', lambda *args: calls.append('Winograd'))
    for n_in, stride in ((8, 1), (8, 2), (7, 1)):
        x, W, _ = make(rng, 2, 4, n_in, (3, 3), (8, 9))
        convolve(x, W, stride=stride, pad=1, groups=2)
    assert calls[0] == 'Winograd' and set(calls[1:]) == {'direct'}


def test_no_images(rng):
    x, W, _ = make(rng, 2, 4, 3, (3, 3), (7, 7), n=0)
    y, gx, gW = gradients(x, W, np.empty((0, 8, 7, 7), np.float32), pad=1, groups=2)
    assert y.shape == (0, 8, 7, 7) and gx.shape == x.shape and gW.shape == W.shape and not gW.any()


def test_chainer_convolves_other_types(rng):
    x, W, b = make(rng, 2, 4, 3, (3, 3), (5, 6), np.float16)
    y = convolution_2d(x, W, b, pad=1, groups=2)
    assert y.dtype == np.float16
    np.testing.assert_allclose(y.array, convolve_groups(x, W, 2, 1, 1) + b[:, None, None], rtol=0, atol=2e-2)


@pytest.mark.parametrize('function', [convolve, convolution_2d])
@pytest.mark.parametrize(('n_in', 'n_out', 'groups'), [(6, 8, 4), (8, 6, 4), (8, 8, 3), (8, 8, 0), (8, 8, -4)])
def test_channels_that_do_not_form_groups(function, n_in, n_out, groups):
    x, W = np.zeros((1, n_in, 5, 5), np.float32), np.zeros((n_out, 2, 3, 3), np.float32)
    message = (
        f'weights of shape ({n_out}, 2, 3, 3) do not convolve {n_in} channels in {groups} groups; expected '
        f'{n_in} / {groups} input channels and a multiple of {groups} output channels'
    )
    with pytest.raises(ValueError, match=f'^{re.escape(message)}$'):
        function(x, W, groups=groups)


def test_a_wrong_bias_raises_an_error(rng):
    x, W, b = make(rng, 2, 4, 3, (3, 3), (5, 5))
    with pytest.raises(InvalidType):
        convolution_2d(x, W, b[:2], groups=2)


@pytest.mark.parametrize('stride', [1, 2])
def test_half_precision_images_with_float32_parameters(rng, monkeypatch, emulator, stride):
    """On a GPU, cuDNN's graphs have the groups in the shape of the weights; each gradient has the type of its input."""
    for node in (convolution.Convolution2DFunction, convolution.ConvolutionGradX, convolution.ConvolutionGradW):
        monkeypatch.setattr(node, 'forward_cpu', node.forward_gpu)
    monkeypatch.setattr(convolution, 'choose_backend', lambda *arrays: Backend.CUDNN)
    x, W, _ = make(rng, 2, 8, 4, (3, 3), (6, 7))
    gy = rng.uniform(-1, 1, convolve_groups(x, W, 2, stride, 1).shape)
    images, weights = chainer.Variable(x.astype(np.float64)), chainer.Variable(W.astype(np.float64))
    y = F.convolution_2d(images, weights, stride=stride, pad=1, groups=2)
    y.grad = gy
    y.backward()
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel), using_precision('fp16'):
        half = x.astype(np.float16)
        results = gradients(half, W, gy.astype(np.float16), stride=stride, pad=1, groups=2)
    for actual, expected, dtype in zip(results, (y.array, images.grad, weights.grad), ('f2', 'f2', 'f4'), strict=True):
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, atol=3e-3 * np.abs(expected).max())
