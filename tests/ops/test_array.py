"""The array module of arrays and variables."""

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime.array import get_array_module
from tests.support.arrays import copy_with_strides


@pytest.mark.parametrize('make', [np.zeros, lambda n: chainer.Variable(np.zeros(n)), np.float32, lambda n: None])
def test_the_module_of_the_cpu_is_numpy(make):
    assert get_array_module(make(2)) is np
    assert get_array_module(make(2), np.zeros(3)) is np


@pytest.mark.gpu
def test_the_module_of_the_gpu_is_cupy():
    cupy = chainer.backends.cuda.cupy
    array = cupy.zeros(2)
    for arrays in ((array,), (chainer.Variable(array),), (array, array), (np.zeros(2), array)):
        assert get_array_module(*arrays) is cupy is chainer.backend.get_array_module(*arrays)


@pytest.mark.parametrize('module', ['numpy', pytest.param('cupy', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('dtype', [np.bool_, np.float16, np.float64])
@pytest.mark.parametrize(
    'view',
    [
        lambda x: x,
        lambda x: x.T,
        lambda x: x.transpose(0, 2, 1),
        lambda x: x[:, ::2, 1:3],
        lambda x: x[1, 2, 3],
        lambda x: np.broadcast_to(x[:1], x.shape),
        lambda x: x[:, ::-1],
        lambda x: x[:0],
    ],
)
def test_copies_have_the_memory_layout_of_the_test(module, dtype, view):
    """CuPy itself keeps C and Fortran order only, and tests would not cover channels last on a GPU."""
    xp = np if module == 'numpy' else chainer.backends.cuda.cupy
    array = view(np.arange(60).reshape(3, 4, 5).astype(dtype))
    copy = copy_with_strides(array, xp)
    assert isinstance(copy, xp.ndarray) and copy.dtype == dtype
    np.testing.assert_array_equal(chainer.backends.cuda.to_cpu(copy), array)
    if array.size and min(array.strides, default=0) >= 0:
        assert copy.strides == array.strides
