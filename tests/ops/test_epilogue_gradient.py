"""The gradient of ReLU and of the bias, with emulated kernels and on a GPU, against NumPy's float64."""

import chainer
import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.cudnn_frontend.epilogue_gradient import epilogue_gradient

#: Shapes (N, C, H, W): a logit, the outputs of heads, vectors of channels, one and several parts of the pixels.
SHAPES = [(2, 1, 3, 5), (1, 3, 40, 30), (2, 12, 9, 8), (3, 15, 1, 1), (1, 81, 28, 4), (2, 91, 7, 7)]
SHAPES += [(1, 16, 40, 41), (2, 256, 9, 11), (70, 1024, 1, 1)]


def last(xp, array):
    """Return a copy on the backend with the channels innermost in memory."""
    return xp.ascontiguousarray(xp.asarray(array).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def at_odd_address(xp, array):
    """Return such a copy one element after the start of its memory."""
    memory = xp.empty(array.size + 1, array.dtype)
    memory[1:] = xp.asarray(array.transpose(0, 2, 3, 1).ravel())
    n, channels, height, width = array.shape
    return memory[1:].reshape(n, height, width, channels).transpose(0, 3, 1, 2)


#: Memory layouts by name.
LAYOUTS = {'channels last': last, 'odd address': at_odd_address, 'channels first': lambda xp, array: xp.asarray(array)}


def expected_gradient(gy, y):
    with np.errstate(invalid='ignore'):  # the product of an infinity and 0
        return gy * (y > 0)


def assert_is_sum(actual, values):
    """Compare with the float64 sums over pixels: a thread adds fewer than 100 values in order, then pairs are added.

    The rounding errors of random values are less than ``2 ** -24`` of the sum of their magnitudes.
    """
    assert actual.dtype == np.float32
    values = values.astype(np.float64)
    error = np.abs(cuda.to_cpu(actual) - values.sum(axis=(0, 2, 3)))
    assert (error <= 2.0**-24 * 10 * np.abs(values).sum(axis=(0, 2, 3))).all()


@pytest.mark.parametrize('types', ['ff', 'ee', 'fe', 'ef'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('has_bias', [False, True])
@pytest.mark.parametrize('channels', [5, 16])
def test_the_gradient_of_relu(xp, rng, types, layout, has_bias, channels):
    """To the bit, also for values that are not finite or that float16 rounds to 0."""
    gy, y = (rng.randn(2, channels, 6, 7).astype(dtype) for dtype in types)
    y[0, 0, 0, :4], gy[0, 0, 0, :2] = (0, -0.0, np.nan, 1e-30 if types[1] == 'f' else 6e-8), (np.inf, np.nan)
    arrays = [LAYOUTS[layout](xp, array) for array in (gy, y)]
    g, gb = epilogue_gradient(*arrays, has_bias=has_bias)
    for array, values in zip(arrays, (gy, y), strict=True):
        np.testing.assert_array_equal(cuda.to_cpu(array), values)  # not overwritten
    assert g.dtype == types[0] and g.transpose(0, 2, 3, 1).flags.c_contiguous
    expected = expected_gradient(gy, y)
    np.testing.assert_array_equal(cuda.to_cpu(g), expected)
    if has_bias:
        assert np.isnan(cuda.to_cpu(gb)[0])
        assert_is_sum(gb[1:], expected[:, 1:])
    else:
        assert gb is None


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('shape', SHAPES)
def test_the_gradient_of_the_bias(xp, rng, dtype, relu, shape):
    gy, y = (rng.randn(*shape).astype(dtype) for _ in range(2))
    g, gb = epilogue_gradient(last(xp, gy), last(xp, y) if relu else None, has_bias=True)
    expected = expected_gradient(gy, y) if relu else gy
    np.testing.assert_array_equal(cuda.to_cpu(g), expected)
    assert gb.shape == shape[1:2]
    assert_is_sum(gb, expected)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_the_bias_of_any_memory_layout(xp, rng, layout):
    gy = rng.randn(2, 16, 30, 20).astype('e')
    g, gb = epilogue_gradient(LAYOUTS[layout](xp, gy), has_bias=True)
    np.testing.assert_array_equal(cuda.to_cpu(g), gy)
    assert_is_sum(gb, gy)


def test_nothing_to_compute_returns_the_gradient_itself(xp):
    gy = xp.ones((1, 8, 2, 2), 'e')
    assert epilogue_gradient(gy) == (gy, None)


def test_a_sum_exceeds_the_range_of_float16(xp):
    gy = last(xp, np.full((1, 8, 300, 300), 8, 'e'))
    assert (cuda.to_cpu(epilogue_gradient(gy, has_bias=True)[1]) == 720000).all()


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
@pytest.mark.parametrize('channels', [3, 16])
def test_values_that_are_not_finite_reach_their_own_channel(xp, dtype, channels):
    gy = np.ones((1, channels, 50, 50), dtype)
    gy[0, 0, 49, 49], gy[0, 1, 17, 3] = np.inf, np.nan
    gb = cuda.to_cpu(epilogue_gradient(last(xp, gy), has_bias=True)[1])
    np.testing.assert_array_equal(gb, [np.inf, np.nan] + [2500] * (channels - 2))


@pytest.mark.parametrize('shape', [(0, 16, 4, 5), (2, 3, 0, 5), (1, 0, 2, 2)])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('has_bias', [False, True])
def test_empty_arrays(xp, shape, relu, has_bias):
    gy = xp.ones(shape, 'e')
    g, gb = epilogue_gradient(gy, gy if relu else None, has_bias=has_bias)
    assert g.shape == shape
    assert gb is None if not has_bias else gb.shape == shape[1:2] and not gb.any()


@pytest.mark.parametrize('layout', ['channels last', 'odd address'])
def test_all_runs_have_the_same_bits(xp, rng, layout):
    gy, y = (LAYOUTS[layout](xp, rng.randn(2, 16, 50, 60).astype('e')) for _ in range(2))
    first = cuda.to_cpu(epilogue_gradient(gy, y, has_bias=True)[1])
    for _ in range(3):
        np.testing.assert_array_equal(cuda.to_cpu(epilogue_gradient(gy, y, has_bias=True)[1]), first)


def test_the_gradient_is_read_once(stand_in, rng, monkeypatch):
    """The launches of a layer with ReLU and a bias: one for all pixels, and one that adds up the sums of its parts."""
    launches, kernel = [], cudnn_frontend.epilogue_gradient.cuda_kernels.kernel
    monkeypatch.setattr(
        cudnn_frontend.epilogue_gradient.cuda_kernels,
        'kernel',
        lambda source, name: lambda grid, *rest: launches.append((name, grid)) or kernel(source, name)(grid, *rest),
    )
    x, w = (chainer.Variable(rng.randn(*shape).astype('e')) for shape in ((1, 8, 40, 40), (16, 8, 1, 1)))
    b = chainer.Variable(np.zeros(16, 'f'))
    with cudnn_frontend.using_precision('fp16'):
        y = cudnn_frontend.convolution_2d(x, w, b, relu=True)
        gy = y.grad = rng.randn(*y.shape).astype('e')
        y.backward()
    # 2 of 256 threads share a pixel and sum at least 8 pixels; then 4 of the 16 channels fill a sector of memory.
    assert launches == [('sum_pixels_half_8', (1, 2)), ('sum_pixels_4', (2, 1))]
    assert_is_sum(b.grad, expected_gradient(gy, y.array))


@pytest.mark.gpu
def test_a_cuda_graph_captures_the_gradient(rng):
    cupy = cuda.cupy
    gy, y = (last(cupy, rng.randn(2, 16, 50, 60).astype('e')) for _ in range(2))
    expected = [cuda.to_cpu(array) for array in epilogue_gradient(gy, y, has_bias=True)]
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        epilogue_gradient(gy, y, has_bias=True)  # compiles, and fills the stream's memory pool
        stream.synchronize()
        stream.begin_capture()
        results = epilogue_gradient(gy, y, has_bias=True)
        graph = stream.end_capture()
        for array in results:
            array.fill(0)
        graph.launch(stream)
        stream.synchronize()
    for actual, array in zip(results, expected, strict=True):
        np.testing.assert_array_equal(cuda.to_cpu(actual), array)
