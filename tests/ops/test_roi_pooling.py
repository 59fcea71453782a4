"""Properties that all kinds of RoI pooling have in common."""

import chainer
import numpy as np
import pytest

from mask_rcnn.config import DETECTRON, DETECTRON2, MATTERPORT, TORCHVISION
from mask_rcnn.models import roi_pooling
from mask_rcnn.models.roi_pooling import assign_levels
from tests.support.roi_pooling import POOLINGS, SIZE, STRIDE, pool, pool_gradient, random_problem


@pytest.fixture(params=POOLINGS, ids=lambda pooling: pooling.name)
def pooling(request):
    return request.param


@pytest.fixture
def options(pooling):
    """The keyword arguments for the feature maps of ``random_problem``."""
    return pooling.at_stride(SIZE, STRIDE)


@pytest.mark.parametrize('channels', [1, 4, 65, 260, *(pytest.param(n, marks=pytest.mark.slow) for n in (63, 64, 130))])
def test_channels_are_independent(backend, rng, pooling, options, channels):
    """Every channel equals one that is pooled alone, whatever its block, lane and thread."""
    x, rois, indices = random_problem(rng, channels=channels)
    gy = rng.standard_normal((len(rois), channels, 3, 3)).astype(np.float32)
    y = backend.numpy(pool(backend, pooling.function, x, rois, indices, output_size=3, **options))
    gx = pool_gradient(backend, pooling.function, x, rois, indices, gy, output_size=3, **options)
    assert y.shape == gy.shape and y.dtype == np.float32
    for c in {0, channels // 2, channels - 1}:
        only = slice(c, c + 1)
        alone = pool(backend, pooling.function, x[:, only], rois, indices, output_size=3, **options)
        np.testing.assert_array_equal(y[:, only], backend.numpy(alone))
        alone = pool_gradient(
            backend, pooling.function, x[:, only], rois, indices, gy[:, only], output_size=3, **options
        )
        np.testing.assert_array_equal(gx[:, only], alone)


def test_the_gradient_is_the_same_in_every_run(backend, rng, pooling, options):
    x, rois, indices = random_problem(rng, n=40, channels=33)
    gy = rng.standard_normal((40, 33, 7, 7)).astype(np.float32)
    first, second, third = (
        pool_gradient(backend, pooling.function, x, rois, indices, gy, output_size=7, **options) for _ in range(3)
    )
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)


@pytest.mark.parametrize('channels', [4, 5, 24])
def test_float16_is_computed_in_float32(backend, rng, pooling, options, channels):
    x, rois, indices = random_problem(rng, channels=channels, dtype=np.float16)
    y = pool(backend, pooling.function, x, rois, indices, output_size=7, **options)
    expected = pool(backend, pooling.function, x.astype(np.float32), rois, indices, output_size=7, **options)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected).astype(np.float16))
    gy = rng.standard_normal(y.shape).astype(np.float16)
    gx, expected = (
        pool_gradient(
            backend, pooling.function, x.astype(dtype), rois, indices, gy.astype(dtype), output_size=7, **options
        )
        for dtype in (np.float16, np.float32)
    )
    np.testing.assert_array_equal(gx, expected.astype(np.float16))


@pytest.mark.parametrize('pooling', POOLINGS[:3], ids=lambda pooling: pooling.name)  # crop_and_resize has no bin_step
@pytest.mark.parametrize('bin_step', [2, 3])
def test_bin_step_skips_bins(backend, rng, pooling, options, bin_step):
    x, rois, indices = random_problem(rng)
    y = pool(backend, pooling.function, x, rois, indices, output_size=14, **options)
    part = pool(backend, pooling.function, x, rois, indices, output_size=14, bin_step=bin_step, **options)
    np.testing.assert_array_equal(backend.numpy(part), backend.numpy(y)[:, :, ::bin_step, ::bin_step])


def test_memory_layouts(backend, rng, pooling, options):
    """Maps of any layout are accepted; results have the channels last on a GPU and first on the CPU."""
    x, rois, indices = random_problem(rng, channels=8)
    expected = backend.numpy(pool(backend, pooling.function, x, rois, indices, output_size=3, **options))
    first, last = (1, 0, 2, 3), (0, 2, 3, 1)
    for order in (first, last):
        stored = backend.xp.ascontiguousarray(backend.array(x).transpose(order))
        maps = chainer.Variable(stored.transpose(np.argsort(order)))
        y = pooling.function(maps, backend.array(rois), backend.array(indices), output_size=3, **options)
        np.testing.assert_array_equal(backend.numpy(y), expected)
        y.grad = backend.xp.ones_like(y.array)
        y.backward()
        for array in (y.array, maps.grad):
            if backend.name != 'cpu':
                assert array.transpose(last).flags.c_contiguous
            elif pooling.has_layout:
                assert array.transpose(first).flags.c_contiguous


def test_views(backend, rng, pooling, options):
    x, rois, indices = random_problem(rng)
    views = x[:, ::-1, :, ::-1], rois[::-1], indices[::-1]
    y = pool(backend, pooling.function, *views, output_size=7, **options)
    expected = pool(backend, pooling.function, *(view.copy() for view in views), output_size=7, **options)
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected))


@pytest.mark.parametrize('channels', [1, 3, 4])
def test_more_rois_than_a_block_collects(backend, rng, pooling, channels):
    """All RoIs pool pixel (1, 1), apart from 100 that lie outside the map."""
    x, rois = np.zeros((2, channels, 3, 3), np.float32), np.tile(np.float32(pooling.pixel_roi), (2600, 1))
    is_outside = np.zeros(2600, bool)
    is_outside[rng.permutation(2600)[:100]] = True
    rois[is_outside] += 50
    indices = rng.randint(0, 2, 2600).astype(np.int32)
    gy = rng.standard_normal((2600, channels, 1, 1)).astype(np.float32)
    expected = np.zeros_like(x)
    for i in np.flatnonzero(~is_outside):
        expected[indices[i], :, 1, 1] += gy[i, :, 0, 0]
    options = pooling.at_stride((3, 3), 1)
    if pooling.name in ('align', 'aligned'):
        options['sampling_ratio'] = 1
    gx = pool_gradient(backend, pooling.function, x, rois, indices, gy, output_size=1, **options)
    np.testing.assert_array_equal(gx, expected)


def test_no_rois(backend, pooling):
    x, rois, indices = np.ones((1, 3, 5, 5), np.float32), np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    options = {'output_size': 7, **pooling.at_stride((5, 5), 1)}
    assert pool(backend, pooling.function, x, rois, indices, **options).shape == (0, 3, 7, 7)
    gx = pool_gradient(backend, pooling.function, x, rois, indices, np.zeros((0, 3, 7, 7), np.float32), **options)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


def test_rois_outside_and_not_finite_are_zero(backend, pooling):
    rois = np.float32(
        [[90, 90, 99, 99], [-99, 0, -90, 5], [np.nan, 0, 5, 5], [0, -np.inf, 5, np.inf], [0, 0, np.inf, 5]]
    )
    x, indices = np.ones((1, 3, 9, 9), np.float32), np.zeros(5, np.int32)
    options = {'output_size': 3, **pooling.at_stride((9, 9), 1)}
    y = pool(backend, pooling.function, x, rois, indices, **options)
    gx = pool_gradient(backend, pooling.function, x, rois, indices, np.ones((5, 3, 3, 3), np.float32), **options)
    assert not backend.numpy(y).any() and not gx.any()


@pytest.mark.parametrize('index', [-1, 1])
def test_an_index_outside_the_batch(backend, pooling, index):
    """It is an error on the CPU, where the indices are validated, and a RoI of zeros on a GPU."""
    x, rois, indices = np.ones((1, 3, 9, 9), np.float32), np.float32([[0, 0, 5, 5]] * 2), np.int32([0, index])
    options = {'output_size': 3, **pooling.at_stride((9, 9), 1)}
    if backend.name == 'cuda':
        y = backend.numpy(pool(backend, pooling.function, x, rois, indices, **options))
        assert y[0].all() and not y[1].any()
    else:
        with pytest.raises(ValueError, match=r'roi_indices must be in \[0, 1\)'):
            pool(backend, pooling.function, x, rois, indices, **options)


@pytest.mark.parametrize(
    ('x', 'rois', 'indices', 'message'),
    [
        ((1, 3, 9), (2, 4), (2,), 'x must be'),
        ((1, 3, 0, 9), (2, 4), (2,), 'x must be'),
        ((1, 3, 9, 9), (2, 5), (2,), 'rois must have'),
        ((1, 3, 9, 9), (2, 4), (3,), 'roi_indices must have'),
    ],
)
def test_wrong_shapes_are_an_error(pooling, x, rois, indices, message):
    options = pooling.at_stride((9, 9), 1)
    with pytest.raises(ValueError, match=message):
        pooling.function(
            np.zeros(x, np.float32), np.zeros(rois, np.float32), np.zeros(indices, np.int32), output_size=7, **options
        )


def test_integer_maps_are_an_error(pooling):
    with pytest.raises(ValueError, match='x must be floating-point'):
        pooling.function(
            np.zeros((1, 3, 9, 9), int),
            np.zeros((2, 4), np.float32),
            np.zeros(2, np.int32),
            output_size=7,
            **pooling.at_stride((9, 9), 1),
        )


@pytest.mark.parametrize('output_size', [0, (7, 0), -1])
def test_an_output_size_below_1_is_an_error(pooling, output_size):
    with pytest.raises(ValueError, match='output_size must be at least 1'):
        pooling.function(
            np.zeros((1, 3, 9, 9), np.float32),
            np.zeros((2, 4), np.float32),
            np.zeros(2, np.int32),
            output_size=output_size,
            **pooling.at_stride((9, 9), 1),
        )


@pytest.mark.parametrize('dialect', [DETECTRON, MATTERPORT, TORCHVISION, DETECTRON2])
@pytest.mark.parametrize('backend', ['emulated', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
def test_levels_on_a_gpu_equal_those_of_the_cpu(backend, rng, monkeypatch, dialect):
    """Also at the borders between levels, and with RoIs that are padding, empty or inverted."""
    sides = np.append(rng.uniform(1, 1500, 300), [0.5, 55, 56, 111, 112, 223, 224, 447, 448, 895, 896, -1, -2, np.nan])
    rois = np.stack([0 * sides + 3, 0 * sides + 7, sides + 3, sides + 7], axis=1).astype('f')
    options = {'canonical_size': 224, 'dialect': dialect}
    expected = assign_levels(rois, (4, 8, 16, 32), **options)
    if backend.name == 'emulated':
        monkeypatch.setattr(roi_pooling, 'get_array_module', lambda *arrays: None)
    levels = backend.numpy(assign_levels(backend.array(rois), (4, 8, 16, 32), **options))
    assert levels.dtype == np.int32 and set(levels) == {0, 1, 2, 3}
    np.testing.assert_array_equal(levels, expected)
