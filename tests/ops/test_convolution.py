"""Convolution and its gradients against Chainer's, for every implementation on the CPU."""

from dataclasses import replace

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer import gradient_check
from chainer.utils.type_check import InvalidType

from mask_rcnn.ops.conv import convolution, im2col, winograd
from mask_rcnn.ops.conv.convolution import (
    Backend,
    apply_epilogue,
    choose_backend,
    convolution_2d,
    convolve,
    deconvolution_2d,
    deconvolve,
)
from mask_rcnn.ops.conv.im2col import Im2colPlan
from mask_rcnn.ops.conv.tuning import ConvTuning, current_tuning, using_tuning
from mask_rcnn.ops.cudnn_frontend import using_precision
from mask_rcnn.ops.runtime import parallel
from mask_rcnn.ops.runtime.memory_layout import channels_first
from tests.support import cudnn_stand_in

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


#: Uses all threads and never Winograd's algorithm.
IM2COL = ConvTuning(min_multiplications=0, min_winograd_work=0, min_winograd_channels=1 << 30)
#: Uses all threads, and Winograd's algorithm for all 3x3 convolutions of stride 1.
WINOGRAD = ConvTuning(min_multiplications=0, min_winograd_work=0, min_winograd_channels=1, min_winograd_tiles=1)
#: Makes all tiles and blocks as small as possible.
SMALL_TILES = dict(
    tile_bytes=1,
    min_tile_columns=1,
    pointwise_tile_columns=1,
    panel_bytes=1,
    col2im_bytes=1,
    winograd_block_bytes=1,
    min_winograd_block_tiles=1,
    min_winograd_correlated_tiles=1,
)


@pytest.fixture(
    params=[
        pytest.param(IM2COL, id='one tile'),
        pytest.param(replace(IM2COL, **SMALL_TILES), id='small tiles'),
        pytest.param(WINOGRAD, id='Winograd'),
        pytest.param(replace(WINOGRAD, **SMALL_TILES), id='Winograd in blocks'),
    ]
)
def tuning(request):
    """Run the test with each implementation, which only large convolutions would use by default."""
    with using_tuning(request.param):
        yield request.param


def arrays(rng, kernel, size, dtype=np.float32, n=3):
    return (
        rng.uniform(-1, 1, (n, 4, *size)).astype(dtype),
        rng.uniform(-1, 1, (5, 4, *kernel)).astype(dtype),
        rng.uniform(-1, 1, 5).astype(dtype),
    )


@pytest.mark.parametrize(('kernel', 'stride', 'pad', 'size'), GEOMETRIES)
def test_equals_chainer(rng, tuning, kernel, stride, pad, size):
    x, W, b = arrays(rng, kernel, size)
    expected = F.convolution_2d(x, W, b, stride, pad).array
    y = convolution_2d(x, W, b, stride=stride, pad=pad)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.array, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(('kernel', 'stride', 'pad', 'size'), GEOMETRIES)
def test_gradients(rng, tuning, kernel, stride, pad, size):
    inputs = arrays(rng, kernel, size, np.float64, n=2)

    def function(x, W, b):
        return convolution_2d(x, W, b, stride=stride, pad=pad)

    gy = rng.uniform(-1, 1, function(*inputs).shape)
    gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)
    gradient_check.check_double_backward(
        function, inputs, gy, tuple(rng.uniform(-1, 1, a.shape) for a in inputs), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3), (2, 3, 0, 1)])
def test_any_memory_layout(rng, layout):
    x, W, b = arrays(rng, (3, 3), (6, 5))
    stored = np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))
    np.testing.assert_array_equal(convolve(stored, W, b, pad=1), convolve(x, W, b, pad=1))


def test_the_result_is_the_next_input_without_a_copy(rng):
    x, W, _ = arrays(rng, (1, 1), (6, 5))
    y = convolve(x, W)
    assert np.shares_memory(channels_first(y), y)


@pytest.mark.parametrize(('kernel', 'pad'), [((1, 1), 0), ((3, 3), 1)])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
def test_fused_residual_and_relu(rng, tuning, kernel, pad, relu, with_bias):
    x, W, b = arrays(rng, kernel, (6, 5))
    residual = rng.uniform(-1, 1, (3, 5, 6, 5)).astype(np.float32)
    expected = F.convolution_2d(x, W, b if with_bias else None, 1, pad).array + residual
    expected = np.maximum(expected, 0) if relu else expected
    y = convolve(x, W, b if with_bias else None, pad=pad, relu=relu, residual=residual)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert (y < 0).any() != relu


@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3)])
def test_the_result_overwrites_the_residual(rng, tuning, layout):
    x, W, b = arrays(rng, (1, 1), (6, 5))
    residual = rng.uniform(-1, 1, (3, 5, 6, 5)).astype(np.float32)
    expected = convolve(x, W, b, relu=True, residual=residual)
    consumed = np.ascontiguousarray(residual.transpose(layout)).transpose(layout)
    y = convolve(x, W, b, relu=True, residual=consumed, overwrite_residual=True)
    np.testing.assert_array_equal(y, expected)
    assert np.shares_memory(y, consumed) == (layout == (1, 0, 2, 3))


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('with_residual', [False, True])
def test_a_separate_epilogue_gives_the_same_result(rng, relu, with_bias, with_residual):
    x, W, b = arrays(rng, (1, 1), (6, 5))
    epilogue = {
        'b': b if with_bias else None,
        'relu': relu,
        'residual': rng.uniform(-1, 1, (3, 5, 6, 5)).astype(np.float32) if with_residual else None,
    }
    np.testing.assert_array_equal(apply_epilogue(convolve(x, W), **epilogue), convolve(x, W, **epilogue))


DECONVOLUTIONS = [  # side of the kernel, stride, pad
    (2, 2, 0),
    (3, 3, 0),
    (1, 1, 0),
    (4, 2, 1),
    (3, 1, 1),
    (3, 2, 0),
    (2, 3, 0),
]


def deconvolution_arrays(rng, kernel, dtype, n=3):
    shapes = (n, 4, 5, 7), (4, 6, kernel, kernel), (6,)
    return [rng.uniform(-1, 1, shape).astype(dtype) for shape in shapes]


@pytest.mark.parametrize(('kernel', 'stride', 'pad'), DECONVOLUTIONS)
@pytest.mark.parametrize('relu', [False, True])
def test_deconvolution_equals_chainer(rng, tuning, kernel, stride, pad, relu):
    x, W, b = deconvolution_arrays(rng, kernel, np.float32)
    expected = F.deconvolution_2d(x, W, b, stride, pad).array
    y = deconvolution_2d(x, W, b, stride=stride, pad=pad).array
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    y = deconvolve(x, W, b, stride=stride, pad=pad, relu=relu)
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, rtol=0, atol=1e-5)
    assert y.dtype == np.float32 and (y < 0).any() != relu


@pytest.mark.parametrize(('kernel', 'stride', 'pad'), DECONVOLUTIONS)
def test_gradients_of_deconvolution(rng, tuning, kernel, stride, pad):
    inputs = deconvolution_arrays(rng, kernel, np.float64, n=2)

    def function(x, W, b):
        return deconvolution_2d(x, W, b, stride=stride, pad=pad)

    gy = rng.uniform(-1, 1, function(*inputs).shape)
    gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)
    gradient_check.check_double_backward(
        function, inputs, gy, tuple(rng.uniform(-1, 1, a.shape) for a in inputs), rtol=1e-5, atol=1e-6
    )


def test_deconvolution_of_empty_and_mismatched_arrays(rng):
    x, W, b = deconvolution_arrays(rng, 2, np.float32)
    assert deconvolve(x[:0], W, b, stride=2).shape == (0, 6, 10, 14)
    assert deconvolution_2d(x.astype(np.float16), W.astype(np.float16), stride=2).dtype == np.float16
    with pytest.raises(InvalidType):
        deconvolution_2d(x, W[:3], b, stride=2)


def error_of_3x3(rng):
    """Return the root mean square error of a 3x3 convolution relative to the standard deviation of its result."""
    x = np.maximum(rng.standard_normal((2, 256, 7, 7)), 0).astype(np.float32)
    W = rng.standard_normal((32, 256, 3, 3)).astype(np.float32)
    expected = F.convolution_2d(x.astype(np.float64), W.astype(np.float64), pad=1).array
    return np.sqrt(((convolve(x, W, pad=1) - expected) ** 2).mean()) / expected.std()


def test_precision_of_3x3(rng):
    """The error of Winograd convolution is up to a few times that of direct sums."""
    direct = error_of_3x3(rng)
    assert 1e-8 < direct < 4e-7
    with using_tuning(replace(current_tuning(), min_winograd_tiles=1)):
        assert 1.2 * direct < error_of_3x3(rng) < 1.5e-6


def test_gradients_use_winograd(rng, monkeypatch):
    """The gradients with respect to images and weights use Winograd's algorithm like the convolution itself."""
    x, W, _ = arrays(rng, (3, 3), (9, 9))
    calls = []

    def recording(function):
        def record(*args):
            calls.append(function.__name__)
            return function(*args)

        return record

    for function in (winograd.convolve, winograd.correlate):
        monkeypatch.setattr(winograd, function.__name__, recording(function))
    image, weights = chainer.Variable(x), chainer.Variable(W)
    with using_tuning(WINOGRAD):
        chainer.functions.sum(convolution_2d(image, weights, pad=1)).backward()
    assert sorted(calls) == ['convolve', 'convolve', 'correlate']


@pytest.mark.parametrize('transposed', [False, True])
def test_half_precision_images_with_float32_parameters(rng, monkeypatch, emulator, transposed):
    """Each gradient has the type of its input, as after frozen layers on a GPU."""
    for node in (convolution.Convolution2DFunction, convolution.ConvolutionGradX, convolution.ConvolutionGradW):
        monkeypatch.setattr(node, 'forward_cpu', node.forward_gpu)
    monkeypatch.setattr(convolution, 'choose_backend', lambda *arrays: Backend.CUDNN)
    function, shape = (deconvolution_2d, (3, 5, 2, 2)) if transposed else (convolution_2d, (5, 3, 2, 2))
    arrays = [rng.uniform(-1, 1, (2, 3, 4, 6)), rng.uniform(-1, 1, shape), rng.uniform(-1, 1, 5)]
    reference = F.deconvolution_2d if transposed else F.convolution_2d
    exact = [chainer.Variable(array) for array in arrays]
    F.sum(reference(*exact, stride=2)).backward()
    half, *parameters = [
        chainer.Variable(array.astype(dtype)) for array, dtype in zip(arrays, ('f2', 'f4', 'f4'), strict=True)
    ]
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel), using_precision('fp16'):
        y = function(half, *parameters, stride=2)
        F.sum(F.cast(y, np.float32)).backward()
    assert y.dtype == half.grad.dtype == np.float16
    for variable, expected in zip((half, *parameters), exact, strict=True):
        assert variable.grad.dtype == variable.dtype
        np.testing.assert_allclose(variable.grad, expected.grad, atol=2e-3 * np.abs(expected.grad).max())


def test_every_run_gives_the_same_bits(rng, tuning):
    x, W, _ = arrays(rng, (3, 3), (17, 14))
    gy = rng.uniform(-1, 1, (3, 5, 17, 14)).astype(np.float32)

    def gradients():
        image, weights = chainer.Variable(x), chainer.Variable(W)
        y = convolution_2d(image, weights, pad=1)
        y.grad = gy
        y.backward()
        return y.array, image.grad, weights.grad

    first = gradients()
    for _ in range(3):
        for actual, expected in zip(gradients(), first, strict=True):
            np.testing.assert_array_equal(actual, expected)


def test_no_images(rng):
    W = rng.uniform(-1, 1, (5, 4, 3, 3)).astype(np.float32)
    assert convolution_2d(np.empty((0, 4, 7, 7), np.float32), W, pad=1).shape == (0, 5, 7, 7)


def test_chainer_convolves_other_types(rng):
    x, W, b = arrays(rng, (3, 3), (5, 5), np.float16)
    assert convolution_2d(x, W, b, pad=1).dtype == np.float16


def test_mismatched_shapes_raise_an_error(rng):
    x, W, b = arrays(rng, (3, 3), (5, 5))
    with pytest.raises(InvalidType):
        convolution_2d(x, W[:, :3])
    with pytest.raises(InvalidType):
        convolution_2d(x, W, b[:2])


def test_frozen_weights_get_no_gradient(rng):
    x, W, _ = arrays(rng, (3, 3), (5, 5))
    image, weights = chainer.Variable(x), chainer.Variable(W, requires_grad=False)
    y = convolution_2d(image, weights, pad=1)
    y.grad = np.ones_like(y.array)
    y.backward()
    assert image.grad is not None and weights.grad is None


def test_the_backend_follows_from_the_arrays(rng):
    x, W, b = arrays(rng, (3, 3), (5, 5))
    assert choose_backend(x, W, b) is choose_backend(x, W, None) is choose_backend(x.astype('d')) is Backend.CPU
    assert choose_backend(x, W.astype('d')) is choose_backend(x.astype('e'), W.astype('e')) is Backend.CHAINER


@pytest.mark.parametrize('size', [(1, 1), (6, 9), (40, 31)])
def test_the_number_of_threads_does_not_change_the_bits_of_im2col(rng, monkeypatch, size):
    """Few columns are divided by their output channels; the last panel is not full."""
    x = rng.standard_normal((1, 5, *size)).astype(np.float32)
    W, b = rng.standard_normal((70, 5, 3, 3)).astype(np.float32), rng.standard_normal(70).astype(np.float32)
    results = []
    for n_threads in (1, 2, 7):
        monkeypatch.setattr(parallel, 'cpu_count', lambda n=n_threads: n)
        monkeypatch.setattr(im2col, 'cpu_count', lambda n=n_threads: n)
        with using_tuning(IM2COL):
            results.append(convolve(x, W, b, pad=1, stride=2, relu=True))
    np.testing.assert_allclose(results[0], np.maximum(F.convolution_2d(x, W, b, 2, 1).array, 0), rtol=1e-5, atol=1e-5)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_im2col_tiles_cover_all_units():
    plan = Im2colPlan((4, 2, 8, 7), (5, 4, 3, 3), 1, 1, replace(IM2COL, tile_bytes=1, min_tile_columns=15))
    tiles = plan.tiles(3, 16, 4)
    assert [(tile.start, tile.stop) for tile in tiles] == [
        (3, 4),
        (4, 6),
        (6, 8),
        (8, 10),
        (10, 12),
        (12, 14),
        (14, 16),
    ]
    assert all(tile.columns == slice(7 * tile.start, 7 * tile.stop) for tile in tiles)
