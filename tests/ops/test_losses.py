"""The losses and their gradients, against formulas in double precision and against Chainer's functions."""

import chainer
import chainer.functions as F
import numpy as np
import pytest

from mask_rcnn.ops.losses.elementwise import sigmoid_cross_entropy, smooth_l1
from mask_rcnn.ops.losses.softmax import softmax_cross_entropy
from mask_rcnn.ops.losses.weighted_sum import weighted_sum
from mask_rcnn.ops.runtime import cuda_kernels

DTYPES = [np.float16, np.float32]
SHAPES = [(2, 300), (2, 300, 4), (5, 7, 3, 1), (40, 3, 14, 14)]


def laid_out(x, layout):
    """Return an array in another memory layout: with gaps, with the second axis innermost, or with reversed axes."""
    if layout == 'gaps':
        return np.repeat(x, 2, axis=1)[:, ::2]
    if layout == 'reversed':
        return np.ascontiguousarray(x.T).T
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1) if layout == 'channels last' else x


def some_pairs(rng, shape, n):
    """Return the distinct indices ``(2, n)`` int32 of vectors of an array."""
    chosen = rng.permutation(shape[0] * shape[1])[:n]
    return np.stack(np.unravel_index(chosen, shape[:2])).astype(np.int32)


def run(backend, function, x, *arguments, layout='contiguous', factor=1.0, **options):
    """Return the loss and the gradient of its product with a factor."""
    variable = chainer.Variable(backend.array(laid_out(x, layout)))
    loss = function(variable, *map(backend.array, arguments), **options)
    assert loss.dtype == np.float32 and loss.shape == ()
    (loss * factor).backward()
    assert variable.grad.dtype == x.dtype and variable.grad.shape == x.shape
    return float(loss.array), backend.numpy(variable.grad).astype('f8')


def assert_losses(found, expected, dtype, factor=1.0, atol=1e-7):
    np.testing.assert_allclose(found[0], expected[0], rtol=5e-7)
    np.testing.assert_allclose(found[1], factor * expected[1], rtol=1e-3 if dtype == np.float16 else 5e-6, atol=atol)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('layout', ['contiguous', 'channels last', 'gaps', 'reversed'])
def test_sigmoid_cross_entropy_of_selected_elements(backend, rng, dtype, shape, layout):
    x = rng.normal(0, 4, shape).astype(dtype)
    indices = some_pairs(rng, shape, 30)
    labels = rng.randint(-1, 2, (30, *shape[2:])).astype('i')
    weights = rng.uniform(0.5, 1.5, 30).astype('f')
    found = run(backend, sigmoid_cross_entropy, x, indices, labels, weights, layout=layout, factor=8.0)
    logits = x[tuple(indices)].astype('f8')
    counted = (labels >= 0) * weights.astype('f8').reshape(30, *[1] * (len(shape) - 2))
    gradient = np.zeros(shape)
    gradient[tuple(indices)] = counted * (1 / (1 + np.exp(-logits)) - labels)
    loss = (counted * np.log1p(np.exp(np.where(labels == 1, -logits, logits)))).sum()
    assert_losses(found, (loss, gradient), dtype, 8.0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
def test_sigmoid_cross_entropy_of_soft_labels(backend, rng, dtype, shape):
    """Labels from 0 to 1, both ends included; some are ignored."""
    x = rng.normal(0, 4, shape).astype(dtype)
    indices = some_pairs(rng, shape, 30)
    labels = rng.uniform(0, 1, (30, *shape[2:])).astype('f')
    labels[:3], labels[3:6], labels[6:9] = 0, 1, -1
    weights = rng.uniform(0.5, 1.5, 30).astype('f')
    found = run(backend, sigmoid_cross_entropy, x, indices, labels, weights, factor=8.0)
    logits, soft = x[tuple(indices)].astype('f8'), labels.astype('f8')
    counted = (labels >= 0) * weights.astype('f8').reshape(30, *[1] * (len(shape) - 2))
    gradient = np.zeros(shape)
    gradient[tuple(indices)] = counted * (1 / (1 + np.exp(-logits)) - soft)
    loss = (counted * (soft * np.log1p(np.exp(-logits)) + (1 - soft) * np.log1p(np.exp(logits)))).sum()
    assert_losses(found, (loss, gradient), dtype, 8.0, atol=2e-6)  # differences of almost equal probabilities


@pytest.mark.parametrize('dtype', DTYPES)
def test_soft_labels_of_0_and_1_have_the_loss_of_hard_labels(backend, rng, dtype):
    x = np.concatenate([rng.normal(0, 40, (3, 50)), [[-30000, -100, 100, 30000, 0] * 10]]).astype(dtype)
    indices, weights = np.indices(x.shape, np.int32).reshape(2, -1), np.ones(x.size, 'f')
    labels = rng.randint(-1, 2, x.size).astype('i')
    hard = run(backend, sigmoid_cross_entropy, x, indices, labels, weights)
    soft = run(backend, sigmoid_cross_entropy, x, indices, labels.astype('f'), weights)
    np.testing.assert_allclose(soft[0], hard[0], rtol=2e-7)
    np.testing.assert_allclose(soft[1], hard[1], rtol=2e-7, atol=0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('beta', [0.0, 1 / 9, 1.0])
def test_smooth_l1_of_selected_elements(backend, rng, dtype, shape, beta):
    x = rng.normal(0, 1, shape).astype(dtype)
    indices = some_pairs(rng, shape, 30)
    targets = rng.normal(0, 1, (30, *shape[2:])).astype('f')
    targets[:3] = x[tuple(indices[:, :3])]
    weights = rng.uniform(0.5, 1.5, 30).astype('f')
    found = run(backend, smooth_l1, x, indices, targets, weights, factor=8.0, beta=beta)
    d = x[tuple(indices)].astype('f8') - targets
    factors = weights.astype('f8').reshape(30, *[1] * (len(shape) - 2))
    gradient = np.zeros(shape)
    quotient = d / (beta or np.inf)  # no difference is less than 0
    gradient[tuple(indices)] = factors * np.where(np.abs(d) < beta, quotient, np.sign(d))
    loss = (factors * np.where(np.abs(d) < beta, d * quotient / 2, np.abs(d) - beta / 2)).sum()
    assert_losses(found, (loss, gradient), dtype, 8.0)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', [(1, 1), (7, 81), (3, 700)])
def test_softmax_cross_entropy(backend, rng, dtype, shape):
    scores = rng.normal(0, 5, shape).astype(dtype)
    labels = rng.randint(-1, shape[1], shape[0]).astype('i')
    labels[-1], labels[0] = -1, 0
    weights = rng.uniform(0.5, 1.5, shape[0]).astype('f')
    found = run(backend, softmax_cross_entropy, scores, labels, weights, factor=8.0)
    e = np.exp(scores.astype('f8') - 5)
    log_probs = np.log(e / e.sum(axis=1, keepdims=True))
    counted = weights * (labels >= 0)
    loss = -(counted * log_probs[np.arange(shape[0]), labels]).sum()
    gradient = counted[:, None] * (np.exp(log_probs) - np.eye(shape[1])[labels])
    assert_losses(found, (loss, gradient), dtype, 8.0)


def test_large_sums_are_accurate(backend, monkeypatch):
    """A sum of equal float32 terms in order would be wrong by 1e-3.  A thread writes several gradients."""
    monkeypatch.setattr(cuda_kernels, '_MAX_BLOCKS', 3)
    n = 1 << 18
    x, targets, weights = np.full((64, n // 256, 4, 1), 0.1, 'f'), np.zeros((n // 4, 4, 1), 'f'), np.ones(n // 4, 'f')
    indices = np.indices(x.shape[:2], np.int32).reshape(2, -1)
    loss, gradient = run(backend, smooth_l1, x, indices, targets, weights, beta=1.0)
    np.testing.assert_allclose(loss, n * 0.005, rtol=5e-7)
    np.testing.assert_array_equal(gradient, x)


@pytest.mark.parametrize('dtype', DTYPES)
def test_extreme_values(backend, dtype):
    """Losses of large logits neither overflow nor vanish; their gradients are finite."""
    x, one = np.array([[-30000, -100, 100, 30000]], dtype), np.ones(4, 'f')
    indices, labels = np.array([[0, 0, 0, 0], [0, 1, 2, 3]], 'i'), np.array([1, 0, 1, 0], 'i')
    loss, gradient = run(backend, sigmoid_cross_entropy, x, indices, labels, one)
    assert loss == 60000
    np.testing.assert_allclose(gradient, [[-1, 0, 0, 1]], rtol=0, atol=1e-40)
    loss, gradient = run(backend, softmax_cross_entropy, x, np.zeros(1, 'i'), one[:1])
    assert loss == 60000
    np.testing.assert_array_equal(gradient, [[-1, 0, 0, 1]])


@pytest.mark.parametrize('backend', ['emulated', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
def test_denormal_gradients_are_0_on_a_gpu(backend):
    """CuPy compiles kernels with ``-ftz=true``, and so does the emulator; the smallest normal number remains."""
    x, indices, weights = np.ones((1, 2), 'f'), np.array([[0, 0], [0, 1]], 'i'), np.float32([1e-39, 2e-38])
    _, gradient = run(backend, smooth_l1, x, indices, np.zeros(2, 'f'), weights, beta=0.0)
    np.testing.assert_array_equal(gradient, [[0, np.float32(2e-38)]])


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_large_score_of_any_class_does_not_overflow(backend, dtype):
    """A block on a GPU has 256 threads."""
    scores, labels = np.eye(600, dtype=dtype)[[0, 255, 256, 599]] * dtype(30000), np.array([0, 255, 256, 0], 'i')
    loss, gradient = run(backend, softmax_cross_entropy, scores, labels, np.ones(4, 'f'))
    expected = np.zeros((4, 600))
    expected[3, 599], expected[3, 0] = 1, -1
    assert loss == 30000
    np.testing.assert_array_equal(gradient, expected)


@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')
@pytest.mark.parametrize('value', [np.nan, np.inf])
@pytest.mark.parametrize('dtype', DTYPES)
def test_nan_and_infinity_make_the_loss_non_finite(backend, dtype, value):
    x, weights = np.zeros((2, 3), dtype), np.ones(2, 'f')
    x[1, 2] = value
    indices, labels = np.array([[0, 1], [1, 2]], 'i'), np.array([0, 1], 'i')
    for loss, gradient in (
        run(backend, sigmoid_cross_entropy, x, indices, labels, weights),
        run(backend, sigmoid_cross_entropy, x, indices, labels.astype('f'), weights),
        run(backend, smooth_l1, x, indices, weights, weights, beta=0.5),
        run(backend, smooth_l1, x, indices, weights, weights, beta=0.0),
        run(backend, softmax_cross_entropy, x, labels, weights),
    ):
        assert not np.isfinite(loss)
        assert np.isfinite(gradient[0]).all()
        assert np.isnan(gradient[1, 2]) or not np.isnan(value)


@pytest.mark.parametrize('dtype', DTYPES)
def test_nothing_selected(backend, dtype):
    x = np.ones((2, 3, 4), dtype)
    nothing, no_labels = np.zeros((2, 0), 'i'), np.zeros((0, 4), 'i')
    for loss, gradient in (
        run(backend, sigmoid_cross_entropy, x, nothing, no_labels, np.zeros(0, 'f')),
        run(backend, smooth_l1, x, nothing, no_labels.astype('f'), np.zeros(0, 'f'), beta=1.0),
        run(backend, softmax_cross_entropy, x[:0, :, 0], no_labels[:, 0], np.zeros(0, 'f')),
    ):
        assert loss == 0 and not gradient.any()


def chainer_losses(name, x, indices, targets, weights):
    """Return the loss that Chainer's functions compose."""
    x = F.cast(x, np.float32)
    if name == 'softmax':
        return F.sum(F.softmax_cross_entropy(x, targets, reduce='no') * weights)
    selected = x[tuple(indices)]
    if name == 'sigmoid':
        return F.sum(F.sigmoid_cross_entropy(selected, targets, reduce='no') * weights[:, None])
    return F.sum(F.huber_loss(selected, targets, 0.5, reduce='no') * (weights[:, None] / np.float32(0.5)))


@pytest.mark.parametrize('name', ['sigmoid', 'smooth_l1', 'softmax'])
@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_losses_equal_those_of_chainer(rng, name, dtype):
    shape = (50, 9) if name == 'softmax' else (5, 40, 4)
    x = rng.normal(0, 3, shape).astype(dtype)
    indices = some_pairs(rng, shape, 50)
    targets = rng.normal(0, 1, (50, 4)).astype('f')
    if name != 'smooth_l1':
        targets = rng.randint(-1, 9, 50).astype('i') if name == 'softmax' else rng.randint(-1, 2, (50, 4)).astype('i')
    weights = rng.uniform(0, 0.1, 50).astype('f')
    variables = chainer.Variable(x), chainer.Variable(x.copy())
    expected = chainer_losses(name, variables[0], indices, targets, weights)
    if name == 'softmax':
        found = softmax_cross_entropy(variables[1], targets, weights)
    elif name == 'sigmoid':
        found = sigmoid_cross_entropy(variables[1], indices, targets, weights)
    else:
        found = smooth_l1(variables[1], indices, targets, weights, beta=0.5)
    for loss in (expected, found):
        (loss * 1024).backward()
    np.testing.assert_allclose(found.array, expected.array, rtol=5e-7)
    rtol = 1e-3 if dtype == np.float16 else 2e-6  # one unit of float16
    np.testing.assert_allclose(variables[1].grad, variables[0].grad, rtol=rtol, atol=1e-5)
    assert found.dtype == (np.float64 if dtype == np.float64 else np.float32) and variables[1].grad.dtype == dtype


@pytest.mark.parametrize('backend', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)], indirect=True)
@pytest.mark.parametrize('factors', [(1, 1, 1), (1, 0.5, 3), (0.25, 1, 1)])
def test_the_weighted_sum_of_scalars(backend, factors):
    values = [chainer.Variable(backend.array(np.array(value, 'f'))) for value in (1.5, -2, 8)]
    total = weighted_sum(values, factors)
    assert total.dtype == np.float32 and isinstance(total.array, backend.xp.ndarray)
    assert float(total.array) == 1.5 * factors[0] - 2 * factors[1] + 8 * factors[2]
    (total * 4).backward()
    assert [float(value.grad) for value in values] == [4 * factor for factor in factors]
    assert {value.grad.dtype for value in values} == {np.dtype(np.float32)}
