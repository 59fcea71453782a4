"""Crop and resize against matrix products; see also test_roi_pooling.py."""

import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.roi import crop_and_resize as module
from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize
from tests.support.roi_pooling import SIZE, STRIDE, pool, pool_gradient, pool_with_matrices, random_problem

#: The coordinates of the last pixel of the feature maps of ``random_problem``.
LAST = tuple(float(STRIDE * (side - 1)) for side in SIZE)


def axis_matrix(low, high, size, bins):
    """Return the weights (bins, size) of one RoI along one axis: hat functions around the points, in float64."""
    points = np.linspace(low, high, bins) if bins > 1 else np.array([(low + high) / 2])
    points = points * (size - 1)
    inside = (points >= 0) & (points <= size - 1)
    return np.maximum(1 - np.abs(points[:, None] - np.arange(size)), 0) * inside[:, None]


def reference(x, rois, indices, output_size, last=LAST):
    """Apply crop and resize as matrix products."""
    rois = rois.astype(np.float64) / [*last, *last]
    return pool_with_matrices(
        x,
        indices,
        lambda r, axis: axis_matrix(rois[r, axis], rois[r, axis + 2], x.shape[2 + axis], output_size[axis]),
    )


@pytest.mark.parametrize('output_size', [(7, 7), (14, 14), (5, 8), (2, 2), (1, 3)])
def test_the_samples_equal_matrix_products(backend, rng, output_size):
    x, rois, indices = random_problem(rng)
    y = pool(backend, crop_and_resize, x, rois, indices, output_size=output_size, last=LAST)
    assert y.dtype == np.float32
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, output_size), rtol=0, atol=2e-5)


@pytest.mark.parametrize('output_size', [(7, 7), (1, 3)])
def test_the_gradient_is_the_transposed_map(backend, rng, output_size):
    """``<gy, A x> = <A^T gy, x>`` for random ``x`` and ``gy``."""
    x, rois, indices = random_problem(rng)
    gy = rng.standard_normal((len(rois), 5, *output_size)).astype(np.float32)
    gx = pool_gradient(backend, crop_and_resize, x, rois, indices, gy, output_size=output_size, last=LAST)
    other = rng.standard_normal(x.shape)
    expected = (reference(other, rois, indices, output_size) * gy).sum()
    np.testing.assert_allclose((gx * other).sum(), expected, rtol=1e-5)


def test_a_roi_of_the_whole_map_returns_the_map(backend, rng):
    x = rng.standard_normal((1, 3, 9, 11)).astype(np.float32)
    y = pool(backend, crop_and_resize, x, np.float32([[0, 0, 8, 10]]), np.int32([0]), output_size=(9, 11), last=(8, 10))
    np.testing.assert_allclose(backend.numpy(y), x, rtol=0, atol=3e-6)


def test_points_outside_the_map_are_zero(backend):
    x = np.ones((1, 1, 5, 5), np.float32)
    y = pool(backend, crop_and_resize, x, np.float32([[-0.25, 0, 1.25, 1]]), np.int32([0]), output_size=7)
    expected = np.ones((7, 7))
    expected[[0, -1]] = 0
    np.testing.assert_array_equal(backend.numpy(y)[0, 0], expected)


def test_last_defines_the_units_of_rois(backend, rng):
    x, rois, indices = random_problem(rng)
    y = pool(backend, crop_and_resize, x, rois, indices, output_size=7, last=LAST)
    normalised = pool(backend, crop_and_resize, x, rois / np.float32([*LAST, *LAST]), indices, output_size=7)
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(normalised))


def test_gradients_equal_numerical_ones(backend, rng):
    x, rois, indices = random_problem(rng, n=5, channels=2, size=(6, 7), dtype=np.float64)
    rois, indices = backend.array(rois), backend.array(indices)

    def function(x):
        return crop_and_resize(x, rois, indices, output_size=(3, 4), last=(5.0 * STRIDE, 6.0 * STRIDE))

    gy = rng.standard_normal(function(backend.array(x)).shape)
    ggx = rng.standard_normal(x.shape)
    x, gy, ggx = map(backend.array, (x, gy, ggx))
    gradient_check.check_backward(function, x, gy, dtype=np.float64, atol=1e-6, rtol=1e-6)
    gradient_check.check_double_backward(function, x, gy, ggx, dtype=np.float64, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(('dtype', 'name'), [('f', 'crop_and_resize_forward'), ('e', 'crop_and_resize_forward_half')])
def test_the_kernel_reads_and_writes_arrays_without_copies(emulated_kernels, rng, dtype, name):
    x, rois, indices = random_problem(rng, channels=8, dtype=dtype)
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    points = [module._sample_points(rois[:, axis], rois[:, axis + 2], x.shape[2 + axis], 7) for axis in (0, 1)]
    y = module.forward_gpu(x, indices, *points)
    ((found, arguments),) = emulated_kernels
    assert found == name and np.may_share_memory(arguments[0], x) and np.may_share_memory(arguments[-1], y)


@pytest.mark.parametrize('last', [(5, 0), (-1, 5), (float('nan'), 5)])
def test_a_last_that_is_not_positive_is_an_error(last):
    x, rois, indices = np.zeros((1, 3, 9, 9), 'f'), np.zeros((2, 4), 'f'), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match='last must be two positive numbers'):
        crop_and_resize(x, rois, indices, output_size=7, last=last)
