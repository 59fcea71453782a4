"""The threads of the pipeline: order, bounds, errors and interrupts."""

import os
import random
import signal
import threading
import time

import pytest

from mask_rcnn.media.pipeline import BoundedQueue, OrderedWriter, QueueClosed, ReadAhead


def sleep_a_little():
    time.sleep(random.random() * 0.004)


def test_items_keep_their_order_through_random_delays():
    """No item is lost or doubled."""

    def read():
        for i in range(200):
            sleep_a_little()
            yield i

    def prepare(i):
        sleep_a_little()
        return i * 10

    written = []

    def write(result):
        sleep_a_little()
        written.append(result)

    with ReadAhead(read()) as items, OrderedWriter(prepare, write, n_threads=4) as writer:
        for item in items:
            sleep_a_little()
            writer.submit(item)
    assert written == [10 * i for i in range(200)]


def test_the_reader_waits_for_room():
    read = []

    def items():
        for i in range(50):
            read.append(i)
            yield i

    with ReadAhead(items(), max_items=3) as ahead:
        for i in ahead:
            time.sleep(0.002)
            assert len(read) <= i + 6  # three in the queue, one that waits for room, one that is used


def test_a_queue_is_bounded_by_bytes():
    queue = BoundedQueue(max_items=9, max_bytes=100)
    queue.put('large', 500)  # an empty queue takes every item
    waiting = threading.Thread(target=queue.put, args=('small', 1))
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert queue.get() == 'large'
    waiting.join(5)
    assert queue.get() == 'small'


def test_a_live_item_replaces_the_oldest():
    queue = BoundedQueue(max_items=2)
    assert [queue.put(i, replace=True) for i in range(5)] == [0, 0, 1, 1, 1]
    assert [queue.get(), queue.get()] == [3, 4]
    queue.close()
    with pytest.raises(QueueClosed):
        queue.get()


def test_an_error_of_the_reader_comes_after_its_items():
    def items():
        yield 1
        raise RuntimeError('broken')

    with ReadAhead(items()) as ahead:
        assert next(ahead) == 1
        with pytest.raises(RuntimeError, match='broken'):
            next(ahead)


@pytest.mark.parametrize('place', ['prepare', 'write'])
def test_an_error_of_a_thread_is_raised_at_once(place):
    def fail(item):
        if item == 3:
            raise RuntimeError('disk full')
        return item

    functions = {'prepare': lambda item: item, 'write': lambda item: None, place: fail}
    submitted = []

    def run():
        with OrderedWriter(**functions) as writer:
            for item in range(1000):
                writer.submit(item)
                submitted.append(item)
                time.sleep(0.001)

    with pytest.raises(RuntimeError, match='disk full'):
        run()
    assert len(submitted) < 500


def test_an_error_of_the_last_item_is_raised():
    def fail(item):
        raise RuntimeError('disk full')

    with pytest.raises(RuntimeError, match='disk full'), OrderedWriter(lambda item: item, fail) as writer:
        writer.submit(1)


def test_after_an_interrupt_all_submitted_items_are_written():
    written = []

    def write(item):
        time.sleep(0.01)
        written.append(item)

    writer = OrderedWriter(lambda item: item, write)

    def run():
        with writer:
            for item in range(5):
                writer.submit(item)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert written == [0, 1, 2, 3, 4] and not writer.is_abandoned


def test_the_reader_ends_with_the_loop():
    """Also if it waits for room, and its iterator is closed."""
    closed = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            closed.set()

    with ReadAhead(items()) as ahead:
        next(ahead)
    assert closed.wait(5)


def test_a_second_interrupt_discards_items():
    released = threading.Event()
    writer = OrderedWriter(lambda item: item, lambda item: released.wait(5))

    def run():
        with writer:
            for item in range(3):
                writer.submit(item)
            threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
            raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run()
    released.set()
    assert writer.is_abandoned and time.monotonic() - begin < 4
