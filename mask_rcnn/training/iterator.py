"""Batches of training examples in a reproducible order.

A run is one endless sequence of examples.  Every epoch is a permutation of the dataset that is determined by the run's
seed and the index of the epoch, and every position in the sequence has a separate seed.  Batches are consecutive ranges
of that sequence.  The examples, their flips and their sampling therefore do not depend on the number of workers,
processes or subdivisions, and a snapshot stores only the position in the sequence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future

import chainer
import numpy as np

from mask_rcnn.datasets.example import ExampleDataset, TrainingExample
from mask_rcnn.io.wording import counted
from mask_rcnn.training.worker_pool import ExampleMaker, Transform, WorkerPool

# Second words of the seeds of the random streams that are derived from the run's seed.
_ORDER_STREAM, _EXAMPLE_STREAM = 0, 1
_PREFETCHED_BATCHES = 2
_PREFETCHED_PER_WORKER = 2


class ExampleIterator(chainer.dataset.Iterator):
    """Iterate over a dataset in batches of training examples.

    Worker processes are started with ``spawn``, because a process with threads cannot be forked safely.  A program with
    workers must therefore guard its entry point with ``if __name__ == '__main__':``.  Workers end when the
    iterator is finalized or garbage-collected, and when the process that started them ends, even if it is killed.
    They ignore Ctrl-C and SIGTERM, which that process handles.

    Args:
        dataset: A sequence of :class:`~mask_rcnn.datasets.example.Example`.
        transform: Called with an example and its seed, returns a training example: a
            :class:`~mask_rcnn.datasets.transforms.TrainingTransform`.
        batch_size: Number of examples per call of :meth:`next`.
        seed: The run's seed, in ``[0, 2**32)``.
        workers: Number of processes that read and transform examples; 0 does both in this process.
        repeat: Iterate forever; a batch may then contain the end of one epoch and the beginning of the next.
            Otherwise stop after one epoch, whose last batch may be smaller.
        shuffle: Shuffle the dataset in every epoch.
        shard: ``(rank, size)`` of this process.  It gets the ``rank``-th part of every batch of
            ``batch_size * size`` examples that a single process would get.  Without ``repeat``, its part of the
            last batch may be empty.

    Attributes:
        epoch (int): Number of completed epochs.
        is_new_epoch (bool): True if the last batch completed an epoch.

    Raises:
        ValueError: The dataset is empty or an argument is out of range.
        ExampleError: (:meth:`next`) An image is broken or a transform has failed.
        WorkerError: (:meth:`next`) A worker process was killed or could not start.
    """

    def __init__(
        self,
        dataset: ExampleDataset,
        transform: Transform,
        batch_size: int,
        *,
        seed: int = 0,
        workers: int = 0,
        repeat: bool = True,
        shuffle: bool = True,
        shard: tuple[int, int] = (0, 1),
    ):
        self._pool: WorkerPool | None = None
        self._pending: deque[tuple[int, Future[TrainingExample]]] = deque()  # positions and their examples
        rank, size = shard
        if len(dataset) == 0:
            raise ValueError('the dataset is empty')
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
        self._n_prefetched = max(_PREFETCHED_BATCHES * batch_size, _PREFETCHED_PER_WORKER * workers)
        self._make = ExampleMaker(dataset, transform)
        self._orders: dict[int, np.ndarray] = {}
        self.reset()
        if workers:
            self._pool = WorkerPool(self._make, workers)

    def reset(self) -> None:
        """Return to the first batch."""
        self._cancel_pending()
        self._start = 0  # position of the next global batch
        self._previous_start: int | None = None
        self.is_new_epoch = False

    @property
    def epoch(self) -> int:
        return self._start // len(self.dataset)

    @property
    def epoch_detail(self) -> float:
        """The number of completed epochs, including the fraction of the current one."""
        return self._start / len(self.dataset)

    @property
    def previous_epoch_detail(self) -> float | None:
        """:attr:`epoch_detail` before the last batch, ``None`` before the first."""
        return None if self._previous_start is None else self._previous_start / len(self.dataset)

    def __next__(self) -> list[TrainingExample]:
        """Return the next batch; see the arguments of the class."""
        if not self._repeat and self._start >= len(self.dataset):
            raise StopIteration
        batch = [self._get(position) for position in self._positions(self._start)]
        previous_epoch = self.epoch
        self._previous_start, self._start = self._start, self._next_start(self._start)
        self.is_new_epoch = self.epoch > previous_epoch
        return batch

    next = __next__

    def finalize(self) -> None:
        """End the worker processes; the iterator cannot be used afterwards."""
        self._cancel_pending()
        if self._pool is not None:
            self._pool.close()

    def serialize(self, serializer: chainer.Serializer | chainer.Deserializer) -> None:
        """Save or restore the position in the sequence, so that a resumed run continues exactly.

        The seed is saved as well and replaces the seed of a resumed run.

        Raises:
            ValueError: The dataset of the saved run has another length.
        """
        length = int(serializer('dataset_length', len(self.dataset)))
        if length != len(self.dataset):
            raise ValueError(f'the saved run had {counted(length, "training image")}, this one has {len(self.dataset)}')
        self._seed = int(serializer('seed', self._seed))
        start = int(serializer('start', self._start))
        previous = int(serializer('previous_start', -1 if self._previous_start is None else self._previous_start))
        self.is_new_epoch = bool(serializer('is_new_epoch', self.is_new_epoch))
        if isinstance(serializer, chainer.Deserializer):
            self._cancel_pending()
            self._orders.clear()
            self._start, self._previous_start = start, None if previous < 0 else previous

    def _positions(self, start: int) -> range:
        """Return this process's positions in the global batch that begins at ``start``."""
        first = start + self._rank * self.batch_size
        last = min(first + self.batch_size, self._next_start(start))
        return range(first, last)

    def _next_start(self, start: int) -> int:
        end = start + self.batch_size * self._size
        return end if self._repeat else min(end, len(self.dataset))

    def _task(self, position: int) -> tuple[int, int]:
        """Return the index in the dataset and the seed of the example at a position of the sequence."""
        epoch, index = divmod(position, len(self.dataset))
        if self._shuffle:
            index = int(self._order(epoch)[index])
        return index, example_seed(self._seed, position)

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            self._orders = {e: order for e, order in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = epoch_order(self._seed, epoch, len(self.dataset))
        return self._orders[epoch]

    def _get(self, position: int) -> TrainingExample:
        if self._pool is None:
            return self._make(*self._task(position))
        self._prefetch(self._pool, position)
        _, future = self._pending.popleft()
        return future.result()

    def _prefetch(self, pool: WorkerPool, position: int) -> None:
        """Submit the example at ``position``, if it is not pending, and prefetch some of the next ones."""
        if self._pending and self._pending[0][0] != position:  # after an error or an interrupt
            self._cancel_pending()
        for upcoming in self._upcoming(position):
            if len(self._pending) >= self._n_prefetched:
                return
            if not self._pending or upcoming > self._pending[-1][0]:
                self._pending.append((upcoming, pool.submit(self._task(upcoming))))

    def _upcoming(self, position: int) -> Iterator[int]:
        """Yield ``position`` and this process's later positions in order."""
        start = self._start
        while self._repeat or start < len(self.dataset):
            yield from (p for p in self._positions(start) if p >= position)
            start = self._next_start(start)

    def _cancel_pending(self) -> None:
        for _, future in self._pending:
            future.cancel()
        self._pending.clear()


def epoch_order(run_seed: int, epoch: int, n_images: int) -> np.ndarray:
    """Return the order of the images in an epoch, ``(n_images,)`` int indices in the dataset.

    Args:
        run_seed: The run's seed.
        epoch: Index of the epoch, from 0.
        n_images: Number of images of the dataset.
    """
    return np.random.RandomState([run_seed, _ORDER_STREAM, epoch]).permutation(n_images)


def example_seed(run_seed: int, position: int) -> int:
    """Return the seed of one example, in ``[0, 2**32)``.

    Args:
        run_seed: The run's seed.
        position: Position of the example in the run's sequence, from 0.
    """
    return int(np.random.SeedSequence([run_seed, _EXAMPLE_STREAM, position]).generate_state(1)[0])
