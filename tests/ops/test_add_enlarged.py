import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.add_enlarged import add_enlarged


def maps(rng, dtype):
    return rng.uniform(-1, 1, (2, 3, 4, 6)).astype(dtype), rng.uniform(-1, 1, (2, 3, 2, 3)).astype(dtype)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('layout', [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1)])
@pytest.mark.parametrize('with_graph', [False, True])
def test_adds_every_number_four_times(rng, dtype, layout, with_graph):
    x, coarse = maps(rng, dtype)
    expected = x + coarse.repeat(2, axis=2).repeat(2, axis=3)
    stored = np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))
    with chainer.using_config('enable_backprop', with_graph):
        y = add_enlarged(chainer.Variable(stored), chainer.Variable(coarse))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y.array, expected)


def test_gradients(rng):
    x, coarse = maps(rng, np.float64)
    gradient_check.check_backward(add_enlarged, (x, coarse), rng.uniform(-1, 1, x.shape), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('with_graph', [False, True])
def test_only_a_map_twice_as_large_will_do(rng, with_graph):
    x, coarse = maps(rng, np.float32)
    with chainer.using_config('enable_backprop', with_graph):
        for wrong in (x[:, :, :3], x[:, :, :, :5], x[:1], x.astype(np.float64)):
            with pytest.raises(ValueError, match='twice as large'):
                add_enlarged(chainer.Variable(wrong.copy()), chainer.Variable(coarse))
