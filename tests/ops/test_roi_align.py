"""RoIAlign against Caffe2's results and against matrix products; see also test_roi_pooling.py."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.cudnn_frontend import gradient_sum
from mask_rcnn.ops.roi import roi_align_cpu, roi_align_gpu
from mask_rcnn.ops.roi.roi_align import roi_align, roi_align_pyramid
from mask_rcnn.ops.roi.roi_align_regions import Epilogue, Regions
from mask_rcnn.ops.runtime.memory_layout import channels_last, vector_lanes
from tests.support.arrays import SWAP_XY
from tests.support.roi_pooling import pool, pool_gradient, pool_with_matrices, random_problem


@pytest.fixture(scope='module')
def caffe2(data):
    return np.load(data / 'ops_roi_align.npz')


def axis_matrix(low, high, size, bins, scale, ratio, aligned):
    """Return the weights (bins, size) of one RoI along one axis: the mean of hat functions, in float64."""
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
    """Apply RoIAlign as matrix products."""
    rois = rois.astype(np.float64)

    def matrix(r, axis):
        low, high, size, bins = rois[r, axis], rois[r, axis + 2], x.shape[2 + axis], output_size[axis]
        return axis_matrix(low, high, size, bins, spatial_scale, sampling_ratio, aligned)[::bin_step]

    return pool_with_matrices(x, indices, matrix)


def assert_equals_caffe2(backend, caffe2, size, ratio):
    x, rois = caffe2['x'], caffe2['rois']
    rois, indices = rois[:, 1:][:, SWAP_XY], rois[:, 0].astype(np.int32)
    options = dict(output_size=size, spatial_scale=float(caffe2['spatial_scale']), sampling_ratio=ratio)
    y = pool(backend, roi_align, x, rois, indices, **options)
    assert y.dtype == np.float32
    np.testing.assert_allclose(backend.numpy(y), caffe2[f'align_{size}_s{ratio}_y'], rtol=0, atol=1e-6)
    gx = pool_gradient(backend, roi_align, x, rois, indices, caffe2[f'dy_{size}'], **options)
    np.testing.assert_allclose(gx, caffe2[f'align_{size}_s{ratio}_dx'], rtol=0, atol=1.2e-5)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_equals_caffe2(backend, caffe2, size, ratio):
    assert_equals_caffe2(backend, caffe2, size, ratio)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('ratio', [0, 2])
def test_roi_align_equals_caffe2_in_all_channels(backend, golden, size, ratio):
    assert_equals_caffe2(backend, np.load(golden / 'ops/ops_roi_align.npz'), size, ratio)


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
def test_roi_align_equals_matrix_products(backend, rng, output_size, ratio, aligned, bin_step):
    x, rois, indices = random_problem(rng)
    if aligned:  # the reference does not define reversed and empty aligned RoIs
        rois, indices = rois[3:], indices[3:]
    kwargs = dict(
        output_size=output_size, spatial_scale=1 / 16, sampling_ratio=ratio, aligned=aligned, bin_step=bin_step
    )
    y = pool(backend, roi_align, x, rois, indices, **kwargs)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=1e-5)


def test_aligned_rois_without_area_have_no_samples(backend, rng):
    """A side of 0 or less has ceil(side / bins) <= 0 samples; a side of less than a pixel has one per bin."""
    x = rng.uniform(1, 2, (1, 3, 9, 9)).astype(np.float32)
    rois = np.float32([[2, 2, 2, 7], [2, 2, 7, 2], [7, 2, 2, 7], [7, 7, 2, 2], [3, 4, 3.4, 4.2]])
    options = dict(output_size=2, spatial_scale=1.0, sampling_ratio=0, aligned=True)
    indices = np.zeros(5, np.int32)
    y = backend.numpy(pool(backend, roi_align, x, rois, indices, **options))
    assert not y[:4].any()
    np.testing.assert_allclose(
        y[4:], reference(x, rois[4:], indices[4:], **{**options, 'output_size': (2, 2)}), rtol=1e-6
    )
    gy = rng.uniform(1, 2, y.shape).astype(np.float32)
    gx = pool_gradient(backend, roi_align, x, rois, indices, gy, **options)
    only = pool_gradient(backend, roi_align, x, rois[4:], indices[4:], gy[4:], **options)
    np.testing.assert_array_equal(gx, only)
    np.testing.assert_allclose(gx.sum(axis=(2, 3))[0], gy[4].sum(axis=(1, 2)), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(('ratio', 'aligned', 'bin_step'), [(0, False, 1), (2, False, 2), (0, True, 2), (3, True, 1)])
def test_gradients_equal_numerical_ones(backend, rng, ratio, aligned, bin_step):
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
def test_cpu_and_gpu_gradients_have_the_same_bits(emulated_kernels, rng, channels, ratio, aligned):
    features, rois, indices, levels, scales = pyramid_problem(rng, 2, channels)
    regions = Regions(rois, indices, levels, tuple(scales), (5, 7), ratio, aligned, 1)
    gy, shapes = rng.standard_normal((20, channels, 5, 7)).astype(np.float32), [x.shape for x in features]
    on_gpu, on_cpu = roi_align_gpu.backward_gpu(gy, regions, shapes), roi_align_cpu.backward_cpu(gy, regions, shapes)
    for gx, expected in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_array_equal(gx, expected)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'sampling_ratio': -1}, 'sampling_ratio must be 0 or more, not -1'),
        ({'output_size': (7, 257)}, 'output_size must give at most 256 bins'),
        ({'bin_step': 0}, 'bin_step must be at least 1, not 0'),
    ],
)
def test_wrong_options_are_an_error(options, message):
    x, rois, indices = np.zeros((1, 3, 9, 9), 'f'), np.zeros((2, 4), 'f'), np.zeros(2, np.int32)
    with pytest.raises(ValueError, match=message):
        roi_align(x, rois, indices, **{'output_size': 7, 'spatial_scale': 1, **options})


@pytest.mark.parametrize(('output_size', 'ratio'), [((1, 1), 0), ((1, 2), 2), ((40, 3), 0), ((1, 250), 2)])
def test_wide_rois_and_many_bins(backend, rng, output_size, ratio):
    """Bins have more pixels than a block's table holds, and rows more bins than a block computes."""
    x = rng.standard_normal((1, 8, 5, 600)).astype(np.float32)
    rois = np.float32([[0, 0, 5, 600], [-1, 3, 3, 590]])
    indices, kwargs = np.zeros(2, np.int32), dict(output_size=output_size, spatial_scale=1, sampling_ratio=ratio)
    y = pool(backend, roi_align, x, rois, indices, **kwargs)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=5e-4)
    gy = rng.standard_normal(y.shape).astype(np.float32)
    gx, other = pool_gradient(backend, roi_align, x, rois, indices, gy, **kwargs), rng.standard_normal(x.shape)
    np.testing.assert_allclose((gx * other).sum(), (reference(other, rois, indices, **kwargs) * gy).sum(), rtol=1e-4)


def test_a_nan_gradient_reaches_only_the_pixels_of_its_bin(backend):
    gy = np.zeros((1, 4, 2, 2), np.float32)
    gy[0, :, 0, 0] = np.nan
    x = np.zeros((1, 4, 8, 8), np.float32)
    roi, index = np.float32([[0, 0, 8, 8]]), np.int32([0])
    gx = pool_gradient(backend, roi_align, x, roi, index, gy, output_size=2, spatial_scale=1)
    assert np.isnan(gx[:, :, :4, :4]).all() and not np.isnan(gx[:, :, 5:]).any() and not np.isnan(gx[..., 5:]).any()


def test_channels_last_does_not_copy_arrays_with_that_layout(backend):
    x = backend.xp.zeros((2, 5, 6, 8), np.float32).transpose(0, 3, 1, 2)
    assert backend.xp.may_share_memory(channels_last(x), x)


@pytest.mark.parametrize(('channels', 'offset', 'lanes'), [(8, 0, 4), (6, 0, 1), (8, 1, 1), (8, 4, 4)])
def test_vector_lanes_need_a_multiple_of_channels_and_alignment(backend, channels, offset, lanes):
    aligned = backend.xp.zeros(1024, np.float32)
    part = aligned[offset : offset + channels * 6].reshape(1, 2, 3, channels)
    assert vector_lanes(4, part) == vector_lanes(4, aligned.reshape(1, 2, 64, 8), part) == lanes


def test_maps_that_are_not_aligned_in_memory(backend, rng):
    x, rois, indices = random_problem(rng, channels=8)
    flat = backend.xp.zeros(x.size + 1, np.float32)
    shifted = flat[1:].reshape(2, 17, 23, 8).transpose(0, 3, 1, 2)
    shifted[...] = backend.array(x)
    kwargs = dict(output_size=3, spatial_scale=1 / 16)
    y = roi_align(shifted, backend.array(rois), backend.array(indices), **kwargs)
    np.testing.assert_array_equal(backend.numpy(y), backend.numpy(pool(backend, roi_align, x, rois, indices, **kwargs)))


@pytest.mark.parametrize(
    ('dtype', 'channels', 'offset', 'kernel'),
    [
        ('f', 16, 0, '8'),
        ('f', 12, 0, '4'),
        ('f', 3, 0, '1'),
        ('f', 16, 4, '8'),
        ('f', 16, 1, '1'),
        ('d', 16, 0, '4'),
        ('d', 16, 1, '1'),
        ('e', 16, 0, 'half_8'),
        ('e', 12, 0, 'half_1'),
        ('e', 16, 4, 'half_1'),
    ],
)
def test_the_forward_kernel_has_the_most_lanes_that_fit(emulated_kernels, rng, dtype, channels, offset, kernel):
    """A view that starts ``offset`` elements after an aligned address gives the bits of an aligned map."""
    x, rois, indices = random_problem(rng, channels=channels, dtype=dtype)
    pixels = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    buffer = np.zeros(pixels.size + 32, dtype)
    start = -buffer.ctypes.data % 16 // buffer.itemsize + offset
    view = buffer[start : start + pixels.size].reshape(pixels.shape)
    view[...] = pixels
    regions = Regions(rois, indices, np.zeros(12, np.int32), (1 / 16,), (3, 4), 0, False, 1)
    y = roi_align_gpu.forward_gpu([view.transpose(0, 3, 1, 2)], regions)
    assert [name for name, _ in emulated_kernels] == [f'roi_align_forward_{kernel}']
    one_channel = [roi_align_gpu.forward_gpu([x[:, c : c + 1]], regions) for c in range(channels)]
    np.testing.assert_array_equal(y, np.concatenate(one_channel, axis=1))


def pyramid_problem(rng, n_levels, channels=5, dtype=np.float32):
    """Return feature maps of two images, RoIs with their images and levels, and the scales of the maps."""
    scales = [1 / 4, 1 / 8, 1 / 16, 1 / 32][:n_levels]
    features = [rng.standard_normal((2, channels, int(70 * s) + 1, int(90 * s))).astype(dtype) for s in scales]
    rois = rng.uniform(-10, 90, (20, 4)).astype(np.float32)
    rois[:, 2:] = rois[:, :2] + rng.uniform(0, 60, (20, 2))
    indices, levels = (rng.randint(0, n, 20).astype(np.int32) for n in (2, n_levels))
    return features, rois, indices, levels, scales


@pytest.mark.parametrize(
    ('n_levels', 'channels', 'dtype'), [(1, 5, 'f'), (2, 8, 'f'), (4, 5, 'e'), (4, 16, 'e'), (4, 4, 'f')]
)
def test_a_pyramid_equals_roi_align_of_each_level(backend, rng, n_levels, channels, dtype):
    features, rois, indices, levels, scales = pyramid_problem(rng, n_levels, channels, dtype)
    features = [chainer.Variable(backend.array(x)) for x in features]
    kwargs = dict(output_size=(3, 4), sampling_ratio=2)
    y = roi_align_pyramid(
        features, backend.array(rois), backend.array(indices), backend.array(levels), spatial_scales=scales, **kwargs
    )
    gy = rng.standard_normal(y.shape).astype(dtype)
    y.grad = backend.array(gy)
    y.backward()
    for level, x in enumerate(features):
        members = np.flatnonzero(levels == level)
        alone = chainer.Variable(x.array)
        expected = roi_align(
            alone, backend.array(rois[members]), backend.array(indices[members]), spatial_scale=scales[level], **kwargs
        )
        expected.grad = backend.array(gy[members])
        expected.backward()
        np.testing.assert_array_equal(backend.numpy(y)[members], backend.numpy(expected))
        np.testing.assert_array_equal(backend.numpy(x.grad), backend.numpy(alone.grad))
        assert y.dtype == x.grad.dtype == dtype


def test_gradients_of_a_pyramid_equal_numerical_ones(backend, rng):
    features, rois, indices, levels, scales = pyramid_problem(rng, 2, 2, np.float64)
    rois, indices, levels = map(backend.array, (rois, indices, levels))

    def function(*features):
        return roi_align_pyramid(features, rois, indices, levels, output_size=2, spatial_scales=scales)

    gy, ggx = rng.standard_normal((20, 2, 2, 2)), [backend.array(rng.standard_normal(x.shape)) for x in features]
    features = tuple(map(backend.array, features))
    gradient_check.check_double_backward(
        function, features, backend.array(gy), tuple(ggx), dtype=np.float64, atol=1e-7, rtol=1e-7
    )


def test_the_second_derivative_of_one_level(backend, rng):
    """The gradients of the other levels are not used."""
    features, rois, indices, levels, scales = pyramid_problem(rng, 3)
    features = [chainer.Variable(backend.array(x)) for x in features]
    y = roi_align_pyramid(features, *map(backend.array, (rois, indices, levels)), output_size=2, spatial_scales=scales)
    gy = chainer.Variable(backend.array(rng.standard_normal(y.shape).astype(np.float32)))
    (gx,) = chainer.grad([y], [features[1]], [gy], enable_double_backprop=True)
    (ggy,) = chainer.grad([gx], [gy], [features[1]])
    expected = backend.numpy(y) * (levels == 1)[:, None, None, None]
    np.testing.assert_allclose(backend.numpy(ggy), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('dtype', [np.float32, np.float16])
def test_the_gradients_of_two_poolings_are_added(backend, rng, dtype, monkeypatch):
    """On a GPU one kernel adds them in place; CuPy would write a sum with another memory layout."""
    if backend.name == 'emulated':
        monkeypatch.setattr(gradient_sum, 'get_array_module', lambda *arrays: None)
    epilogues, apply_epilogue = [], gradient_sum.apply_epilogue
    monkeypatch.setattr(
        gradient_sum,
        'apply_epilogue',
        lambda *args, **options: epilogues.append(args) or apply_epilogue(*args, **options),
    )
    x = chainer.Variable(backend.array(rng.randn(1, 8, 10, 12).astype(dtype)))
    rois, indices = backend.array(np.array([[4, 4, 60, 70]], 'f')), backend.array(np.zeros(1, 'i'))
    outputs = [roi_align(x, rois, indices, output_size=size, spatial_scale=1 / 8) for size in (3, 5)]
    gradients = [backend.numpy(chainer.grad([y], [x])[0]) for y in outputs]
    (total,) = chainer.grad(outputs, [x])
    np.testing.assert_array_equal(backend.numpy(total), gradients[0] + gradients[1])
    if backend.name != 'cpu':
        assert len(epilogues) == 1 and total.array.transpose(0, 2, 3, 1).flags.c_contiguous


@pytest.mark.parametrize('level', [-1, 2])
def test_a_level_out_of_range(backend, level):
    """It is an error on the CPU, where the levels are validated, and a RoI of zeros on a GPU."""
    features = [backend.array(np.ones((1, 3, side, side), np.float32)) for side in (9, 4)]
    rois, indices, levels = np.float32([[0, 0, 5, 5]] * 2), np.zeros(2, np.int32), np.int32([1, level])
    arguments, options = map(backend.array, (rois, indices, levels)), dict(output_size=3, spatial_scales=(1, 1 / 2))
    if backend.name == 'cpu':
        with pytest.raises(ValueError, match=r'levels must be in \[0, 2\)'):
            roi_align_pyramid(features, *arguments, **options)
    else:
        y = backend.numpy(roi_align_pyramid(features, *arguments, **options))
        assert y[0].all() and not y[1].any()


@pytest.mark.parametrize('channels', [3, 4, 8])
@pytest.mark.parametrize('dtype', ['f', 'e'])
def test_padding_rois_are_zero_and_have_no_gradient(emulated_kernels, rng, channels, dtype):
    """Padding RoIs have an image index of -1, or are NaN."""
    features, rois, indices, levels, scales = pyramid_problem(rng, 3, channels, dtype)
    indices[::3], rois[1::3] = -1, np.nan
    regions = Regions(rois, indices, levels, tuple(scales), (3, 3), 2, False, 1)
    gy, shapes = rng.standard_normal((20, channels, 3, 3)).astype(dtype), [x.shape for x in features]
    y, gradients = roi_align_gpu.forward_gpu(features, regions), roi_align_gpu.backward_gpu(gy, regions, shapes)
    kept = slice(2, None, 3)
    regions = Regions(*(array[kept].copy() for array in (rois, indices, levels)), tuple(scales), (3, 3), 2, False, 1)
    assert not y[::3].any() and not y[1::3].any()
    np.testing.assert_array_equal(y[kept], roi_align_gpu.forward_gpu(features, regions))
    for gx, expected in zip(gradients, roi_align_gpu.backward_gpu(gy[kept], regions, shapes), strict=True):
        np.testing.assert_array_equal(gx, expected)


@pytest.mark.parametrize('channels', [3, 8])
@pytest.mark.parametrize(('has_bias', 'relu'), [(True, False), (False, True), (True, True)])
def test_the_epilogue_adds_the_bias_and_applies_relu(backend, rng, channels, has_bias, relu):
    x, rois, indices = random_problem(rng, channels=channels)
    bias = rng.standard_normal(channels).astype(np.float32) if has_bias else None
    options = dict(output_size=(3, 4), spatial_scale=1 / 16)
    expected = backend.numpy(pool(backend, roi_align, x, rois, indices, **options))
    if has_bias:
        expected = expected + bias[:, None, None]
    if relu:
        expected = np.maximum(expected, 0)
    x, rois, indices, bias = map(backend.array, (x, rois, indices, bias))
    y = roi_align(chainer.Variable(x), rois, indices, bias=bias, relu=relu, **options)
    np.testing.assert_array_equal(backend.numpy(y), expected)
    assert y.creator is None


def test_the_epilogue_of_half_precision_is_float32(emulated_kernels, rng):
    """The sum of a bin and its bias is rounded once; a NaN passes ReLU."""
    features, rois, indices, levels, scales = pyramid_problem(rng, 2, 8, np.float16)
    features[0][:, 3], features[1][:, 3] = np.nan, np.nan
    regions = Regions(rois, indices, levels, tuple(scales), (3, 3), 2, False, 1)
    y = roi_align_gpu.forward_gpu([x.astype(np.float32) for x in features], regions)
    bias = rng.standard_normal(8).astype(np.float32)
    fused = roi_align_gpu.forward_gpu(features, regions, Epilogue(bias, relu=True))
    np.testing.assert_array_equal(fused, np.maximum(y + bias[:, None, None], 0).astype(np.float16))
    assert np.isnan(fused[:, 3]).any()


@pytest.mark.parametrize(('n_rois', 'bins', 'groups'), [(1, (7, 7), 1), (100, (14, 14), 32), (1000, (40, 33), 100)])
def test_a_forward_launch_has_a_warp_for_every_bin(n_rois, bins, groups):
    (n_blocks, slices), (n_threads,), n_rows = roi_align_gpu._forward_launch(n_rois, bins, groups)
    assert n_blocks == n_rois * -(-bins[0] // n_rows) * -(-bins[1] // 16)
    assert 1 <= n_rows <= min(bins[0], 16) and slices * 32 >= groups
    assert n_threads % 32 == 0 and n_threads <= 7 * 32


def test_rows_of_bins_per_block_do_not_change_the_result(emulated_kernels, rng, monkeypatch):
    features, rois, indices, levels, scales = pyramid_problem(rng, 2, 8)
    regions = Regions(rois, indices, levels, tuple(scales), (20, 9), 0, False, 1)
    results = []
    for n_warps in (1, 500, 1 << 20):
        monkeypatch.setattr(roi_align_gpu, '_MIN_WARPS', n_warps)
        results.append(roi_align_gpu.forward_gpu(features, regions))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize(('channels', 'bin_step', 'relu'), [(8, 1, True), (16, 2, False), (1024, 2, True)])
@pytest.mark.parametrize('n_levels', [1, 4])
def test_the_number_of_lanes_does_not_change_the_result(
    emulated_kernels, rng, monkeypatch, channels, bin_step, relu, n_levels
):
    features, rois, indices, levels, scales = pyramid_problem(rng, n_levels, channels)
    regions = Regions(rois, indices, levels, tuple(scales), (7, 9), 0, False, bin_step)
    epilogue = Epilogue(rng.standard_normal(channels).astype(np.float32), relu)
    results = []
    for lanes in (8, 4, 1):
        monkeypatch.setitem(roi_align_gpu._FORWARD_LANES, np.dtype(np.float32), (lanes,))
        results.append(roi_align_gpu.forward_gpu(features, regions, epilogue))
    assert [name for name, _ in emulated_kernels] == [f'roi_align_forward_{lanes}' for lanes in (8, 4, 1)]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


@pytest.mark.parametrize('channels', [1, 3, 8, 12, 16, 1024])
def test_all_numbers_of_channels(backend, rng, channels):
    x, rois, indices = random_problem(rng, n=6, channels=channels)
    kwargs = dict(output_size=(4, 3), spatial_scale=1 / 16, bin_step=2)
    y = pool(backend, roi_align, x, rois, indices, **kwargs)
    np.testing.assert_allclose(backend.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=1e-5)
    assert pool(backend, roi_align, x, rois[:0], indices[:0], **kwargs).shape == (0, channels, 2, 2)


def test_a_pyramid_is_one_launch_without_copies(emulated_kernels, rng):
    features, rois, indices, levels, scales = pyramid_problem(rng, 4, 8, np.float16)
    features = [np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2) for x in features]
    y = roi_align_gpu.forward_gpu(features, Regions(rois, indices, levels, tuple(scales), (7, 7), 2, False, 1))
    ((name, arguments),) = emulated_kernels
    assert name == 'roi_align_forward_half_8' and y.dtype == np.float16
    assert all(map(np.may_share_memory, arguments[:4], features)) and np.may_share_memory(arguments[-1], y)


@pytest.mark.parametrize(
    ('shapes', 'scales', 'levels', 'message'),
    [
        ([], [], (2,), 'features must be 1 to 4'),
        ([(1, 3, 9, 9)] * 5, [1] * 5, (2,), 'features must be 1 to 4'),
        ([(1, 3, 9, 9)] * 2, [1], (2,), 'features must be 1 to 4 maps with one scale each'),
        ([(1, 3, 9, 9), (1, 4, 5, 5)], [1, 0.5], (2,), 'features must differ only in height and width'),
        ([(1, 3, 9, 9), (1, 3, 5, 0)], [1, 0.5], (2,), 'features must differ only in height and width'),
        ([(1, 3, 9, 9), (1, 3, 5, 5)], [1, 0.5], (3,), 'levels must have the shape'),
    ],
)
def test_wrong_pyramids_are_an_error(shapes, scales, levels, message):
    features = [np.zeros(shape, np.float32) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        roi_align_pyramid(
            features,
            np.zeros((2, 4), np.float32),
            np.zeros(2, np.int32),
            np.zeros(levels, np.int32),
            output_size=7,
            spatial_scales=scales,
        )
