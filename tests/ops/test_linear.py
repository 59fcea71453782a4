"""The linear layer on the CPU."""

import numpy as np
import pytest

from mask_rcnn.ops.conv.linear import linear
from mask_rcnn.ops.runtime import parallel

#: Rows, input channels and output channels.
SHAPES = [(0, 5, 7), (1, 2048, 324), (3, 1, 128), (63, 784, 32), (65, 300, 129), (5, 1024, 300)]


def make_case(rng, n_rows, n_inputs, n_outputs, dtype=np.float32):
    return (rng.normal(size=shape).astype(dtype) for shape in ((n_rows, n_inputs), (n_outputs, n_inputs), n_outputs))


@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_products(rng, shape, dtype):
    x, W, bias = make_case(rng, *shape, dtype)
    expected = np.einsum('rc,oc->ro', x.astype(np.float64), W.astype(np.float64)) + bias
    tolerance = {'rtol': 0, 'atol': 2e-6 * max(shape[1], 10) ** 0.5 * (1 if dtype == np.float32 else 1e-8) * 10}
    np.testing.assert_allclose(linear(x, W, bias), expected, **tolerance)
    np.testing.assert_allclose(linear(x, W, None), expected - bias, **tolerance)
    assert linear(x, W, bias).dtype == dtype


@pytest.mark.parametrize('shape', SHAPES[1:])
def test_bits_do_not_depend_on_the_number_of_threads(rng, monkeypatch, shape):
    """With OpenBLAS's threads, those of the second and the fourth shape do (AMD EPYC 9004)."""
    openblas = parallel._find_openblas()
    if openblas is None:
        pytest.skip('NumPy does not use OpenBLAS')
    set_threads, get_threads = openblas
    before = get_threads()
    x, W, bias = make_case(rng, *shape)
    results = []
    try:
        for n_threads in (1, 2, 3):
            monkeypatch.setattr(parallel, 'cpu_count', lambda n=n_threads: n)
            monkeypatch.setattr(parallel, '_pool', None)
            set_threads(n_threads)
            results.append(linear(x, W, bias).tobytes())
    finally:
        set_threads(before)
    assert len(set(results)) == 1
