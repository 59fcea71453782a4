import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.roi_align import roi_align


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
        rows, columns = (axis_matrix(roi[axis], roi[axis + 2], x.shape[2 + axis], output_size[axis],
                                     spatial_scale, sampling_ratio, aligned)[::bin_step] for axis in (0, 1))
        result.append(np.einsum('ip,cpq,jq->cij', rows, x[index].astype(np.float64), columns))
    return np.stack(result)


def random_problem(rng, n=12, channels=5, size=(17, 23), dtype=np.float32):
    """Two maps; RoIs of all sizes, inside and over the border, tiny and reversed ones among them."""
    x = rng.standard_normal((2, channels, *size)).astype(dtype)
    centre, side = rng.uniform(0, 16, (n, 2)) * size, rng.uniform(1, 200, (n, 2))
    side[0], side[1] = 0.5, -30
    rois = np.concatenate((centre - side / 2, centre + side / 2), axis=1).astype(np.float32)
    return x, rois, rng.randint(0, 2, n).astype(np.int32)


def run(form, x, rois, indices, **kwargs):
    return roi_align(form.array(x), form.array(rois), form.array(indices), **kwargs)


def gradient(form, x, rois, indices, gy, **kwargs):
    x = chainer.Variable(form.array(x))
    y = roi_align(x, form.array(rois), form.array(indices), **kwargs)
    y.grad = form.array(gy)
    y.backward()
    assert x.grad.dtype == x.dtype
    return form.numpy(x.grad)


def check_against_caffe2(form, golden, size, ratio):
    rois, indices = caffe2_rois(golden)
    kwargs = dict(output_size=size, spatial_scale=float(golden['spatial_scale']), sampling_ratio=ratio)
    y = run(form, golden['x'], rois, indices, **kwargs)
    assert y.dtype == np.float32
    np.testing.assert_allclose(form.numpy(y), golden[f'align_{size}_s{ratio}_y'], rtol=0, atol=1e-6)
    gx = gradient(form, golden['x'], rois, indices, golden[f'dy_{size}'], **kwargs)
    np.testing.assert_allclose(gx, golden[f'align_{size}_s{ratio}_dx'], rtol=0, atol=1.2e-5)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('ratio', [0, 2])
def test_equals_caffe2(form, golden, size, ratio):
    check_against_caffe2(form, golden, size, ratio)


@pytest.mark.parametrize('size', [7, 14])
@pytest.mark.parametrize('ratio', [0, 2])
def test_equals_caffe2_on_all_channels(form, shared, size, ratio):
    check_against_caffe2(form, np.load(shared / 'golden/ops/ops_roi_align.npz'), size, ratio)


@pytest.mark.parametrize('output_size, ratio, aligned', [
    ((7, 7), 0, False), ((7, 7), 2, False), ((5, 8), 0, True), ((14, 14), 2, True), ((1, 1), 0, False),
    ((3, 2), 1, False)])
@pytest.mark.parametrize('bin_step', [1, 2, 3])
def test_equals_the_matrix_products(form, rng, output_size, ratio, aligned, bin_step):
    x, rois, indices = random_problem(rng)
    rois = rois[2:] if aligned else rois  # what aligned RoIs without extent mean is not defined
    indices = indices[-len(rois):]
    kwargs = dict(output_size=output_size, spatial_scale=1 / 16, sampling_ratio=ratio, aligned=aligned,
                  bin_step=bin_step)
    y = run(form, x, rois, indices, **kwargs)
    np.testing.assert_allclose(form.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=1e-5)


@pytest.mark.parametrize('bin_step', [2, 3])
def test_bin_step_skips_bins(form, rng, bin_step):
    x, rois, indices = random_problem(rng)
    kwargs = dict(output_size=14, spatial_scale=1 / 16)
    full = run(form, x, rois, indices, **kwargs)
    part = run(form, x, rois, indices, bin_step=bin_step, **kwargs)
    np.testing.assert_array_equal(form.numpy(part), form.numpy(full)[:, :, ::bin_step, ::bin_step])


@pytest.mark.parametrize('channels', [1, 63, 64, 65, 130])
def test_any_number_of_channels(form, rng, channels):
    x, rois, indices = random_problem(rng, channels=channels)
    kwargs = dict(output_size=(3, 3), spatial_scale=1 / 16)
    y = run(form, x, rois, indices, **kwargs)
    np.testing.assert_allclose(form.numpy(y), reference(x, rois, indices, **kwargs), rtol=0, atol=1e-5)
    gx = gradient(form, x, rois, indices, np.ones(y.shape, np.float32), **kwargs)
    for c in {0, channels // 2, channels - 1}:  # every channel has the same gradient as one alone
        np.testing.assert_array_equal(gx[:, c], gradient(form, x[:, :1], rois, indices,
                                                         np.ones((len(rois), 1, 3, 3), np.float32),
                                                         **kwargs)[:, 0])


@pytest.mark.parametrize('ratio, aligned, bin_step', [
    (0, False, 1), (2, False, 2), (0, True, 2), (3, True, 1)])
def test_gradients(form, rng, ratio, aligned, bin_step):
    x, rois, indices = random_problem(rng, n=5, channels=2, size=(6, 7), dtype=np.float64)
    rois, indices = form.array(rois), form.array(indices)

    def function(x):
        return roi_align(x, rois, indices, output_size=(3, 4), spatial_scale=1 / 16, sampling_ratio=ratio,
                         aligned=aligned, bin_step=bin_step)

    gy = rng.standard_normal(function(form.array(x)).shape)
    ggx = rng.standard_normal(x.shape)
    x, gy, ggx = map(form.array, (x, gy, ggx))
    gradient_check.check_backward(function, x, gy, dtype=np.float64, atol=1e-7, rtol=1e-7)
    gradient_check.check_double_backward(function, x, gy, ggx, dtype=np.float64, atol=1e-7, rtol=1e-7)


def test_gradient_is_the_same_in_every_run(form, rng):
    x, rois, indices = random_problem(rng, n=40, channels=130)
    gy = rng.standard_normal((40, 130, 7, 7)).astype(np.float32)
    runs = [gradient(form, x, rois, indices, gy, output_size=7, spatial_scale=1 / 16) for _ in range(3)]
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_float16_is_calculated_in_float32(form, rng):
    x, rois, indices = random_problem(rng, dtype=np.float16)
    kwargs = dict(output_size=(7, 7), spatial_scale=1 / 16)
    y = run(form, x, rois, indices, **kwargs)
    expected = run(form, x.astype(np.float32), rois, indices, **kwargs)
    assert y.dtype == np.float16
    np.testing.assert_array_equal(form.numpy(y), form.numpy(expected).astype(np.float16))
    gy = rng.standard_normal(y.shape).astype(np.float16)
    np.testing.assert_array_equal(
        gradient(form, x, rois, indices, gy, **kwargs),
        gradient(form, x.astype(np.float32), rois, indices, gy.astype(np.float32), **kwargs).astype('e'))


def test_views(form, rng):
    x, rois, indices = random_problem(rng)
    kwargs = dict(output_size=(7, 7), spatial_scale=1 / 16)
    flipped = run(form, x[:, ::-1, :, ::-1], rois[::-1], indices[::-1], **kwargs)
    expected = run(form, x[:, ::-1, :, ::-1].copy(), rois[::-1].copy(), indices[::-1].copy(), **kwargs)
    np.testing.assert_array_equal(form.numpy(flipped), form.numpy(expected))


def test_no_rois(form):
    x = np.ones((1, 3, 5, 5), np.float32)
    rois, indices = np.zeros((0, 4), np.float32), np.zeros(0, np.int32)
    assert run(form, x, rois, indices, output_size=7, spatial_scale=1).shape == (0, 3, 7, 7)
    gx = gradient(form, x, rois, indices, np.zeros((0, 3, 7, 7), np.float32), output_size=7, spatial_scale=1)
    np.testing.assert_array_equal(gx, np.zeros_like(x))


@pytest.mark.parametrize('aligned', [False, True])
def test_rois_outside_and_not_finite_are_zero(form, aligned):
    rois = np.float32([[90, 90, 99, 99], [-99, 0, -90, 5], [np.nan, 0, 5, 5], [0, -np.inf, 5, np.inf],
                       [0, 0, np.inf, 5]])
    x, indices = np.ones((1, 3, 9, 9), np.float32), np.zeros(5, np.int32)
    kwargs = dict(output_size=3, spatial_scale=1, aligned=aligned)
    assert not form.numpy(run(form, x, rois, indices, **kwargs)).any()
    assert not gradient(form, x, rois, indices, np.ones((5, 3, 3, 3), np.float32), **kwargs).any()


def test_index_outside_the_batch(form):
    x, rois = np.ones((1, 3, 9, 9), np.float32), np.float32([[0, 0, 5, 5]] * 2)
    kwargs = dict(output_size=3, spatial_scale=1)
    for index in (-1, 1):
        indices = np.int32([0, index])
        if form.name == 'cuda':
            y = form.numpy(run(form, x, rois, indices, **kwargs))
            assert y[0].all() and not y[1].any()
        else:
            with pytest.raises(ValueError, match=r'roi_indices must be in \[0, 1\)'):
                run(form, x, rois, indices, **kwargs)


@pytest.mark.parametrize('x, rois, indices, kwargs, message', [
    ((1, 3, 9), (2, 4), (2,), {}, 'x must be'),
    ((1, 3, 0, 9), (2, 4), (2,), {}, 'x must be'),
    ((1, 3, 9, 9), (2, 5), (2,), {}, 'rois must have'),
    ((1, 3, 9, 9), (2, 4), (3,), {}, 'roi_indices must have'),
    ((1, 3, 9, 9), (2, 4), (2,), {'output_size': 0}, 'output_size'),
    ((1, 3, 9, 9), (2, 4), (2,), {'sampling_ratio': -1}, 'sampling_ratio'),
    ((1, 3, 9, 9), (2, 4), (2,), {'bin_step': 0}, 'bin_step')])
def test_wrong_arguments(x, rois, indices, kwargs, message):
    kwargs = {'output_size': 7, 'spatial_scale': 1, **kwargs}
    with pytest.raises(ValueError, match=message):
        roi_align(np.zeros(x, np.float32), np.zeros(rois, np.float32), np.zeros(indices, np.int32), **kwargs)


def test_integer_maps():
    with pytest.raises(ValueError, match='x must be floating-point'):
        roi_align(np.zeros((1, 3, 9, 9), int), np.zeros((2, 4), np.float32), np.zeros(2, np.int32),
                  output_size=7, spatial_scale=1)
