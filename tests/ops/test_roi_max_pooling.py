import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.roi.roi_max_pooling import roi_max_pooling


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_roi_align.npz')


def round_half_away(value):
    return int(np.floor(abs(value) + 0.5) * np.sign(value))


def bin_pixels(low, high, scale, size, bins, j):
    """The pixels of one bin along one axis, from Caffe2's definition."""
    start, stop = (round_half_away(float(np.float32(edge) * np.float32(scale))) for edge in (low, high))
    bin_size = np.float32(max(stop - start + 1, 1)) / np.float32(bins)
    first = int(np.floor(np.float32(j) * bin_size)) + start
    end = int(np.ceil(np.float32(j + 1) * bin_size)) + start
    return slice(min(max(first, 0), size), min(max(end, 0), size))


def reference(x, rois, indices, output_size, spatial_scale):
    y = np.zeros((len(rois), x.shape[1], *output_size), x.dtype)
    for r, (roi, index) in enumerate(zip(rois, indices)):
        for i, j in np.ndindex(*output_size):
            rows, columns = (
                bin_pixels(roi[a], roi[a + 2], spatial_scale, x.shape[2 + a], output_size[a], b)
                for a, b in ((0, i), (1, j))
            )
            part = x[index][:, rows, columns]
            if part.size:
                y[r, :, i, j] = part.max(axis=(1, 2))
    return y


def random_problem(rng, n=12, channels=5, size=(17, 23), dtype=np.float32):
    """Two maps without equal values; RoIs of all sizes, inside and over the border, reversed ones too."""
    x = rng.permutation(2 * channels * size[0] * size[1]).reshape(2, channels, *size).astype(dtype)
    centre, side = rng.uniform(0, 16, (n, 2)) * size, rng.uniform(1, 200, (n, 2))
    side[0], side[1] = 0.5, -30
    rois = np.concatenate((centre - side / 2, centre + side / 2), axis=1).astype(np.float32)
    return x, rois, rng.randint(0, 2, n).astype(np.int32)


def run(backend, x, rois, indices, **kwargs):
    return roi_max_pooling(backend.array(x), backend.array(rois), backend.array(indices), **kwargs)


def gradient(backend, x, rois, indices, gy, **kwargs):
    x = chainer.Variable(backend.array(x))
    y = roi_max_pooling(x, backend.array(rois), backend.array(indices), **kwargs)
    y.grad = backend.array(gy)
    y.backward()
    assert x.grad.dtype == x.dtype
    return backend.numpy(x.grad)


@pytest.mark.parametrize('size', [7, 14])
def test_equals_caffe2(backend, golden, size):
    rois, indices = golden['rois'][:, [2, 1, 4, 3]], golden['rois'][:, 0].astype(np.int32)
    kwargs = dict(output_size=size, spatial_scale=float(golden['spatial_scale']))
    y = run(backend, golden['x'], rois, indices, **kwargs)
    np.testing.assert_array_equal(backend.numpy(y), golden[f'pool_{size}_y'])
    assert y.dtype == np.float32


@pytest.mark.parametrize('size', [7, 14])
def test_gradient_goes_to_caffe2s_argmax(backend, golden, size):
    rois, indices = golden['rois'][:, [2, 1, 4, 3]], golden['rois'][:, 0].astype(np.int32)
    gy, argmax = golden[f'dy_{size}'], golden[f'pool_{size}_argmax']
    expected = np.zeros_like(golden['x'])
    r, c, i, j = np.nonzero(argmax >= 0)
    np.add.at(expected.reshape(*expected.shape[:2], -1), (indices[r], c, argmax[r, c, i, j]), gy[r, c, i, j])
    gx = gradient(
        backend, golden['x'], rois, indices, gy, output_size=size, spatial_scale=float(golden['spatial_scale'])
    )
    np.testing.assert_array_equal(gx, expected)


@pytest.mark.parametrize('output_size', [(7, 7), (5, 8), (1, 1)])
@pytest.mark.parametrize('channels', [1, 4, 65, 260])
def test_equals_the_definition(backend, rng, output_size, channels):
    x, rois, indices = random_problem(rng, channels=channels)
    kwargs = dict(output_size=output_size, spatial_scale=1 / 16)
    y = run(backend, x, rois, indices, **kwargs)
    np.testing.assert_array_equal(backend.numpy(y), reference(x, rois, indices, **kwargs))


def test_corners_are_rounded_half_away_from_zero(backend):
    x = np.arange(9, dtype=np.float32).reshape(1, 1, 3, 3)
    below_half = np.nextafter(np.float32(0.5), np.float32(0))
    rois = np.float32([[y, 0, y, 0] for y in (0.5, 1.5, -0.5, below_half)])
    y = run(backend, x, rois, np.zeros(4, np.int32), output_size=1, spatial_scale=1)
    assert backend.numpy(y).ravel().tolist() == [3, 6, 0, 0]  # -0.5 is row -1, outside of the map


@pytest.mark.parametrize('bin_step', [2, 3])
def test_bin_step_skips_bins(backend, rng, bin_step):
    x, rois, indices = random_problem(rng)
    kwargs = dict(output_size=14, spatial_scale=1 / 16)
    full = run(backend, x, rois, indices, **kwargs)
    part = run(backend, x, rois, indices, bin_step=bin_step, **kwargs)
    np.testing.assert_array_equal(backend.numpy(part), backend.numpy(full)[:, :, ::bin_step, ::bin_step])


@pytest.mark.parametrize('bin_step', [1, 2])
def test_gradients(backend, rng, bin_step):
    x, rois, indices = random_problem(rng, n=5, channels=2, size=(6, 7), dtype=np.float64)
    rois, indices = backend.array(rois), backend.array(indices)

    def function(x):
        return roi_max_pooling(x, rois, indices, output_size=(3, 4), spatial_scale=1 / 16, bin_step=bin_step)

    gy = rng.standard_normal(function(backend.array(x)).shape)
    gradient_check.check_backward(function, backend.array(x), backend.array(gy), dtype=np.float64, atol=1e-7, rtol=1e-7)


@pytest.mark.slow_emulated
def test_gradient_is_the_same_in_every_run(backend, rng):
    x, rois, indices = random_problem(rng, n=40, channels=70)
    gy = rng.standard_normal((40, 70, 7, 7)).astype(np.float32)
    runs = [gradient(backend, x, rois, indices, gy, output_size=7, spatial_scale=1 / 16) for _ in range(3)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


@pytest.mark.parametrize('channels', [3, 4])
def test_more_rois_than_a_block_lists(backend, rng, channels):
    x, rois = np.zeros((2, channels, 3, 3), np.float32), np.tile(np.float32([1, 1, 1, 1]), (2600, 1))
    rois[rng.permutation(2600)[:100]] += 50  # outside
    indices = rng.randint(0, 2, 2600).astype(np.int32)
    gy = rng.standard_normal((2600, channels, 1, 1)).astype(np.float32)
    expected = np.zeros_like(x)  # every RoI is pixel (1, 1)
    for i in np.flatnonzero(rois[:, 0] == 1):
        expected[indices[i], :, 1, 1] += gy[i, :, 0, 0]
    gx = gradient(backend, x, rois, indices, gy, output_size=1, spatial_scale=1)
    np.testing.assert_array_equal(gx, expected)


def test_memory_layouts(backend, rng):
    """Maps may lie in any order; on the GPU channels come out innermost."""
    x, rois, indices = random_problem(rng, channels=8)
    kwargs = dict(output_size=3, spatial_scale=1 / 16)
    expected = backend.numpy(run(backend, x, rois, indices, **kwargs))
    for order in ((1, 0, 2, 3), (0, 2, 3, 1)):
        stored = backend.xp.ascontiguousarray(backend.array(x).transpose(order))
        maps = chainer.Variable(stored.transpose(np.argsort(order)))
        y = roi_max_pooling(maps, backend.array(rois), backend.array(indices), **kwargs)
        np.testing.assert_array_equal(backend.numpy(y), expected)
        y.grad = backend.xp.ones_like(y.array)
        y.backward()
        for array in (y.array, maps.grad):
            assert backend.name == 'cpu' or array.transpose(0, 2, 3, 1).flags.c_contiguous


def test_no_second_derivative(backend, rng):
    problem, rois, indices = random_problem(rng)
    x = chainer.Variable(backend.array(problem))
    y = roi_max_pooling(x, backend.array(rois), backend.array(indices), output_size=7, spatial_scale=1 / 16)
    y.grad_var = chainer.Variable(backend.xp.ones_like(y.array))
    y.backward(enable_double_backprop=True)
    x.grad_var.grad = backend.xp.ones_like(x.array)
    with pytest.raises(RuntimeError, match='no second derivative'):
        x.grad_var.backward()


def test_float16(backend, rng):
    x, rois, indices = random_problem(rng, channels=2, dtype=np.float16)
    kwargs = dict(output_size=(7, 7), spatial_scale=1 / 16)
    y = run(backend, x, rois, indices, **kwargs)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(backend.numpy(y), reference(x, rois, indices, **kwargs))


def test_views(backend, rng):
    x, rois, indices = random_problem(rng)
    kwargs = dict(output_size=(7, 7), spatial_scale=1 / 16)
    flipped = run(backend, x[:, ::-1, :, ::-1], rois[::-1], indices[::-1], **kwargs)
    np.testing.assert_array_equal(
        backend.numpy(flipped), reference(x[:, ::-1, :, ::-1], rois[::-1], indices[::-1], **kwargs)
    )


def test_no_rois(backend):
    x = np.ones((1, 3, 5, 5), np.float32)
    rois, indices = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    assert run(backend, x, rois, indices, output_size=7, spatial_scale=1).shape == (0, 3, 7, 7)
    gx = gradient(backend, x, rois, indices, np.zeros((0, 3, 7, 7), np.float32), output_size=7, spatial_scale=1)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_rois_outside_and_not_finite_are_zero(backend):
    rois = np.float32(
        [[90, 90, 99, 99], [-99, 0, -90, 5], [np.nan, 0, 5, 5], [0, -np.inf, 5, np.inf], [0, 0, np.inf, 5]]
    )
    x, indices = np.ones((1, 3, 9, 9), np.float32), np.zeros(5, np.int32)
    kwargs = dict(output_size=3, spatial_scale=1)
    assert not backend.numpy(run(backend, x, rois, indices, **kwargs)).any()
    assert not gradient(backend, x, rois, indices, np.ones((5, 3, 3, 3), np.float32), **kwargs).any()


@pytest.mark.parametrize(
    ('x', 'rois', 'indices', 'kwargs', 'message'),
    [
        ((1, 3, 9), (2, 4), (2,), {}, 'x must be'),
        ((1, 3, 9, 9), (2, 5), (2,), {}, 'rois must have'),
        ((1, 3, 9, 9), (2, 4), (3,), {}, 'roi_indices must have'),
        ((1, 3, 9, 9), (2, 4), (2,), {'output_size': (7, 0)}, 'output_size'),
        ((1, 3, 9, 9), (2, 4), (2,), {'bin_step': 0}, 'bin_step'),
    ],
)
def test_wrong_arguments(x, rois, indices, kwargs, message):
    kwargs = {'output_size': 7, 'spatial_scale': 1, **kwargs}
    with pytest.raises(ValueError, match=message):
        roi_max_pooling(np.zeros(x, np.float32), np.zeros(rois, np.float32), np.zeros(indices, np.int32), **kwargs)
