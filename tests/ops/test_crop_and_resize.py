import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.roi import crop_and_resize as module
from mask_rcnn.ops.roi.crop_and_resize import crop_and_resize


def axis_matrix(low, high, size, bins):
    """Weights (bins, size) of one RoI along one axis: hat functions around the points, in float64."""
    points = np.linspace(low, high, bins) if bins > 1 else np.array([(low + high) / 2])
    points = points * (size - 1)
    inside = (points >= 0) & (points <= size - 1)
    return np.maximum(1 - np.abs(points[:, None] - np.arange(size)), 0) * inside[:, None]


def reference(x, rois, indices, output_size, last=(1, 1)):
    """Crop and resize as two matrix products per RoI."""
    result = []
    for roi, index in zip(rois.astype(np.float64) / [*last, *last], indices):
        rows, columns = (axis_matrix(roi[axis], roi[axis + 2], x.shape[2 + axis], output_size[axis]) for axis in (0, 1))
        result.append(np.einsum('ip,cpq,jq->cij', rows, x[index].astype(np.float64), columns))
    return np.stack(result)


def random_problem(rng, n=12, channels=5, size=(17, 23), dtype=np.float32):
    """Two maps; RoIs of all sizes, inside and over the border, an empty and a reversed one among them."""
    x = rng.standard_normal((2, channels, *size)).astype(dtype)
    centre, side = rng.uniform(0, 1, (n, 2)), rng.uniform(0.01, 1.2, (n, 2))
    side[0], side[1] = 0, -0.3
    rois = np.concatenate((centre - side / 2, centre + side / 2), axis=1).astype(np.float32)
    return x, rois, rng.randint(0, 2, n).astype(np.int32)


def run(backend, x, rois, indices, **kwargs):
    return crop_and_resize(backend.array(x), backend.array(rois), backend.array(indices), **kwargs)


def gradient(backend, x, rois, indices, gy, **kwargs):
    x = chainer.Variable(backend.array(x))
    y = crop_and_resize(x, backend.array(rois), backend.array(indices), **kwargs)
    y.grad = backend.array(gy)
    y.backward()
    assert x.grad.dtype == x.dtype
    return backend.numpy(x.grad)


@pytest.mark.parametrize('output_size', [(7, 7), (14, 14), (5, 8), (2, 2), (1, 3)])
def test_equals_the_matrix_products(backend, rng, output_size):
    x, rois, indices = random_problem(rng)
    y = run(backend, x, rois, indices, output_size=output_size)
    assert y.dtype == np.float32
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, output_size), rtol=0, atol=2e-5)


@pytest.mark.parametrize('output_size', [(7, 7), (1, 3)])
def test_gradient_is_the_transposed_map(backend, rng, output_size):
    """``<gy, A x> = <A^T gy, x>`` for random ``x`` and ``gy``, RoI by RoI."""
    x, rois, indices = random_problem(rng)
    gy = rng.standard_normal((len(rois), 5, *output_size)).astype(np.float32)
    gx = gradient(backend, x, rois, indices, gy, output_size=output_size)
    other = rng.standard_normal(x.shape)
    expected = (reference(other, rois, indices, output_size) * gy).sum()
    np.testing.assert_allclose((gx * other).sum(), expected, rtol=1e-5)


def test_the_whole_map_with_its_own_size_is_the_map(backend, rng):
    x = rng.standard_normal((1, 3, 9, 11)).astype(np.float32)
    y = run(backend, x, np.float32([[0, 0, 8, 10]]), np.int32([0]), output_size=(9, 11), last=(8, 10))
    np.testing.assert_allclose(backend.numpy(y), x, rtol=0, atol=3e-6)


def test_points_outside_are_zero(backend):
    x = np.ones((1, 1, 5, 5), np.float32)
    y = run(backend, x, np.float32([[-0.25, 0, 1.25, 1]]), np.int32([0]), output_size=7)
    expected = np.ones((7, 7))
    expected[[0, -1]] = 0
    np.testing.assert_array_equal(backend.numpy(y)[0, 0], expected)


def test_last_gives_the_unit_of_the_rois(backend, rng):
    x, rois, indices = random_problem(rng)
    last = np.float32([127, 255])
    y = run(backend, x, rois * [*last, *last], indices, output_size=7, last=tuple(last))
    np.testing.assert_allclose(
        backend.numpy(y), backend.numpy(run(backend, x, rois, indices, output_size=7)), rtol=0, atol=2e-5
    )


def test_gradients(backend, rng):
    x, rois, indices = random_problem(rng, n=5, channels=2, size=(6, 7), dtype=np.float64)
    rois, indices = backend.array(rois), backend.array(indices)

    def function(x):
        return crop_and_resize(x, rois, indices, output_size=(3, 4))

    gy = rng.standard_normal(function(backend.array(x)).shape)
    ggx = rng.standard_normal(x.shape)
    x, gy, ggx = map(backend.array, (x, gy, ggx))
    gradient_check.check_backward(function, x, gy, dtype=np.float64, atol=1e-6, rtol=1e-6)
    gradient_check.check_double_backward(function, x, gy, ggx, dtype=np.float64, atol=1e-6, rtol=1e-6)


@pytest.mark.slow_emulated
def test_gradient_is_the_same_in_every_run(backend, rng):
    x, rois, indices = random_problem(rng, n=40, channels=33)
    gy = rng.standard_normal((40, 33, 7, 7)).astype(np.float32)
    runs = [gradient(backend, x, rois, indices, gy, output_size=7) for _ in range(3)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


@pytest.mark.parametrize('channels', [5, 8])
def test_float16_is_calculated_in_float32(backend, rng, channels):
    x, rois, indices = random_problem(rng, channels=channels, dtype=np.float16)
    y = run(backend, x, rois, indices, output_size=7)
    expected = run(backend, x.astype(np.float32), rois, indices, output_size=7)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected).astype(np.float16))
    gy = rng.standard_normal(y.shape).astype(np.float16)
    np.testing.assert_array_equal(
        gradient(backend, x, rois, indices, gy, output_size=7),
        gradient(backend, x.astype(np.float32), rois, indices, gy.astype(np.float32), output_size=7).astype('e'),
    )


@pytest.mark.slow_emulated
@pytest.mark.parametrize('channels', [1, 4, 65, 260])
def test_any_number_of_channels(backend, rng, channels):
    x, rois, indices = random_problem(rng, channels=channels)
    y = run(backend, x, rois, indices, output_size=3)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, (3, 3)), rtol=0, atol=2e-5)
    gx = gradient(backend, x, rois, indices, np.ones(y.shape, np.float32), output_size=3)
    for c in {0, channels // 2, channels - 1}:  # every channel has the same gradient as one alone
        alone = gradient(backend, x[:, :1], rois, indices, np.ones((len(rois), 1, 3, 3), np.float32), output_size=3)
        np.testing.assert_array_equal(gx[:, c], alone[:, 0])


def test_more_rois_than_a_block_lists(backend, rng):
    x, rois = np.zeros((2, 4, 3, 3), np.float32), np.tile(np.float32([0.5, 0.5, 0.5, 0.5]), (2600, 1))
    rois[rng.permutation(2600)[:100]] += 5  # outside
    indices = rng.randint(0, 2, 2600).astype(np.int32)
    gy = rng.standard_normal((2600, 4, 1, 1)).astype(np.float32)
    expected = np.zeros_like(x)  # every sample lies on pixel (1, 1)
    for i in np.flatnonzero(rois[:, 0] < 1):
        expected[indices[i], :, 1, 1] += gy[i, :, 0, 0]
    np.testing.assert_array_equal(gradient(backend, x, rois, indices, gy, output_size=1), expected)


def test_memory_layouts(backend, rng):
    """As the convolutions around want them, channels innermost on the GPU, outermost on the CPU; other maps pass."""
    order = (1, 0, 2, 3) if backend.name == 'cpu' else (0, 2, 3, 1)
    x, rois, indices = random_problem(rng, channels=8)
    expected = backend.numpy(run(backend, x, rois, indices, output_size=3))
    x = chainer.Variable(backend.xp.ascontiguousarray(backend.array(x).transpose(order)).transpose(np.argsort(order)))
    y = crop_and_resize(x, backend.array(rois), backend.array(indices), output_size=3)
    np.testing.assert_array_equal(backend.numpy(y), expected)
    y.grad = backend.xp.ones_like(y.array)
    y.backward()
    assert y.array.transpose(order).flags.c_contiguous and x.grad.transpose(order).flags.c_contiguous


@pytest.mark.parametrize(('dtype', 'name'), [('f', 'crop_and_resize_forward'), ('e', 'crop_and_resize_forward_half')])
def test_the_kernel_gets_the_maps_as_they_are(emulator, monkeypatch, rng, dtype, name):
    launched = []

    def kernel(source, name, *args):
        launch = emulator.kernel(source, name, *args)
        return lambda grid, block, arguments: (launched.append((name, arguments)), launch(grid, block, arguments))

    monkeypatch.setattr(module.cuda_kernels, 'kernel', kernel)
    x, rois, indices = random_problem(rng, channels=8, dtype=dtype)
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    points = [module._sample_points(rois[:, axis], rois[:, axis + 2], x.shape[2 + axis], 7) for axis in (0, 1)]
    y = module.forward_gpu(x, indices, *points)
    ((found, arguments),) = launched
    assert found == name and np.may_share_memory(arguments[0], x) and np.may_share_memory(arguments[-1], y)


def test_no_rois(backend):
    x, rois, indices = np.ones((1, 3, 5, 5), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    assert run(backend, x, rois, indices, output_size=7).shape == (0, 3, 7, 7)
    gx = gradient(backend, x, rois, indices, np.zeros((0, 3, 7, 7), np.float32), output_size=7)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_rois_outside_and_not_finite_are_zero(backend):
    rois = np.float32([[2, 2, 3, 3], [-3, 0, -2, 1], [np.nan, 0, 1, 1], [0, -np.inf, 1, np.inf]])
    x, indices = np.ones((1, 3, 9, 9), np.float32), np.zeros(4, np.int32)
    assert not backend.numpy(run(backend, x, rois, indices, output_size=3)).any()
    assert not gradient(backend, x, rois, indices, np.ones((4, 3, 3, 3), np.float32), output_size=3).any()


def test_index_outside_the_batch(backend):
    x, rois = np.ones((1, 3, 9, 9), np.float32), np.float32([[0, 0, 1, 1]] * 2)
    for index in (-1, 1):
        indices = np.int32([0, index])
        if backend.name == 'cuda':
            y = backend.numpy(run(backend, x, rois, indices, output_size=3))
            assert y[0].all() and not y[1].any()
        else:
            with pytest.raises(ValueError, match=r'roi_indices must be in \[0, 1\)'):
                run(backend, x, rois, indices, output_size=3)


@pytest.mark.parametrize(
    ('x', 'rois', 'indices', 'kwargs', 'message'),
    [
        ((1, 3, 9), (2, 4), (2,), {}, 'x must be'),
        ((1, 3, 9, 9), (2, 5), (2,), {}, 'rois must have'),
        ((1, 3, 9, 9), (2, 4), (3,), {}, 'roi_indices must have'),
        ((1, 3, 9, 9), (2, 4), (2,), {'output_size': 0}, 'output_size'),
        ((1, 3, 9, 9), (2, 4), (2,), {'last': (5, 0)}, 'last must be'),
    ],
)
def test_wrong_arguments(x, rois, indices, kwargs, message):
    with pytest.raises(ValueError, match=message):
        crop_and_resize(
            np.zeros(x, np.float32),
            np.zeros(rois, np.float32),
            np.zeros(indices, np.int32),
            **{'output_size': 7, **kwargs},
        )
