import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.roi import roi_align as module
from mask_rcnn.ops.roi.common import common_lanes
from mask_rcnn.ops.roi.roi_align import roi_align, roi_align_pyramid
from mask_rcnn.ops.runtime.memory_layout import channels_last


@pytest.fixture(scope='module')
def golden(data):
    return np.load(data / 'ops_roi_align.npz')


def caffe2_rois(golden):
    """The RoIs in our order, and the image of each."""
    rois = golden['rois']
    return rois[:, [2, 1, 4, 3]], rois[:, 0].astype(np.int32)


def axis_matrix(low, high, size, bins, scale, ratio, aligned):
    """Weights (bins, size) of one RoI along one axis: the mean of hat functions, in float64."""
    offset = 0.5 if aligned else 0
    start, stop = low * scale - offset, high * scale - offset
    length = stop - start if aligned else max(stop - start, 1)
    grid = ratio or int(np.ceil(length / bins))
    fraction = (np.arange(grid) + 0.5) / max(grid, 1)
    samples = start + (np.arange(bins)[:, None] + fraction) * length / bins
    inside = (samples >= -1) & (samples <= size)
    distance = np.abs(np.clip(samples, 0, size - 1)[..., None] - np.arange(size))
    return (np.maximum(1 - distance, 0) * inside[..., None]).sum(axis=1) / max(grid, 1)


def reference(x, rois, indices, output_size, spatial_scale, sampling_ratio=0, aligned=False, bin_step=1):
    """RoIAlign as two matrix products per RoI."""
    result = []
    for roi, index in zip(rois.astype(np.float64), indices):
        rows, columns = (
            axis_matrix(
                roi[axis], roi[axis + 2], x.shape[2 + axis], output_size[axis], spatial_scale, sampling_ratio, aligned
            )[::bin_step]
            for axis in (0, 1)
        )
        result.append(np.einsum('ip,cpq,jq->cij', rows, x[index].astype(np.float64), columns))
    return np.stack(result)


def random_problem(rng, n=12, channels=5, size=(17, 23), dtype=np.float32):
    """Two maps; RoIs of all sizes, inside and over the border, tiny and reversed ones among them."""
    x = rng.standard_normal((2, channels, *size)).astype(dtype)
    centre, side = rng.uniform(0, 16, (n, 2)) * size, rng.uniform(1, 200, (n, 2))
    side[0], side[1] = 0.5, -30
    rois = np.concatenate((centre - side / 2, centre + side / 2), axis=1).astype(np.float32)
    return x, rois, rng.randint(0, 2, n).astype(np.int32)


def run(backend, x, rois, indices, **kwargs):
    return roi_align(backend.array(x), backend.array(rois), backend.array(indices), **kwargs)


def gradient(backend, x, rois, indices, gy, **kwargs):
    x = chainer.Variable(backend.array(x))
    y = roi_align(x, backend.array(rois), backend.array(indices), **kwargs)
    y.grad = backend.array(gy)
    y.backward()
    assert x.grad.dtype == x.dtype
    return backend.numpy(x.grad)


def check_against_caffe2(backend, golden, size, ratio):
    rois, indices = caffe2_rois(golden)
    kwargs = dict(output_size=size, spatial_scale=float(golden['spatial_scale']), sampling_ratio=ratio)
    y = run(backend, golden['x'], rois, indices, **kwargs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(backend.numpy(y), golden[f'align_{size}_s{ratio}_y'], rtol=0, atol=1e-6)
    gx = gradient(backend, golden['x'], rois, indices, golden[f'dy_{size}'], **kwargs)
    np.testing.assert_allclose(gx, golden[f'align_{size}_s{ratio}_dx'], rtol=0, atol=1.2e-5)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('ratio', [0, 2])
def test_equals_caffe2(backend, golden, size, ratio):
    check_against_caffe2(backend, golden, size, ratio)


@pytest.mark.slow_emulated
@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('ratio', [0, 2])
def test_equals_caffe2_on_all_channels(backend, shared, size, ratio):
    check_against_caffe2(backend, np.load(shared / 'golden/ops/ops_roi_align.npz'), size, ratio)


@pytest.mark.parametrize(
    ('output_size', 'ratio', 'aligned'),
    [
        ((7, 7), 0, False),
        ((7, 7), 2, False),
        ((5, 8), 0, True),
        ((14, 14), 2, True),
        ((1, 1), 0, False),
        ((3, 2), 1, False),
    ],
)
@pytest.mark.parametrize('bin_step', [1, 2, 3])
def test_equals_the_matrix_products(backend, rng, output_size, ratio, aligned, bin_step):
    x, rois, indices = random_problem(rng)
    rois = rois[2:] if aligned else rois  # what aligned RoIs without extent mean is not defined
    indices = indices[-len(rois) :]
    kwargs = dict(
        output_size=output_size, spatial_scale=1 / 16, sampling_ratio=ratio, aligned=aligned, bin_step=bin_step
    )
    y = run(backend, x, rois, indices, **kwargs)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=1e-5)


@pytest.mark.parametrize('bin_step', [2, 3])
def test_bin_step_skips_bins(backend, rng, bin_step):
    x, rois, indices = random_problem(rng)
    kwargs = dict(output_size=14, spatial_scale=1 / 16)
    full = run(backend, x, rois, indices, **kwargs)
    part = run(backend, x, rois, indices, bin_step=bin_step, **kwargs)
    np.testing.assert_array_equal(backend.numpy(part), backend.numpy(full)[:, :, ::bin_step, ::bin_step])


@pytest.mark.slow_emulated
@pytest.mark.parametrize('channels', [1, 63, 64, 65, 130, 260])
def test_any_number_of_channels(backend, rng, channels):
    x, rois, indices = random_problem(rng, channels=channels)
    kwargs = dict(output_size=(3, 3), spatial_scale=1 / 16)
    y = run(backend, x, rois, indices, **kwargs)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=1e-5)
    gx = gradient(backend, x, rois, indices, np.ones(y.shape, np.float32), **kwargs)
    for c in {0, channels // 2, channels - 1}:  # every channel has the same gradient as one alone
        np.testing.assert_array_equal(
            gx[:, c],
            gradient(backend, x[:, :1], rois, indices, np.ones((len(rois), 1, 3, 3), np.float32), **kwargs)[:, 0],
        )


@pytest.mark.parametrize(('ratio', 'aligned', 'bin_step'), [(0, False, 1), (2, False, 2), (0, True, 2), (3, True, 1)])
def test_gradients(backend, rng, ratio, aligned, bin_step):
    x, rois, indices = random_problem(rng, n=5, channels=2, size=(6, 7), dtype=np.float64)
    rois, indices = backend.array(rois), backend.array(indices)

    def function(x):
        return roi_align(
            x,
            rois,
            indices,
            output_size=(3, 4),
            spatial_scale=1 / 16,
            sampling_ratio=ratio,
            aligned=aligned,
            bin_step=bin_step,
        )

    gy = rng.standard_normal(function(backend.array(x)).shape)
    ggx = rng.standard_normal(x.shape)
    x, gy, ggx = map(backend.array, (x, gy, ggx))
    gradient_check.check_backward(function, x, gy, dtype=np.float64, atol=1e-7, rtol=1e-7)
    gradient_check.check_double_backward(function, x, gy, ggx, dtype=np.float64, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(('channels', 'ratio', 'aligned'), [(4, 0, False), (5, 2, True), (20, 3, False)])
def test_kernels_give_the_gradient_of_the_cpu_bit_by_bit(emulator, monkeypatch, rng, channels, ratio, aligned):
    monkeypatch.setattr(module._cuda, 'kernel', emulator.kernel)
    maps, rois, indices, levels, scales = pyramid_problem(rng, 2, channels)
    regions = module._Regions(rois, indices, levels, tuple(scales), (5, 7), ratio, aligned, 1)
    gy, shapes = rng.standard_normal((20, channels, 5, 7)).astype(np.float32), [x.shape for x in maps]
    for ours, expected in zip(module.backward_gpu(gy, regions, shapes), module.backward_cpu(gy, regions, shapes)):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.slow_emulated
def test_gradient_is_the_same_in_every_run(backend, rng):
    x, rois, indices = random_problem(rng, n=40, channels=130)
    gy = rng.standard_normal((40, 130, 7, 7)).astype(np.float32)
    runs = [gradient(backend, x, rois, indices, gy, output_size=7, spatial_scale=1 / 16) for _ in range(3)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


@pytest.mark.slow_emulated
@pytest.mark.parametrize('channels', [5, 4, 24])
def test_float16_is_calculated_in_float32(backend, rng, channels):
    x, rois, indices = random_problem(rng, channels=channels, dtype=np.float16)
    kwargs = dict(output_size=(7, 7), spatial_scale=1 / 16)
    y = run(backend, x, rois, indices, **kwargs)
    expected = run(backend, x.astype(np.float32), rois, indices, **kwargs)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(expected).astype(np.float16))
    gy = rng.standard_normal(y.shape).astype(np.float16)
    np.testing.assert_array_equal(
        gradient(backend, x, rois, indices, gy, **kwargs),
        gradient(backend, x.astype(np.float32), rois, indices, gy.astype(np.float32), **kwargs).astype('e'),
    )


def test_views(backend, rng):
    x, rois, indices = random_problem(rng)
    kwargs = dict(output_size=(7, 7), spatial_scale=1 / 16)
    flipped = run(backend, x[:, ::-1, :, ::-1], rois[::-1], indices[::-1], **kwargs)
    expected = run(backend, x[:, ::-1, :, ::-1].copy(), rois[::-1].copy(), indices[::-1].copy(), **kwargs)
    np.testing.assert_array_equal(backend.numpy(flipped), backend.numpy(expected))


def test_no_rois(backend):
    x = np.ones((1, 3, 5, 5), np.float32)
    rois, indices = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    assert run(backend, x, rois, indices, output_size=7, spatial_scale=1).shape == (0, 3, 7, 7)
    gx = gradient(backend, x, rois, indices, np.zeros((0, 3, 7, 7), np.float32), output_size=7, spatial_scale=1)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


@pytest.mark.parametrize('aligned', [False, True])
def test_rois_outside_and_not_finite_are_zero(backend, aligned):
    rois = np.float32(
        [[90, 90, 99, 99], [-99, 0, -90, 5], [np.nan, 0, 5, 5], [0, -np.inf, 5, np.inf], [0, 0, np.inf, 5]]
    )
    x, indices = np.ones((1, 3, 9, 9), np.float32), np.zeros(5, np.int32)
    kwargs = dict(output_size=3, spatial_scale=1, aligned=aligned)
    assert not backend.numpy(run(backend, x, rois, indices, **kwargs)).any()
    assert not gradient(backend, x, rois, indices, np.ones((5, 3, 3, 3), np.float32), **kwargs).any()


def test_index_outside_the_batch(backend):
    x, rois = np.ones((1, 3, 9, 9), np.float32), np.float32([[0, 0, 5, 5]] * 2)
    kwargs = dict(output_size=3, spatial_scale=1)
    for index in (-1, 1):
        indices = np.int32([0, index])
        if backend.name == 'cuda':
            y = backend.numpy(run(backend, x, rois, indices, **kwargs))
            assert y[0].all() and not y[1].any()
        else:
            with pytest.raises(ValueError, match=r'roi_indices must be in \[0, 1\)'):
                run(backend, x, rois, indices, **kwargs)


@pytest.mark.parametrize(
    ('x', 'rois', 'indices', 'kwargs', 'message'),
    [
        ((1, 3, 9), (2, 4), (2,), {}, 'x must be'),
        ((1, 3, 0, 9), (2, 4), (2,), {}, 'x must be'),
        ((1, 3, 9, 9), (2, 5), (2,), {}, 'rois must have'),
        ((1, 3, 9, 9), (2, 4), (3,), {}, 'roi_indices must have'),
        ((1, 3, 9, 9), (2, 4), (2,), {'output_size': 0}, 'output_size'),
        ((1, 3, 9, 9), (2, 4), (2,), {'sampling_ratio': -1}, 'sampling_ratio'),
        ((1, 3, 9, 9), (2, 4), (2,), {'output_size': (7, 257)}, 'at most 256 bins'),
        ((1, 3, 9, 9), (2, 4), (2,), {'bin_step': 0}, 'bin_step'),
    ],
)
def test_wrong_arguments(x, rois, indices, kwargs, message):
    kwargs = {'output_size': 7, 'spatial_scale': 1, **kwargs}
    with pytest.raises(ValueError, match=message):
        roi_align(np.zeros(x, np.float32), np.zeros(rois, np.float32), np.zeros(indices, np.int32), **kwargs)


@pytest.mark.parametrize(('output_size', 'ratio'), [((1, 1), 0), ((1, 2), 2), ((40, 3), 0), ((1, 250), 2)])
def test_wide_rois_and_many_bins(backend, rng, output_size, ratio):
    """More pixels of a bin than a block's table holds, more columns than a block computes."""
    x = rng.standard_normal((1, 4, 5, 600)).astype(np.float32)
    rois = np.float32([[0, 0, 5, 600], [-1, 3, 3, 590]])
    indices, kwargs = np.zeros(2, np.int32), dict(output_size=output_size, spatial_scale=1, sampling_ratio=ratio)
    y = run(backend, x, rois, indices, **kwargs)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=5e-4)
    gy = rng.standard_normal(y.shape).astype(np.float32)
    gx, other = gradient(backend, x, rois, indices, gy, **kwargs), rng.standard_normal(x.shape)
    np.testing.assert_allclose((gx * other).sum(), (reference(other, rois, indices, **kwargs) * gy).sum(), rtol=1e-4)


@pytest.mark.parametrize('channels', [1, 4])
def test_more_rois_than_a_block_lists(backend, rng, channels):
    x, rois = np.zeros((2, channels, 3, 3), np.float32), np.tile(np.float32([0, 0, 2, 2]), (2600, 1))
    rois[rng.permutation(2600)[:100]] += 50  # outside
    indices = rng.randint(0, 2, 2600).astype(np.int32)
    gy = rng.standard_normal((2600, channels, 1, 1)).astype(np.float32)
    regions = module._Regions(*map(backend.array, (rois, indices, 0 * indices)), (1.0,), (1, 1), 1, False, 1)
    (gx,) = module._RoIAlignGrad(regions, [x.shape]).apply((backend.array(gy),))
    expected = np.zeros_like(x)  # every sample lies on pixel (1, 1)
    for i in np.flatnonzero(rois[:, 0] == 0):
        expected[indices[i], :, 1, 1] += gy[i, :, 0, 0]
    np.testing.assert_array_equal(backend.numpy(gx), expected)


def test_nan_stays_where_it_is_read(backend):
    """A gradient that is NaN reaches the pixels of its bin only."""
    gy = np.zeros((1, 4, 2, 2), np.float32)
    gy[0, :, 0, 0] = np.nan
    x = np.zeros((1, 4, 8, 8), np.float32)
    gx = gradient(backend, x, np.float32([[0, 0, 8, 8]]), np.int32([0]), gy, output_size=2, spatial_scale=1)
    assert np.isnan(gx[:, :, :4, :4]).all() and not np.isnan(gx[:, :, 5:]).any() and not np.isnan(gx[..., 5:]).any()


def test_memory_layouts(backend, rng):
    """As the convolutions around want them, channels innermost on the GPU, outermost on the CPU; other maps pass."""
    order = (1, 0, 2, 3) if backend.name == 'cpu' else (0, 2, 3, 1)
    x, rois, indices = random_problem(rng, channels=8)
    kwargs = dict(output_size=(3, 4), spatial_scale=1 / 16)
    expected = backend.numpy(run(backend, x, rois, indices, **kwargs))
    x = chainer.Variable(backend.xp.ascontiguousarray(backend.array(x).transpose(order)).transpose(np.argsort(order)))
    y = roi_align(x, backend.array(rois), backend.array(indices), **kwargs)
    np.testing.assert_array_equal(backend.numpy(y), expected)
    y.grad = backend.xp.ones_like(y.array)
    y.backward()
    assert y.array.transpose(order).flags.c_contiguous and x.grad.transpose(order).flags.c_contiguous
    if backend.name != 'cpu':
        assert backend.xp.may_share_memory(channels_last(x.array), x.array)


def test_lanes_need_aligned_multiples(backend):
    aligned = backend.xp.zeros(1024, np.float32)
    for channels, offset, lanes in ((8, 0, 4), (6, 0, 1), (8, 1, 1), (8, 4, 4)):
        part = aligned[offset : offset + channels * 6].reshape(1, 2, 3, channels)
        assert common_lanes(4, part) == common_lanes(4, aligned.reshape(1, 2, 64, 8), part) == lanes


def test_maps_that_are_not_aligned(backend, rng):
    x, rois, indices = random_problem(rng, channels=8)
    flat = backend.xp.zeros(x.size + 1, np.float32)
    shifted = flat[1:].reshape(2, 17, 23, 8).transpose(0, 3, 1, 2)
    shifted[...] = backend.array(x)
    kwargs = dict(output_size=3, spatial_scale=1 / 16)
    y = roi_align(shifted, backend.array(rois), backend.array(indices), **kwargs)
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(run(backend, x, rois, indices, **kwargs)))


def pyramid_problem(rng, n_maps, channels=5, dtype=np.float32):
    """Maps of two images, RoIs with their images and levels, and the maps' scales."""
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32][:n_maps]
    maps = [rng.standard_normal((2, channels, int(70 * s) + 1, int(90 * s))).astype(dtype) for s in scales]
    rois = rng.uniform(-10, 90, (20, 4)).astype(np.float32)
    rois[:, 2:] = rois[:, :2] + rng.uniform(0, 60, (20, 2))
    return maps, rois, rng.randint(0, 2, 20).astype(np.int32), rng.randint(0, n_maps, 20).astype(np.int32), scales


@pytest.mark.parametrize(
    ('n_maps', 'channels', 'dtype'), [(1, 5, 'f'), (2, 8, 'f'), (4, 5, 'e'), (4, 16, 'e'), (4, 4, 'f')]
)
def test_pyramid_is_roi_align_of_every_rois_map(backend, rng, n_maps, channels, dtype):
    maps, rois, indices, levels, scales = pyramid_problem(rng, n_maps, channels, dtype)
    maps = [chainer.Variable(backend.array(x)) for x in maps]
    kwargs = dict(output_size=(3, 4), sampling_ratio=2)
    y = roi_align_pyramid(
        maps, backend.array(rois), backend.array(indices), backend.array(levels), spatial_scales=scales, **kwargs
    )
    gy = rng.standard_normal(y.shape).astype(dtype)
    y.grad = backend.array(gy)
    y.backward()
    for level, x in enumerate(maps):
        own = np.flatnonzero(levels == level)
        alone = chainer.Variable(x.array)
        expected = roi_align(
            alone, backend.array(rois[own]), backend.array(indices[own]), spatial_scale=scales[level], **kwargs
        )
        expected.grad = backend.array(gy[own])
        expected.backward()
        np.testing.assert_array_equal(backend.numpy(y)[own], backend.numpy(expected))
        np.testing.assert_array_equal(backend.numpy(x.grad), backend.numpy(alone.grad))
        assert y.dtype == x.grad.dtype == dtype


def test_gradients_of_a_pyramid(backend, rng):
    maps, rois, indices, levels, scales = pyramid_problem(rng, 2, 2, np.float64)
    rois, indices, levels = map(backend.array, (rois, indices, levels))

    def function(*maps):
        return roi_align_pyramid(maps, rois, indices, levels, output_size=2, spatial_scales=scales)

    gy, ggx = rng.standard_normal((20, 2, 2, 2)), [backend.array(rng.standard_normal(x.shape)) for x in maps]
    maps = tuple(map(backend.array, maps))
    gradient_check.check_double_backward(
        function, maps, backend.array(gy), tuple(ggx), dtype=np.float64, atol=1e-7, rtol=1e-7
    )


def test_second_derivative_of_one_map(backend, rng):
    """The other maps' gradients need not be used."""
    maps, rois, indices, levels, scales = pyramid_problem(rng, 3)
    maps = [chainer.Variable(backend.array(x)) for x in maps]
    y = roi_align_pyramid(maps, *map(backend.array, (rois, indices, levels)), output_size=2, spatial_scales=scales)
    gy = chainer.Variable(backend.array(rng.standard_normal(y.shape).astype(np.float32)))
    (gx,) = chainer.grad([y], [maps[1]], [gy], enable_double_backprop=True)
    (ggy,) = chainer.grad([gx], [gy], [maps[1]])
    expected = backend.numpy(y) * (levels == 1)[:, None, None, None]
    np.testing.assert_allclose(backend.numpy(ggy), expected, rtol=0, atol=1e-6)


def test_level_outside_the_pyramid(backend):
    maps, rois = [np.ones((1, 3, 9 // n, 9 // n), np.float32) for n in (1, 2)], np.float32([[0, 0, 5, 5]] * 2)
    for level in (-1, 2):
        arguments = [*map(backend.array, (rois, np.zeros(2, np.int32), np.int32([1, level])))]
        kwargs = dict(output_size=3, spatial_scales=(1, 1 / 2))
        if backend.name == 'cpu':
            with pytest.raises(ValueError, match=r'levels must be in \[0, 2\)'):
                roi_align_pyramid(maps, *arguments, **kwargs)
        else:
            y = backend.numpy(roi_align_pyramid([*map(backend.array, maps)], *arguments, **kwargs))
            assert y[0].all() and not y[1].any()


@pytest.mark.parametrize('channels', [3, 4, 8])
@pytest.mark.parametrize('dtype', ['f', 'e'])
def test_emulated_kernels_skip_what_is_padding(emulator, monkeypatch, rng, channels, dtype):
    """RoIs of no image, or not finite, are zero and give nothing, whatever they claim to be."""
    monkeypatch.setattr(module._cuda, 'kernel', emulator.kernel)
    maps, rois, indices, levels, scales = pyramid_problem(rng, 3, channels, dtype)
    indices[::3], rois[1::3] = -1, np.nan
    regions = module._Regions(rois, indices, levels, tuple(scales), (3, 3), 2, False, 1)
    gy = rng.standard_normal((20, channels, 3, 3)).astype(dtype)
    y, gx = module.forward_gpu(maps, regions), module.backward_gpu(gy, regions, [x.shape for x in maps])
    kept = slice(2, None, 3)
    regions = module._Regions(
        *(array[kept].copy() for array in (rois, indices, levels)), tuple(scales), (3, 3), 2, False, 1
    )
    assert not y[::3].any() and not y[1::3].any()
    np.testing.assert_array_equal(y[kept], module.forward_gpu(maps, regions))
    for ours, expected in zip(gx, module.backward_gpu(gy[kept], regions, [x.shape for x in maps])):
        np.testing.assert_array_equal(ours, expected)


def test_pyramid_is_one_launch(emulator, monkeypatch, rng):
    """Of a kernel that gets the maps as they are."""
    launched = []

    def kernel(source, name, *args):
        launch = emulator.kernel(source, name, *args)
        return lambda grid, block, arguments: (launched.append((name, arguments)), launch(grid, block, arguments))

    monkeypatch.setattr(module._cuda, 'kernel', kernel)
    maps, rois, indices, levels, scales = pyramid_problem(rng, 4, 8, np.float16)
    maps = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in maps]
    y = module.forward_gpu(maps, module._Regions(rois, indices, levels, tuple(scales), (7, 7), 2, False, 1))
    ((name, arguments),) = launched
    assert name == 'roi_align_forward_half_8' and y.dtype == np.float16
    assert all(map(np.may_share_memory, arguments[:4], maps)) and np.may_share_memory(arguments[-1], y)


@pytest.mark.parametrize(
    ('maps', 'scales', 'levels', 'message'),
    [
        ([], [], (2,), 'maps must be 1 to 4'),
        ([(1, 3, 9, 9)] * 5, [1] * 5, (2,), 'maps must be 1 to 4'),
        ([(1, 3, 9, 9)] * 2, [1], (2,), 'maps must be 1 to 4, with a scale each'),
        ([(1, 3, 9, 9), (1, 4, 5, 5)], [1, 0.5], (2,), 'maps must differ in their size only'),
        ([(1, 3, 9, 9), (1, 3, 5, 0)], [1, 0.5], (2,), 'maps must differ in their size only'),
        ([(1, 3, 9, 9), (1, 3, 5, 5)], [1, 0.5], (3,), 'levels must have the shape'),
    ],
)
def test_wrong_pyramids(maps, scales, levels, message):
    maps = [np.zeros(shape, np.float32) for shape in maps]
    with pytest.raises(ValueError, match=message):
        roi_align_pyramid(
            maps,
            np.zeros((2, 4), np.float32),
            np.zeros(2, np.int32),
            np.zeros(levels, np.int32),
            output_size=7,
            spatial_scales=scales,
        )


def test_integer_maps():
    with pytest.raises(ValueError, match='x must be floating-point'):
        roi_align(
            np.zeros((1, 3, 9, 9), int),
            np.zeros((2, 4), np.float32),
            np.zeros(2, np.int32),
            output_size=7,
            spatial_scale=1,
        )
