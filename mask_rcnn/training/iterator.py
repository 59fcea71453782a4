"""Batches of training examples, made ready by worker processes, in an order that nothing disturbs.

A run is one endless sequence of examples: every epoch is a permutation of the data set that follows from
the run's seed and the epoch's number, and every place in the sequence has a seed of its own.  Batches are
cut from that sequence.  So the examples, their flips and their sampling do not depend on the number of
workers, of processes or of subdivisions, and the place in the sequence is all that a snapshot has to keep.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import multiprocessing.resource_tracker
import multiprocessing.util
import pickle
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler

import chainer
import cv2
import numpy as np

from mask_rcnn.datasets.example import Example, TrainingExample

_logger = logging.getLogger(__name__)

Transform = Callable[[Example, int], TrainingExample]

#: Signals that ask a run to stop; it decides when, and its workers must not notice them.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, 'SIGUSR1') else []))


# Tell the streams of random numbers apart that all come from the run's seed.
_ORDER_STREAM, _EXAMPLE_STREAM = 0, 1
_BATCHES_AHEAD = 2
_EXAMPLES_AHEAD_PER_WORKER = 2


class ExampleError(ValueError):
    """An example could not be made; the message is one line that names the image.

    Attributes:
        details (str): The traceback, also where the example was made in another process.
    """

    def __init__(self, message: str, details: str = ''):
        super().__init__(message, details)
        self.details = details

    def __str__(self) -> str:
        return self.args[0]


class WorkerError(RuntimeError):
    """A worker process has gone; the message is one line."""


class ExampleIterator(chainer.dataset.Iterator):
    """Iterate over a data set in batches of training examples.

    Worker processes are started afresh (``spawn``: a process with threads cannot safely be forked), so a
    program that uses them must keep its own start under ``if __name__ == '__main__':``.  They end when
    the iterator is finalized or no longer used, and when the process that started them ends, however
    that happens: also if it is killed.  They leave Ctrl-C and SIGTERM to that process.

    Args:
        dataset: A sequence of :class:`~mask_rcnn.datasets.example.Example`.
        transform: Called with an example and its seed, returns a training example: a
            :class:`~mask_rcnn.datasets.transforms.TrainingTransform`.
        batch_size: Examples that one call of :meth:`next` returns.
        seed: The run's seed, in ``[0, 2**32)``.
        workers: Number of processes that read and transform; 0 does it in this process.
        repeat: Go on for ever; a batch may then hold the end of one epoch and the beginning of the next.
            Otherwise stop after one epoch, whose last batch may be smaller.
        shuffle: Take the data set in another order in every epoch.
        shard: ``(rank, size)`` of this process: of every batch of ``batch_size * size`` examples that one
            process alone would take, it takes its ``rank``-th part.  Without ``repeat`` the last part may
            be empty.

    Attributes:
        epoch (int): Number of epochs completed.
        is_new_epoch (bool): Whether the last batch completed one.

    Raises:
        ValueError: The data set is empty or a number is out of range.
        ExampleError: (:meth:`next`) An image is broken or a transform has failed.
        WorkerError: (:meth:`next`) A worker process was killed or could not start.
    """

    def __init__(
        self,
        dataset: Sequence[Example],
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        repeat: bool = True,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
    ):
        self._pool: _WorkerPool | None = None
        self._pending: deque[tuple[int, Future]] = deque()  # places and what workers make for them
        rank, size = shard
        if len(dataset) == 0:
            raise ValueError('the data set is empty')
        if batch_size < 1 or workers < 0 or not 0 <= seed < 2**32 or not 0 <= rank < size:
            raise ValueError(
                'need batch_size >= 1, workers >= 0, 0 <= seed < 2**32 and 0 <= rank < size, '
                f'got {batch_size}, {workers}, {seed}, {rank} and {size}'
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self._seed = int(seed)
        self._repeat, self._shuffle = repeat, shuffle
        self._rank, self._size = rank, size
        self._n_ahead = max(_BATCHES_AHEAD * batch_size, _EXAMPLES_AHEAD_PER_WORKER * workers)
        self._make = _ExampleMaker(dataset, transform)
        self._orders: dict[int, np.ndarray] = {}
        self.reset()
        if workers:
            self._pool = _WorkerPool(self._make, workers)

    def reset(self) -> None:
        """Go back to the first batch."""
        self._forget_pending()
        self._start = 0  # place in the sequence at which the next global batch begins
        self._previous_start = None
        self.is_new_epoch = False

    @property
    def epoch(self) -> int:
        return self._start // len(self.dataset)

    @property
    def epoch_detail(self) -> float:
        """Epochs completed, with the part of the current one."""
        return self._start / len(self.dataset)

    @property
    def previous_epoch_detail(self) -> float | None:
        """:attr:`epoch_detail` before the last batch, ``None`` before the first."""
        return None if self._previous_start is None else self._previous_start / len(self.dataset)

    def __next__(self) -> list[TrainingExample]:
        """Return the next batch: see the class's arguments."""
        if not self._repeat and self._start >= len(self.dataset):
            raise StopIteration
        batch = [self._get(place) for place in self._places(self._start)]
        self._previous_start, self._start = self._start, self._next_start(self._start)
        self.is_new_epoch = self.epoch > self._previous_start // len(self.dataset)
        return batch

    next = __next__

    def finalize(self) -> None:
        """End the worker processes; the iterator cannot be used afterwards."""
        self._forget_pending()
        if self._pool is not None:
            self._pool.close()

    def serialize(self, serializer) -> None:
        """Save or restore the place in the sequence; what follows is exactly what would have followed.

        The seed is part of it, and so wins over the one given to a resumed run.

        Raises:
            ValueError: The saved run had a data set of another length.
        """
        length = int(serializer('dataset_length', len(self.dataset)))
        if length != len(self.dataset):
            raise ValueError(f'the saved run had {length} training images, this one has {len(self.dataset)}')
        self._seed = int(serializer('seed', self._seed))
        start = int(serializer('start', self._start))
        previous = int(serializer('previous_start', -1 if self._previous_start is None else self._previous_start))
        self.is_new_epoch = bool(serializer('is_new_epoch', self.is_new_epoch))
        if isinstance(serializer, chainer.Deserializer):
            self._forget_pending()
            self._orders.clear()
            self._start, self._previous_start = start, None if previous < 0 else previous

    def _places(self, start: int) -> range:
        """Return this process's places in the global batch that begins at ``start``."""
        first = start + self._rank * self.batch_size
        last = min(first + self.batch_size, self._next_start(start))
        return range(first, last)

    def _next_start(self, start: int) -> int:
        end = start + self.batch_size * self._size
        return end if self._repeat else min(end, len(self.dataset))

    def _task(self, place: int) -> tuple[int, int]:
        """Return which example of the data set is at a place of the sequence, and its seed."""
        epoch, position = divmod(place, len(self.dataset))
        if self._shuffle:
            position = int(self._order(epoch)[position])
        return position, example_seed(self._seed, place)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            rng = np.random.RandomState([self._seed, _ORDER_STREAM, epoch])
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = rng.permutation(len(self.dataset))
        return self._orders[epoch]

    def _get(self, place: int) -> TrainingExample:
        if self._pool is None:
            return self._make(*self._task(place))
        self._fill(place)
        _, future = self._pending.popleft()
        return future.result()

    def _fill(self, place: int) -> None:
        """Give the workers the example at ``place``, if they do not have it, and some of the next ones."""
        if self._pending and self._pending[0][0] != place:  # after an error or an interrupt
            self._forget_pending()
        for upcoming in self._upcoming(place):
            if len(self._pending) >= self._n_ahead:
                return
            if not self._pending or upcoming > self._pending[-1][0]:
                self._pending.append((upcoming, self._pool.submit(self._task(upcoming))))

    def _upcoming(self, place: int) -> Iterator[int]:
        """Yield ``place`` and this process's later places, in the order in which they are taken."""
        start = self._start
        while self._repeat or start < len(self.dataset):
            yield from (p for p in self._places(start) if p >= place)
            start = self._next_start(start)

    def _forget_pending(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()


def example_seed(run_seed: int, place: int) -> int:
    """Return the seed of one example, in ``[0, 2**32)``.

    Args:
        run_seed: The run's seed.
        place: Place of the example in the run's sequence, from 0.
    """
    return int(np.random.SeedSequence([run_seed, _EXAMPLE_STREAM, place]).generate_state(1)[0])


class _ExampleMaker:
    """Reads and transforms one example; whatever goes wrong becomes an :class:`ExampleError`."""

    def __init__(self, dataset: Sequence[Example], transform: Transform):
        self._dataset = dataset
        self._transform = transform

    def __call__(self, index: int, seed: int) -> TrainingExample:
        try:
            return self._transform(self._dataset[index], seed)
        except Exception as error:
            name = self._name(index)
            reason = ' '.join(str(error).split()) or type(error).__name__
            if not isinstance(error, (OSError, ValueError)):
                reason = f'{type(error).__name__}: {reason}'
            message = reason if name in reason else f'{name}: {reason}'
            raise ExampleError(message, traceback.format_exc()) from error

    def _name(self, index: int) -> str:
        image_name = getattr(self._dataset, 'image_name', 'example {} of the data set'.format)
        return image_name(index)


class _WorkerPool:
    """Worker processes, each at one end of a pipe, at the other end of which a thread of the parent waits.

    A worker knows its parent only through the pipe.  Nobody else holds the parent's end, so that the
    worker sees the end of file as soon as the parent closes it or is gone.
    """

    def __init__(self, make: _ExampleMaker, n_worker: int):
        try:
            set_up = [bytes(ForkingPickler.dumps(make))] * n_worker
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(f'the data set cannot be sent to worker processes ({error})') from error
        self._tasks: queue.SimpleQueue[tuple[tuple[int, int], Future] | None] = queue.SimpleQueue()
        processes, threads = [], []
        # If not before, workers are closed at the end of the program, before multiprocessing waits for them.
        self._close = multiprocessing.util.Finalize(
            self, _close_workers, (processes, threads, self._tasks), exitpriority=100
        )
        with _signals_held_back():
            for _ in range(n_worker):
                process, connection = _start_worker()
                processes.append(process)
                # No thread of an executor: the interpreter would wait for it when a run is interrupted.
                threads.append(
                    threading.Thread(
                        target=_serve, args=(self._tasks, connection, set_up), name='mask_rcnn examples', daemon=True
                    )
                )
                threads[-1].start()

    def submit(self, task: tuple[int, int]) -> Future:
        """Have ``(index, seed)`` made into a training example by whichever worker is free first."""
        future = Future()
        self._tasks.put((task, future))
        return future

    def close(self) -> None:
        """End the workers; may be called again."""
        self._close()


def _start_worker() -> tuple[multiprocessing.process.BaseProcess, Connection]:
    context = multiprocessing.get_context('spawn')
    parent_end, worker_end = context.Pipe()
    process = context.Process(target=_worker_main, args=(worker_end,), name='mask_rcnn examples', daemon=True)
    process.start()
    worker_end.close()
    return process, parent_end


def _serve(tasks: queue.SimpleQueue, connection: Connection, set_up: list[bytes]) -> None:
    """Hand tasks to one worker, one at a time, until ``None`` comes: the body of a parent's thread.

    It refers to no pool, so that a pool that nobody uses can go; and it takes its copy of the pickled data
    set out of ``set_up``, whose memory is free when all workers have theirs.
    """
    with connection:
        with contextlib.suppress(OSError):  # a worker that is gone is reported with the first task
            connection.send_bytes(set_up.pop())
        while (entry := tasks.get()) is not None:
            task, future = entry
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(_ask(connection, task))
                except Exception as error:
                    future.set_exception(error)
            del entry, future  # an example takes many megabytes: not until the next one comes


def _ask(connection: Connection, task: tuple[int, int]) -> TrainingExample:
    try:
        connection.send(task)
        result = connection.recv()
    except (EOFError, OSError) as error:
        raise WorkerError(
            'a process that prepares training images has ended unexpectedly (out of memory, '
            'killed, or it could not start)'
        ) from error
    if isinstance(result, ExampleError):
        _logger.debug('in a worker process:\n%s', result.details)
        raise result
    return result


def _close_workers(processes: list, threads: list[threading.Thread], tasks: queue.SimpleQueue) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            tasks.get_nowait()
    for _ in threads:
        tasks.put(None)
    for process in processes:  # at once, also one that is only starting: they write nothing
        process.kill()
    for process in processes:
        process.join()
    for thread in threads:
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join()


@contextlib.contextmanager
def _signals_held_back() -> Iterator[None]:
    """Start processes that signals to stop do not reach.

    Terminals, schedulers and ``mpiexec`` send them to all processes of a run.  The parent decides what they
    mean; its workers, which inherit the blocked signals, must neither die nor write tracebacks meanwhile.
    One that arrives for the parent during the block is delivered at its end.
    """
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    # Else it would be started with the first process, and starting it lets the signals through again.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker_main(connection: Connection) -> None:
    """Make examples until the parent closes its end of the pipe or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where signals cannot be blocked
    cv2.setNumThreads(1)  # the workers share the processors
    with contextlib.suppress(EOFError, OSError):
        make = connection.recv()
        while True:
            connection.send(_attempt(make, *connection.recv()))


def _attempt(make: _ExampleMaker, index: int, seed: int) -> TrainingExample | ExampleError:
    try:
        return make(index, seed)
    except ExampleError as error:
        return ExampleError(*error.args)  # without its cause, which need not be picklable
