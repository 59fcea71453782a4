"""Threads for compiled loops and for matrix multiplications."""

import multiprocessing
import os
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
from numba.core import caching

from mask_rcnn.ops.runtime import parallel
from mask_rcnn.ops.runtime.thread_pool import DaemonThreadPool


@pytest.fixture
def two_cpus(monkeypatch):
    """Use two threads even if there is one CPU."""
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
    """The barrier raises an error unless two ranges wait at once."""
    meeting = threading.Barrier(2, timeout=120)
    parallel.parallel_for(lambda start, stop: meeting.wait(), 2)


def test_small_loops_run_on_the_calling_thread(two_cpus):
    ranges = []
    parallel.parallel_for(lambda start, stop: ranges.append((start, stop)), 15, min_per_thread=8)
    assert ranges == [(0, 15)]
    parallel.parallel_for(lambda start, stop: ranges.append((start, stop)), 16, min_per_thread=8)
    assert len(ranges) > 2


def test_the_caller_gets_exceptions(two_cpus):
    with pytest.raises(ZeroDivisionError):
        parallel.parallel_for(lambda start, stop: 1 / (start - start), 8)


def test_threads_do_not_keep_the_function(two_cpus, monkeypatch):
    """A thread may delete its work some time after the caller has got the result."""
    kept = []

    class Pool(DaemonThreadPool):
        def submit(self, function):
            kept.append(function)
            return super().submit(function)

    class Function:
        def __call__(self, start, stop):
            pass

    monkeypatch.setattr(parallel, '_pool', Pool(1, 'test', lambda: None))
    function = Function()
    reference = weakref.ref(function)
    parallel.parallel_for(function, 8)
    del function
    assert kept and reference() is None


def test_nested_calls_do_not_deadlock(two_cpus):
    seen = np.zeros((8, 8), int)

    def outer(start, stop):
        for row in seen[start:stop]:
            parallel.parallel_for(lambda first, end, row=row: row[first:end].__iadd__(1), 8)

    parallel.parallel_for(outer, 8)
    assert (seen == 1).all()


def _sum_in_parallel(n):
    values = np.zeros(n)
    parallel.parallel_for(lambda start, stop: values[start:stop].__iadd__(1), n)
    return values.sum()


_AFTER_THE_MAIN_THREAD = """
import threading
import numpy as np
from mask_rcnn.ops.runtime import parallel

parallel.cpu_count = lambda: 2

def work():
    threading.main_thread().join()
    values = np.zeros(100)
    parallel.parallel_for(lambda start, stop: values[start:stop].__iadd__(1), len(values))
    print(values.sum())

threading.Thread(target=work).start()
"""


def test_threads_may_outlive_the_main_thread():
    """A program that starts threads and does not join them runs until they end."""
    done = subprocess.run([sys.executable, '-c', _AFTER_THE_MAIN_THREAD], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ('100.0\n', '')


def test_without_further_threads_the_caller_does_all_the_work(two_cpus, monkeypatch):
    """A system that limits threads raises RuntimeError."""

    def start(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, 'start', start)
    assert _sum_in_parallel(10) == 10


@pytest.mark.skipif('fork' not in multiprocessing.get_all_start_methods(), reason='no fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork.*:DeprecationWarning')
def test_forked_processes_start_new_threads(two_cpus):
    assert _sum_in_parallel(10) == 10  # the parent has threads now
    with multiprocessing.get_context('fork').Pool(2) as pool:
        assert pool.map_async(_sum_in_parallel, [10, 20, 30]).get(timeout=300) == [10, 20, 30]


def test_cpu_count_follows_the_affinity():
    """The subprocess fails if the assertion in its code fails."""
    if not hasattr(os, 'sched_setaffinity'):
        pytest.skip('no affinity on this system')
    code = (
        'import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import mask_rcnn\n'
        'from mask_rcnn.ops.runtime.parallel import cpu_count; assert cpu_count() == 1'
    )
    subprocess.run([sys.executable, '-c', code], check=True)


def test_jit_works_without_a_cache_folder(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError('cannot cache function: no locator available')

    monkeypatch.setattr(caching.FunctionCache, '__init__', refuse)
    assert parallel.jit(lambda x: x + 1)(2) == 3


def test_jit_divides_like_numpy_and_keeps_float32():
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


# BLAS


@pytest.fixture
def openblas(monkeypatch):
    """Replace OpenBLAS's functions; the last element of the list is the current thread count."""
    threads = [4]
    monkeypatch.setattr(parallel, '_openblas_found', [(threads.append, lambda: threads[-1])])
    return threads


def test_openblas_is_limited_to_one_thread_during_a_loop(two_cpus, openblas):
    seen = []
    parallel.parallel_for(lambda start, stop: seen.append(openblas[-1]), 8, uses_blas=True)
    assert set(seen) == {1}
    assert openblas == [4, 1, 4]


def test_loops_without_matmul_leave_openblas_alone(two_cpus, openblas):
    parallel.parallel_for(lambda start, stop: None, 8)
    assert openblas == [4]


def test_the_outermost_call_restores_the_thread_count(two_cpus, openblas):
    def outer(start, stop):
        parallel.parallel_for(lambda first, last: None, 4, uses_blas=True)
        assert openblas[-1] == 1

    parallel.parallel_for(outer, 8, uses_blas=True)
    assert openblas == [4, 1, 4]


def test_exceptions_restore_the_thread_count(two_cpus, openblas):
    with pytest.raises(ZeroDivisionError):
        parallel.parallel_for(lambda start, stop: 1 / 0, 8, uses_blas=True)
    assert openblas[-1] == 4


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
@pytest.mark.filterwarnings('ignore:.*multi-threaded, use of fork.*:DeprecationWarning')
def test_a_process_forked_during_a_loop_gets_the_thread_count(openblas):
    """The thread that would restore it exists only in the parent."""
    exit_codes = []

    def fork(start, stop):
        process = os.fork()
        if process == 0:
            os._exit(openblas[-1])
        exit_codes.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))

    parallel.parallel_for(fork, 8, min_per_thread=8, uses_blas=True)
    assert exit_codes == [4]


def test_another_blas_keeps_its_threads_and_gets_one_range(two_cpus, monkeypatch):
    monkeypatch.setattr(parallel, '_openblas_found', [None])
    calls = []
    parallel.parallel_for(
        lambda start, stop: calls.append((start, stop, threading.current_thread())), 8, uses_blas=True
    )
    parallel.parallel_for(lambda start, stop: calls.append(None), 0, uses_blas=True)
    assert calls == [(0, 8, threading.current_thread())]


@pytest.mark.parametrize(('prefix', 'suffix'), [('scipy_', '64_'), ('', '')])
def test_openblas_symbols_of_several_builds_are_found(prefix, suffix):
    class Library:
        pass

    class Function:
        pass

    names = f'{prefix}openblas_set_num_threads{suffix}', f'{prefix}openblas_get_num_threads{suffix}'
    for name in names:
        setattr(Library, name, Function())
    assert parallel._find_symbols(Library) == tuple(getattr(Library, name) for name in names)
    assert parallel._find_symbols(object()) is None


@pytest.mark.parametrize('name', ['libscipy_openblas64_-13e2df515630b4a41f92893938845698.dll', None])
def test_openblas_of_a_wheel_is_found_beside_numpy(monkeypatch, tmp_path, name):
    """Windows searches symbols in one library only; Apple's NumPy, which uses Accelerate, has none at all."""

    class Library:
        def __init__(self, path):
            if 'openblas' in path:
                self.scipy_openblas_set_num_threads64_ = self.scipy_openblas_get_num_threads64_ = lambda: path

    folder = tmp_path / 'numpy.libs'
    folder.mkdir()
    for file in filter(None, ('msvcp140.dll', name)):
        (folder / file).touch()
    monkeypatch.setattr(parallel.np, '__file__', str(tmp_path / 'numpy' / '__init__.py'))
    monkeypatch.setattr(parallel.ctypes, 'CDLL', Library)
    monkeypatch.setattr(parallel, '_openblas_found', [])
    monkeypatch.setattr(parallel, '_max_threads', None)
    functions = parallel._find_openblas()
    if name is None:
        assert functions is None
        parallel.limit_threads(parallel.cpu_count())
    else:
        assert functions[0]() == str(folder / name)


def test_numpys_openblas_is_limited_to_one_thread():
    functions = parallel._find_openblas()
    if functions is None:
        pytest.skip('another BLAS')
    before = functions[1]()
    with parallel._single_threaded(*functions):
        assert functions[1]() == 1
    assert functions[1]() == before


def test_partial_sums_are_added_in_the_order_of_the_ranges():
    big, small = np.full(1, 1e8, np.float32), np.full(1, 1, np.float32)
    partial_sums = {2: -big, 0: big, 1: small}
    assert parallel.sum_in_order(partial_sums, (1,), np.float32)[0] == (big + small - big)[0]


@pytest.mark.parametrize(('n', 'threads'), [(1, 2), (7, 2), (64, 2), (1000, 3), (61824, 64)])
def test_ranges_become_smaller(n, threads):
    """The last ranges are at most a sixteenth of the share of a thread, so that no thread waits long for another."""
    ranges = parallel._divide(n, threads)
    sizes = [stop - start for start, stop in ranges]
    assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])]
    assert ranges[-1][1] == n
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= max(n / threads / 16, 1)
    assert len(ranges) >= min(n, 4 * threads)


def test_threads_can_be_limited(monkeypatch):
    """Processes of one machine share its CPUs."""
    monkeypatch.setattr(parallel, 'available_cpus', lambda: frozenset({0, 2, 5, 7}))
    monkeypatch.setattr(parallel, '_max_threads', None)
    threads = [3]
    monkeypatch.setattr(parallel, '_openblas_found', [(lambda n: threads.append(n), lambda: threads[-1])])
    assert parallel.cpu_count() == 4
    parallel.limit_threads(2)
    assert parallel.cpu_count() == 2 and threads[-1] == 2
    parallel.limit_threads(9)
    assert parallel.cpu_count() == 4 and threads[-1] == 2  # the limit of OPENBLAS_NUM_THREADS stays
