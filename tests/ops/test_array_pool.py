"""Aligned memory of large arrays and its reuse."""

import copy
import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime import array_pool
from mask_rcnn.ops.runtime.array_pool import ALIGNMENT, ArrayPool, allocator, empty, reuse_arrays
from mask_rcnn.ops.runtime.parallel import parallel_for

KB = 1 << 10
SHAPE = (8, 4, 50, 80)  # 512000 bytes of float32


def address(array):
    return array.__array_interface__['data'][0]


def unused(pool):
    """The addresses of a pool's unused blocks."""
    return [address(block) for block in pool._unused]


def new_bytes(pool, n_bytes):
    return pool.empty(n_bytes, np.uint8)


@pytest.fixture(autouse=True)
def no_kept_memory():
    """Begin without the memory of other tests."""
    array_pool._kept.clear()
    yield
    array_pool._kept.clear()


@pytest.fixture
def pool():
    return ArrayPool()


def test_an_array_is_an_ordinary_one(pool):
    array = pool.empty(SHAPE, np.float32)
    assert type(array) is np.ndarray and array.shape == SHAPE and array.dtype == np.float32
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned
    array[...] = np.arange(array.size).reshape(SHAPE)
    assert array[-1, -1, -1, -1] == array.size - 1 and array.sum(dtype=np.int64) == array.size * (array.size - 1) // 2


def test_the_memory_of_a_deleted_array_is_reused(pool):
    array = pool.empty(SHAPE, np.float32)
    first = address(array)
    del array
    assert unused(pool) == [first]
    array = pool.empty((SHAPE[0] * SHAPE[1], 50 * 40), np.float64)
    assert address(array) == first and unused(pool) == [] and array.dtype == np.float64


@pytest.mark.parametrize(
    'view_of',
    [
        lambda array: array.reshape(-1),
        lambda array: array[1:3, :, ::2, 5:],
        lambda array: array.reshape(32, -1)[3][7:],
        lambda array: array.transpose(1, 0, 2, 3),
        lambda array: array.view(np.uint8),
        lambda array: np.asarray(array)[..., None],
        lambda array: memoryview(array),
        lambda array: list(array)[3],
        chainer.Variable,
        lambda array: chainer.functions.reshape(chainer.Variable(array[2:]), (-1,)),
    ],
)
def test_memory_is_not_reused_while_a_view_exists(pool, view_of):
    array = pool.empty(SHAPE, np.float32)
    array.fill(7)
    view, first = view_of(array), address(array)
    del array
    gc.collect()
    other = pool.empty(SHAPE, np.float32)
    assert address(other) != first and unused(pool) == []
    other.fill(8)
    values = view.array if isinstance(view, chainer.Variable) else np.asarray(view)
    assert (values.view(np.float32) if values.dtype == np.uint8 else values).min() == 7
    del view, values
    gc.collect()
    assert unused(pool) == [first]


@pytest.mark.parametrize('copy_of', [copy.copy, copy.deepcopy, lambda array: pickle.loads(pickle.dumps(array))])
def test_copies_own_their_memory(pool, copy_of):
    array = pool.empty(SHAPE, np.float32)
    array.fill(7)
    copied, first = copy_of(array), address(array)
    assert not isinstance(copied.base, type(array.base)) and not np.may_share_memory(copied, array)
    del array
    assert unused(pool) == [first]
    pool.empty(SHAPE, np.float32).fill(8)
    assert copied.shape == SHAPE and (copied == 7).all()


def test_a_view_is_pickled_as_an_ordinary_array(pool):
    array = pool.empty(SHAPE, np.float32)
    array.fill(7)
    assert len(pickle.dumps(array[0, 0, :2, :3])) < KB
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array[0, 0, :2, :3])), np.full((2, 3), 7, np.float32))


@pytest.mark.parametrize('context', [reuse_arrays, threading.Lock])
@pytest.mark.parametrize('dtype', [np.float32, np.float64, np.float16, np.bool_])
def test_large_arrays_are_aligned(context, dtype):
    """With and without a pool; the blocks of NumPy start 16 bytes after a page or after another block."""
    with context():
        arrays = [empty((n, 3, 257), dtype) for n in (100, 500, 501, 9000)]
        assert [address(array) % ALIGNMENT for array in arrays] == [0] * 4
        assert all(array.dtype == dtype and array.flags.c_contiguous and array.flags.writeable for array in arrays)
        assert [array.shape for array in arrays] == [(n, 3, 257) for n in (100, 500, 501, 9000)]
        del arrays
        assert address(empty((501, 3, 257), dtype)) % ALIGNMENT == 0


@pytest.mark.parametrize('context', [reuse_arrays, threading.Lock])
@pytest.mark.parametrize('shape', [(), 0, 5, np.int64(5), (0, 800, 1333), (3, 0), (64 * KB - 1,)])
def test_small_arrays_are_those_of_numpy(context, shape):
    with context():
        array = empty(shape, np.uint8)
        expected = np.empty(shape, np.uint8)
        assert array.base is None and (array.shape, array.dtype) == (expected.shape, expected.dtype)


@pytest.mark.parametrize('context', [reuse_arrays, threading.Lock])
@pytest.mark.parametrize('shape', [64 * KB, np.int64(64 * KB), (np.int32(64 * KB), 1)])
def test_large_arrays_have_the_shape_of_numpy(context, shape):
    with context():
        array = empty(shape, np.uint8)
        assert array.base is not None and array.shape == np.empty(shape, np.uint8).shape


@pytest.mark.parametrize(('n_bytes', 'is_reused'), [(150, True), (149, True), (100, True), (99, False), (151, False)])
def test_blocks_are_neither_too_small_nor_much_too_large(pool, n_bytes, is_reused):
    """A block of 150 KB is used for arrays of 100 to 150 KB."""
    block = new_bytes(pool, 150 * KB)
    first = address(block)
    del block
    array = new_bytes(pool, n_bytes * KB)
    assert (address(array) == first) == is_reused and len(pool._unused) == (not is_reused)
    array.fill(1)


def test_the_smallest_sufficient_block_is_used(pool):
    blocks = [new_bytes(pool, n * KB) for n in (140, 120, 130, 110)]
    addresses = list(map(address, blocks))
    del blocks
    arrays = [new_bytes(pool, n * KB) for n in (115, 111, 100)]
    assert list(map(address, arrays)) == [addresses[1], addresses[2], addresses[3]]


def test_a_reused_block_keeps_its_size(pool):
    block = new_bytes(pool, 150 * KB)
    first = address(block)
    del block
    small = new_bytes(pool, 100 * KB)
    assert address(small) == first
    del small
    assert address(new_bytes(pool, 150 * KB)) == first


def test_the_blocks_unused_for_longest_are_deleted():
    pool = ArrayPool(max_unused_bytes=300 * KB)
    blocks = [new_bytes(pool, 100 * KB) for _ in range(5)]
    addresses = list(map(address, blocks))
    while blocks:
        del blocks[0]
    assert unused(pool) == addresses[2:]
    array = new_bytes(pool, 100 * KB)
    assert address(array) == addresses[2]
    del array
    assert unused(pool) == [*addresses[3:], addresses[2]]
    new_bytes(pool, 301 * KB)
    assert unused(pool) == []


def test_the_context_has_a_limit():
    with reuse_arrays():
        pool = chainer.config.array_pool
        arrays = [new_bytes(pool, array_pool._MAX_UNUSED_BYTES // 4) for _ in range(6)]
        del arrays
        assert len(unused(pool)) == 4


def test_nested_contexts_share_the_pool():
    with reuse_arrays():
        first = address(empty(SHAPE, np.float32))
        with reuse_arrays():
            array = empty(SHAPE, np.float32)
            assert address(array) == first
        del array
        assert unused(chainer.config.array_pool) == [first]
        assert address(empty(SHAPE, np.float32)) == first


def test_memory_is_kept_for_the_next_context():
    with reuse_arrays():
        outlives, used = empty(SHAPE, np.float32), empty(SHAPE, np.float32)
        first = address(used)
        del used
    assert chainer.config.array_pool is None
    outlives.fill(7)
    with reuse_arrays():
        array = empty(SHAPE, np.float32)
        assert address(array) == first
        array.fill(8)
        assert (outlives == 7).all()
        second = address(outlives)
        del outlives
        assert address(empty(SHAPE, np.float32)) == second


def test_a_process_keeps_the_memory_of_one_context():
    """Contexts of several threads at the same time have pools of their own."""

    def run(barrier):
        with reuse_arrays():
            array = empty(SHAPE, np.float32)
            block = weakref.ref(array.base._block.base)
            del array
            barrier.wait(60)
        barrier.wait(60)
        return block

    barrier = threading.Barrier(3)
    with ThreadPoolExecutor(3) as threads:
        blocks = list(threads.map(run, [barrier] * 3))
    gc.collect()
    assert sum(block() is not None for block in blocks) == 1


def test_an_exception_closes_the_context():
    pools = []

    def fail():
        pools.append(chainer.config.array_pool)
        empty(SHAPE, np.float32)
        assert len(pools[0]._unused) == 1
        raise ValueError('inside')

    with pytest.raises(ValueError, match='inside'), reuse_arrays():
        fail()
    assert chainer.config.array_pool is None and not pools[0]._unused


def test_a_context_is_that_of_one_thread():
    with reuse_arrays(), ThreadPoolExecutor(1) as thread:
        assert thread.submit(lambda: chainer.config.array_pool).result() is None
        assert thread.submit(allocator).result() is not allocator()


def test_threads_that_work_for_a_thread_use_its_pool():
    with reuse_arrays(), ThreadPoolExecutor(1) as thread:
        first = address(empty(SHAPE, np.float32))
        assert address(thread.submit(allocator(), SHAPE, np.float32).result()) == first


def test_threads_do_not_share_blocks():
    """Each thread finds its values unchanged by the others."""
    failures, interval = [], sys.getswitchinterval()

    def work(first, last):
        for number in range(first, last):
            array = new(64 * KB + 100 * (number % 7), np.uint8)
            array.fill(number % 251)
            view = array[::997]
            del array
            if number % 50 == 0:
                gc.collect(0)
            if (view != number % 251).any():
                failures.append(number)

    sys.setswitchinterval(1e-6)
    try:
        with reuse_arrays():
            new = allocator()
            with ThreadPoolExecutor(4) as threads:
                list(threads.map(work, range(0, 1200, 300), range(300, 1500, 300)))
            parallel_for(work, 300)
            assert len(chainer.config.array_pool._unused) < 20  # at most two per thread at a time
    finally:
        sys.setswitchinterval(interval)
    assert failures == []


def test_the_garbage_collector_may_return_a_block_at_any_time(pool):
    """It may run while its thread holds the lock: waiting for the lock would take forever."""
    arrays = [pool.empty(SHAPE, np.float32)]
    first = address(arrays[0])

    def delete():
        with pool._lock:
            arrays.clear()

    thread = threading.Thread(target=delete, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive() and unused(pool) == []
    assert address(pool.empty(SHAPE, np.float32)) == first


def _delete_in_child(arrays, pool):
    first = address(arrays[0])
    arrays.pop().fill(9)
    os._exit(0 if unused(pool) == [first] else 1)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the platform has no fork')
def test_a_forked_process_changes_only_its_own_memory(pool):
    arrays = [pool.empty(SHAPE, np.float32)]
    arrays[0].fill(7)
    process = multiprocessing.get_context('fork').Process(target=_delete_in_child, args=(arrays, pool))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and unused(pool) == [] and (arrays[0] == 7).all()


def test_arrays_at_the_end_of_the_process():
    """Neither an open context, module globals, cycles nor a running thread cause an error."""
    code = """
import threading, numpy as np
from mask_rcnn.ops.runtime.array_pool import empty, reuse_arrays
context = reuse_arrays()
context.__enter__()
kept = empty((100, 1000), np.float32)
cycle = [empty((100, 1000), np.float32)]
cycle.append(cycle)
works = threading.Event()
def work():
    with reuse_arrays():
        while True:
            empty((100, 1000), np.float32).fill(1)
            works.set()
threading.Thread(target=work, daemon=True).start()
works.wait()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and 'Exception' not in done.stderr and 'Error' not in done.stderr, done.stderr
