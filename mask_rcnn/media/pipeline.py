"""A pipeline of threads: one reads ahead of the model, others draw, encode and write its results in order.

The queues between them are bounded, by the number of the frames and by their bytes.  An error of a thread is raised in
the thread of the model at its next step.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

_T = TypeVar('_T')
_R = TypeVar('_R')

#: Default limits of a queue.
MAX_ITEMS, MAX_BYTES = 8, 2**27
#: Seconds that a thread, which may wait for a camera, gets to end.
_JOIN_TIMEOUT = 2.0


class QueueClosed(Exception):
    """A queue has no more items, or takes none."""


class BoundedQueue(Generic[_T]):
    """A queue between two threads.

    Args:
        max_items: Maximum number of items.
        max_bytes: Maximum sum of their sizes; one item may be larger.
    """

    def __init__(self, max_items: int = MAX_ITEMS, max_bytes: int = MAX_BYTES):
        self._max_items, self._max_bytes = max_items, max_bytes
        self._items: deque[tuple[_T, int]] = deque()
        self._n_bytes = 0
        self._is_closed = False
        self._changed = threading.Condition()

    def put(self, item: _T, n_bytes: int = 0, *, replace: bool = False) -> int:
        """Append an item, and wait for room.

        Args:
            item: The item.
            n_bytes: Its size.
            replace: Remove the oldest items instead of waiting.

        Returns:
            The number of removed items.

        Raises:
            QueueClosed: The queue was closed.
        """
        n_removed = 0
        with self._changed:
            while not self._is_closed and self._is_full(n_bytes):
                if replace:
                    self._pop()
                    n_removed += 1
                else:
                    self._changed.wait()
            if self._is_closed:
                raise QueueClosed
            self._items.append((item, n_bytes))
            self._n_bytes += n_bytes
            self._changed.notify_all()
        return n_removed

    def get(self) -> _T:
        """Return the first item, and wait for one.

        Raises:
            QueueClosed: The queue is empty, and was closed.
        """
        with self._changed:
            while not self._items and not self._is_closed:
                self._changed.wait()
            if not self._items:
                raise QueueClosed
            item = self._pop()
            self._changed.notify_all()
            return item

    def close(self, *, discard: bool = False) -> None:
        """Take no more items.

        Args:
            discard: Also remove those that are in the queue.
        """
        with self._changed:
            self._is_closed = True
            if discard:
                self._items.clear()
            self._changed.notify_all()

    def _is_full(self, n_bytes: int) -> bool:
        too_large = self._n_bytes + n_bytes > self._max_bytes
        return bool(self._items) and (len(self._items) >= self._max_items or too_large)

    def _pop(self) -> _T:
        item, n_bytes = self._items.popleft()
        self._n_bytes -= n_bytes
        return item


class ReadAhead(Generic[_T]):
    """An iterator over items that a thread computes ahead; a context manager, which ends the thread.

    Args:
        items: The items; an error of this iterator is raised in their place.
        size_of: Returns the bytes of an item.
        is_live: Returns whether an item replaces those that wait, because it is from a source that does not wait.
        dropped: Called with the number of items that were replaced.
        max_items, max_bytes: The limits of the queue; see :class:`BoundedQueue`.
    """

    def __init__(
        self,
        items: Iterable[_T],
        *,
        size_of: Callable[[_T], int] = lambda item: 0,
        is_live: Callable[[_T], bool] = lambda item: False,
        dropped: Callable[[int], None] = lambda n: None,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
    ):
        self._queue: BoundedQueue[_T] = BoundedQueue(max_items, max_bytes)
        self._error: BaseException | None = None
        self._options = size_of, is_live, dropped
        self._thread = threading.Thread(target=self._read, args=(iter(items),), name='reader', daemon=True)

    def _read(self, items: Iterator[_T]) -> None:
        size_of, is_live, dropped = self._options
        try:
            for item in items:
                n_replaced = self._queue.put(item, size_of(item), replace=is_live(item))
                if n_replaced:
                    dropped(n_replaced)
                del item  # and its pixels, while the next one is read
        except QueueClosed:
            pass
        except BaseException as error:
            self._error = error
        finally:
            with contextlib.suppress(Exception):
                getattr(items, 'close', lambda: None)()
            self._queue.close()

    def __enter__(self) -> ReadAhead[_T]:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[_T]:
        return self

    def __next__(self) -> _T:
        try:
            return self._queue.get()
        except QueueClosed:
            if self._error is not None:
                error, self._error = self._error, None
                raise error from None
            raise StopIteration from None

    def stop(self) -> None:
        """End the iteration after the items that were read."""
        self._queue.close()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.close(discard=True)
        self._thread.join(_JOIN_TIMEOUT)


class OrderedWriter(Generic[_T, _R]):
    """Prepares items in several threads, and writes the results in one thread in the order of the items.

    A context manager.  At its end, also after an error or an interrupt, all submitted items are written; a second
    interrupt discards them.

    Args:
        prepare: Called with an item, in several threads at once.
        write: Called with each result of ``prepare``.
        n_threads: Number of threads that prepare.
        max_items, max_bytes: The limits of the items that wait; see :class:`BoundedQueue`.

    Attributes:
        is_abandoned (bool): Whether a second interrupt has discarded items.
    """

    def __init__(
        self,
        prepare: Callable[[_T], _R],
        write: Callable[[_R], None],
        *,
        n_threads: int = 1,
        max_items: int = MAX_ITEMS,
        max_bytes: int = MAX_BYTES,
    ):
        self._prepare, self._write = prepare, write
        self._queue: BoundedQueue[Future[_R]] = BoundedQueue(max_items, max_bytes)
        self._error: BaseException | None = None
        self.is_abandoned = False
        self._pool = ThreadPoolExecutor(n_threads, thread_name_prefix='drawing')
        self._thread = threading.Thread(target=self._run, name='writer', daemon=True)

    def _run(self) -> None:
        try:
            while True:
                self._write(self._queue.get().result())
        except QueueClosed:
            pass
        except BaseException as error:
            self._error = error
            self._queue.close(discard=True)

    def submit(self, item: _T, n_bytes: int = 0) -> None:
        """Pass an item to the threads, and wait for room in their queue.

        Raises:
            Exception: The first error of the threads.
        """
        self._raise_error()
        try:
            self._queue.put(self._pool.submit(self._prepare, item), n_bytes)
        except QueueClosed:
            self._raise_error()
            raise

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def __enter__(self) -> OrderedWriter[_T, _R]:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._queue.close()
        try:
            self._thread.join()
        except BaseException:  # a second interrupt
            self.is_abandoned = True
            self._queue.close(discard=True)
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise
        self._pool.shutdown(cancel_futures=True)
        if error is None:
            self._raise_error()
