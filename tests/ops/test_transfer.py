"""Copies between the host and a GPU, with a stand-in for CuPy whose stream works only when the host waits for it."""

from collections import deque
from contextlib import contextmanager
from types import SimpleNamespace

import chainer
import numpy as np
import pytest

from mask_rcnn.ops.runtime import transfer
from mask_rcnn.ops.runtime.transfer import (
    AsyncHostCopy,
    pack_arrays,
    read_scalars,
    side_stream,
    upload,
    upload_together,
)


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

        def set(self, array, stream):
            assert stream is queue and array.flags.c_contiguous and array.shape == self.shape
            queue.submitted.append(lambda: np.copyto(self, array))

    class Event:
        def __init__(self, disable_timing):
            assert disable_timing

        def record(self):
            self.end = len(queue.submitted)

        def synchronize(self):
            queue.run_to(self.end)

        @property
        def done(self):
            return queue.done >= self.end

    module = SimpleNamespace(concatenate=lambda parts, axis: np.concatenate(parts, axis).view(Array))
    cuda = SimpleNamespace(alloc_pinned_memory=bytearray, Event=Event, get_current_stream=lambda: queue)
    cupy = SimpleNamespace(cuda=cuda, empty=lambda shape, dtype: np.empty(shape, dtype).view(Array))
    monkeypatch.setattr(transfer, 'cuda', SimpleNamespace(cupy=cupy))
    monkeypatch.setattr(transfer, '_copies', deque())
    monkeypatch.setattr(transfer, 'get_array_module', lambda *_: module)
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


def test_an_upload_does_not_wait_and_does_not_read_the_array_later(queue, rng):
    images = [rng.randint(0, 256, (7, size, 3)).astype(np.uint8) for size in (5, 9, 11)]
    expected = [image.copy() for image in images]
    uploaded = []
    for image in images:
        uploaded.append(upload(image[:, ::-1], 'cupy'))
        image[...] = 0
    assert queue.done == 0 and len(queue.submitted) == len(transfer._copies) == 3
    memories = [memory for _, memory in transfer._copies]
    assert [len(memory) for memory in memories] == [128, 256, 256]
    assert len({id(memory) for memory in memories}) == 3  # none is used again before its copy has ended
    queue.run_to(2)
    upload(images[0], 'cupy')
    assert transfer._copies[0][1] is memories[2]
    queue.run_to(4)
    for array, image in zip(uploaded, expected, strict=True):
        np.testing.assert_array_equal(array, image[:, ::-1])


def test_the_memory_of_a_deleted_copy_to_the_host_is_kept_until_its_end(queue, rng):
    """An error between the start of a copy and :meth:`wait`, for example, deletes it."""
    AsyncHostCopy(pack_arrays(some_arrays(rng)))
    ((_, memory),) = transfer._copies
    upload(np.zeros(3, np.uint8), 'cupy')
    assert transfer._copies[0][1] is memory
    queue.run_to(1)
    upload(np.zeros(3, np.uint8), 'cupy')
    assert all(other is not memory for _, other in transfer._copies)


def test_all_cpus_copy_a_large_upload(queue, rng):
    image = rng.uniform(0, 255, (3, 700, 901)).astype(np.float32)
    uploaded = upload(image, 'cupy')
    queue.run_to(1)
    np.testing.assert_array_equal(uploaded, image)
    assert upload(image, np) is image and upload(image[:, ::2], np).flags.c_contiguous


@pytest.mark.parametrize('size', [1, 7, 1_500_000])
def test_an_upload_checks_the_values_of_its_copy(queue, rng, size):
    values = rng.uniform(-1, 1, size).astype(np.float32)
    values[-1] = np.finfo(np.float32).max
    uploaded = upload(values, 'cupy', check_finite=True)
    queue.run_to(1)
    np.testing.assert_array_equal(uploaded, values)
    assert upload(values, np, check_finite=True) is values
    for value in (np.nan, np.inf, -np.inf):
        for position in {0, size // 2, size - 1}:
            invalid = values.copy()
            invalid[position] = value
            for xp in ('cupy', np):
                with pytest.raises(ValueError, match='must not contain NaN or infinity'):
                    upload(invalid, xp, check_finite=True)
    assert len(queue.submitted) == 1
    upload(invalid, 'cupy')


@pytest.mark.gpu
def test_uploads_in_progress_are_not_overwritten():
    """The GPU still multiplies matrices when the host has written all images to pinned memory."""
    xp = chainer.backends.cuda.cupy
    matrix, image = xp.zeros((8192, 8192), np.float32), np.empty((800, 1333, 3), np.uint8)
    uploaded = []
    for value in range(20):
        matrix = matrix @ matrix
        image.fill(value)
        uploaded.append(upload(image, xp))
    assert [(int(array.min()), int(array.max())) for array in uploaded] == [(value, value) for value in range(20)]
    upload(image, xp)
    xp.cuda.Device().synchronize()
    upload(image, xp)
    assert len(transfer._copies) == 1


@pytest.mark.gpu
def test_a_deleted_copy_to_the_host_does_not_overwrite_an_upload():
    """Without its event, the upload would use the memory to which the GPU has not yet copied."""
    xp = chainer.backends.cuda.cupy
    matrix, uploaded = xp.zeros((8192, 8192), np.float32), []
    for value in range(10):
        matrix = matrix @ matrix
        AsyncHostCopy(pack_arrays([xp.full((1024, 4), -1, np.float32)]))
        uploaded.append(upload(np.full((1024, 4), value, np.float32), xp))
    assert [(float(array.min()), float(array.max())) for array in uploaded] == [(value, value) for value in range(10)]


@pytest.mark.gpu
def test_copies_to_the_host_are_those_of_a_gpu(rng):
    """Copies in progress, of several types, are read in another order; empty ones need no memory."""
    xp = chainer.backends.cuda.cupy
    sets = [some_arrays(rng) for _ in range(5)]
    copies = [
        AsyncHostCopy(pack_arrays([None if array is None else xp.asarray(array) for array in arrays]))
        for arrays in sets
    ]
    for arrays, copy in reversed(list(zip(sets, copies, strict=True))):
        assert_arrays(copy.wait(), arrays)
    assert AsyncHostCopy(pack_arrays([xp.zeros((0, 4), np.float32)])).wait()[0].shape == (0, 4)


def make_scalars(xp):
    """Return scalars of several types, and their values."""
    single = xp.asarray(np.array([0.1, 2.5], np.float32))
    scalars = [
        chainer.Variable(single[:1].reshape(())),
        3,
        xp.asarray(np.array([[1e-40]])),
        0.7,
        xp.asarray(np.array(np.nan, np.float16)),
        np.float64(1e300),
        single[1:],
        xp.asarray(np.array(-(1 << 30), np.int32)),
    ]
    return scalars, [float(np.float32(0.1)), 3.0, 1e-40, 0.7, np.nan, 1e300, 2.5, -float(1 << 30)]


@pytest.mark.parametrize('gpu', [False, pytest.param(True, marks=pytest.mark.gpu)])
def test_scalars_are_read_without_rounding(gpu):
    scalars, expected = make_scalars(chainer.backends.cuda.cupy if gpu else np)
    found = read_scalars(scalars)
    np.testing.assert_array_equal(found, expected)
    assert all(type(value) is float for value in found) and read_scalars([]) == []


def test_scalars_on_a_gpu_are_read_with_one_copy(monkeypatch):
    copies = []

    class Array(np.ndarray):
        def get(self):
            copies.append(self.nbytes)
            return np.array(self)

    module = SimpleNamespace(
        asarray=lambda array: array.view(Array), concatenate=lambda parts: np.concatenate(parts).view(Array)
    )
    monkeypatch.setattr(transfer, 'cuda', SimpleNamespace(cupy=module, ndarray=Array))
    scalars, expected = make_scalars(module)
    np.testing.assert_array_equal(read_scalars(scalars), expected)
    assert copies == [4 + 8 + 2 + 4 + 4]


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


@pytest.mark.parametrize('xp', ['cupy', np])
def test_arrays_uploaded_together_need_one_copy(queue, rng, xp):
    arrays = [
        rng.normal(size=(5, 3)).astype('f')[::2].T,
        rng.randint(0, 9, 7).astype(np.int32),
        np.zeros((2, 0), np.int32),
        rng.normal(size=(2, 3, 1)),
        np.array([True, False, True]),
    ]
    expected = [array.copy() for array in arrays]
    uploaded = upload_together(arrays, xp)
    if xp != np:
        assert len(queue.submitted) == 1 and queue.done == 0
        for array in arrays:
            array[...] = 0
        queue.run_to(1)
        addresses = {array.ctypes.data - uploaded[0].ctypes.data for array in uploaded}
        assert all(address % 16 == 0 for address in addresses) and max(addresses) < 200  # of one array
    for array, original in zip(uploaded, expected, strict=True):
        assert array.dtype == original.dtype and array.shape == original.shape and array.flags.c_contiguous
        np.testing.assert_array_equal(array, original)


@pytest.mark.gpu
def test_arrays_are_uploaded_together_to_a_gpu():
    xp = chainer.backends.cuda.cupy
    arrays = [
        np.arange(7, dtype=np.int32),
        np.zeros((2, 0), np.float32),
        np.arange(12, dtype=np.float64).reshape(3, 4)[:, ::2],
        np.array([True, False, True]),
    ]
    for array, found in zip(arrays, upload_together(arrays, xp), strict=True):
        assert isinstance(found, xp.ndarray) and found.dtype == array.dtype and found.flags.c_contiguous
        np.testing.assert_array_equal(found.get(), array)
    assert upload_together([np.zeros((0, 4), 'f')], xp)[0].shape == (0, 4)


def test_no_arrays_are_uploaded_together(queue):
    assert upload_together([], 'cupy') == [] and upload_together([np.zeros((0, 4), 'f')], 'cupy')[0].shape == (0, 4)
