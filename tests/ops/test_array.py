"""The array module of arrays and variables."""

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime.array import get_array_module


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
