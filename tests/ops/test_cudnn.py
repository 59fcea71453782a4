"""The host code of convolution on the GPU, with graphs that the CPU interprets; on a GPU the results, in float64."""

import functools
import logging
import os
import sys
import threading
import types

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.cudnn_frontend import PRECISIONS, convolution, frontend, graphs, libraries
from mask_rcnn.ops.cudnn_frontend.blocks import make_blocks
from mask_rcnn.ops.cudnn_frontend.storage import scale_weight
from mask_rcnn.ops.runtime.cache import cache_weights
from tests.support import cudnn_stand_in

#: Relative error of rounding a value, and of rounding the factors of a product.
EPSILON = {'fp32': 2.0**-24, 'tf32': 2.0**-11, 'fp16': 2.0**-11, 'bf16': 2.0**-8}

CUDART_VARIABLE = 'CUDNN_FRONTEND_CUDART_LIB_NAME'

#: x, w, stride, pad
SHAPES = {
    '1x1': ((2, 8, 5, 7), (4, 8, 1, 1), 1, 0),
    '1x1 stride 2': ((2, 8, 6, 7), (4, 8, 1, 1), 2, 0),
    '3x3': ((2, 4, 5, 6), (8, 4, 3, 3), 1, 1),
    '7x7 stride 2': ((1, 3, 11, 12), (4, 3, 7, 7), 2, 3),
    'two groups': ((2, 8, 5, 6), (12, 4, 3, 3), 1, 1),
    'four groups, stride 2': ((2, 8, 7, 6), (8, 2, 3, 3), 2, 1),
    'depthwise, padded below': ((2, 4, 6, 6), (4, 1, 3, 3), 2, ((0, 1), (0, 1))),
}


def make(rng, *shapes):
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def exact(x, w, stride, pad):
    """Return the convolution in float64, padded first because Chainer does not pad each side differently."""
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    return F.convolution_2d(x, w.astype(np.float64), stride=stride, groups=x.shape[1] // w.shape[1]).array


def assert_close(actual, expected, precision, scale):
    """Compare with the tolerance of rounded factors and results.

    It is three epsilons of the largest result (measured: up to 1.2; 1.4 if TF32 truncates).  On a device it includes
    float32 sums in any order: ``scale`` bounds the sum of absolute products.
    """
    on_device, actual = not isinstance(actual, np.ndarray), cuda.to_cpu(actual)
    if precision == 'tf32' and not on_device:
        precision = 'fp32'  # the stand-in rounds no factors
    if precision != 'fp32' or not on_device:
        scale = min(scale, 1 + np.abs(expected).max())
    assert np.abs(actual - expected).max() <= 3 * EPSILON[precision] * scale


def is_matmul(precision, w_shape):
    """Return whether cuBLAS instead of cuDNN computes a convolution of :data:`SHAPES`."""
    return precision == 'fp32' and w_shape[2:] == (1, 1)


def is_channels_last(array):
    return array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_forward_with_the_epilogue_in_one_graph(xp, rng, request, name, precision):
    x_shape, w_shape, stride, pad = SHAPES[name]
    x, w = make(rng, x_shape, w_shape)
    y = exact(x, w, stride, pad)
    b, residual = make(rng, w_shape[0], y.shape)
    expected = np.clip(y + b[:, None, None] + residual, 0, 6)
    with cudnn_frontend.using_precision(precision):
        actual = cudnn_frontend.convolve(
            *map(xp.asarray, (x, w, b)), stride=stride, pad=pad, relu=True, clip_max=6.0, residual=xp.asarray(residual)
        )
    assert actual.dtype == PRECISIONS[precision].result and is_channels_last(actual)
    assert_close(actual, expected, precision, 2 + w[0].size)
    if xp is np:
        fused = [['conv', 'add', 'bias', 'relu']]
        assert cudnn_stand_in.STAND_IN.runs == ([['matmul']] if is_matmul(precision, w_shape) else fused)


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_gradients(xp, rng, name, precision):
    x_shape, w_shape, stride, pad = SHAPES[name]
    x, w = make(rng, x_shape, w_shape)
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    image, filters = (chainer.Variable(array.astype(np.float64)) for array in (x, w))
    y = F.convolution_2d(
        F.pad(image, [(0, 0), (0, 0), *pads], 'constant'), filters, stride=stride, groups=x.shape[1] // w.shape[1]
    )
    (gy,) = make(rng, y.shape)
    y.grad = gy.astype(np.float64)
    y.backward()
    with cudnn_frontend.using_precision(precision):
        gx = cudnn_frontend.convolve_backward_data(xp.asarray(gy), xp.asarray(w), x.shape, stride=stride, pad=pad)
        gw = cudnn_frontend.convolve_backward_filter(xp.asarray(x), xp.asarray(gy), w.shape, stride=stride, pad=pad)
    assert gx.dtype == gw.dtype == np.float32
    assert gx.shape == x.shape and gw.shape == w.shape and gw.flags.c_contiguous
    assert_close(gx, image.grad, precision, w.size)
    assert_close(gw, filters.grad, precision, gy.size / gy.shape[1])


@pytest.mark.parametrize(('channels', 'width', 'stride'), [(128, 4, 1), (256, 8, 2), (1024, 32, 1)])
@pytest.mark.parametrize('precision', PRECISIONS)
def test_cudnn_has_engines_for_the_groups_of_a_resnext(xp, rng, caplog, precision, channels, width, stride):
    """Otherwise matrix products of im2col would compute them, many times as slow, which a CUDA graph cannot capture."""
    convolution._warn_once.cache_clear()
    x, w = make(rng, (2, channels, 6, 7), (channels, width, 3, 3))
    b, image = make(rng, channels)[0], chainer.Variable(x.astype(np.float64))
    filters = chainer.Variable(w.astype(np.float64))
    y = F.convolution_2d(image, filters, stride=stride, pad=1, groups=channels // width)
    y.grad = gy = make(rng, y.shape)[0].astype(np.float64)
    y.backward()
    options = {'stride': stride, 'pad': 1}
    x, w, b, gy = (xp.asarray(array, np.float32) for array in (x, w, b, gy))
    with cudnn_frontend.using_precision(precision):
        found = cudnn_frontend.convolve(x, w, b, relu=True, **options)
        gx = cudnn_frontend.convolve_backward_data(gy, w, x.shape, **options)
        gw = cudnn_frontend.convolve_backward_filter(x, gy, w.shape, **options)
    n_products = 9 * width
    assert_close(found, np.maximum(y.array + cuda.to_cpu(b)[:, None, None], 0), precision, 1 + n_products)
    assert_close(gx, image.grad, precision, n_products)
    assert_close(gw, filters.grad, precision, gy.size / channels)
    assert [record.message for record in caplog.records if 'im2col' in record.message] == []


@pytest.mark.parametrize('precision', PRECISIONS)
def test_deconvolution(xp, rng, precision):
    x, w, b = make(rng, (3, 4, 3, 5), (4, 6, 2, 2), 6)
    expected = F.deconvolution_2d(*(array.astype(np.float64) for array in (x, w, b)), stride=2).array
    with cudnn_frontend.using_precision(precision):
        actual = cudnn_frontend.deconvolve(*map(xp.asarray, (x, w, b)), stride=2, relu=True)
    assert actual.dtype == PRECISIONS[precision].result and is_channels_last(actual)
    assert_close(actual, np.maximum(expected, 0), precision, 5)


def at_odd_address(xp, array, dtype):
    """Return a copy, channels innermost, one element after the start of its memory."""
    pixels = array.transpose(0, 2, 3, 1)
    memory = xp.empty(array.size + 1, dtype)
    memory[1:] = xp.asarray(pixels.ravel(), dtype)
    return memory[1:].reshape(pixels.shape).transpose(0, 3, 1, 2)


@pytest.mark.parametrize(('precision', 'dtype'), [('tf32', 'f4'), ('fp16', 'f2')])
def test_slices_of_other_arrays(xp, rng, precision, dtype):
    """The addresses of slices are not always multiples of 16 bytes, which cuDNN requires."""
    x, w, b, residual = make(rng, (1, 8, 3, 5), (8, 8, 1, 1), 8, (1, 8, 3, 5))
    expected = exact(x, w, 1, 0) + b[:, None, None] + residual
    slices = [at_odd_address(xp, array, dtype) for array in (x, w, residual)]
    bias = at_odd_address(xp, b[None, :, None, None], dtype)[0, :, 0, 0]
    with cudnn_frontend.using_precision(precision):
        actual = cudnn_frontend.convolve(*slices[:2], bias, residual=slices[2])
        gradient = cudnn_frontend.convolve_backward_data(*slices[::-1][:2], x.shape)
    assert_close(actual, expected, precision, 10)
    assert_close(gradient, exact(residual, w.transpose(1, 0, 2, 3), 1, 0), precision, 10)


@pytest.mark.parametrize(('stride', 'pad'), [(1, 0), (2, 1)])
def test_deconvolution_with_overlap_and_padding(xp, rng, stride, pad):
    x, w = make(rng, (1, 2, 4, 5), (2, 3, 4, 4))
    expected = F.deconvolution_2d(x.astype(np.float64), w.astype(np.float64), stride=stride, pad=pad).array
    actual = cudnn_frontend.deconvolve(xp.asarray(x), xp.asarray(w), stride=stride, pad=pad)
    assert_close(actual, expected, 'fp32', 32)


def test_half_precision_results_are_inputs_without_a_copy(stand_in, rng, monkeypatch):
    x, w = make(rng, (1, 4, 3, 3), (4, 4, 1, 1))
    with cudnn_frontend.using_precision('fp16'):
        first = cudnn_frontend.convolve(x, w)
        seen = []
        monkeypatch.setattr(
            cudnn_frontend.convolution, '_address', lambda array: seen.append(array) or array.ctypes.data
        )
        cudnn_frontend.convolve(first, w)
    assert seen[0].base is first.base and np.shares_memory(seen[0], first)


def test_the_gradient_of_images_has_the_type_of_the_output_gradient(stand_in, rng):
    gy, w = make(rng, (1, 4, 3, 3), (4, 4, 1, 1))
    with cudnn_frontend.using_precision('bf16'):
        half = cudnn_frontend.convolve_backward_data(gy.astype(np.float16), w, gy.shape)
    assert half.dtype == np.float16


@pytest.mark.parametrize('kind', ['forward', 'filter'])
def test_no_images(stand_in, kind):
    x, w = np.zeros((0, 4, 5, 5), 'f'), np.zeros((8, 4, 3, 3), 'f')
    if kind == 'forward':
        assert cudnn_frontend.convolve(x, w, pad=1).shape == (0, 8, 5, 5)
    else:
        gradient = cudnn_frontend.convolve_backward_filter(x, np.zeros((0, 8, 5, 5), 'f'), w.shape, pad=1)
        assert gradient.shape == w.shape and not gradient.any()
    assert stand_in.graphs == []


def test_one_kernel_applies_an_epilogue_that_cannot_be_fused(stand_in, rng, monkeypatch):
    x, w, b, residual = make(rng, (2, 4, 5, 5), (8, 4, 3, 3), 8, (2, 8, 5, 5))
    stand_in.unsupported = lambda steps: len(steps) > 1
    epilogues, launch = [], cudnn_frontend.convolution._launch_epilogue
    monkeypatch.setattr(
        cudnn_frontend.convolution, '_launch_epilogue', lambda *args: epilogues.append(args[0]) or launch(*args)
    )
    for precision, limit in (('fp32', 0.5), ('fp16', np.inf), ('bf16', np.inf)):
        with cudnn_frontend.using_precision(precision):
            y = cudnn_frontend.convolve(x, w, b, pad=1, relu=True, residual=residual, clip_max=limit)
        expected = np.clip(exact(x, w, 1, 1) + b[:, None, None] + residual, 0, limit)
        assert_close(y, expected, precision, 40)
        assert y.dtype == PRECISIONS[precision].result and is_channels_last(y)
    assert stand_in.runs == [['conv']] * 3
    assert len(epilogues) == 3 and all(array.flags.c_contiguous for array in epilogues)
    n_queries = len(stand_in.queries)
    cudnn_frontend.convolve(x, w, b, pad=1, relu=True, residual=residual)
    assert len(stand_in.queries) == n_queries  # an unsupported problem is not tried again


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_im2col_replaces_a_missing_engine(stand_in, rng, caplog, name, precision):
    x_shape, w_shape, stride, pad = SHAPES[name]
    x, w, b = make(rng, x_shape, w_shape, w_shape[0])
    (gy,) = make(rng, exact(x, w, stride, pad).shape)

    def compute():
        with cudnn_frontend.using_precision(precision), chainer.no_backprop_mode():
            return (
                cudnn_frontend.convolve(x, w, b, stride=stride, pad=pad, relu=True),
                cudnn_frontend.convolve_backward_data(gy, w, x.shape, stride=stride, pad=pad),
                cudnn_frontend.convolve_backward_filter(x, gy, w.shape, stride=stride, pad=pad),
            )

    expected = compute()
    stand_in.unsupported = lambda steps: True
    frontend._graph_caches.by_device.clear()
    cudnn_frontend.convolution._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        for actual, result in zip(compute(), expected, strict=True):
            assert actual.dtype == result.dtype and actual.flags == result.flags
            # Float32 sums (measured: up to 5.1 epsilons), rounded to the type of the result.
            np.testing.assert_allclose(actual, result, rtol=0, atol=8 * EPSILON[precision] * np.abs(result).max())
    kinds = [record.getMessage().split("kind='")[1].split("'")[0] for record in caplog.records]
    assert kinds == ([] if is_matmul(precision, w_shape) else ['forward', 'data', 'filter'])


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', [(2, 16, 3, 5), (3, 5, 2, 2), (0, 8, 2, 2), (1, 1024, 4, 300)])
@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize(('has_bias', 'has_residual'), [(True, True), (True, False), (False, True), (False, False)])
def test_the_epilogue_of_an_array(xp, rng, dtype, shape, channels_last, has_bias, has_residual):
    """Vectors and single channels, both memory layouts, and any type of bias and residual, to the bit."""
    y, residual = (array.astype(dtype) for array in make(rng, shape, shape))
    b = rng.uniform(-1, 1, shape[1]).astype('f')
    total = y.astype('f') + (residual.astype('f') if has_residual else 0) + (b[:, None, None] if has_bias else 0)
    stored = xp.asarray(y)
    if channels_last:
        stored = xp.ascontiguousarray(stored.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    arguments = [xp.asarray(array) if present else None for array, present in ((b, has_bias), (residual, has_residual))]
    out = cudnn_frontend.apply_epilogue(stored, *arguments, relu=True, clip_max=0.75)
    assert out is stored and out.dtype == dtype
    np.testing.assert_array_equal(cuda.to_cpu(out), np.clip(total, 0, 0.75).astype(dtype))


def test_a_residual_and_a_bias_of_other_types(xp, rng):
    y, residual, b = make(rng, (1, 8, 2, 3), (1, 8, 2, 3), 8)
    total = y + residual.astype(np.float16).astype('f') + b.astype(np.float16).astype('f')[:, None, None]
    out = cudnn_frontend.apply_epilogue(*(xp.asarray(array) for array in (y, b.astype('e'), residual.astype('e'))))
    np.testing.assert_allclose(cuda.to_cpu(out), total, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('channels', [1, 8])
def test_nan_stays_nan(xp, dtype, channels):
    y = xp.full((1, channels, 1, 1), np.nan, dtype)
    for options in ({'relu': True}, {'clip_max': 6.0}):
        assert np.isnan(cuda.to_cpu(cudnn_frontend.apply_epilogue(y, **options))).all()


# Functions


def check_function(fused, reference, shapes, rng, precision, dtype=np.float32):
    """Compare a fused function with Chainer's functions in float64, forward and backward."""
    arrays = [array.astype(dtype if i == 0 else np.float32) for i, array in enumerate(make(rng, *shapes))]
    results = []
    for function, kind in ((fused, None), (reference, np.float64)):
        variables = [chainer.Variable(array.astype(kind or array.dtype)) for array in arrays]
        with cudnn_frontend.using_precision(precision):
            y = function(*variables)
            y.grad = np.ones(y.shape, y.dtype)
            y.backward()
        results.append([y.array] + [variable.grad for variable in variables])
    for array, actual in zip([arrays[0], *arrays], results[0], strict=True):
        assert actual.dtype == array.dtype
    for actual, expected in zip(*results, strict=True):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * EPSILON[precision] * np.abs(expected).sum())


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('bias', [False, True])
def test_a_convolution_and_its_epilogue_are_one_function(stand_in, rng, precision, relu, bias):
    check_function(
        lambda *arrays: cudnn_frontend.convolution_2d(*arrays, stride=2, pad=1, relu=relu),
        lambda *arrays: (F.relu if relu else F.identity)(F.convolution_2d(*arrays, stride=2, pad=1)),
        [(2, 4, 5, 6), (8, 4, 3, 3)] + [(8,)] * bias,
        rng,
        precision,
    )
    assert stand_in.runs == [['conv'] + ['bias'] * bias + ['relu'] * relu, ['dgrad'], ['wgrad']]


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('bias', [False, True])
def test_a_deconvolution_and_its_epilogue_are_one_function(stand_in, rng, precision, relu, bias):
    check_function(
        lambda *arrays: cudnn_frontend.deconvolution_2d(*arrays, stride=2, relu=relu),
        lambda *arrays: (F.relu if relu else F.identity)(F.deconvolution_2d(*arrays, stride=2)),
        [(2, 4, 3, 5), (4, 6, 2, 2)] + [(6,)] * bias,
        rng,
        precision,
    )
    assert stand_in.runs == ([['matmul']] * 3 if precision == 'fp32' else [['dgrad'], ['conv'], ['wgrad']])


def test_gradients_have_the_types_of_their_inputs(stand_in, rng):
    check_function(
        lambda *arrays: cudnn_frontend.convolution_2d(*arrays, relu=True),
        lambda *arrays: F.relu(F.convolution_2d(*arrays)),
        [(1, 4, 3, 3), (8, 4, 1, 1), (8,)],
        rng,
        'fp16',
        np.float16,
    )


def test_only_required_gradients_are_computed(stand_in, rng):
    x, w, b = make(rng, (1, 4, 3, 3), (8, 4, 3, 3), 8)
    y = cudnn_frontend.convolution_2d(x, chainer.Variable(w), b)
    y.grad = np.ones_like(y.array)
    y.backward()
    assert stand_in.runs == [['conv', 'bias'], ['wgrad']]


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('n_readers', [2, 3])
def test_gradients_of_features_with_several_readers(xp, rng, precision, n_readers, monkeypatch):
    """One kernel adds a gradient, in place; the sum keeps the channels innermost."""
    x, *weights = make(rng, (2, 8, 5, 6), *[(8, 8, 1, 1)] * n_readers)
    feature, *expected_weights = (chainer.Variable(array.astype('d')) for array in (x, *weights))
    total = sum((F.convolution_2d(feature, w) for w in expected_weights), feature * 0)
    total.grad = np.ones_like(total.array)
    total.backward()
    module = cudnn_frontend.gradient_sum
    epilogues = []
    if xp is np:
        monkeypatch.setattr(module, 'get_array_module', lambda *arrays: None)
    monkeypatch.setattr(
        module,
        'apply_epilogue',
        lambda y, residual: epilogues.append(y) or cudnn_frontend.apply_epilogue(y, residual=residual),
    )
    image, *variables = (chainer.Variable(xp.asarray(array)) for array in (x, *weights))
    with cudnn_frontend.using_precision(precision):
        outputs = [cudnn_frontend.convolution_2d(image, w) for w in variables]
        gradients = chainer.grad(outputs, [image, *variables])  # of the sum of all outputs
    assert len(epilogues) == n_readers - 1
    assert is_channels_last(gradients[0].array)
    for actual, variable in zip(gradients, (feature, *expected_weights), strict=True):
        assert_close(actual.array, variable.grad, precision, 8 * n_readers * 60)


@pytest.mark.parametrize('relu', [False, True])
def test_a_gradient_that_is_read_elsewhere_is_not_overwritten(stand_in, rng, relu, monkeypatch):
    """Without ReLU the gradient of the residual is that of the result."""
    monkeypatch.setattr(cudnn_frontend.gradient_sum, 'get_array_module', lambda *arrays: None)
    x, w, scale, bias = make(rng, (1, 8, 4, 5), (8, 8, 1, 1), 8, 8)
    image = chainer.Variable(x)
    outputs = [cudnn_frontend.convolution_affine(image, w, scale, bias, image, relu=relu) for _ in range(2)]
    gys = make(rng, *[x.shape] * 2)
    for y, gy in zip(outputs, gys, strict=True):
        y.grad = gy.copy()
    (gradient,) = chainer.grad(outputs, [image], grad_outputs=[y.grad_var for y in outputs])
    expected = 0
    for y, gy in zip(outputs, gys, strict=True):
        np.testing.assert_array_equal(y.grad, gy)
        g = gy.astype('d') * (y.array > 0 if relu else 1)
        expected = expected + g + exact(g, (w * scale[:, None, None, None]).transpose(1, 0, 2, 3), 1, 0)
    assert_close(gradient.array, expected, 'fp32', 40)


@pytest.mark.parametrize('order', [1, -1])
def test_the_gradient_of_another_reader_is_not_overwritten(stand_in, rng, order, monkeypatch):
    """The other reader adds the features as a residual, so that their gradient is that of its result."""
    monkeypatch.setattr(cudnn_frontend.gradient_sum, 'get_array_module', lambda *arrays: None)
    x, other, w, scale, bias = make(rng, (1, 8, 4, 5), (1, 8, 4, 5), (8, 8, 1, 1), 8, 8)
    image = chainer.Variable(x)
    readers = [
        lambda: cudnn_frontend.convolution_2d(image, w),
        lambda: cudnn_frontend.convolution_affine(other, w, scale, bias, image),
    ]
    outputs, gys = [reader() for reader in readers[::order]], make(rng, *[x.shape] * 2)
    variables = [chainer.Variable(gy.copy()) for gy in gys]
    (gradient,) = chainer.grad(outputs, [image], grad_outputs=variables)
    for variable, gy in zip(variables, gys, strict=True):
        np.testing.assert_array_equal(variable.array, gy)
    of_convolution, of_residual = (gy.astype('d') for gy in gys[::order])
    expected = exact(of_convolution, w.transpose(1, 0, 2, 3), 1, 0) + of_residual
    assert_close(gradient.array, expected, 'fp32', 40)


@pytest.mark.parametrize('reason', ['float64', 'overwrite', 'enable_backprop'])
def test_gradients_that_are_not_added_in_place(stand_in, rng, reason, monkeypatch):
    monkeypatch.setattr(cudnn_frontend.gradient_sum, 'get_array_module', lambda *arrays: None)
    arrays = [array.astype('d' if reason == 'float64' else 'f') for array in make(rng, *[(1, 8, 3, 3)] * 2)]
    variables = [chainer.Variable(array.copy()) for array in arrays]
    with chainer.using_config('enable_backprop', reason == 'enable_backprop'):
        total = cudnn_frontend.gradient_sum.add_gradient(*variables, overwrite=reason != 'overwrite')
    np.testing.assert_array_equal(total.array, arrays[0] + arrays[1])
    for variable, array in zip(variables, arrays, strict=True):
        np.testing.assert_array_equal(variable.array, array)
    assert (total.creator is not None) == (reason == 'enable_backprop')


@pytest.mark.parametrize('dtype', ['f', 'e'])
@pytest.mark.parametrize('relu', [False, True])
def test_a_constant_epilogue(xp, rng, dtype, relu):
    """It overwrites the result of another function, but not the gradient."""
    x, gy = (array.astype(dtype) for array in make(rng, (2, 8, 3, 5), (2, 8, 3, 5)))
    (b,) = make(rng, 8)
    image = chainer.Variable(xp.asarray(x))
    h = image * 2
    y = cudnn_frontend.apply_constant_epilogue(h, xp.asarray(b), relu=relu)
    assert y.array is h.array and y.dtype == dtype
    total = 2 * x.astype('f') + b[:, None, None]
    expected = (np.maximum(total, 0) if relu else total).astype(dtype)
    np.testing.assert_array_equal(cuda.to_cpu(y.array), expected)
    y.grad = gradient = xp.asarray(gy.copy())
    y.backward()
    np.testing.assert_array_equal(cuda.to_cpu(image.grad), 2 * (gy * (expected > 0) if relu else gy))
    np.testing.assert_array_equal(cuda.to_cpu(gradient), gy)


# Graphs


@pytest.mark.parametrize('precision', PRECISIONS)
def test_the_weight_is_converted_once_for_both_passes(stand_in, rng, precision, monkeypatch):
    """The gradients equal those of a weight converted for each pass, also after a change of the precision."""
    x, w, scale, bias = make(rng, (2, 8, 6, 5), (8, 8, 3, 3), 8, 8)

    def gradients(backward_precision):
        variables = [chainer.Variable(array) for array in (x, w)]
        with cudnn_frontend.using_precision(precision):
            y = cudnn_frontend.convolution_affine(*variables, scale, bias, pad=1, relu=True)
        y.grad = np.ones_like(y.array)
        with cudnn_frontend.using_precision(backward_precision):
            y.backward()
        return [variable.grad for variable in variables]

    actual = {name: gradients(name) for name in (precision, 'fp32')}
    calls = []
    monkeypatch.setattr(
        cudnn_frontend.functions._CudnnConvolution,
        '_stored_weight',
        lambda function, W: calls.append(W) or W * function.scale,
    )
    for name, results in actual.items():
        for result, expected in zip(results, gradients(name), strict=True):
            np.testing.assert_array_equal(result, expected)
    assert len(calls) == 2 * len(actual)


@pytest.mark.parametrize(('source', 'target'), ['ff', 'fe', 'ef', 'ee'])
@pytest.mark.parametrize('is_source_last', [False, True])
@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('has_scale', [False, True])
def test_a_scaled_weight_is_rounded_once(xp, rng, source, target, is_source_last, channels_last, has_scale):
    w, scale = rng.randn(4, 3, 3, 5).astype(source), rng.randn(4, 1, 1, 1).astype('f')
    stored = xp.asarray(w)
    if is_source_last:
        stored = xp.ascontiguousarray(stored.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    actual = scale_weight(stored, xp.asarray(scale) if has_scale else None, target, channels_last=channels_last)
    product = (w.astype('d') * scale if has_scale else w).astype('f').astype(target)  # the product is exact in float64
    assert actual.dtype == target
    assert is_channels_last(actual) if channels_last else actual.flags.c_contiguous
    np.testing.assert_array_equal(cuda.to_cpu(actual), product)


@pytest.mark.parametrize('precision', PRECISIONS)
def test_the_gradient_of_a_scaled_weight(xp, rng, precision):
    x, gy, scale = make(rng, (2, 8, 5, 7), (2, 16, 5, 7), (16, 1, 1, 1))
    with cudnn_frontend.using_precision(precision):
        gw = cudnn_frontend.convolve_backward_filter(
            xp.asarray(x), xp.asarray(gy, 'e'), (16, 8, 3, 3), pad=1, dtype='f', scale=xp.asarray(scale)
        )
    image, weight = chainer.Variable(x.astype('d')), chainer.Variable(np.zeros((16, 8, 3, 3)))
    y = F.convolution_2d(image, weight, pad=1)
    y.grad = gy.astype('e').astype('d')
    y.backward()
    assert gw.dtype == np.float32 and gw.flags.c_contiguous
    assert_close(gw, weight.grad * scale, precision, 70)


def test_the_stream_of_a_handle_is_set_when_it_changes(stand_in, monkeypatch):
    seen = []
    monkeypatch.setattr(frontend.load_frontend(), 'set_stream', lambda handle, stream: seen.append(stream))
    for stream in (77, 77, 78, 78, 77):
        stand_in.stream = stream
        frontend.graph_cache()
    assert seen == [77, 78, 77]


def test_equal_problems_are_one_object(rng):
    x_shape, w_shape, stride, pad = SHAPES['depthwise, padded below']
    make_problem = cudnn_frontend.convolution._problem
    first, second = (
        make_problem('forward', shape, w_shape, stride, pads, PRECISIONS['fp16'])
        for shape, pads in ((x_shape, pad), (list(x_shape), [list(zeros) for zeros in pad]))
    )
    assert first is second and first.y == (2, 4, 3, 3)
    copy = graphs.ConvProblem('forward', 'float16', x_shape, w_shape, (2, 2), pad)
    assert copy == first and hash(copy) == hash(first)
    assert make_problem('forward', x_shape, w_shape, stride, 0, PRECISIONS['fp16']) != first


def test_a_graph_is_built_once_per_problem(stand_in, rng):
    x, w, b = make(rng, (1, 4, 3, 3), (4, 4, 3, 3), 4)
    for _ in range(3):
        cudnn_frontend.convolve(x, w, b)
    assert len(stand_in.graphs) == 1 and len(stand_in.runs) == 3
    cudnn_frontend.convolve(x, w, b, pad=1)
    cudnn_frontend.convolve(x, w)
    cudnn_frontend.convolve(x, w, b, relu=True)
    cudnn_frontend.convolve(make(rng, (2, 4, 3, 3))[0], w, b)
    with cudnn_frontend.using_precision('tf32'):
        cudnn_frontend.convolve(x, w, b)
    assert len(stand_in.graphs) == 6


def test_the_least_recently_used_graph_is_evicted():
    cache = frontend.GraphCache('handle', max_graphs=2)
    built = []

    def build(description):
        built.append(description)
        return description

    for description in 'abacab':
        assert cache.graph(description, functools.partial(build, description)) == description
    assert built == ['a', 'b', 'c', 'b'] and len(cache) == 2  # c evicts b, then b evicts c


def test_a_failed_build_is_not_cached():
    cache = frontend.GraphCache('handle')
    with pytest.raises(ZeroDivisionError):
        cache.graph('a', lambda: 1 / 0)
    assert len(cache) == 0


def test_caches_belong_to_one_thread_and_device(stand_in):
    caches = [frontend.graph_cache(), frontend.graph_cache()]
    assert caches[0] is caches[1] and caches[0].handle.stream == stand_in.stream
    stand_in.device, stand_in.stream = 1, 78
    caches.append(frontend.graph_cache())
    thread = threading.Thread(target=lambda: caches.append(frontend.graph_cache()))
    thread.start()
    thread.join()
    assert len({id(cache) for cache in caches}) == 3
    assert [cache.handle.stream for cache in caches[1:]] == [77, 78, 78]


def test_fp32_excludes_tensor_cores(stand_in, rng):
    note = cudnn_stand_in.numerical_note
    for precision in PRECISIONS:
        with cudnn_frontend.using_precision(precision):
            cudnn_frontend.convolve(*make(rng, (1, 4, 3, 3), (4, 4, 3, 3)))
        excluded = stand_in.queries[-1].notes
        assert note.DOWN_CONVERT_INPUTS in excluded and note.REDUCED_PRECISION_REDUCTION in excluded
        assert (note.TENSOR_CORE in excluded) == (precision == 'fp32')


# Engines


def engines_of(stand_in):
    return [graph.engine.number for graph in stand_in.graphs]


@pytest.mark.parametrize('precision', PRECISIONS)
def test_nondeterministic_engines_are_the_last_resort(stand_in, rng, precision):
    note, engine = cudnn_stand_in.numerical_note, cudnn_stand_in.Engine
    nondeterministic, deterministic = engine(1, frozenset({note.NONDETERMINISTIC})), engine(2)
    stand_in.engines = [engine(0, frozenset({note.DOWN_CONVERT_INPUTS})), nondeterministic, deterministic]
    with cudnn_frontend.using_precision(precision):
        for channels in (1, 2):
            cudnn_frontend.convolve(*make(rng, (1, channels, 3, 3), (4, channels, 3, 3)))
            if channels == 1:
                stand_in.engines.remove(deterministic)
    assert engines_of(stand_in) == [2, 1]


def test_similar_sizes_share_one_query_of_the_heuristics(stand_in, rng):
    stand_in.engines = [cudnn_stand_in.Engine(number) for number in (7, 8)]
    (w,) = make(rng, (4, 2, 3, 3))
    for width in (97, 100, 103, 104):
        cudnn_frontend.convolve(*make(rng, (1, 2, 3, width)), w)
        if width == 97:
            stand_in.engines.reverse()
        stand_in.engines.sort(key=lambda engine: engine.number)
    assert len(stand_in.queries) == 1 and engines_of(stand_in) == [7] * 4
    cudnn_frontend.convolve(*make(rng, (1, 2, 3, 105)), w)
    assert len(stand_in.queries) == 2


def test_sizes_are_rounded_up():
    def rounded(*shape):
        return graphs.ConvProblem('forward', 'float32', (shape[0], 64, *shape[1:]), (64, 64, 3, 3)).rounded().x

    assert rounded(1, 800, 1333) == (1, 64, 832, 1408)
    assert rounded(1000, 7, 7) == (1000, 64, 7, 7) and rounded(1000, 14, 28) == (1000, 64, 14, 28)
    assert rounded(3, 1, 1) == (3, 64, 1, 1) and rounded(101, 1, 1) == (104, 64, 1, 1)


@pytest.mark.parametrize('kind', ['not selectable', 'old'])
def test_an_engine_that_cannot_be_selected_is_built_by_default(monkeypatch, emulator, rng, kind):
    pygraph = cudnn_stand_in.Pygraph if kind == 'old' else cudnn_stand_in.NewPygraph
    note, engine = cudnn_stand_in.numerical_note, cudnn_stand_in.Engine
    x, w = make(rng, (1, 4, 5, 5), (4, 4, 3, 3))
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel, pygraph) as stand_in:
        stand_in.engines = [
            engine(1, frozenset({note.NONDETERMINISTIC}), is_selectable=False),
            engine(2, is_selectable=False),
        ]
        for autotune in (False, True):
            with chainer.using_config('autotune', autotune):
                assert_close(cudnn_frontend.convolve(x, w), exact(x, w, 1, 0), 'fp32', 36)
        assert engines_of(stand_in) == [2, 2] and len(stand_in.runs) == 2 + 4
        stand_in.unsupported = lambda steps: True
        assert_close(cudnn_frontend.convolve(x, w, pad=1), exact(x, w, 1, 1), 'fp32', 36)


def test_an_engine_that_cannot_be_selected_is_also_timed(stand_in, rng):
    engine = cudnn_stand_in.Engine
    stand_in.engines = [
        engine(1, milliseconds=2, is_selectable=False),
        engine(2, milliseconds=3),
        engine(3, milliseconds=4),
    ]
    with chainer.using_config('autotune', True):
        cudnn_frontend.convolve(*make(rng, (1, 4, 5, 5), (4, 4, 3, 3)))
        cudnn_frontend.convolve(*make(rng, (1, 4, 5, 5), (4, 4, 3, 3)))
    assert engines_of(stand_in) == [2, 3, 1] and len(stand_in.runs) == 3 * 4 + 2
    assert next(iter(frontend.graph_cache()._graphs.values()))._graph.engine.number == 1


def test_a_cache_keeps_fewer_large_graphs(monkeypatch, emulator):
    for pygraph, expected in ((cudnn_stand_in.Pygraph, 1024), (cudnn_stand_in.NewPygraph, 8192)):
        with cudnn_stand_in.installed(monkeypatch, emulator.kernel, pygraph):
            assert frontend.graph_cache()._max_graphs == expected


@pytest.mark.parametrize(('autotune', 'deterministic'), [(False, False), (True, False), (True, True)])
def test_autotune_times_engines(stand_in, rng, autotune, deterministic):
    stand_in.engines = [cudnn_stand_in.Engine(number, milliseconds=10 - number) for number in range(7)]
    x, w, b = make(rng, (1, 4, 3, 3), (4, 4, 3, 3), 4)
    for _ in range(2):
        with chainer.using_config('autotune', autotune), chainer.using_config('cudnn_deterministic', deterministic):
            y = cudnn_frontend.convolve(x, w, b)
    assert_close(y, exact(x, w, 1, 0) + b[:, None, None], 'fp32', 40)
    graph = frontend.graph_cache().graph(
        (
            graphs.ConvProblem('forward', 'float32', x.shape, w.shape, tensor_cores=False, bias=True),
            autotune and not deterministic,
        ),
        None,
    )
    timed = autotune and not deterministic
    assert graph._graph.engine.number == (3 if timed else 0)  # the best of the first four
    assert len(stand_in.runs) == (4 * 4 + 2 if timed else 2) and len(stand_in.queries) == 1


# Cached parameters


def test_constant_weights_are_converted_once(stand_in, rng, monkeypatch):
    x, w, b = make(rng, (1, 4, 3, 3), (4, 4, 3, 3), 4)
    copied = []

    def narrow(array, storage):
        copied.append(array.shape)
        return np.ascontiguousarray(array, storage)

    for module in (cudnn_frontend.convolution, cudnn_frontend.storage):
        monkeypatch.setattr(module, 'narrow', narrow)
    with cache_weights():
        first = cudnn_frontend.convolve(x, w, b)
        copied.clear()
        assert (cudnn_frontend.convolve(x, w, b) == first).all()
    assert copied == [(1, 3, 3, 4)]  # only the image
    w += 1
    assert (cudnn_frontend.convolve(x, w, b) != first).any()


# bfloat16


def test_rounding_to_bfloat16(stand_in, rng):
    numbers = np.concatenate(
        [
            rng.normal(size=1000) * 10.0 ** rng.randint(-30, 30, 1000),
            [0, -0.0, np.inf, -np.inf, 1 + 2**-8, 1 + 3 * 2**-8, 3.4e38],
        ]
    ).astype('f')
    with np.errstate(over='ignore'):
        narrow = cudnn_frontend.storage.narrow(numbers, np.dtype('u2'))
        wide = cudnn_frontend.storage.widen(narrow.reshape(1, -1, 1, 1)).ravel()
    mantissa, exponent = np.frexp(numbers.astype(np.float64))
    expected = np.ldexp(np.round(mantissa * 256), exponent - 8)  # NumPy also rounds ties to even
    expected[np.abs(expected) > 3.39e38] = np.copysign(np.inf, expected[np.abs(expected) > 3.39e38])
    assert (wide == np.where(np.isfinite(numbers), expected, numbers)).all()
    nan = np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view('f')
    assert np.isnan(
        cudnn_frontend.storage.widen(cudnn_frontend.storage.narrow(nan, np.dtype('u2')).reshape(1, 2, 1, 1))
    ).all()


# Precision and availability


def test_precision_is_part_of_the_configuration():
    assert cudnn_frontend.current_precision().name == 'fp32'
    with cudnn_frontend.using_precision('fp16'):
        assert cudnn_frontend.current_precision() is PRECISIONS['fp16']
    assert cudnn_frontend.current_precision().name == 'fp32'
    with (
        pytest.raises(ValueError, match="'fp8', expected one of fp32, tf32, fp16, bf16"),
        cudnn_frontend.using_precision('fp8'),
    ):
        pass


def test_errors_of_precisions():
    assert cudnn_frontend.precision_error('fp32', None) is None
    assert cudnn_frontend.precision_error('fp16', None) == 'fp16 needs a GPU; the CPU supports only fp32'
    assert cudnn_frontend.precision_error('fp16', 75) is None and cudnn_frontend.precision_error('bf16', 90) is None
    for name in ('tf32', 'bf16'):
        assert cudnn_frontend.precision_error(name, 75) == (
            f'{name} needs a GPU of compute capability 8.0; this one has 7.5'
        )


@pytest.mark.parametrize('failure', [ImportError("No module named 'cudnn'"), OSError('libcudnn.so\nis missing'), None])
def test_without_cudnn_there_is_one_warning(monkeypatch, caplog, failure):
    def import_module(name):
        if failure is None:
            old = cudnn_stand_in.module()
            old.backend_version = lambda: 8905
            return old
        raise failure

    monkeypatch.setattr(frontend.importlib, 'import_module', import_module)
    monkeypatch.setattr(frontend.cuda, 'available', True)
    frontend.load_frontend.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not cudnn_frontend.is_available() and not cudnn_frontend.is_available()
    finally:
        frontend.load_frontend.cache_clear()
    (record,) = caplog.records
    message = record.getMessage()
    assert '\n' not in message and 'nvidia-cudnn-frontend' in message
    assert ('8905' if failure is None else type(failure).__name__) in message


@pytest.fixture
def probe(stand_in, monkeypatch):
    """Make cuDNN available as the stand-in, before the first self-test."""
    monkeypatch.setattr(cudnn_frontend.convolution.cuda, 'available', True)
    monkeypatch.setattr(cudnn_frontend.convolution.cuda, 'cupy', np)
    monkeypatch.setattr(cudnn_frontend.convolution, 'get_array_module', lambda *arrays: np)
    cudnn_frontend.convolution._self_test.cache_clear()
    yield stand_in
    cudnn_frontend.convolution._self_test.cache_clear()


def test_a_full_memory_does_not_end_the_use_of_cudnn(probe, monkeypatch):
    """The first call may meet it; a later one finds cuDNN."""
    with monkeypatch.context() as patch:
        patch.setattr(cudnn_frontend.convolution, '_run', raise_error(RuntimeError('CUDNN_STATUS_ALLOC_FAILED')))
        with pytest.raises(RuntimeError, match='ALLOC_FAILED'):
            cudnn_frontend.is_available()
    assert cudnn_frontend.is_available()


def raise_error(error):
    """Return a function that raises an error."""

    def function(*arguments, **options):
        raise error

    return function


def test_cudnn_is_tested_once_before_its_first_use(probe, caplog):
    assert cudnn_frontend.is_available() and cudnn_frontend.is_available()
    assert probe.runs == [['conv']] and caplog.records == []


@pytest.mark.parametrize('failure', ['no runtime', 'no engine', 'wrong numbers'])
def test_broken_cudnn_is_not_used(probe, caplog, monkeypatch, failure):
    if failure == 'no engine':
        probe.unsupported = lambda steps: True
    elif failure == 'wrong numbers':

        def write_zeros(graph, pointers, *rest, **options):  # not nothing: the memory can contain an earlier result
            (out,) = [tensor for tensor in graph.tensors if tensor.output]
            out.memory(pointers[out.uid])[...] = 0

        monkeypatch.setattr(cudnn_stand_in.NewPygraph, 'execute', write_zeros)
    else:

        def build_operation_graph(graph):
            raise RuntimeError('Unable to load any libcudart library')

        monkeypatch.setattr(cudnn_stand_in.NewPygraph, 'build_operation_graph', build_operation_graph)
    with caplog.at_level(logging.WARNING):
        assert not cudnn_frontend.is_available() and not cudnn_frontend.is_available()
    (record,) = caplog.records
    assert 'without cuDNN' in record.getMessage()
    assert ('libcudart' in record.getMessage()) == (failure == 'no runtime')


@pytest.fixture
def site_packages(tmp_path, monkeypatch):
    """Create two CUDA runtimes as pip installs them; return the folder and the list of loaded libraries."""
    loaded = []
    for path in ('nvidia/cuda_runtime/lib/libcudart.so.12', 'nvidia/cu13/lib/libcudart.so.13'):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    monkeypatch.setattr(sys, 'path', [str(tmp_path / 'elsewhere'), str(tmp_path)])
    monkeypatch.setattr(frontend.ctypes, 'CDLL', loaded.append)
    monkeypatch.setenv(CUDART_VARIABLE, 'to be restored')
    monkeypatch.delenv(CUDART_VARIABLE)
    return tmp_path, loaded


@pytest.mark.parametrize(
    ('major', 'path'), [(12, 'nvidia/cuda_runtime/lib/libcudart.so.12'), (13, 'nvidia/cu13/lib/libcudart.so.13')]
)
def test_the_cuda_runtime_of_cupy_is_loaded(site_packages, major, path):
    folder, loaded = site_packages
    frontend._preload_cudart(major)
    assert loaded == [str(folder / path)] == [os.environ[CUDART_VARIABLE]]


@pytest.mark.parametrize(
    ('major', 'path'),
    [(12, 'nvidia/cuda_runtime/bin/cudart64_12.dll'), (13, 'nvidia/cu13/bin/x86_64/cudart64_13.dll')],
)
def test_the_cuda_runtime_of_windows_is_loaded(site_packages, monkeypatch, major, path):
    """The folders and names are those of NVIDIA's wheels for Windows."""
    folder, loaded = site_packages
    (folder / path).parent.mkdir(parents=True)
    (folder / path).touch()
    monkeypatch.setattr(sys, 'platform', 'win32')
    frontend._preload_cudart(major)
    assert loaded == [str(folder / path)]
    assert libraries.library_name('cublas', major) == f'cublas64_{major}.dll'


def test_the_cuda_runtime_of_the_user_is_kept(site_packages):
    os.environ[CUDART_VARIABLE] = '/path/of/the/user'
    frontend._preload_cudart(13)
    assert os.environ[CUDART_VARIABLE] == '/path/of/the/user' and site_packages[1] == []


def test_a_missing_cuda_runtime_is_not_an_error(site_packages):
    frontend._preload_cudart(14)  # the loader finds it by name
    assert site_packages[1] == ['libcudart.so.14'] and CUDART_VARIABLE not in os.environ


@pytest.mark.parametrize('found', ['/cuda/lib64/libcudart.so.14', '/cuda/lib64/libcudart.so.15'])
def test_pathfinder_finds_the_cuda_runtime(site_packages, monkeypatch, found):
    def load(name):
        if name == 'libcudart.so.14':
            raise OSError

    monkeypatch.setattr(frontend.ctypes, 'CDLL', load)
    pathfinder = types.SimpleNamespace(load_nvidia_dynamic_lib=lambda name: types.SimpleNamespace(abs_path=found))
    monkeypatch.setitem(sys.modules, 'cuda', types.ModuleType('cuda'))
    monkeypatch.setitem(sys.modules, 'cuda.pathfinder', pathfinder)
    frontend._preload_cudart(14)
    assert os.environ.get(CUDART_VARIABLE) == (found if found.endswith('14') else None)


def test_supports_only_gpu_arrays(stand_in, rng, monkeypatch):
    x, w = make(rng, (1, 4, 3, 3), (4, 4, 1, 1))
    monkeypatch.setattr(cudnn_frontend.convolution, 'is_available', lambda: True)
    assert not cudnn_frontend.supports(x, w, None)  # NumPy arrays
    monkeypatch.setattr(cudnn_frontend.convolution, 'get_array_module', lambda *arrays: cuda)
    assert cudnn_frontend.supports(x, w.astype('e'), None) and not cudnn_frontend.supports(x.astype('d'), w)
    monkeypatch.setattr(cudnn_frontend.convolution, 'is_available', lambda: False)
    assert not cudnn_frontend.supports(x, w)


@pytest.mark.parametrize('kind', ['forward', 'data', 'filter'])
@pytest.mark.parametrize('name', SHAPES)
def test_cudnn_frontend_accepts_the_descriptions(kind, name):
    """The module, if it is installed, raises no error for a graph."""
    module = frontend.load_frontend()
    if module is None:
        pytest.skip('no cuDNN Frontend')
    if not cuda.available and module.pygraph.__module__ == 'cudnn._pygraph':
        pytest.skip('this cuDNN Frontend validates on a device')
    options = {'handle': frontend.graph_cache().handle} if cuda.available else {}
    x_shape, w_shape, stride, pad = SHAPES[name]
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    everything = {'bias': True, 'residual': True, 'relu': True} if kind == 'forward' else {}
    for dtype in ('float32', 'float16', 'bfloat16'):
        task = graphs.ConvProblem(kind, dtype, x_shape, w_shape, (stride, stride), pads, **everything)
        graphs.describe(task, module, **options)


@pytest.mark.parametrize('precision', PRECISIONS)
@pytest.mark.parametrize('size', [(16, 22), (15, 21)])
@pytest.mark.parametrize('channels_last', [False, True])
def test_a_convolution_of_few_channels(xp, rng, precision, size, channels_last):
    x, w, b = make(rng, (2, 3, *size), (8, 3, 7, 7), 8)
    stored = xp.asarray(x)
    if channels_last:
        stored = xp.ascontiguousarray(stored.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    with cudnn_frontend.using_precision(precision):
        actual = cudnn_frontend.convolve_few_channels(stored, xp.asarray(w), xp.asarray(b), pad=3, relu=True)
    assert actual.dtype == PRECISIONS[precision].result and is_channels_last(actual)
    assert_close(actual, np.maximum(exact(x, w, 2, 3) + b[:, None, None], 0), precision, 150)


@pytest.mark.parametrize(('types', 'channels'), [('ff', 12), ('ff', 16), ('fe', 16), ('ee', 16)])
def test_blocks_of_pixels_are_channels(xp, rng, types, channels):
    x = make(rng, (2, 3, 5, 6))[0].astype(types[0])
    blocks = cuda.to_cpu(make_blocks(xp.asarray(x)[:, :, :, ::2], channels, np.dtype(types[1])))
    assert blocks.dtype == types[1] and blocks.shape == (2, channels, 3, 2)
    assert not blocks[:, 12:].any()
    padded = np.pad(x[:, :, :, ::2], [(0, 0), (0, 0), (0, 1), (0, 1)])
    for i, j in np.ndindex(2, 2):
        first = 3 * (i * 2 + j)
        np.testing.assert_array_equal(blocks[:, first : first + 3], padded[:, :, i::2, j::2].astype(types[1]))
