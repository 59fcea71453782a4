"""The matmul of packed weights and panels against NumPy's."""

import numpy as np
import pytest

from mask_rcnn.ops.conv.matmul_tiles import CHANNELS, MAX_TERMS, VECTORS, multiply, pack_weights, panel_width
from mask_rcnn.ops.runtime.parallel import jit
from mask_rcnn.ops.runtime.vectors import lanes


@jit
def multiply_panel(weights, panels, first, n_vectors, width, sums, step):
    for block in range(len(weights)):
        multiply(weights, block, panels, first, n_vectors, width, sums, block * weights.shape[2] * step, step)


def product(rng, n_out, n_in, n_vectors, dtype, *, first=5, step=None):
    """Return weights, the columns of a panel, and the sums with the rows beyond the last channel."""
    width = panel_width(dtype)
    step = width if step is None else step
    weights = rng.standard_normal((n_out, n_in)).astype(dtype)
    panels = rng.standard_normal(first + n_in * width).astype(dtype)
    packed = pack_weights(weights)
    sums = np.full((len(packed) * CHANNELS, step), np.nan, dtype)
    multiply_panel(packed, panels, first, n_vectors, width, sums, step)
    return weights, panels[first:].reshape(n_in, width), sums


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
@pytest.mark.parametrize(('n_out', 'n_in'), [(1, 1), (CHANNELS, 7), (CHANNELS + 1, 65), (3 * CHANNELS - 1, 16)])
@pytest.mark.parametrize('n_vectors', range(1, VECTORS + 1))
def test_equals_numpys_matmul(rng, dtype, n_out, n_in, n_vectors):
    """Only the requested vectors are written; the channels that complete a block are zero."""
    weights, columns, sums = product(rng, n_out, n_in, n_vectors, dtype, step=panel_width(dtype) + 3)
    n = n_vectors * lanes(dtype)
    expected = weights.astype(np.float64) @ columns[:, :n].astype(np.float64)
    np.testing.assert_allclose(sums[:n_out, :n], expected, rtol=0, atol=16 * n_in * np.finfo(dtype).eps)
    assert not sums[n_out:, :n].any()
    assert np.isnan(sums[:, n:]).all()


def test_no_rows_give_zeros(rng):
    _, _, sums = product(rng, 3, 0, VECTORS, np.float32)
    assert not sums.any()


@pytest.mark.parametrize('n_out', [1, 2 * CHANNELS, 2 * CHANNELS + 3])
def test_packed_weights(rng, n_out):
    """Element ``(block, k, c)`` is the weight of channel ``block * CHANNELS + c`` for row ``k``."""
    weights = rng.standard_normal((n_out, 5)).astype(np.float32)
    packed = pack_weights(weights)
    assert packed.shape == (-(-n_out // CHANNELS), 5, CHANNELS)
    channels = packed.transpose(0, 2, 1).reshape(-1, 5)
    np.testing.assert_array_equal(channels[:n_out], weights)
    assert not channels[n_out:].any()


def test_long_sums_are_sums_of_partial_sums(rng):
    """A single float32 sum of 16 * 384 products of half-normal values has more than twice the error."""
    n = 16 * MAX_TERMS
    weights = np.abs(rng.standard_normal((CHANNELS, n))).astype(np.float32)
    columns = np.abs(rng.standard_normal((n, panel_width(np.float32)))).astype(np.float32)
    sums = np.empty((CHANNELS, columns.shape[1]), np.float32)
    multiply_panel(pack_weights(weights), columns.reshape(-1), 0, VECTORS, columns.shape[1], sums, columns.shape[1])
    expected = weights.astype(np.float64) @ columns.astype(np.float64)
    errors = np.sqrt(((sums / expected - 1) ** 2).mean())
    single = np.zeros_like(sums)
    for weight, row in zip(weights.T, columns, strict=True):
        single += weight[:, None] * row
    assert errors < 0.5 * np.sqrt(((single / expected - 1) ** 2).mean())
