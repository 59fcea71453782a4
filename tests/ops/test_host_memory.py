"""Reuse of the memory of large arrays."""

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mask_rcnn.ops.masks import paste_masks as paste_module
from mask_rcnn.ops.runtime import host_memory, parallel
from mask_rcnn.ops.runtime.host_memory import allocate

SHAPE = (8, 1024, 1024)


@pytest.fixture(autouse=True)
def free(monkeypatch):
    """The free blocks; empty at first."""
    free: deque = deque()
    monkeypatch.setattr(host_memory, '_free', free)
    return free


def address(array):
    return array.__array_interface__['data'][0]


def test_a_new_array_is_an_ordinary_array_of_zeros():
    array, is_zero = allocate(SHAPE, np.bool_)
    assert is_zero and type(array) is np.ndarray and array.shape == SHAPE and array.dtype == np.bool_
    assert array.flags.c_contiguous and array.flags.writeable and array.flags.aligned and not array.any()
    array[3] = True
    assert array.sum() == 1024 * 1024


def test_a_deleted_array_is_reused_and_is_not_zero():
    array, _ = allocate(SHAPE, np.bool_)
    array.fill(True)
    first = address(array)
    del array
    array, is_zero = allocate((2, 1024, 1024), np.float32)
    assert address(array) == first and not is_zero and array.shape == (2, 1024, 1024) and array.dtype == np.float32


@pytest.mark.parametrize(
    'view_of',
    [
        lambda array: array[0],
        lambda array: array[1:3, ::2, 5:],
        lambda array: array.reshape(-1)[10:],
        lambda array: array.view(np.uint8),
        lambda array: array.T,
        lambda array: array.transpose(2, 0, 1)[0][1:],
        lambda array: array.ravel(),
        lambda array: np.asarray(array)[..., None],
        lambda array: np.lib.stride_tricks.as_strided(array, (2,), (1,)),
        lambda array: np.frombuffer(array, np.uint8),
        lambda array: array.view(np.recarray),
        lambda array: memoryview(array),
        lambda array: memoryview(array[1])[2:],
        lambda array: array.flat,
        lambda array: list(array)[3],
    ],
)
def test_memory_is_not_reused_while_a_view_exists(view_of, free):
    array, _ = allocate(SHAPE, np.bool_)
    view, first = view_of(array), address(array)
    del array
    gc.collect()
    other, is_zero = allocate(SHAPE, np.bool_)
    assert not free and is_zero and address(other) != first
    del view
    gc.collect()
    again, is_zero = allocate(SHAPE, np.bool_)
    assert address(again) == first and not is_zero


@pytest.mark.parametrize(
    'copy_of', [np.copy, lambda array: pickle.loads(pickle.dumps(array)), lambda array: array[[0, 1]], np.logical_not]
)
def test_copies_do_not_keep_the_memory(copy_of, free):
    array, _ = allocate(SHAPE, np.bool_)
    array.fill(True)
    copy = copy_of(array)
    expected = copy.copy()
    del array
    assert len(free) == 1
    reused, _ = allocate(SHAPE, np.bool_)
    reused.fill(False)
    np.testing.assert_array_equal(copy, expected)


def test_a_cycle_returns_its_memory_through_the_garbage_collector(free):
    holder = [allocate(SHAPE, np.bool_)[0]]
    holder.append(holder)
    del holder
    gc.collect()
    assert len(free) == 1


def test_few_blocks_are_kept_and_the_oldest_is_deleted(free):
    arrays = [allocate(SHAPE, np.bool_)[0] for _ in range(4)]
    addresses = [address(array) for array in arrays]
    while arrays:
        del arrays[0]
    assert [address(block) for block in free] == addresses[2:]


@pytest.mark.parametrize('shape', [(0, 800, 1333), (4, 1024, 1023), (1 << 8, 1 << 10, (1 << 10) + 1)])
def test_small_and_huge_arrays_are_not_kept(free, shape):
    array, is_zero = allocate(shape, np.bool_)
    assert is_zero and array.shape == shape and array.base is None
    del array
    assert not free


def test_arrays_of_similar_sizes_share_a_block(free):
    first = address(allocate((100, 800, 1300), np.bool_)[0])
    assert address(allocate((100, 800, 1333), np.bool_)[0]) == first
    assert address(allocate((60, 800, 1333), np.bool_)[0]) == first
    small, is_zero = allocate((40, 800, 1333), np.bool_)  # would occupy less than half of the block
    assert is_zero and address(small) != first and len(free) == 1
    large = allocate((150, 800, 1333), np.bool_)
    assert large[1] and len(free) == 1 and address(free[0]) == first


@pytest.mark.parametrize('n_bytes', [1 << 22, (1 << 22) + 1, 5_000_000, 106_640_000, (1 << 28) - 1, 1 << 28])
def test_block_sizes(n_bytes):
    size = host_memory._rounded(n_bytes)
    assert n_bytes <= size <= 1.25 * n_bytes


def test_threads_do_not_share_blocks(free):
    """Each thread finds its values unchanged by the others."""
    failures, barrier = [], threading.Barrier(4)

    def work(number):
        barrier.wait()
        for i in range(30):
            array, is_zero = allocate((4, 1024, 1024 + i), np.bool_)
            values = array.view(np.uint8)[:, ::512, ::512]
            if is_zero and values.any():
                failures.append('not zero')
            values[...] = number
            if i % 7 == 0:
                gc.collect()
            if (values != number).any():
                failures.append('shared')

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(1, 5)))
    assert failures == [] and len(free) <= 2


def test_the_values_of_a_deleted_array_do_not_appear_in_masks(rng, monkeypatch):
    monkeypatch.setattr(parallel, 'cpu_count', lambda: 2)
    monkeypatch.setattr(parallel, '_pool', None)
    probs = rng.uniform(0, 1, (20, 14, 14)).astype(np.float32)
    corners = rng.uniform(-50, 500, (20, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 300, (20, 2))], axis=1).astype(np.float32)
    masks = paste_module.paste_masks(probs, boxes, (500, 600))
    expected, first = masks.copy(), address(masks)
    masks.fill(True)
    del masks
    masks = paste_module.paste_masks(probs, boxes, (500, 600))
    assert address(masks) == first and masks.flags.writeable
    np.testing.assert_array_equal(masks, expected)


def test_detections_return_the_memory_of_their_masks(free, rng):
    from mask_rcnn.inference.detections import Detections

    def detect():
        boxes = np.float32([[0, 0, 500, 600]] * 20)
        probs = rng.uniform(0, 1, (20, 14, 14)).astype(np.float32)
        return Detections(boxes=boxes, labels=np.zeros(20, int), scores=np.ones(20), size=(500, 600), mask_probs=probs)

    detections = detect()
    mask, first = detections.masks[0], address(detections.masks)
    expected = mask.copy()
    del detections
    assert address(detect().masks) != first
    np.testing.assert_array_equal(mask, expected)
    free.clear()
    del mask
    assert address(detect().masks) == first


def _fill_in_child(expected):
    array, _ = allocate(SHAPE, np.bool_)
    array.fill(False)
    os._exit(0 if len(host_memory._free) == expected else 1)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='the platform has no fork')
def test_a_forked_process_changes_only_its_own_memory(free):
    used, deleted = allocate(SHAPE, np.bool_)[0], allocate(SHAPE, np.bool_)[0]
    used.fill(True)
    deleted.fill(True)
    del deleted
    process = multiprocessing.get_context('fork').Process(target=_fill_in_child, args=(0,))
    process.start()
    process.join(60)
    assert process.exitcode == 0 and len(free) == 1 and free[0][: used.nbytes].all() and used.all()


def test_arrays_at_the_end_of_the_process():
    """Neither module globals, cycles nor a running thread cause an error."""
    code = """
import threading, numpy as np
from mask_rcnn.ops.runtime.host_memory import allocate
kept = allocate((8, 1024, 1024), np.bool_)[0]
cycle = [allocate((8, 1024, 1024), np.bool_)[0]]
cycle.append(cycle)
view = allocate((8, 1024, 1024), np.bool_)[0][1]
works = threading.Event()
def work():
    while True:
        allocate((8, 1024, 1024), np.bool_)[0].fill(True)
        works.set()
threading.Thread(target=work, daemon=True).start()
works.wait()
"""
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0 and 'Exception' not in done.stderr and 'Error' not in done.stderr, done.stderr
