"""Vectors in compiled functions against NumPy."""

import numba
import numpy as np
import pytest

from mask_rcnn.ops.runtime import vectors
from mask_rcnn.ops.runtime.parallel import jit


@jit
def compute(values, factors, n, out):
    a, b = vectors.load(values, 1), vectors.load(values, 1 + n)
    vectors.store(out, 0, vectors.multiply_add(vectors.load(factors, 0), a, b))
    vectors.store(out, n, vectors.add(a, b))
    vectors.store(out, 2 * n, vectors.maximum(a, vectors.fill(values[0])))
    vectors.store(out, 3 * n, vectors.even_lanes(a, b))
    return vectors.sum_lanes(a)


@jit
def rearrange(a, b, n, out):
    first, second = vectors.load(a, 0), vectors.load(b, 0)
    vectors.store(out, 0, vectors.even_lanes(first, second))
    vectors.store(out, n, vectors.odd_lanes(first, second))
    vectors.store(out, 2 * n, vectors.interleave_lower(first, second))
    vectors.store(out, 3 * n, vectors.interleave_upper(first, second))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_interleaving_is_the_inverse_of_separating(dtype):
    n = vectors.lanes(dtype)
    values = np.arange(2 * n, dtype=dtype)
    out = np.zeros((5, n), dtype)
    rearrange(values[:n], values[n:], n, out)
    np.testing.assert_array_equal(out[0], values[::2])
    np.testing.assert_array_equal(out[1], values[1::2])
    rearrange(values[::2].copy(), values[1::2].copy(), n, out)
    np.testing.assert_array_equal(out[2:4].reshape(-1), values)
    assert not out[4].any()


@jit
def prefetch_around(values):
    vectors.prefetch(values, 0)
    vectors.prefetch(values, 1 << 40)
    vectors.prefetch(values, -(1 << 40))


def test_prefetching_changes_nothing_and_may_leave_the_array():
    values = np.arange(100, dtype=np.float32)
    prefetch_around(values)
    np.testing.assert_array_equal(values, np.arange(100))


@jit
def copy_first(values, i, n, out, o):
    vectors.store_first(out, o, n, vectors.load_first(values, i, n))


@jit
def load_some(values, i, n, out):
    vectors.store(out, 0, vectors.load_first(values, i, n))


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_only_the_first_elements_are_read_and_written(dtype):
    n_lanes = vectors.lanes(dtype)
    values = np.arange(1, 2 * n_lanes + 1, dtype=dtype)
    for n in range(n_lanes + 1):
        out = np.full(2 * n_lanes, -1, dtype)
        copy_first(values, 2 * n_lanes - n, n, out, 3)
        np.testing.assert_array_equal(out[3 : 3 + n], values[2 * n_lanes - n :])
        assert (out[:3] == -1).all() and (out[3 + n :] == -1).all()
        load_some(values, 2 * n_lanes - n, n, out)
        np.testing.assert_array_equal(out[:n], values[2 * n_lanes - n :])
        assert not out[n:n_lanes].any()


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_vectors_equal_numpy(rng, dtype):
    n = vectors.lanes(dtype)
    assert n * np.dtype(dtype).itemsize == vectors.VECTOR_BYTES
    values, factors = rng.uniform(-1, 1, 1 + 2 * n).astype(dtype), rng.uniform(-1, 1, n).astype(dtype)
    out = np.zeros((5, n), dtype)
    total = compute(values, factors, n, out)
    a, b = values[1 : n + 1], values[n + 1 :]
    epsilon = np.finfo(dtype).eps
    np.testing.assert_allclose(out[0], factors * a + b, rtol=0, atol=2 * epsilon)
    np.testing.assert_array_equal(out[1], a + b)
    np.testing.assert_array_equal(out[2], np.maximum(a, values[0]))
    np.testing.assert_array_equal(out[3], values[1::2][:n])
    assert not out[4].any()
    halves = a
    while len(halves) > 1:
        halves = halves[: len(halves) // 2] + halves[len(halves) // 2 :]
    assert dtype(total) == halves[0]


def test_the_maximum_of_nan_is_nan():
    values = np.full(1 + 2 * vectors.lanes('f'), np.nan, np.float32)
    values[0] = 0
    out = np.zeros((5, vectors.lanes('f')), np.float32)
    compute(values, np.ones(vectors.lanes('f'), np.float32), vectors.lanes('f'), out)
    assert np.isnan(out[2]).all()


@pytest.mark.parametrize(('features', 'size'), [('', 32), ('+sse2,+avx512f', 64), ('+avx2,-avx512f', 32)])
def test_the_size_follows_from_the_features_that_numba_compiles_for(monkeypatch, features, size):
    """The key of a cached kernel contains them (``NUMBA_CPU_FEATURES``), and not those of the processor that runs."""
    numba.config.reload_config()  # the next compilation would otherwise do so if a test has changed the environment
    monkeypatch.setattr(numba.config, 'CPU_FEATURES', features)
    assert vectors._vector_bytes() == size


def test_arrays_that_are_not_contiguous_are_refused():
    """An index counts the elements in memory, not those of a slice with a step."""

    @jit
    def add_first(values):
        return vectors.sum_lanes(vectors.load(values, 0))

    with pytest.raises(
        numba.errors.TypingError, match=r'a vector needs a contiguous array, not array\(float32, 1d, A\)'
    ):
        add_first(np.zeros(256, np.float32)[::2])
