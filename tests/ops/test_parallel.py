import multiprocessing
import os
import subprocess
import sys
import threading

import numba
import numpy as np
import pytest

from mask_rcnn.ops.runtime import parallel


@pytest.fixture
def two_cpus(monkeypatch):
    """Threads even where there is one CPU."""
    monkeypatch.setattr(parallel, 'cpu_count', lambda: 2)
    monkeypatch.setattr(parallel, '_pool', None)


@pytest.mark.parametrize('n', [0, 1, 2, 7, 8, 100])
def test_ranges_cover_everything_once(two_cpus, n):
    seen = np.zeros(n, int)

    def count(start, stop):
        assert start < stop
        seen[start:stop] += 1

    parallel.parallel_for(count, n)
    assert (seen == 1).all()


def test_ranges_run_at_the_same_time(two_cpus):
    meeting = threading.Barrier(2, timeout=20)
    parallel.parallel_for(lambda start, stop: meeting.wait(), 2)


def test_little_work_wakes_nobody(two_cpus):
    ranges = []
    parallel.parallel_for(lambda start, stop: ranges.append((start, stop)), 15, min_per_thread=8)
    assert ranges == [(0, 15)]
    parallel.parallel_for(lambda start, stop: ranges.append((start, stop)), 16, min_per_thread=8)
    assert len(ranges) > 2


def test_errors_are_passed_on(two_cpus):
    with pytest.raises(ZeroDivisionError):
        parallel.parallel_for(lambda start, stop: 1 / (start - start), 8)


def test_nested_calls_do_not_wait_for_themselves(two_cpus):
    seen = np.zeros((8, 8), int)

    def outer(start, stop):
        for i in range(start, stop):
            parallel.parallel_for(lambda first, end: seen[i, first:end].__iadd__(1), 8)

    parallel.parallel_for(outer, 8)
    assert (seen == 1).all()


def _sum_in_parallel(n):
    values = np.zeros(n)
    parallel.parallel_for(lambda start, stop: values[start:stop].__iadd__(1), n)
    return values.sum()


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='no fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork.*:DeprecationWarning')
def test_forked_processes_have_their_own_threads(two_cpus):
    assert _sum_in_parallel(10) == 10  # the parent has threads now
    with multiprocessing.get_context('fork').Pool(2) as pool:
        assert pool.map_async(_sum_in_parallel, [10, 20, 30]).get(timeout=60) == [10, 20, 30]


def test_cpu_count_follows_the_affinity():
    if not hasattr(os, 'sched_setaffinity'):
        pytest.skip('no affinity on this system')
    code = (
        'import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import mask_rcnn\n'
        'from mask_rcnn.ops.runtime.parallel import cpu_count; assert cpu_count() == 1'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_jit_works_without_a_folder_for_its_cache(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError('cannot cache function: no locator available')

    monkeypatch.setattr(numba.core.dispatcher, 'FunctionCache', refuse)
    assert parallel.jit(lambda x: x + 1)(2) == 3


def test_jit_divides_as_numpy_and_keeps_float32():
    @parallel.jit
    def divide(a, b):
        return a / b

    assert np.isinf(divide(np.float32(1), np.float32(0)))
    assert divide(np.float32(1), np.float32(3)) == np.float32(1) / np.float32(3)


def test_jit_does_not_fuse_multiplication_and_addition():
    @parallel.jit
    def multiply_add(a, b, c, out):
        for i in range(out.size):
            out[i] = a[i] * b[i] + c[i]

    rng = np.random.RandomState(0)
    a, b, c = rng.standard_normal((3, 1000)).astype(np.float32)
    out = np.empty_like(a)
    multiply_add(a, b, c, out)
    np.testing.assert_array_equal(out, a * b + c)
