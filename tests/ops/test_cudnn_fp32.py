"""Float32 convolutions on the GPU that cuDNN does not compute: by cuBLAS and by Winograd's algorithm."""

import ctypes
import logging
import types

import chainer
import chainer.functions as F
import numpy as np
import pytest
from chainer.backends import cuda

from mask_rcnn.ops import cudnn_frontend
from mask_rcnn.ops.conv.winograd_transforms import WEIGHT_TRANSFORM
from mask_rcnn.ops.cudnn_frontend import cublas, matmul, winograd
from mask_rcnn.ops.cudnn_frontend.graphs import ConvProblem
from mask_rcnn.ops.runtime import cuda_kernels
from mask_rcnn.ops.runtime.cache import cache_weights

#: x, w, stride
MATMUL_SHAPES = {
    '1x1': ((2, 8, 5, 7), (4, 8, 1, 1), 1),
    '1x1, one output channel': ((2, 8, 5, 7), (1, 8, 1, 1), 1),
    '1x1, one pixel': ((1, 8, 1, 1), (4, 8, 1, 1), 1),
    '1x1 stride 2': ((2, 8, 6, 7), (4, 8, 1, 1), 2),
    '2x2 stride 2': ((2, 8, 6, 4), (4, 8, 2, 2), 2),
    '2x2 stride 2, a row and a column left': ((2, 8, 5, 7), (4, 8, 2, 2), 2),
    'linear': ((37, 24, 1, 1), (5, 24, 1, 1), 1),
}

#: x, w, pad
WINOGRAD_SHAPES = {
    'RoIs': ((9, 8, 7, 7), (8, 8, 3, 3), 1),
    'whole tiles': ((2, 4, 8, 12), (8, 4, 3, 3), 1),
    'odd size': ((2, 5, 13, 10), (3, 5, 3, 3), 1),
    'no zeros': ((2, 4, 7, 9), (8, 4, 3, 3), 0),
    'two zeros': ((1, 4, 6, 5), (4, 4, 3, 3), 2),
    'padded below': ((1, 4, 6, 5), (4, 4, 3, 3), ((0, 1), (1, 2))),
    'one pixel': ((3, 4, 1, 1), (4, 4, 3, 3), 1),
}


@pytest.fixture
def small_winograd(monkeypatch):
    """Use Winograd's algorithm for small problems as well."""
    monkeypatch.setattr(winograd, '_MIN_CHANNELS', 1)
    monkeypatch.setattr(winograd, '_MIN_TILES', 1)


@pytest.fixture(params=[None, 1], ids=['one chunk', 'chunks of one tile'])
def workspace(request, monkeypatch):
    if request.param is not None:
        monkeypatch.setattr(winograd, '_MAX_WORKSPACE', request.param)


@pytest.fixture
def no_cudnn(monkeypatch):
    """Fail if cuDNN computes a problem."""

    def run(problem, inputs):
        raise AssertionError(f'cuDNN computes {problem}')

    monkeypatch.setattr(cudnn_frontend.convolution, '_run', run)


def make(rng, *shapes):
    return [rng.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def exact(x, w, stride, pad):
    """Return the convolution in float64 and its gradients with respect to ``x`` and ``w``, for a gradient of ones."""
    pads = ((pad, pad), (pad, pad)) if np.ndim(pad) == 0 else pad
    image, filters = (chainer.Variable(array.astype(np.float64)) for array in (x, w))
    y = F.convolution_2d(F.pad(image, [(0, 0), (0, 0), *pads], 'constant'), filters, stride=stride)
    return y, image, filters


def gradients(x, w, gy, stride, pad):
    y, image, filters = exact(x, w, stride, pad)
    y.grad = gy.astype(np.float64)
    y.backward()
    return image.grad, filters.grad


def assert_close(actual, expected, atol=2e-5):
    """Compare with the tolerance of the tests of Winograd's algorithm on the CPU."""
    np.testing.assert_allclose(cuda.to_cpu(actual), expected, rtol=0, atol=atol)
    assert actual.dtype == np.float32 and actual.transpose(0, 2, 3, 1).flags.c_contiguous


def check_forward(xp, rng, x_shape, w_shape, **geometry):
    """Compare the convolution, alone and with each epilogue, with the exact result."""
    x, w, b = make(rng, x_shape, w_shape, w_shape[0])
    y = exact(x, w, **geometry)[0].array
    (residual,) = make(rng, y.shape)
    arrays = [xp.asarray(array) for array in (x, w, b)]
    assert_close(cudnn_frontend.convolve(*arrays[:2], **geometry), y)
    assert_close(cudnn_frontend.convolve(*arrays, **geometry), y + b[:, None, None])
    actual = cudnn_frontend.convolve(*arrays[:2], **geometry, relu=True, residual=xp.asarray(residual))
    assert_close(actual, np.maximum(y + residual, 0))
    actual = cudnn_frontend.convolve(*arrays, **geometry, relu=True, residual=xp.asarray(residual), clip_max=0.5)
    assert_close(actual, np.clip(y + residual + b[:, None, None], 0, 0.5))


@pytest.mark.parametrize('name', MATMUL_SHAPES)
def test_windows_without_overlap_are_one_matmul(xp, rng, no_cudnn, name):
    x_shape, w_shape, stride = MATMUL_SHAPES[name]
    check_forward(xp, rng, x_shape, w_shape, stride=stride, pad=0)


@pytest.mark.parametrize('name', MATMUL_SHAPES)
def test_gradients_of_windows_without_overlap_are_one_matmul(xp, rng, no_cudnn, name):
    x_shape, w_shape, stride = MATMUL_SHAPES[name]
    x, w = make(rng, x_shape, w_shape)
    (gy,) = make(rng, exact(x, w, stride, 0)[0].shape)
    expected_x, expected_w = gradients(x, w, gy, stride, 0)
    gx = cudnn_frontend.convolve_backward_data(xp.asarray(gy), xp.asarray(w), x.shape, stride=stride)
    gw = cudnn_frontend.convolve_backward_filter(xp.asarray(x), xp.asarray(gy), w.shape, stride=stride)
    assert_close(gx, expected_x)
    np.testing.assert_allclose(cuda.to_cpu(gw), expected_w, rtol=0, atol=2e-5)
    assert gw.flags.c_contiguous


@pytest.mark.parametrize('name', WINOGRAD_SHAPES)
def test_winograd(xp, rng, no_cudnn, small_winograd, workspace, name):
    x_shape, w_shape, pad = WINOGRAD_SHAPES[name]
    check_forward(xp, rng, x_shape, w_shape, stride=1, pad=pad)


@pytest.mark.parametrize('name', WINOGRAD_SHAPES)
def test_gradient_by_winograd(xp, rng, no_cudnn, small_winograd, workspace, name):
    x_shape, w_shape, pad = WINOGRAD_SHAPES[name]
    x, w = make(rng, x_shape, w_shape)
    (gy,) = make(rng, exact(x, w, 1, pad)[0].shape)
    gx = cudnn_frontend.convolve_backward_data(xp.asarray(gy), xp.asarray(w), x.shape, pad=pad)
    assert_close(gx, gradients(x, w, gy, 1, pad)[0])


def test_winograd_has_the_errors_of_the_cpu(xp, rng, no_cudnn):
    """The error is at most 1.2e-6 of the standard deviation; see mask_rcnn/ops/conv/winograd_transforms.py."""
    x, w = np.abs(rng.normal(size=(8, 512, 7, 7))).astype('f'), rng.normal(size=(64, 512, 3, 3)).astype('f')
    expected = exact(x, w, 1, 1)[0].array
    error = cuda.to_cpu(cudnn_frontend.convolve(xp.asarray(x), xp.asarray(w), pad=1)) - expected
    assert np.sqrt((error**2).mean()) < 2e-6 * expected.std()


@pytest.mark.parametrize('transposed', [False, True])
def test_weights_are_transformed_like_those_of_the_cpu(xp, rng, transposed):
    (w,) = make(rng, (5, 4, 3, 3))
    stored = xp.asarray(np.ascontiguousarray(w.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    actual = cuda.to_cpu(winograd.transform_weights(stored, transposed))
    filters = w[:, :, ::-1, ::-1] if transposed else w.transpose(1, 0, 2, 3)
    expected = np.tensordot(WEIGHT_TRANSFORM, filters.reshape(*filters.shape[:2], 9), axes=((1,), (2,)))
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_nan_stays_nan(xp, small_winograd):
    x, w = np.full((1, 1, 3, 3), np.nan, 'f'), np.ones((1, 1, 3, 3), 'f')
    y = cudnn_frontend.convolve(xp.asarray(x), xp.asarray(w), pad=1, relu=True, clip_max=6.0)
    assert np.isnan(cuda.to_cpu(y)).all()


def test_constant_weights_are_transformed_once(stand_in, rng, monkeypatch):
    launched = []
    kernel = cuda_kernels.kernel
    monkeypatch.setattr(cuda_kernels, 'kernel', lambda source, name: launched.append(name) or kernel(source, name))
    x, w = make(rng, (8, 64, 7, 7), (64, 64, 3, 3))
    with cache_weights():
        for _ in range(2):
            cudnn_frontend.convolve(x, w, pad=1)
    assert launched.count('winograd_weights') == 1 and launched.count('winograd_output') == 2


# cuBLAS


class Library:
    """cuBLAS on the CPU: reads matrices from memory by columns, as its documentation describes.

    Attributes:
        calls: The names of the functions that have been called.
        failing: The name of a function that returns an error.
    """

    def __init__(self):
        self.calls, self.failing = [], ''

    def __getattr__(self, name):
        functions = {'cublasSgemm_v2': self._gemm, 'cublasSgemmStridedBatched': self._gemm_batched}

        def call(handle, *arguments):
            assert handle == 7 and len(arguments) == len(cublas._SIGNATURES[name]) - 1
            self.calls.append(name)
            functions.get(name, lambda *_: None)(*arguments)
            return 13 if name == self.failing else 0

        return call

    def _gemm(self, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
        left = self._matrix(a, *((k, m) if trans_a else (m, k)), lda)
        right = self._matrix(b, *((n, k) if trans_b else (k, n)), ldb)
        assert self._matrix(alpha, 1, 1, 1) == 1 and self._matrix(beta, 1, 1, 1) == 0
        self._matrix(c, m, n, ldc)[...] = (left.T if trans_a else left) @ (right.T if trans_b else right)

    def _gemm_batched(
        self, trans_a, trans_b, m, n, k, alpha, a, lda, step_a, b, ldb, step_b, beta, c, ldc, step_c, count
    ):
        for i in range(count):
            addresses = a + 4 * i * step_a, lda, b + 4 * i * step_b, ldb, beta, c + 4 * i * step_c, ldc
            self._gemm(trans_a, trans_b, m, n, k, alpha, *addresses)

    def _matrix(self, address, rows, columns, ld):
        assert ld >= rows
        memory = np.frombuffer((ctypes.c_char * (4 * (ld * (columns - 1) + rows))).from_address(address), np.float32)
        return np.lib.stride_tricks.as_strided(memory, (rows, columns), (4, 4 * ld), writeable=True)


@pytest.fixture
def library(monkeypatch):
    """Replace cuBLAS, and CuPy's pool and stream."""
    library, pointer = Library(), types.SimpleNamespace(ptr=1000)
    cupy = types.SimpleNamespace(alloc=lambda size: pointer, get_current_stream=lambda: pointer)
    monkeypatch.setattr(cublas, '_load_library', lambda: library)
    monkeypatch.setattr(cublas, '_handle', lambda: 7)
    monkeypatch.setattr(cublas, '_address', lambda array: array.ctypes.data)
    monkeypatch.setattr(cublas.cuda, 'cupy', types.SimpleNamespace(cuda=cupy))
    return library


@pytest.mark.parametrize('batch', [(), (3,)])
@pytest.mark.parametrize(('transpose_a', 'transpose_b'), [(False, False), (False, True), (True, False), (True, True)])
def test_cublas_multiplies_contiguous_matrices(library, rng, batch, transpose_a, transpose_b):
    a, b = make(rng, (*batch, 4, 5), (*batch, 5, 6))
    out = np.empty((*batch, 4, 6), 'f')
    stored_a, stored_b = (
        np.ascontiguousarray(array.swapaxes(-1, -2)) if is_transposed else array
        for array, is_transposed in ((a, transpose_a), (b, transpose_b))
    )
    cublas.matmul(stored_a, stored_b, out, transpose_a=transpose_a, transpose_b=transpose_b)
    np.testing.assert_allclose(out, a @ b, rtol=0, atol=1e-6)
    assert library.calls[:3] == ['cublasSetMathMode', 'cublasSetStream_v2', 'cublasSetWorkspace_v2']
    assert library.calls[4:] == ['cublasSetStream_v2']  # restores the workspace of CuPy's handle


def test_an_error_of_cublas_is_an_exception(library):
    library.failing = 'cublasSgemm_v2'
    a = np.ones((2, 2), 'f')
    with pytest.raises(RuntimeError, match='status 13'):
        cublas.matmul(a, a, np.empty_like(a))


def test_a_full_memory_is_no_missing_library(monkeypatch):
    def create_handle():
        raise RuntimeError('CUBLAS_STATUS_ALLOC_FAILED')

    monkeypatch.setattr(cublas, '_handle', create_handle)
    cublas._load_library.cache_clear()
    for _ in range(2):
        with pytest.raises(RuntimeError, match='ALLOC_FAILED'):
            cublas.is_available()


def test_without_cublas_there_is_one_warning(caplog):
    if cuda.available:
        pytest.skip('cuBLAS is available')
    cublas._load_library.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert not cublas.is_available() and not cublas.is_available()
    cublas._load_library.cache_clear()
    (record,) = caplog.records
    assert 'without cuBLAS' in record.getMessage()


@pytest.mark.parametrize('is_available', [False, True])
def test_cudnn_replaces_a_missing_cublas(stand_in, rng, monkeypatch, is_available):
    monkeypatch.setattr(cublas, 'is_available', lambda: is_available)
    x, w = make(rng, (2, 4, 3, 3), (4, 4, 1, 1))
    assert_close(cudnn_frontend.convolve(x, w), exact(x, w, 1, 0)[0].array)
    assert stand_in.runs == [['matmul' if is_available else 'conv']]


# Selection


def problem(kind='forward', dtype='float32', x=(8, 64, 7, 7), w=(64, 64, 3, 3), stride=1, pad=1, tensor_cores=False):
    return ConvProblem(kind, dtype, x, w, (stride, stride), ((pad, pad), (pad, pad)), tensor_cores)


def test_winograd_is_for_large_convolutions_in_true_float32():
    use = winograd.should_use
    assert use(problem()) and use(problem('data')) and not use(problem('filter'))
    assert not use(problem(tensor_cores=True)) and not use(problem(dtype='float16'))
    assert not use(problem(stride=2)) and not use(problem(pad=3)) and not use(problem(w=(64, 64, 1, 1), pad=0))
    assert not use(problem(w=(64, 32, 3, 3)))  # two groups
    assert not use(problem(w=(63, 64, 3, 3))) and not use(problem(x=(8, 63, 7, 7), w=(64, 63, 3, 3)))
    assert not use(problem(x=(7, 64, 7, 7))) and not use(problem(x=(0, 64, 7, 7)))


def test_matmul_is_for_windows_without_overlap_in_true_float32():
    def use(*args, w=(64, 64, 1, 1), pad=0, **options):
        return matmul.should_use(problem(*args, w=w, pad=pad, **options))

    assert all(use(kind, stride=stride) for kind in ('forward', 'data', 'filter') for stride in (1, 2))
    assert use(w=(64, 64, 2, 2), stride=2) and not use(w=(64, 64, 2, 2)) and not use(w=(64, 64, 3, 3), stride=2)
    assert not use(pad=1) and not use(w=(64, 32, 1, 1)) and not use(x=(0, 64, 7, 7))
    assert not use(tensor_cores=True) and not use(dtype='float16')


@pytest.mark.parametrize(
    ('n_tiles', 'channels', 'expected'),
    [(40, 128, 40), (4000, 1024, 2048), (4000, 2048, 1408), (100000, 128, 25088), (7, 1 << 24, 1)],
)
def test_tiles_at_once(n_tiles, channels, expected):
    size = winograd._choose_chunk_size(n_tiles, channels)
    assert size == expected
    assert size == 1 or 36 * size * channels * 4 <= winograd._MAX_WORKSPACE


# On a GPU


@pytest.fixture
def cupy():
    if not cudnn_frontend.is_available():
        pytest.skip('no CUDA device with cuDNN Frontend')
    return cuda.cupy


@pytest.mark.gpu
def test_no_setting_of_cupy_selects_tf32(cupy, rng):
    core = cupy._core._routines_linalg
    previous = core.get_compute_type(np.float32)
    core.set_compute_type(np.float32, core.COMPUTE_TYPE_TF32)
    try:
        for size, pad in ((1, 0), (3, 1)):
            x, w = make(rng, (8, 64, 7, 7), (64, 64, size, size))
            y = cudnn_frontend.convolve(cupy.asarray(x), cupy.asarray(w), pad=pad)
            assert_close(y, exact(x, w, 1, pad)[0].array, atol=5e-5)  # TF32: 2e-3
    finally:
        core.set_compute_type(np.float32, previous)


@pytest.mark.gpu
def test_cuda_graphs_capture_them(cupy, rng):
    x, w1, w3, b = map(cupy.asarray, make(rng, (8, 64, 14, 14), (64, 64, 1, 1), (64, 64, 3, 3), 64))

    def compute():
        y = cudnn_frontend.convolve(x, w1, b, stride=2, relu=True)
        return cudnn_frontend.convolve(y, w3, b, pad=1, relu=True, residual=y)

    cupy.cuda.Device().synchronize()
    with cache_weights(), cupy.cuda.Stream(non_blocking=True) as stream:
        compute()
        expected = compute().get()
        stream.begin_capture()
        y = compute()
        graph = stream.end_capture()
        graph.launch(stream)
        assert (y.get() == expected).all()
