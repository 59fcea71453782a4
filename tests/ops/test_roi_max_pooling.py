"""RoI max pooling against Caffe2's results and against its definition; see also test_roi_pooling.py."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling
from tests.support.arrays import SWAP_XY
from tests.support.roi_pooling import pool, pool_gradient, random_problem


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_roi_align.npz')


def caffe2_problem(golden, size):
    """Return the feature maps, RoIs, images and options of Caffe2's results."""
    rois = golden['rois']
    options = {'output_size': size, 'spatial_scale': float(golden['spatial_scale'])}
    return golden['x'], rois[:, 1:][:, SWAP_XY], rois[:, 0].astype(np.int32), options


def round_half_away(value):
    return int(np.floor(abs(value) + 0.5) * np.sign(value))


def bin_pixels(low, high, scale, size, bins, j):
    """Return the pixels of bin ``j`` along one axis, by Caffe2's definition."""
    start, stop = (round_half_away(float(np.float32(edge) * np.float32(scale))) for edge in (low, high))
    bin_size = np.float32(max(stop - start + 1, 1)) / np.float32(bins)
    first = int(np.floor(np.float32(j) * bin_size)) + start
    end = int(np.ceil(np.float32(j + 1) * bin_size)) + start
    return slice(min(max(first, 0), size), min(max(end, 0), size))


def reference(x, rois, indices, output_size, spatial_scale):
    """Apply the definition bin by bin."""
    y = np.zeros((len(rois), x.shape[1], *output_size), x.dtype)
    for r, (roi, index) in enumerate(zip(rois, indices, strict=True)):
        for i, j in np.ndindex(*output_size):
            rows, columns = (
                bin_pixels(roi[a], roi[a + 2], spatial_scale, x.shape[2 + a], output_size[a], b)
                for a, b in ((0, i), (1, j))
            )
            part = x[index][:, rows, columns]
            if part.size:
                y[r, :, i, j] = part.max(axis=(1, 2))
    return y


@pytest.mark.parametrize('size', [7, 14])
def test_the_maxima_equal_caffe2(backend, golden, size):
    x, rois, indices, options = caffe2_problem(golden, size)
    y = pool(backend, roi_max_pooling, x, rois, indices, **options)
    np.testing.assert_array_equal(backend.numpy(y), golden[f'pool_{size}_y'])
    assert y.dtype == np.float32


@pytest.mark.parametrize('size', [7, 14])
def test_the_gradient_goes_to_the_argmax_of_caffe2(backend, golden, size):
    x, rois, indices, options = caffe2_problem(golden, size)
    gy, argmax = golden[f'dy_{size}'], golden[f'pool_{size}_argmax']
    expected = np.zeros_like(x)
    r, c, i, j = np.nonzero(argmax >= 0)
    np.add.at(expected.reshape(*x.shape[:2], -1), (indices[r], c, argmax[r, c, i, j]), gy[r, c, i, j])
    gx = pool_gradient(backend, roi_max_pooling, x, rois, indices, gy, **options)
    np.testing.assert_array_equal(gx, expected)


@pytest.mark.parametrize('output_size', [(7, 7), (5, 8), (1, 1)])
@pytest.mark.parametrize(('channels', 'dtype'), [(1, 'f'), (4, 'f'), (65, 'f'), (2, 'e')])
def test_the_maxima_equal_the_definition(backend, rng, output_size, channels, dtype):
    x, rois, indices = random_problem(rng, channels=channels, dtype=dtype, distinct=True)
    options = {'output_size': output_size, 'spatial_scale': 1 / 16}
    y = pool(backend, roi_max_pooling, x, rois, indices, **options)
    assert y.dtype == dtype
    np.testing.assert_array_equal(backend.numpy(y), reference(x, rois, indices, **options))


def test_corners_are_rounded_half_away_from_zero(backend):
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    rois = np.float32([[y, 0, y, 0] for y in (0.5, 1.5, -0.5, below_half)])
    y = pool(backend, roi_max_pooling, x, rois, np.zeros(4, np.int32), output_size=1, spatial_scale=1)
    assert backend.numpy(y).ravel().tolist() == [3, 6, 0, 0]  # -0.5 is row -1, outside the map


@pytest.mark.parametrize('bin_step', [1, 2])
def test_the_gradient_equals_a_numerical_one(backend, rng, bin_step):
    x, rois, indices = random_problem(rng, n=5, channels=2, size=(6, 7), dtype=np.float64, distinct=True)
    rois, indices = backend.array(rois), backend.array(indices)

    def function(x):
        return roi_max_pooling(x, rois, indices, output_size=(3, 4), spatial_scale=1 / 16, bin_step=bin_step)

    gy = rng.standard_normal(function(backend.array(x)).shape)
    gradient_check.check_backward(function, backend.array(x), backend.array(gy), dtype=np.float64, atol=1e-7, rtol=1e-7)


def test_the_first_of_equal_values_receives_the_gradient(backend):
    x, gy = np.ones((1, 1, 4, 4), np.float32), np.float32([5]).reshape(1, 1, 1, 1)
    gx = pool_gradient(
        backend, roi_max_pooling, x, np.float32([[1, 1, 3, 3]]), np.int32([0]), gy, output_size=1, spatial_scale=1
    )
    assert gx[0, 0, 1, 1] == 5 and np.count_nonzero(gx) == 1


def test_no_second_derivative(backend, rng):
    problem, rois, indices = random_problem(rng)
    x = chainer.Variable(backend.array(problem))
    y = roi_max_pooling(x, backend.array(rois), backend.array(indices), output_size=7, spatial_scale=1 / 16)
    y.grad_var = chainer.Variable(backend.xp.ones_like(y.array))
    y.backward(enable_double_backprop=True)
    x.grad_var.grad = backend.xp.ones_like(x.array)
    with pytest.raises(RuntimeError, match='no second derivative'):
        x.grad_var.backward()


def test_a_bin_step_below_1_is_an_error():
    x, rois, indices = np.zeros((1, 3, 9, 9), 'f'), np.zeros((2, 4), 'f'), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match='bin_step must be at least 1, not 0'):
        roi_max_pooling(x, rois, indices, output_size=7, spatial_scale=1, bin_step=0)
