"""Work that several processes share: each computes its part, and process 0 gets all results in order.

Process 0 computes a part itself.  Item ``i`` belongs to process ``i // block % size``, so that process 0 knows which
process the next result comes from.  The others send a limited number of results ahead; this bounds the memory of all
processes.  They wait by short sleeps, because a process that waits inside of MPI occupies a CPU and handles no signals.

Errors end the work in the order of the items, like the error of a single process: the results before the first item
that fails are complete, and its error is raised.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from mask_rcnn.training.failures import describe_error

#: Tags of the messages to process 0, and of its answer, which also stops a process early.
_RESULT, _ANSWER = 101, 102

#: Number of results that a process computes ahead of process 0, or process 0 ahead of the others.
_MAX_AHEAD = 64

#: Seconds between two checks for messages, short beside the time of an image.
_POLL = 0.002


class PartFailedError(Exception):
    """An item of the shared work has failed; ``str()`` is the error as one line.

    Args:
        rank: The process.
        line: The error.
    """

    def __init__(self, rank: int, line: str):
        super().__init__(line)
        self.rank = rank


def indices_of(rank: int, size: int, n: int, block: int) -> list[int]:
    """Return the items of a process, in ascending order; see :mod:`mask_rcnn.training.sharing`."""
    return [i for i in range(n) if i // block % size == rank]


def wait_for(is_done: Callable[[], bool]) -> None:
    """Wait until a function returns true."""
    while not is_done():
        time.sleep(_POLL)


class Sender:
    """A process other than process 0.

    Args:
        mpi: mpi4py's communicator.
        take_notes: Returns the lines printed since the last call, which process 0 prints before the result.
    """

    def __init__(self, mpi: Any, take_notes: Callable[[], str]):
        self._mpi, self._take_notes = mpi, take_notes
        self._sent: deque = deque()

    def send(self, results: Iterator[Any]) -> None:
        """Compute the results of this process and send them, until process 0 answers.

        Raises:
            PartFailedError: An item has failed in any of the processes.
            Exception: The error of ``results``, while process 0 has failed for another reason.
        """
        failure = None
        self._take_notes()  # process 0 has printed those about the preparation
        try:
            for result in results:
                if self._is_answered():
                    break
                wait_for(lambda: self._count_pending() < _MAX_AHEAD)
                self._send(False, result)
        except Exception as error:
            failure = error
        self._send(True, None if failure is None else describe_error(failure))
        wait_for(lambda: self._count_pending() == 0 and self._is_answered())
        answer = self._mpi.recv(source=0, tag=_ANSWER)
        if answer is not None:
            raise PartFailedError(*answer) from failure
        if failure is not None:
            raise failure

    def _send(self, is_end: bool, value: object) -> None:
        self._sent.append(self._mpi.isend((is_end, self._take_notes(), value), dest=0, tag=_RESULT))

    def _count_pending(self) -> int:
        while self._sent and self._sent[0].test()[0]:
            self._sent.popleft()
        return len(self._sent)

    def _is_answered(self) -> bool:
        return self._mpi.iprobe(source=0, tag=_ANSWER)


class Receiver:
    """Process 0, which also computes results.

    Args:
        mpi: mpi4py's communicator.
        size: Number of processes.
        results: The results of this process.
        print_notes: Prints the lines of another process.
    """

    def __init__(self, mpi: Any, size: int, results: Iterator[Any], print_notes: Callable[[str], None]):
        self._mpi, self._size, self._results, self._print_notes = mpi, size, results, print_notes
        self._ahead: deque[tuple[Any, Exception | None]] = deque()
        self._failure: tuple[int, str] | None = None
        self._running = set(range(1, size))

    def in_order(self, n: int, block: int) -> Iterator[Any]:
        """Yield the results of all items.

        Raises:
            PartFailedError: An item has failed.
        """
        for i in range(n):
            rank = i // block % self._size
            yield self._receive(rank) if rank else self._compute()

    def finish(self) -> None:
        """Stop the other processes, and drop the results that have not been requested."""
        for rank in range(1, self._size):
            self._mpi.send(self._failure, dest=rank, tag=_ANSWER)
        for rank in sorted(self._running):
            while not self._next_message(rank)[0]:
                pass

    def _compute(self) -> Any:
        if not self._ahead:
            self._compute_ahead()
        result, error = self._ahead.popleft()
        if error is not None:
            self._fail(0, error)
        return result

    def _compute_ahead(self) -> None:
        try:
            self._ahead.append((next(self._results), None))
        except Exception as error:  # raised when it is the turn of its item
            self._ahead.append((None, error))

    def _receive(self, rank: int) -> Any:
        while not self._mpi.iprobe(source=rank, tag=_RESULT):
            if len(self._ahead) < _MAX_AHEAD and not (self._ahead and self._ahead[-1][1]):
                self._compute_ahead()
            else:
                time.sleep(_POLL)
        has_ended, result = self._next_message(rank)
        if has_ended:
            self._fail(rank, result)
        return result

    def _next_message(self, rank: int) -> tuple[bool, Any]:
        """Return whether a process has ended, and a result or its error."""
        wait_for(lambda: self._mpi.iprobe(source=rank, tag=_RESULT))
        is_end, notes, value = self._mpi.recv(source=rank, tag=_RESULT)
        self._print_notes(notes)
        if is_end:
            self._running.discard(rank)
        return is_end, value

    def _fail(self, rank: int, error: Exception | str) -> None:
        line = error if isinstance(error, str) else describe_error(error)
        self._failure = rank, line
        raise PartFailedError(rank, line) from (error if isinstance(error, Exception) else None)
