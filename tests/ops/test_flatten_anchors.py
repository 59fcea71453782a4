"""The RPN's outputs of all feature maps as one array, and the gradient."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.boxes.flatten_anchors import flatten_anchors

SIZES = [(4, 6), (2, 3), (1, 1)]


def random_outputs(rng, n_values, dtype=np.float32):
    return [rng.normal(size=(2, 3 * n_values, *size)).astype(dtype) for size in SIZES]


@pytest.mark.parametrize('backend', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('channels_last', [True, False])
@pytest.mark.parametrize('n_values', [1, 4])
def test_the_order_is_that_of_the_anchors(backend, rng, dtype, channels_last, n_values):
    """Level by level and row by row; the anchors of a location are neighbours."""
    outputs = random_outputs(rng, n_values, dtype)
    expected = [
        [x[i, a * n_values : (a + 1) * n_values, row, column]]
        for i in range(2)
        for x in outputs
        for row, column, a in np.ndindex(*x.shape[2:], 3)
    ]
    expected = np.array(expected).reshape(2, -1, n_values)
    if channels_last:
        outputs = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in outputs]
    variables = [chainer.Variable(backend.array(x)) for x in outputs]
    flat = flatten_anchors(variables, n_values)
    assert flat.dtype == dtype and flat.shape == ((2, 93, 4) if n_values == 4 else (2, 93))
    np.testing.assert_array_equal(backend.numpy(flat).reshape(2, 93, -1), expected)
    flat.grad = flat.array.copy()
    flat.backward()
    for variable, x in zip(variables, outputs, strict=True):
        np.testing.assert_array_equal(backend.numpy(variable.grad), x)


@pytest.mark.parametrize('n_values', [1, 4])
def test_gradients(rng, n_values):
    outputs = random_outputs(rng, n_values, np.float64)
    gradient = rng.normal(size=flatten_anchors(outputs, n_values).shape)
    gradient_check.check_backward(
        lambda *x: flatten_anchors(x, n_values), tuple(outputs), gradient, rtol=1e-7, atol=1e-7
    )


def test_a_map_without_a_gradient(rng):
    first, second = random_outputs(rng, 1)[:2]
    second = chainer.Variable(second)
    flat = flatten_anchors([first, second], 1)
    flat.grad = gradient = np.arange(flat.size, dtype=np.float32).reshape(flat.shape)
    flat.backward()
    np.testing.assert_array_equal(second.grad.transpose(0, 2, 3, 1).reshape(2, -1), gradient[:, -18:])
