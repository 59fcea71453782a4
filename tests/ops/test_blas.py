import threading

import numpy as np
import pytest

from mask_rcnn.ops.runtime import blas, parallel


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(parallel, 'cpu_count', lambda: 2)
    monkeypatch.setattr(parallel, '_pool', None)


@pytest.fixture
def blas(monkeypatch):
    """A BLAS whose number of threads is that of the list's last entry."""
    threads = [4]
    monkeypatch.setattr(blas, '_found', [(threads.append, lambda: threads[-1])])
    return threads


def test_products_take_one_thread_and_then_as_many_as_before(two_cpus, blas):
    seen = []
    blas.parallel_matmul(lambda start, stop: seen.append(blas[-1]), 8)
    assert set(seen) == {1}
    assert blas == [4, 1, 4]


def test_nested_calls_leave_the_threads_to_the_outermost(two_cpus, blas):
    def outer(start, stop):
        blas.parallel_matmul(lambda first, last: None, 4)
        assert blas[-1] == 1

    blas.parallel_matmul(outer, 8)
    assert blas == [4, 1, 4]


def test_errors_leave_the_threads_as_they_were(two_cpus, blas):
    with pytest.raises(ZeroDivisionError):
        blas.parallel_matmul(lambda start, stop: 1 / 0, 8)
    assert blas[-1] == 4


def test_an_unknown_blas_keeps_its_threads_and_gets_one_range(two_cpus, monkeypatch):
    monkeypatch.setattr(blas, '_found', [None])
    calls = []
    blas.parallel_matmul(lambda start, stop: calls.append((start, stop, threading.current_thread())), 8)
    blas.parallel_matmul(lambda start, stop: calls.append(None), 0)
    assert calls == [(0, 8, threading.current_thread())]


@pytest.mark.parametrize(('prefix', 'suffix'), [('scipy_', '64_'), ('', '')])
def test_looks_under_the_names_of_several_builds(prefix, suffix):
    class Library:
        pass

    class Function:
        pass

    names = f'{prefix}openblas_set_num_threads{suffix}', f'{prefix}openblas_get_num_threads{suffix}'
    for name in names:
        setattr(Library, name, Function())
    assert blas._look_up(Library) == tuple(getattr(Library, name) for name in names)
    assert blas._look_up(object()) is None


def test_numpys_own_openblas_obeys():
    functions = blas._find_functions()
    if functions is None:
        pytest.skip('another BLAS')
    before = functions[1]()
    with blas._single_threaded_blas():
        assert functions[1]() == 1
    assert functions[1]() == before


def test_sum_is_in_the_order_of_the_ranges():
    big, small = np.full(1, 1e8, np.float32), np.full(1, 1, np.float32)
    parts = {2: -big, 0: big, 1: small}
    assert blas.sum_in_order(parts, (1,), np.float32)[0] == (big + small - big)[0]
