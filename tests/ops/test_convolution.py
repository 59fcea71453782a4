import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer import gradient_check
from chainer.utils.type_check import InvalidType

from mask_rcnn.ops.conv import convolution, winograd
from mask_rcnn.ops.conv.convolution import apply_epilogue, convolution_2d, convolve, deconvolution_2d, deconvolve
from mask_rcnn.ops.cudnn_frontend import using_precision
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


@pytest.fixture(
    params=[
        'one tile',
        'small tiles',
        'Winograd',
        'Winograd in blocks',
        'Winograd by images',
        'Winograd by images in blocks',
    ]
)
def way(request, monkeypatch):
    """Every way to compute a convolution, for small ones, too."""
    for module in (convolution, winograd):
        monkeypatch.setattr(module, '_MIN_WORK', 0)  # all threads
    if 'tile' in request.param:
        monkeypatch.setattr(winograd, 'should_use', lambda *args: False)
    else:
        monkeypatch.setattr(winograd, '_MIN_CHANNELS', 1)
        monkeypatch.setattr(winograd, '_MIN_TILES', 1)
        monkeypatch.setattr(winograd, '_MIN_IMAGES_BY_IMAGE', 1 if 'images' in request.param else 1000)
    if request.param == 'small tiles' or 'blocks' in request.param:
        for module, name in (
            (convolution, '_TILE_BYTES'),
            (convolution, '_MIN_COLUMNS'),
            (convolution, '_POINTWISE_COLUMNS'),
            (convolution, '_EPILOGUE_CHANNELS'),
            (convolution, '_SCATTER_BYTES'),
            (winograd, '_BLOCK_BYTES'),
            (winograd, '_MIN_BLOCK_TILES'),
        ):
            monkeypatch.setattr(module, name, 1)


def arrays(rng, kernel, size, dtype=np.float32, n=3):
    return (
        rng.uniform(-1, 1, (n, 4, *size)).astype(dtype),
        rng.uniform(-1, 1, (5, 4, *kernel)).astype(dtype),
        rng.uniform(-1, 1, 5).astype(dtype),
    )


@pytest.mark.parametrize(('kernel', 'stride', 'pad', 'size'), GEOMETRIES)
def test_equals_chainers(rng, way, kernel, stride, pad, size):
    x, W, b = arrays(rng, kernel, size)
    expected = F.convolution_2d(x, W, b, stride, pad).array
    y = convolution_2d(x, W, b, stride=stride, pad=pad)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.array, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(('kernel', 'stride', 'pad', 'size'), GEOMETRIES)
def test_gradients(rng, way, kernel, stride, pad, size):
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


def test_layout_lets_the_next_one_read_without_a_copy(rng):
    x, W, _ = arrays(rng, (1, 1), (6, 5))
    y = convolve(x, W)
    assert np.shares_memory(channels_first(y), y)


@pytest.mark.parametrize(('kernel', 'pad'), [((1, 1), 0), ((3, 3), 1)])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
def test_fused_sum_and_relu(rng, way, kernel, pad, relu, with_bias):
    x, W, b = arrays(rng, kernel, (6, 5))
    residual = rng.uniform(-1, 1, (3, 5, 6, 5)).astype(np.float32)
    expected = F.convolution_2d(x, W, b if with_bias else None, 1, pad).array + residual
    expected = np.maximum(expected, 0) if relu else expected
    y = convolve(x, W, b if with_bias else None, pad=pad, relu=relu, residual=residual)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    assert (y < 0).any() != relu


@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3)])
def test_result_in_place_of_the_residual(rng, way, layout):
    x, W, b = arrays(rng, (1, 1), (6, 5))
    residual = rng.uniform(-1, 1, (3, 5, 6, 5)).astype(np.float32)
    expected = convolve(x, W, b, relu=True, residual=residual)
    spent = np.ascontiguousarray(residual.transpose(layout)).transpose(layout)
    y = convolve(x, W, b, relu=True, residual=spent, overwrite_residual=True)
    np.testing.assert_array_equal(y, expected)
    assert np.shares_memory(y, spent) == (layout == (1, 0, 2, 3))


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_bias', [False, True])
@pytest.mark.parametrize('with_residual', [False, True])
def test_finishing_later_is_the_same(rng, relu, with_bias, with_residual):
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
def test_deconvolution_equals_chainers(rng, way, kernel, stride, pad, relu):
    x, W, b = deconvolution_arrays(rng, kernel, np.float32)
    expected = F.deconvolution_2d(x, W, b, stride, pad).array
    y = deconvolution_2d(x, W, b, stride=stride, pad=pad).array
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
    y = deconvolve(x, W, b, stride=stride, pad=pad, relu=relu)
    np.testing.assert_allclose(y, np.maximum(expected, 0) if relu else expected, rtol=0, atol=1e-5)
    assert y.dtype == np.float32 and (y < 0).any() != relu


@pytest.mark.parametrize(('kernel', 'stride', 'pad'), DECONVOLUTIONS)
def test_gradients_of_deconvolution(rng, way, kernel, stride, pad):
    inputs = deconvolution_arrays(rng, kernel, np.float64, n=2)

    def function(x, W, b):
        return deconvolution_2d(x, W, b, stride=stride, pad=pad)

    gy = rng.uniform(-1, 1, function(*inputs).shape)
    gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)
    gradient_check.check_double_backward(
        function, inputs, gy, tuple(rng.uniform(-1, 1, a.shape) for a in inputs), rtol=1e-5, atol=1e-6
    )


def test_deconvolution_of_nothing_and_of_what_does_not_fit(rng):
    x, W, b = deconvolution_arrays(rng, 2, np.float32)
    assert deconvolve(x[:0], W, b, stride=2).shape == (0, 6, 10, 14)
    assert deconvolution_2d(x.astype(np.float16), W.astype(np.float16), stride=2).dtype == np.float16
    with pytest.raises(InvalidType):
        deconvolution_2d(x, W[:3], b, stride=2)


def error_of_3x3(rng):
    """Root mean square error of a 3x3 convolution in units of its result's deviation."""
    x = np.maximum(rng.standard_normal((2, 256, 7, 7)), 0).astype(np.float32)
    W = rng.standard_normal((32, 256, 3, 3)).astype(np.float32)
    expected = F.convolution_2d(x.astype(np.float64), W.astype(np.float64), pad=1).array
    return np.sqrt(((convolve(x, W, pad=1) - expected) ** 2).mean()) / expected.std()


def test_precision_of_3x3(rng, monkeypatch):
    """Winograd convolution errs up to a few times as much as plain sums."""
    plain = error_of_3x3(rng)
    assert 1e-8 < plain < 4e-7
    monkeypatch.setattr(winograd, '_MIN_TILES', 1)
    assert 1.2 * plain < error_of_3x3(rng) < 1.5e-6


def test_gradients_take_a_quarter_of_the_multiplications(rng, monkeypatch):
    """Those with respect to images and to filters, as the convolution itself."""
    x, W, _ = arrays(rng, (3, 3), (9, 9))
    monkeypatch.setattr(winograd, '_MIN_CHANNELS', 1)
    monkeypatch.setattr(winograd, '_MIN_TILES', 1)
    calls = []
    for name in ('convolve', 'correlate'):
        monkeypatch.setattr(
            winograd, name, lambda *args, name=name, own=getattr(winograd, name): (calls.append(name), own(*args))[1]
        )
    image, filters = chainer.Variable(x), chainer.Variable(W)
    chainer.functions.sum(convolution_2d(image, filters, pad=1)).backward()
    assert sorted(calls) == ['convolve', 'convolve', 'correlate']


@pytest.mark.parametrize('transposed', [False, True])
def test_half_precision_images_meet_float32_parameters(rng, monkeypatch, emulator, transposed):
    """As behind frozen layers on a GPU: every gradient has the type of what it is the gradient of."""
    for node in (convolution._Convolution2D, convolution._ConvolutionGradX, convolution._ConvolutionGradW):
        monkeypatch.setattr(node, 'forward_cpu', node.forward_gpu)
    monkeypatch.setattr(convolution, '_has_fast_path', lambda arrays: True)
    function, shape = (deconvolution_2d, (3, 5, 2, 2)) if transposed else (convolution_2d, (5, 3, 2, 2))
    arrays = [rng.uniform(-1, 1, (2, 3, 4, 6)), rng.uniform(-1, 1, shape), rng.uniform(-1, 1, 5)]
    plain = F.deconvolution_2d if transposed else F.convolution_2d
    exact = [chainer.Variable(array) for array in arrays]
    F.sum(plain(*exact, stride=2)).backward()
    half, *parameters = [chainer.Variable(array.astype(dtype)) for array, dtype in zip(arrays, ('f2', 'f4', 'f4'))]
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel), using_precision('fp16'):
        y = function(half, *parameters, stride=2)
        F.sum(F.cast(y, np.float32)).backward()
    assert y.dtype == half.grad.dtype == np.float16
    for ours, expected in zip((half, *parameters), exact):
        assert ours.grad.dtype == ours.dtype
        np.testing.assert_allclose(ours.grad, expected.grad, atol=2e-3 * np.abs(expected.grad).max())


def test_every_run_gives_the_same_bits(rng, way):
    x, W, _ = arrays(rng, (3, 3), (17, 14))
    gy = rng.uniform(-1, 1, (3, 5, 17, 14)).astype(np.float32)

    def gradients():
        image, filters = chainer.Variable(x), chainer.Variable(W)
        y = convolution_2d(image, filters, pad=1)
        y.grad = gy
        y.backward()
        return y.array, image.grad, filters.grad

    first = gradients()
    for _ in range(3):
        for again, before in zip(gradients(), first):
            np.testing.assert_array_equal(again, before)


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


def test_every_thread_filters_as_much(monkeypatch):
    """A C4 network's RPN, 13 rows of tiles, is 7 and 6 of them for two threads, not 12 and 1."""
    monkeypatch.setattr(winograd, 'cpu_count', lambda: 2)
    grid = winograd._Grid((1024, 1, 50, 84), 1024, 1, 4)
    assert [stop - start for (start, stop), _ in grid.blocks(0, 2)] == [7, 6]
    roi_grids = winograd._Grid((512, 500, 7, 7), 512, 1, 4, by_image=True)
    assert [lanes for _, lanes in roi_grids.blocks(0, 8)] == 7 * [256] + [208]
