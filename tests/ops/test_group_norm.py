"""Group normalisation against Caffe2's outputs and its formula in float64: layouts, types, gradients and threads."""

import chainer
import numpy as np
import pytest
from chainer import gradient_check
from chainer.utils import type_check

from mask_rcnn.ops.conv import group_norm_cpu
from mask_rcnn.ops.conv.group_norm import group_norm

EPS = 1e-5

#: The axes ``(N, C, H, W)`` from the outermost in memory to the innermost.
LAYOUTS = {'images outermost': (0, 1, 2, 3), 'channels outermost': (1, 0, 2, 3), 'channels innermost': (0, 2, 3, 1)}

#: Shapes and groups: whole and partial packs of channels, several chunks of pixels, several slabs and single locations.
PROBLEMS = [
    ((2, 64, 5, 7), 32),
    ((3, 6, 4, 5), 2),
    ((1, 16, 40, 90), 4),
    ((2, 320, 3, 3), 32),
    ((5, 8, 1, 1), 2),
]


@pytest.fixture(scope='module')
def golden(golden):
    path = golden / 'detectron_zoo' / 'ops_zoo.npz'
    if not path.exists():
        pytest.skip('no reference outputs of group normalisation')
    return np.load(path)


def formula(x, gamma, beta, groups, eps=EPS, residual=0.0, relu=False):
    """Return the definition (Wu and He 2018, equations 1 and 7), in float64."""
    parts = x.astype(np.float64).reshape(len(x), groups, -1)
    parts = parts - parts.mean(axis=2, keepdims=True)
    parts /= np.sqrt((parts**2).mean(axis=2, keepdims=True) + eps)
    y = parts.reshape(x.shape) * gamma[:, None, None] + beta[:, None, None] + residual
    return np.maximum(y, 0) if relu else y


def with_functions(x, gamma, beta, groups, eps=EPS, residual=None, relu=False):
    """Return the same with Chainer's functions, whose gradients Chainer derives."""
    functions = chainer.functions
    parts = functions.reshape(x, (len(x), groups, -1))
    mean = functions.broadcast_to(functions.mean(parts, axis=2, keepdims=True), parts.shape)
    variance = functions.mean((parts - mean) ** 2, axis=2, keepdims=True)
    parts = (parts - mean) / functions.broadcast_to(functions.sqrt(variance + eps), parts.shape)
    y = functions.reshape(parts, x.shape)
    y = functions.bias(functions.scale(y, gamma), beta)
    y = y if residual is None else y + residual
    return functions.relu(y) if relu else y


def laid_out(x, layout):
    """Return an array whose axes, from the outermost in memory to the innermost, are ``layout``."""
    return np.ascontiguousarray(x.transpose(layout)).transpose(np.argsort(layout))


def problem(rng, shape, dtype='f'):
    """Return ``x``, ``gamma``, ``beta`` and ``residual``."""
    shapes = shape, shape[1:2], shape[1:2], shape
    arrays = [rng.uniform(-1, 1, size) for size in shapes]
    parameter_dtype = 'f' if dtype == 'e' else dtype
    return [array.astype(kind) for array, kind in zip(arrays, (dtype, *2 * parameter_dtype, dtype), strict=True)]


@pytest.mark.parametrize(
    ('case', 'factor', 'groups', 'eps'),
    [('g32', 1, 32, 1e-5), ('g4', 1, 4, 1e-5), ('g32_eps3', 0.002, 32, 1e-3), ('g32_small', 0.002, 32, 1e-5)],
)
def test_equals_caffe2(golden, backend, case, factor, groups, eps):
    """Caffe2's variance of the constant group is not 0: its output differs there by up to 4e-5 (see its README)."""
    x = golden['gn_x'] * np.float32(factor)
    variables = [chainer.Variable(backend.array(array)) for array in (x, golden['gn_gamma'], golden['gn_beta'])]
    y = group_norm(*variables, groups, eps)
    off = np.abs(backend.numpy(y) - golden[f'gn_{case}_y'])
    is_constant = np.ptp(x.reshape(2, 32, -1), axis=2) == 0
    assert off.max() <= (4e-5 if case == 'g32' else 1e-6)
    assert off.reshape(2, 32, -1)[~is_constant].max() <= 1e-6 and is_constant.sum() == 1
    if f'gn_{case}_dx' in golden:
        y.grad = backend.array(golden['gn_dy'])
        y.backward()
        for name, variable in zip(('dx', 'dgamma', 'dbeta'), variables, strict=True):
            expected = golden[f'gn_{case}_{name}']
            tolerance = 2e-5 if (case, name) == ('g32', 'dgamma') else 1e-6  # the constant group
            off = np.abs(backend.numpy(variable.grad) - expected).max()
            assert off <= tolerance * np.abs(expected).max(), name


@pytest.mark.parametrize(('shape', 'groups'), PROBLEMS)
@pytest.mark.parametrize(('dtype', 'tolerance'), [('e', 4e-3), ('f', 2e-6), ('d', 1e-12)])
def test_equals_the_formula(backend, rng, shape, groups, dtype, tolerance):
    x, gamma, beta, _ = problem(rng, shape, dtype)
    y = group_norm(*map(backend.array, (x, gamma, beta)), groups, EPS)
    assert y.dtype == x.dtype and y.shape == shape
    np.testing.assert_allclose(backend.numpy(y), formula(x, gamma, beta, groups), rtol=0, atol=tolerance)


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize('residual_layout', LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize('overwrite', [False, True])
def test_the_epilogue_in_every_layout(backend, rng, layout, residual_layout, with_residual, overwrite):
    x, gamma, beta, residual = problem(rng, (2, 16, 3, 5))
    expected = formula(x, gamma, beta, 4, residual=residual if with_residual else 0, relu=True)
    stored, term = (backend.array(laid_out(*pair)) for pair in ((x, layout), (residual, residual_layout)))
    options = {'residual': term if with_residual else None, 'relu': True, 'overwrite': overwrite}
    with chainer.no_backprop_mode():
        y = group_norm(stored, backend.array(gamma), backend.array(beta), 4, EPS, **options).array
    np.testing.assert_allclose(backend.numpy(y), expected, rtol=0, atol=2e-6)
    is_native = layout == LAYOUTS['channels innermost'] if backend.name != 'cpu' else layout[2:] == (2, 3)
    if is_native:
        assert y.strides == stored.strides
    assert backend.xp.may_share_memory(y, stored) == (overwrite and is_native)
    if not overwrite:
        np.testing.assert_array_equal(backend.numpy(stored), x)
    np.testing.assert_array_equal(backend.numpy(term), residual)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('e', 4e-3), ('f', 2e-6)])
def test_memory_that_is_not_aligned(backend, rng, dtype, tolerance):
    """A thread cannot load several channels at once from a view of a larger array that starts anywhere."""
    x, gamma, beta, _ = problem(rng, (2, 16, 3, 5), dtype)
    stored = backend.xp.zeros(x.size + 1, dtype)[1:].reshape(2, 3, 5, 16).transpose(0, 3, 1, 2)
    stored[...] = backend.array(x)
    inputs = [chainer.Variable(array) for array in (stored, backend.array(gamma), backend.array(beta))]
    y = group_norm(*inputs, 4, EPS)
    np.testing.assert_allclose(backend.numpy(y), formula(x, gamma, beta, 4), rtol=0, atol=tolerance)
    y.grad = stored
    y.backward()
    gradients = (x * (formula(x, np.ones(16), np.zeros(16), 4))).sum(axis=(0, 2, 3)), x.sum(axis=(0, 2, 3), dtype='d')
    for variable, expected in zip(inputs[1:], gradients, strict=True):
        np.testing.assert_allclose(backend.numpy(variable.grad), expected, rtol=0, atol=10 * tolerance)


def test_memory_is_reused_only_without_a_graph(backend, rng):
    x, gamma, beta, _ = problem(rng, (2, 16, 3, 5))
    stored = backend.array(
        laid_out(x, LAYOUTS['channels outermost' if backend.name == 'cpu' else 'channels innermost'])
    )
    y = group_norm(stored, backend.array(gamma), backend.array(beta), 4, EPS, overwrite=True)
    assert not backend.xp.may_share_memory(y.array, stored)


@pytest.mark.parametrize('offset', [0, 1e3, -3e4])
def test_a_large_mean_keeps_the_digits_of_the_variance(backend, rng, offset):
    """The float32 elements are exact; sums of their squares would lose the variance."""
    x = (offset + rng.uniform(-1, 1, (2, 8, 20, 30))).astype('f')
    ones, zeros = np.ones(8, 'f'), np.zeros(8, 'f')
    y = group_norm(*map(backend.array, (x, ones, zeros)), 2, EPS)
    np.testing.assert_allclose(backend.numpy(y), formula(x, ones, zeros, 2), rtol=0, atol=2e-6)


def test_a_constant_group_is_beta(backend):
    x = np.full((1, 8, 11, 13), 0.1, 'f')
    gamma, beta = np.full(8, 3, 'f'), np.arange(8, dtype='f')
    y = group_norm(*map(backend.array, (x, gamma, beta)), 2, EPS)
    np.testing.assert_allclose(backend.numpy(y), np.broadcast_to(beta[:, None, None], x.shape), rtol=0, atol=1e-5)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('with_residual', [False, True])
@pytest.mark.parametrize(('shape', 'groups'), PROBLEMS[:3])
@pytest.mark.parametrize(('dtype', 'tolerance'), [('f', 2e-5), ('d', 1e-11)])
def test_gradients_equal_those_of_functions(backend, rng, shape, groups, relu, with_residual, dtype, tolerance):
    arrays = problem(rng, shape, dtype)[: 4 if with_residual else 3]
    gy = rng.uniform(-1, 1, shape).astype(dtype)
    gradients = []
    for function, kind, convert in ((group_norm, dtype, backend.array), (with_functions, 'd', np.asarray)):
        inputs = [chainer.Variable(convert(array.astype(kind))) for array in arrays]
        y = function(*inputs[:3], groups, EPS, relu=relu, residual=inputs[3] if with_residual else None)
        y.grad = convert(gy.astype(kind))
        y.backward()
        gradients.append([backend.numpy(variable.grad) for variable in inputs])
    for found, expected in zip(*gradients, strict=True):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS)
def test_numerical_gradients(backend, rng, layout):
    x, gamma, beta, residual = problem(rng, (2, 8, 3, 2), 'd')
    inputs = [backend.array(array) for array in (laid_out(x, layout), gamma, beta, residual)]
    gy = backend.array(rng.uniform(-1, 1, x.shape))

    def function(x, gamma, beta, residual):
        return group_norm(x, gamma, beta, 4, 0.1, residual=residual)

    gradient_check.check_backward(function, inputs, gy, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize(('shape', 'groups'), PROBLEMS[:3])
def test_gradients_of_half_precision(backend, rng, shape, groups, relu):
    """Each gradient has the type of its input."""
    arrays = problem(rng, shape, 'e')
    gy = (rng.uniform(-1, 1, shape) / shape[2]).astype('e')  # sums over thousands of pixels remain small
    inputs = [chainer.Variable(backend.array(array)) for array in arrays]
    y = group_norm(*inputs[:3], groups, EPS, residual=inputs[3], relu=relu)
    y.grad = backend.array(gy)
    y.backward()
    exact = [chainer.Variable(array.astype('d')) for array in arrays]
    expected = with_functions(*exact[:3], groups, residual=exact[3])
    # Where the rounded result of ReLU is 0, so is its derivative.
    expected.grad = gy.astype('d') * (backend.numpy(y) > 0 if relu else 1)
    expected.backward()
    for variable, other in zip(inputs, exact, strict=True):
        assert variable.grad.dtype == variable.dtype
        np.testing.assert_allclose(backend.numpy(variable.grad), other.grad, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize('shape', [(0, 8, 3, 4), (2, 8, 0, 4)])
@pytest.mark.parametrize('relu', [False, True])
def test_empty_images(backend, shape, relu):
    inputs = [chainer.Variable(backend.array(np.ones(size, 'f'))) for size in (shape, 8, 8, shape)]
    y = group_norm(*inputs[:3], 4, EPS, residual=inputs[3], relu=relu)
    assert y.shape == shape
    y.grad = backend.array(np.ones(shape, 'f'))
    y.backward()
    assert [variable.grad.shape for variable in inputs] == [shape, (8,), (8,), shape]
    assert not backend.numpy(inputs[1].grad).any() and not backend.numpy(inputs[2].grad).any()


def test_images_do_not_affect_each_other(backend, rng):
    """On a GPU, the features of padding RoIs may not be finite."""
    x, gamma, beta, _ = problem(rng, (3, 8, 7, 7))
    x[1, 5, 3, 3] = np.nan
    y = backend.numpy(group_norm(*map(backend.array, (x, gamma, beta)), 2, EPS, relu=True))
    expected = formula(x, gamma, beta, 2, relu=True)
    np.testing.assert_allclose(y, expected, rtol=0, atol=2e-6)
    assert np.isnan(y[1, 4:]).all() and np.isfinite(y[[0, 2]]).all()


def test_results_do_not_depend_on_the_number_of_threads(rng, monkeypatch):
    x, gamma, beta, gy = problem(rng, (3, 32, 9, 10))
    results = []
    for step in (1, 5, 1000):

        def run(function, n, *, min_per_thread, step=step):
            for start in range(0, n, step):
                function(start, min(start + step, n))

        monkeypatch.setattr(group_norm_cpu, 'parallel_for', run)
        inputs = [chainer.Variable(array) for array in (x, gamma, beta)]
        y = group_norm(*inputs, 8, EPS)
        y.grad = gy
        y.backward()
        results.append([y.array, *(variable.grad for variable in inputs)])
    for other in results[1:]:
        for array, expected in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(array, expected)


def test_double_backward_is_refused(rng):
    x, gamma, beta, _ = problem(rng, (2, 8, 3, 2), 'd')
    variable = chainer.Variable(x)
    y = group_norm(variable, gamma, beta, 4, EPS)
    (gx,) = chainer.grad([y], [variable], [chainer.Variable(np.ones_like(x))], enable_double_backprop=True)
    with pytest.raises(RuntimeError, match='differentiable only once'):
        chainer.grad([gx], [variable], [chainer.Variable(np.ones_like(x))])


def test_wrong_inputs_are_refused(backend, rng):
    x, gamma, beta, residual = map(backend.array, problem(rng, (2, 8, 3, 2)))
    with pytest.raises(ValueError, match='^group normalisation with 3 groups needs a multiple of 3 channels, not 8$'):
        group_norm(x, gamma, beta, 3, EPS)
    for wrong in ((x, gamma[:4], beta), (x, gamma, beta[:4]), (x[0], gamma, beta), (x, gamma.astype('d'), beta)):
        with pytest.raises(type_check.InvalidType):
            group_norm(*wrong, 4, EPS)
    with pytest.raises(type_check.InvalidType):
        group_norm(x, gamma, beta, 4, EPS, residual=residual[:1])
