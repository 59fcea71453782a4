"""Upsampling and addition of feature maps, forward and backward, in all memory layouts."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check

from mask_rcnn.ops.conv.upsample_add import add_gpu, upsample_add
from mask_rcnn.ops.cudnn_frontend import gradient_sum


def feature_maps(rng, dtype):
    return rng.uniform(-1, 1, (2, 3, 4, 6)).astype(dtype), rng.uniform(-1, 1, (2, 3, 2, 3)).astype(dtype)


LAYOUTS = [(0, 1, 2, 3), (1, 0, 2, 3), (0, 2, 3, 1)]


def laid_out(x, layout):
    """Return an array whose axes, from the outermost in memory to the innermost, are ``layout``."""
    return np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('coarse_layout', LAYOUTS)
@pytest.mark.parametrize('with_graph', [False, True])
def test_adds_each_value_to_four_locations(rng, dtype, layout, coarse_layout, with_graph):
    """Half precision uses the code of the GPU for feature maps whose channels are not innermost."""
    x, coarse = feature_maps(rng, dtype)
    expected = x + coarse.repeat(2, axis=2).repeat(2, axis=3)
    stored = laid_out(x, layout)
    with chainer.using_config('enable_backprop', with_graph):
        y = upsample_add(chainer.Variable(stored), chainer.Variable(laid_out(coarse, coarse_layout)))
    assert y.dtype == dtype and y.array.strides == stored.strides
    assert (y.array is stored) == (not with_graph)
    np.testing.assert_array_equal(y.array, expected)
    np.testing.assert_array_equal(stored, x if with_graph else expected)


@pytest.mark.parametrize('backend', ['emulated', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize('dtype', [np.float16, np.float32])
@pytest.mark.parametrize('shape', [(2, 16, 3, 5), (3, 5, 2, 3), (1, 256, 1, 40), (0, 8, 1, 1)])
@pytest.mark.parametrize('in_place', [False, True])
def test_the_kernel_adds_each_value_to_four_locations(backend, rng, dtype, shape, in_place):
    x, coarse = (
        rng.uniform(-1, 1, (*shape[:2], shape[2] * factor, shape[3] * factor)).astype(dtype) for factor in (2, 1)
    )
    stored, term = (backend.array(laid_out(array, (0, 2, 3, 1))) for array in (x, coarse))
    expected = x + coarse.repeat(2, axis=2).repeat(2, axis=3)
    if backend.name == 'cuda':
        with chainer.using_config('enable_backprop', not in_place):
            out = upsample_add(chainer.Variable(stored), chainer.Variable(term)).array
    else:
        out = stored if in_place else laid_out(np.empty_like(x), (0, 2, 3, 1))
        add_gpu(stored, term, out)
    np.testing.assert_array_equal(backend.numpy(out), expected)
    np.testing.assert_array_equal(backend.numpy(stored), expected if in_place else x)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(('dtype', 'tolerance'), [(np.float16, 4e-3), (np.float32, 1e-6)])
def test_the_coarse_gradient_sums_four_locations(rng, layout, dtype, tolerance):
    x, coarse = map(chainer.Variable, feature_maps(rng, dtype))
    y = upsample_add(x, coarse)
    y.grad = gy = laid_out(rng.uniform(-1, 1, x.shape).astype(dtype), layout)
    y.backward()
    np.testing.assert_array_equal(x.grad, gy)
    expected = gy.astype('d').reshape(2, 3, 2, 2, 3, 2).sum(axis=(3, 5))
    np.testing.assert_allclose(coarse.grad, expected, rtol=0, atol=tolerance)
    assert coarse.grad.dtype == dtype
    assert np.argsort(coarse.grad.strides).tolist() == np.argsort(gy.strides).tolist()


@pytest.mark.parametrize('backend', ['emulated', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
def test_the_gradients_of_other_readers_are_added_in_place(backend, rng, monkeypatch):
    """That of the coarse map; that of ``x`` is the gradient of the sum, which must not change."""
    if backend.name == 'emulated':
        monkeypatch.setattr(gradient_sum, 'get_array_module', lambda *arrays: None)
    sums, apply_epilogue = [], gradient_sum.apply_epilogue
    monkeypatch.setattr(
        gradient_sum, 'apply_epilogue', lambda y, residual: sums.append(y) or apply_epilogue(y, residual=residual)
    )
    arrays = [laid_out(array, (0, 2, 3, 1)) for array in feature_maps(rng, np.float32)]
    x, coarse = (chainer.Variable(backend.array(array)) for array in arrays)
    gys = [chainer.Variable(backend.array(rng.uniform(-1, 1, x.shape).astype('f'))) for _ in range(2)]
    total, *gradients = (
        [backend.numpy(gradient) for gradient in chainer.grad(outputs, [x, coarse], grad_outputs=outputs_gys)]
        for outputs, outputs_gys in (
            ([upsample_add(x, coarse) for _ in gys], gys),
            ([upsample_add(x, coarse)], gys[:1]),
            ([upsample_add(x, coarse)], gys[1:]),
        )
    )
    for actual, *terms in zip(total, *gradients, strict=True):
        np.testing.assert_array_equal(actual, sum(terms))
    assert [array.shape for array in sums] == [coarse.shape]
    np.testing.assert_array_equal(gradients[0][0], backend.numpy(gys[0]))


def test_empty_arrays():
    for x in (np.zeros((0, 3, 4, 6), np.float16), np.zeros((2, 3, 0, 6), np.float16)):
        coarse = x[:, :, ::2, ::2]
        assert upsample_add(x, coarse).shape == x.shape


def test_gradients(rng):
    x, coarse = feature_maps(rng, np.float64)
    gy, *ggs = (rng.uniform(-1, 1, shape) for shape in (x.shape, x.shape, coarse.shape))
    gradient_check.check_backward(upsample_add, (x, coarse), gy, rtol=1e-6, atol=1e-7)
    gradient_check.check_double_backward(upsample_add, (x, coarse), gy, tuple(ggs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('with_graph', [False, True])
def test_mismatched_sizes_raise_an_error(rng, with_graph):
    x, coarse = feature_maps(rng, np.float32)
    with chainer.using_config('enable_backprop', with_graph):
        for wrong in (x[:, :, :3], x[:, :, :, :5], x[:1], x.astype(np.float64)):
            with pytest.raises(ValueError, match='twice as large'):
                upsample_add(chainer.Variable(wrong.copy()), chainer.Variable(coarse))
