"""The host code of the GPU's convolutions, with graphs that the CPU interprets; and on a GPU against
float64."""

import logging
import threading

import chainer
import chainer.functions as F
import cudnn_stand_in
import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import cudnn
from mask_rcnn.ops.cudnn import PRECISIONS, graphs, library
from mask_rcnn.ops.derived import constant_parameters

#: Relative error of one rounded number, and of the factors of a product.
EPSILON = {'fp32': 2.0 ** -24, 'tf32': 2.0 ** -11, 'fp16': 2.0 ** -11, 'bf16': 2.0 ** -8}

#: x, w, stride, pad
SHAPES = {
    '1x1': ((2, 8, 5, 7), (4, 8, 1, 1), 1, 0),
    '1x1 stride 2': ((2, 8, 6, 7), (4, 8, 1, 1), 2, 0),
    '3x3': ((2, 4, 5, 6), (8, 4, 3, 3), 1, 1),
    '7x7 stride 2': ((1, 3, 11, 12), (4, 3, 7, 7), 2, 3),
    'depthwise, padded below': ((2, 4, 6, 6), (4, 1, 3, 3), 2, ((0, 1), (0, 1))),
}


@pytest.fixture
def stand_in(monkeypatch, emulator):
    with cudnn_stand_in.installed(monkeypatch, emulator.kernel) as stand_in:
        yield stand_in


@pytest.fixture(params=['stand-in', pytest.param('cuda', marks=pytest.mark.gpu)])
def xp(request):
    """NumPy with the stand-in, or CuPy with cuDNN."""
    if request.param == 'stand-in':
        request.getfixturevalue('stand_in')
        return np
    if not cudnn.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    return cuda.cupy


def make(rng, *shapes):
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def exact(x, w, stride, pad):
    """Return the convolution in float64 (Chainer's knows no groups of one pad a side: padded first)."""
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    return F.convolution_2d(x, w.astype(np.float64), stride=stride, groups=x.shape[1] // w.shape[1]).array


def assert_close(actual, expected, precision, scale):
    """Compare with the error of rounded factors and results; ``scale`` bounds the sum of absolute
    products."""
    actual = cuda.to_cpu(actual)
    assert np.abs(actual - expected).max() <= 3 * EPSILON[precision] * scale


def is_channels_last(array):
    return array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_forward_with_everything_in_one_graph(xp, rng, request, name, precision):
    x_shape, w_shape, stride, pad = SHAPES[name]
    x, w = make(rng, x_shape, w_shape)
    y = exact(x, w, stride, pad)
    b, residual = make(rng, w_shape[0], y.shape)
    expected = np.clip(y + b[:, None, None] + residual, 0, 6)
    with cudnn.using_precision(precision):
        actual = cudnn.convolve(*map(xp.asarray, (x, w, b)), stride=stride, pad=pad, relu=True, limit=6.0,
                                residual=xp.asarray(residual))
    assert actual.dtype == PRECISIONS[precision].result and is_channels_last(actual)
    assert_close(actual, expected, precision, 2 + w[0].size)
    if xp is np:
        assert cudnn_stand_in.STAND_IN.runs == [['conv', 'add', 'bias', 'relu']]


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('precision', PRECISIONS)
def test_gradients(xp, rng, name, precision):
    x_shape, w_shape, stride, pad = SHAPES[name]
    x, w = make(rng, x_shape, w_shape)
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    image, filters = (chainer.Variable(array.astype(np.float64)) for array in (x, w))
    y = F.convolution_2d(F.pad(image, [(0, 0), (0, 0), *pads], 'constant'), filters, stride=stride,
                         groups=x.shape[1] // w.shape[1])
    gy, = make(rng, y.shape)
    y.grad = gy.astype(np.float64)
    y.backward()
    with cudnn.using_precision(precision):
        gx = cudnn.convolve_backward_data(xp.asarray(gy), xp.asarray(w), x.shape, stride=stride, pad=pad)
        gw = cudnn.convolve_backward_filter(xp.asarray(x), xp.asarray(gy), w.shape, stride=stride, pad=pad)
    assert gx.dtype == gw.dtype == np.float32
    assert gx.shape == x.shape and gw.shape == w.shape and gw.flags.c_contiguous
    assert_close(gx, image.grad, precision, w.size)
    assert_close(gw, filters.grad, precision, gy.size / gy.shape[1])


@pytest.mark.parametrize('precision', PRECISIONS)
def test_deconvolution(xp, rng, precision):
    x, w, b = make(rng, (3, 4, 3, 5), (4, 6, 2, 2), 6)
    expected = F.deconvolution_2d(*(array.astype(np.float64) for array in (x, w, b)), stride=2).array
    with cudnn.using_precision(precision):
        actual = cudnn.deconvolve(*map(xp.asarray, (x, w, b)), stride=2, relu=True)
    assert actual.dtype == PRECISIONS[precision].result and is_channels_last(actual)
    assert_close(actual, np.maximum(expected, 0), precision, 5)


@pytest.mark.parametrize('stride,pad', [(1, 0), (2, 1)])
def test_deconvolution_of_other_geometries(xp, rng, stride, pad):
    x, w = make(rng, (1, 2, 4, 5), (2, 3, 4, 4))
    expected = F.deconvolution_2d(x.astype(np.float64), w.astype(np.float64), stride=stride, pad=pad).array
    actual = cudnn.deconvolve(xp.asarray(x), xp.asarray(w), stride=stride, pad=pad)
    assert_close(actual, expected, 'fp32', 32)


def test_half_precision_arrays_go_from_graph_to_graph_without_a_copy(stand_in, rng, monkeypatch):
    x, w = make(rng, (1, 4, 3, 3), (4, 4, 1, 1))
    with cudnn.using_precision('fp16'):
        first = cudnn.convolve(x, w)
        seen = []
        monkeypatch.setattr(cudnn.convolution, '_address',
                            lambda array: seen.append(array) or array.ctypes.data)
        cudnn.convolve(first, w)
    assert seen[0].base is first.base and np.shares_memory(seen[0], first)


def test_gradients_have_the_type_of_what_they_are_gradients_of(stand_in, rng):
    gy, w = make(rng, (1, 4, 3, 3), (4, 4, 1, 1))
    with cudnn.using_precision('bf16'):
        half = cudnn.convolve_backward_data(gy.astype(np.float16), w, gy.shape)
    assert half.dtype == np.float16


@pytest.mark.parametrize('kind', ['forward', 'filter'])
def test_no_images(stand_in, kind):
    x, w = np.zeros((0, 4, 5, 5), 'f'), np.zeros((8, 4, 3, 3), 'f')
    if kind == 'forward':
        assert cudnn.convolve(x, w, pad=1).shape == (0, 8, 5, 5)
    else:
        gradient = cudnn.convolve_backward_filter(x, np.zeros((0, 8, 5, 5), 'f'), w.shape, pad=1)
        assert gradient.shape == w.shape and not gradient.any()
    assert stand_in.graphs == []


def test_what_cannot_be_fused_is_finished_by_other_kernels(stand_in, rng):
    x, w, b, residual = make(rng, (2, 4, 5, 5), (8, 4, 3, 3), 8, (2, 8, 5, 5))
    stand_in.unsupported = lambda steps: len(steps) > 1
    for precision, limit in (('fp32', 0.5), ('fp16', np.inf), ('bf16', np.inf)):
        with cudnn.using_precision(precision):
            y = cudnn.convolve(x, w, b, pad=1, relu=True, residual=residual, limit=limit)
        expected = np.clip(exact(x, w, 1, 1) + b[:, None, None] + residual, 0, limit)
        assert_close(y, expected, precision, 40)
        assert y.dtype == PRECISIONS[precision].result and is_channels_last(y)
    assert stand_in.runs == [['conv']] * 3
    n_graph = len(stand_in.graphs)
    cudnn.convolve(x, w, b, pad=1, relu=True, residual=residual)
    assert len(stand_in.graphs) == n_graph      # what is not supported is not tried again


def test_an_unsupported_convolution_is_named(stand_in, rng):
    stand_in.unsupported = lambda steps: True
    with pytest.raises(cudnn.convolution.UnsupportedError, match='forward.*float32'):
        cudnn.convolve(*make(rng, (1, 4, 3, 3), (4, 4, 1, 1)), relu=True)


# Graphs

def test_a_graph_is_built_once_for_each_description(stand_in, rng):
    x, w, b = make(rng, (1, 4, 3, 3), (4, 4, 3, 3), 4)
    for _ in range(3):
        cudnn.convolve(x, w, b)
    assert len(stand_in.graphs) == 1 and len(stand_in.runs) == 3
    cudnn.convolve(x, w, b, pad=1)
    cudnn.convolve(x, w)
    cudnn.convolve(x, w, b, relu=True)
    cudnn.convolve(make(rng, (2, 4, 3, 3))[0], w, b)
    with cudnn.using_precision('tf32'):
        cudnn.convolve(x, w, b)
    assert len(stand_in.graphs) == 6


def test_old_graphs_make_room():
    session = library.Session('handle', max_graphs=2)
    built = []

    def build(description, handle):
        assert handle == 'handle'
        built.append(description)
        return description

    for description in 'abacab':
        assert session.graph(description, build) == description
    assert built == ['a', 'b', 'c', 'b'] and len(session) == 2    # b went when c came, c when b came back


def test_a_graph_that_cannot_be_built_is_not_kept():
    session = library.Session('handle')
    with pytest.raises(ZeroDivisionError):
        session.graph('a', lambda *_: 1 / 0)
    assert len(session) == 0


def test_sessions_belong_to_one_thread_and_device(stand_in):
    sessions = [library.session(), library.session()]
    assert sessions[0] is sessions[1] and sessions[0].handle.stream == stand_in.stream
    stand_in.device, stand_in.stream = 1, 78
    sessions.append(library.session())
    thread = threading.Thread(target=lambda: sessions.append(library.session()))
    thread.start()
    thread.join()
    assert len({id(session) for session in sessions}) == 3
    assert [session.handle.stream for session in sessions[1:]] == [77, 78, 78]


def test_tensor_cores_only_where_they_are_wanted(stand_in, rng):
    note = cudnn_stand_in.numerical_note
    for precision in PRECISIONS:
        with cudnn.using_precision(precision):
            cudnn.convolve(*make(rng, (1, 4, 3, 3), (4, 4, 1, 1)))
        unwanted = stand_in.graphs[-1].notes
        assert note.DOWN_CONVERT_INPUTS in unwanted and note.REDUCED_PRECISION_REDUCTION in unwanted
        assert (note.TENSOR_CORE in unwanted) == (precision == 'fp32')


# Parameters that stay

def test_constant_filters_are_laid_out_once(stand_in, rng, monkeypatch):
    x, w, b = make(rng, (1, 4, 3, 3), (4, 4, 3, 3), 4)
    copied = []
    monkeypatch.setattr(cudnn.convolution, '_narrow', lambda array, precision: copied.append(array.shape) or
                        np.ascontiguousarray(array, precision.storage))
    with constant_parameters():
        first = cudnn.convolve(x, w, b)
        copied.clear()
        assert (cudnn.convolve(x, w, b) == first).all()
    assert copied == [(1, 3, 3, 4)]     # the image alone
    w += 1
    assert (cudnn.convolve(x, w, b) != first).any()


# bfloat16

def test_rounding_to_bfloat16(stand_in, rng):
    numbers = np.concatenate([rng.normal(size=1000) * 10.0 ** rng.randint(-30, 30, 1000),
                              [0, -0.0, np.inf, -np.inf, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 3.4e38]]).astype('f')
    with np.errstate(over='ignore'):
        narrow = cudnn.convolution._narrow(numbers, PRECISIONS['bf16'])
        wide = cudnn.convolution._widen(narrow.reshape(1, -1, 1, 1)).ravel()
    mantissa, exponent = np.frexp(numbers.astype(np.float64))
    expected = np.ldexp(np.round(mantissa * 256), exponent - 8)     # NumPy rounds ties to even, too
    expected[np.abs(expected) > 3.39e38] = np.copysign(np.inf, expected[np.abs(expected) > 3.39e38])
    assert (wide == np.where(np.isfinite(numbers), expected, numbers)).all()
    nan = np.array([0x7f800001, 0xffffffff], np.uint32).view('f')
    assert np.isnan(cudnn.convolution._widen(
        cudnn.convolution._narrow(nan, PRECISIONS['bf16']).reshape(1, 2, 1, 1))).all()


# Precision and availability

def test_precision_is_part_of_the_configuration():
    assert cudnn.current_precision().name == 'fp32'
    with cudnn.using_precision('fp16'):
        assert cudnn.current_precision() is PRECISIONS['fp16']
    assert cudnn.current_precision().name == 'fp32'
    with pytest.raises(ValueError, match="'fp8'; there are fp32, tf32, fp16, bf16"):
        with cudnn.using_precision('fp8'):
            pass


def test_faults_of_precisions():
    assert cudnn.precision_fault('fp32', None) is None
    assert cudnn.precision_fault('fp16', None) == 'fp16 needs a GPU; on the CPU there is fp32 only'
    assert cudnn.precision_fault('fp16', 75) is None and cudnn.precision_fault('bf16', 90) is None
    for name in ('tf32', 'bf16'):
        assert cudnn.precision_fault(name, 75) == (f'{name} needs a GPU of compute capability 8.0; '
                                                   'this one has 7.5')


@pytest.mark.parametrize('fault', [ImportError("No module named 'cudnn'"), OSError('libcudnn.so\nis missing'),
                                   None])
def test_without_cudnn_there_is_one_warning(monkeypatch, caplog, fault):
    def import_module(name):
        if fault is None:
            old = cudnn_stand_in.module()
            old.backend_version = lambda: 8905
            return old
        raise fault
    monkeypatch.setattr(library.importlib, 'import_module', import_module)
    monkeypatch.setattr(library.cuda, 'available', True)
    library.library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not library.is_available() and not library.is_available()
    finally:
        library.library.cache_clear()
    record, = caplog.records
    message = record.getMessage()
    assert '\n' not in message and 'nvidia-cudnn-frontend' in message
    assert ('8905' if fault is None else type(fault).__name__) in message


def test_takes_only_the_gpus_arrays(stand_in, rng, monkeypatch):
    x, w = make(rng, (1, 4, 3, 3), (4, 4, 1, 1))
    monkeypatch.setattr(library, 'is_available', lambda: True)
    assert not cudnn.takes(x, w, None)      # NumPy's
    monkeypatch.setattr(cudnn.convolution.cuda, 'get_array_module', lambda *arrays: cuda)
    assert cudnn.takes(x, w.astype('e'), None) and not cudnn.takes(x.astype('d'), w)
    monkeypatch.setattr(library, 'is_available', lambda: False)
    assert not cudnn.takes(x, w)


@pytest.mark.parametrize('kind', ['forward', 'data', 'filter'])
@pytest.mark.parametrize('name', SHAPES)
def test_cudnn_frontend_accepts_the_descriptions(kind, name):
    """The module itself, where it is installed, finds nothing wrong with a graph."""
    module = library.library()
    if module is None:
        pytest.skip('no cuDNN Frontend')
    if not cuda.available and module.pygraph.__module__ == 'cudnn._pygraph':
        pytest.skip('this cuDNN Frontend validates on a device')
    options = {'handle': library.session().handle} if cuda.available else {}
    x_shape, w_shape, stride, pad = SHAPES[name]
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    everything = {'bias': True, 'residual': True, 'relu': True} if kind == 'forward' else {}
    for dtype in ('float32', 'float16', 'bfloat16'):
        task = graphs.Convolution(kind, dtype, x_shape, w_shape, (stride, stride), pads, **everything)
        graphs.describe(task, module, **options)
