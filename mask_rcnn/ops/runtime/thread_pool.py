"""A pool of daemon threads.

The threads of :class:`concurrent.futures.ThreadPoolExecutor` end with the main thread of the program.  Other threads of
the program may run longer and still detect objects.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future

_Tasks = queue.SimpleQueue[tuple[Future, Callable[[], object]]]


class DaemonThreadPool:
    """Threads that run functions, until the process ends.

    Args:
        n_threads: Number of threads.  If the system starts fewer, the pool has fewer, possibly none.
        name: Prefix of the names of the threads.
        initializer: Called first in each thread.

    Attributes:
        n_threads (int): Number of threads.
    """

    def __init__(self, n_threads: int, name: str, initializer: Callable[[], object]):
        self._tasks: _Tasks = queue.SimpleQueue()
        self.n_threads = 0
        for number in range(n_threads):
            arguments = self._tasks, initializer
            try:
                threading.Thread(target=_run_tasks, args=arguments, name=f'{name}_{number}', daemon=True).start()
            except RuntimeError:  # a limit of the system, or the end of the process
                break
            self.n_threads += 1

    def submit(self, function: Callable[[], object]) -> Future:
        """Run a function on a thread of the pool, which must have at least one.

        Returns:
            concurrent.futures.Future: Ends with the function; its result is ``None``.
        """
        future: Future = Future()
        self._tasks.put((future, function))
        return future


def _run_tasks(tasks: _Tasks, initializer: Callable[[], object]) -> None:
    initializer()
    while True:
        future, function = tasks.get()
        try:
            function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        del future, function  # the thread must not keep them while it waits
