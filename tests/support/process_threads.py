"""Processes as threads, for tests of their communication without MPI."""

import queue
import threading
from types import SimpleNamespace

from mask_rcnn.training import distributed


class Processes:
    """Threads with the communicators of processes.

    Args:
        size: The number of processes.
    """

    def __init__(self, size):
        self.size, self.values = size, [None] * size
        self.barrier = threading.Barrier(size, timeout=120)
        self.queues = {}

    def queue(self, *key):
        return self.queues.setdefault(key, queue.Queue())

    def communicator(self, rank):
        communicator = object.__new__(distributed._MPICommunicator)
        communicator.rank, communicator.size, communicator.intra_rank = rank, self.size, rank

        def isend(message, dest, tag):
            self.queue(rank, dest, tag).put(message)
            return SimpleNamespace(test=lambda: (self.queue(rank, dest, tag).qsize() < 3, None))

        communicator._mpi = SimpleNamespace(
            allgather=lambda obj: self.allgather(obj, rank),
            gather=lambda obj: self.gather(obj, rank),
            barrier=self.barrier.wait,
            isend=isend,
            send=isend,
            recv=lambda source, tag: self.queue(source, rank, tag).get(timeout=120),
            iprobe=lambda source, tag: not self.queue(source, rank, tag).empty(),
            Ibarrier=lambda: SimpleNamespace(Test=lambda: self.barrier.wait() >= 0),
        )
        communicator.broadcast_object = lambda obj: self.allgather(obj, rank)[0]
        return communicator

    def gather(self, obj, rank):
        values = self.allgather(obj, rank)
        return values if rank == 0 else None

    def allgather(self, obj, rank):
        self.values[rank] = obj
        self.barrier.wait()
        values = list(self.values)
        self.barrier.wait()
        return values

    def run(self, function):
        """Call a function with the communicator of each process; return the results or errors."""
        results = [None] * self.size

        def call(rank):
            try:
                results[rank] = function(self.communicator(rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=call, args=(rank,), daemon=True) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(300)
        assert all(q.empty() for q in self.queues.values())  # no message is left for the next work
        return results
