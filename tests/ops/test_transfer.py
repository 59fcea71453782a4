"""Copies to the host, with a stand-in for CuPy whose stream works only when the host waits for it."""

from contextlib import contextmanager
from types import SimpleNamespace

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime import transfer
from mask_rcnn.ops.runtime.transfer import AsyncHostCopy, pack_arrays, side_stream


class Queue:
    """A stream: submitted work, and the number of finished items."""

    def __init__(self):
        self.submitted, self.done = [], 0

    def run_to(self, end):
        for work in self.submitted[self.done : end]:
            work()
        self.done = max(self.done, end)


@pytest.fixture
def queue(monkeypatch):
    queue = Queue()

    class Array(np.ndarray):
        def get(self, *, out, blocking):
            assert not blocking and out.flags.c_contiguous
            queue.submitted.append(lambda: np.copyto(out, self))

    class Event:
        def __init__(self, disable_timing):
            assert disable_timing

        def record(self):
            self.end = len(queue.submitted)

        def synchronize(self):
            queue.run_to(self.end)

    module = SimpleNamespace(concatenate=lambda parts, axis: np.concatenate(parts, axis).view(Array))
    cuda = SimpleNamespace(alloc_pinned_memory=bytearray, Event=Event)
    monkeypatch.setattr(transfer, 'cuda', SimpleNamespace(cupy=SimpleNamespace(cuda=cuda)))
    monkeypatch.setattr(transfer.chainer.backend, 'get_array_module', lambda *_: module)
    return queue


def some_arrays(rng):
    return [
        rng.normal(size=(3, 5, 4)).astype('f'),
        rng.randint(0, 1 << 24, (3, 5)).astype(np.int32),
        None,
        rng.normal(size=(3, 5, 2, 2)).astype('f'),
        rng.normal(size=3).astype('f2'),
    ]


def assert_arrays(actual_arrays, expected_arrays):
    for actual, expected in zip(actual_arrays, expected_arrays, strict=True):
        if expected is None:
            assert actual is None
        else:
            assert actual.dtype == expected.dtype
            np.testing.assert_array_equal(actual, expected)


def test_wait_returns_all_arrays_of_one_copy(queue, rng):
    first, second = some_arrays(rng), some_arrays(rng)
    copies = AsyncHostCopy(pack_arrays(first)), AsyncHostCopy(pack_arrays(second))
    assert len(queue.submitted) == 2 and queue.done == 0
    assert_arrays(copies[0].wait(), first)
    assert queue.done == 1  # the second has not been waited for
    assert_arrays(copies[1].wait(), second)
    assert_arrays(copies[0].wait(), first)


def test_arrays_on_the_host_need_no_copy(rng):
    arrays = some_arrays(rng)
    assert_arrays(AsyncHostCopy(pack_arrays(arrays)).wait(), arrays)


def test_infinities_and_nan_are_kept(rng):
    rows = np.float32([[np.nan, -np.inf], [0, np.inf]])
    np.testing.assert_array_equal(AsyncHostCopy(pack_arrays([rows])).wait()[0], rows)


def test_each_device_has_one_side_stream(monkeypatch):
    used, current = [], []

    class Stream:
        def __init__(self, non_blocking):
            assert non_blocking and current  # created for the current device

        def __enter__(self):
            used.append(self)

        def __exit__(self, *_):
            pass

    @contextmanager
    def using_device(device):
        current.append(device)
        yield
        current.pop()

    gpu = [SimpleNamespace(xp='cupy', device=SimpleNamespace(id=number)) for number in (90, 91)]
    monkeypatch.setattr(transfer, 'cuda', SimpleNamespace(cupy=SimpleNamespace(cuda=SimpleNamespace(Stream=Stream))))
    monkeypatch.setattr(transfer.chainer, 'using_device', using_device)
    for device in (gpu[0], gpu[1], gpu[0]):
        with side_stream(device):
            assert current == [device]
    assert used[0] is used[2] is not used[1]
    transfer._get_side_stream.cache_clear()
    with side_stream(chainer.get_device('@numpy')):
        assert len(used) == 3 and not current
