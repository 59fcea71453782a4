"""What CuPy refuses and how it differs from NumPy: the project relies on it, and its stand-in on the CPU imitates it.

``python -m pytest -p tests.support.cupy_stand_in -m gpu tests/ops/test_cupy_contract.py`` tests the stand-in; without
the plugin the tests need a GPU and CuPy itself.
"""

import numpy as np
import pytest
from chainer.backends import cuda

pytestmark = pytest.mark.gpu

SOURCE = r"""
extern "C" __global__ void fill(float* x, int n, float value)
{
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        x[i] = value;
}
"""


@pytest.fixture
def cupy():
    return cuda.cupy


@pytest.fixture
def stand_in(cupy):
    """CuPy's stand-in, which checks what CuPy leaves undefined."""
    if not hasattr(cupy, '_is_stand_in'):
        pytest.skip('undefined in CuPy')
    return cupy


@pytest.mark.parametrize(
    'use',
    [
        lambda a, n: np.asarray(a),
        lambda a, n: np.sqrt(n) + a,
        lambda a, n: a + n,
        lambda a, n: a == n,
        lambda a, n: np.add(a, n),
        lambda a, n: cuda.cupy.maximum(a, n),
        lambda a, n: cuda.cupy.concatenate([a, n]),
        lambda a, n: cuda.cupy.where(a > 0, n, a),
        lambda a, n: a.__iadd__(n),
        lambda a, n: cuda.cupy.copyto(a, n),
        lambda a, n: range(a[0].astype('i')),
        lambda a, n: a.sum(where=a > 0),
        lambda a, n: cuda.cupy.sort(a, stable=True),
        lambda a, n: hash(a),
    ],
)
def test_type_errors(cupy, use):
    with pytest.raises(TypeError):
        use(cupy.ones(3, 'f'), np.ones(3, 'f'))


def test_values_from_the_host_are_not_assigned(cupy):
    a = cupy.zeros(3, 'f')
    with pytest.raises((TypeError, ValueError)):
        a[...] = np.ones(3, 'f')
    a[1] = np.float32(2)
    assert a.get().tolist() == [0, 2, 0]


@pytest.mark.parametrize('name', ['insert', 'block', 'nditer', 'spacing', 'errstate', 'unstack'])
def test_missing_functions(cupy, name):
    assert not hasattr(cupy, name)


@pytest.mark.parametrize('name', ['ctypes', 'resize', 'setflags', 'no_such_method'])
def test_missing_methods(cupy, name):
    assert not hasattr(cupy.zeros(3), name)
    assert not hasattr(cupy.zeros(3).flags, 'writeable')


def test_uploads_copy(cupy):
    host = np.zeros(3, 'f')
    a = cupy.asarray(host)
    host[:] = 1
    assert not a.get().any() and not isinstance(a, np.ndarray)
    assert a.data.ptr % 512 == 0


def test_reductions_return_arrays(cupy):
    total = cupy.ones((2, 3), 'f').sum()
    assert isinstance(total, cupy.ndarray) and total.shape == () and float(total) == 6
    assert isinstance(cupy.array_equal(total, total), cupy.ndarray)


def test_elementwise_results_are_contiguous(cupy):
    x = cupy.zeros((2, 4, 5, 3), 'f').transpose(0, 3, 1, 2)
    assert (x + 1).flags.c_contiguous and cupy.maximum(x, 0).flags.c_contiguous
    assert cupy.empty_like(x).strides == x.astype('e').astype('f').strides == x.copy('K').strides == x.strides
    assert x.copy().flags.c_contiguous


def test_views_share_memory(cupy):
    x = cupy.zeros((3, 4), 'f')
    rows = x[1:]
    rows += 1
    x[0, 1] += 1
    x[0, 1] -= 1
    element = x[0, 0]
    element -= 0
    assert element.base is x and element.shape == ()
    assert rows.data.ptr == x.data.ptr + 16 and rows.base is x
    assert x.get().tolist() == [[0] * 4, [1] * 4, [1] * 4]


@pytest.mark.parametrize(
    ('scalar', 'dtype'), [(2, 'f'), (2.5, 'f'), (np.float32(2), 'f'), (np.float64(2), 'd'), (np.int64(2), 'd')]
)
def test_promotion(cupy, scalar, dtype):
    assert (cupy.ones(3, 'f') * scalar).dtype == (scalar * cupy.ones(3, 'f')).dtype == dtype


def test_elementwise_kernel(cupy):
    kernel = cupy.ElementwiseKernel('T x, raw T table, int32 n', 'T y, int32 j', 'y = x + table[i % n]; j = i', 'k')
    y, j = kernel(cupy.ones((2, 3), 'f').T, cupy.arange(2, dtype='f'), 2)
    assert (
        y.dtype == 'f' and y.get().tolist() == [[1, 2], [1, 2], [1, 2]] and j.get().tolist() == [[0, 1], [2, 3], [4, 5]]
    )


def test_reduction_kernel(cupy):
    kernel = cupy.ReductionKernel('T x, T scale', 'T y', 'x * x', 'a + b', 'y = a / scale', '0', 'squares')
    x = cupy.arange(6, dtype='f').reshape(2, 3)
    assert kernel(x, 2, axis=1).get().tolist() == [2.5, 25] and kernel(x, 2).get() == 27.5


def test_graphs_repeat_the_kernels_of_a_capture(cupy):
    x, total = cupy.ones(3, 'f'), cupy.zeros(3, 'f')
    with cupy.cuda.Stream(non_blocking=True) as stream:
        cupy.cuda.Device().synchronize()
        y = x * 2  # CuPy compiles
        total += y
        total.fill(0)
        stream.begin_capture()
        y = x * 2
        total += y
        graph = stream.end_capture()
        assert not total.get().any()  # a capture runs nothing
        graph.launch(stream)
        x.fill(5)
        graph.launch(stream)
        assert y.get().tolist() == [10] * 3 and total.get().tolist() == [12] * 3


@pytest.mark.parametrize('read', [lambda a: a.get(), lambda a: a.item(), lambda a: bool(a), lambda a: float(a)])
def test_a_capture_permits_no_read(cupy, read):
    x = cupy.ones(1, 'f')
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match='apture'):
            read(x)
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match='apture'):
            stream.end_capture()


def test_raw_kernel(cupy):
    x = cupy.zeros(300, 'f')
    cupy.RawKernel(SOURCE, 'fill')((2,), (256,), (x, np.int32(299), np.float32(3)))
    assert x.get().tolist() == [3] * 299 + [0]


@pytest.mark.parametrize(
    ('grid', 'block'), [((0,), (256,)), ((1,), (0,)), ((1,), (2048,)), ((1, 70000), (32,)), ((1, 1, 70000), (32,))]
)
def test_invalid_launches(cupy, grid, block):
    with pytest.raises(Exception, match='INVALID'):
        cupy.RawKernel(SOURCE, 'fill')(grid, block, (cupy.zeros(3, 'f'), np.int32(3), np.float32(3)))


@pytest.mark.parametrize(
    'arguments',
    [
        lambda x: (x, 3, np.float32(1)),
        lambda x: (x, np.int32(3), 1.0),
        lambda x: (x, np.int64(3), np.float32(1)),
        lambda x: (x.astype('d'), np.int32(3), np.float32(1)),
        lambda x: (x, np.int32(3)),
        lambda x: (x.get(), np.int32(3), np.float32(1)),
    ],
)
def test_arguments_of_another_type(stand_in, arguments):
    with pytest.raises(TypeError, match='fill'):
        stand_in.RawKernel(SOURCE, 'fill')((1,), (32,), arguments(stand_in.zeros(3, 'f')))


def test_new_memory_has_no_useful_values(stand_in):
    assert np.isnan(stand_in.empty(3, 'f').get()).all()
