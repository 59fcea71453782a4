"""Worker processes that read and transform training examples."""

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
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import ForkingPickler

import cv2

from mask_rcnn.config.network import register_extractor, registered_extractors
from mask_rcnn.datasets.example import Example, ExampleDataset, TrainingExample
from mask_rcnn.io.console import escape
from mask_rcnn.io.errors import OneLineError
from mask_rcnn.training.signals import STOP_SIGNALS

_logger = logging.getLogger(__name__)

Transform = Callable[[Example, int], TrainingExample]
_Tasks = queue.SimpleQueue[tuple[tuple[int, int], Future[TrainingExample]] | None]


class ExampleError(OneLineError, ValueError):
    """An example cannot be read or transformed; the message is one line that names the image.

    Attributes:
        details (str): The traceback, possibly of another process.
    """

    def __init__(self, message: str, details: str = ''):
        super().__init__(message, details)
        self.details = details

    def __str__(self) -> str:
        return escape(self.args[0])


class WorkerError(RuntimeError):
    """A worker process has ended unexpectedly; the message is one line."""


class ExampleMaker:
    """Reads and transforms one example; every error becomes an :class:`ExampleError`.

    Args:
        dataset: A sequence of examples.
        transform: Called with an example and its seed.
    """

    def __init__(self, dataset: ExampleDataset, transform: Transform):
        self._dataset = dataset
        self._transform = transform

    def __call__(self, index: int, seed: int) -> TrainingExample:
        try:
            return self._transform(self._dataset[index], seed)
        except Exception as error:
            name = escape(self._name(index))
            reason = ' '.join(str(error).split()) or type(error).__name__
            if not isinstance(error, (OSError, ValueError)):
                reason = f'{type(error).__name__}: {reason}'
            message = reason if name in reason else f'{name}: {reason}'
            raise ExampleError(message, traceback.format_exc()) from error

    def _name(self, index: int) -> str:
        image_name = getattr(self._dataset, 'image_name', 'example {} of the dataset'.format)
        return image_name(index)


class WorkerPool:
    """Worker processes, each connected by a pipe to a thread of the parent.

    The pipe is the only connection between a worker and its parent.  No other process holds the parent's end, so the
    worker reads the end of file as soon as the parent closes that end or exits.

    Args:
        make: Makes the examples; it is pickled and sent to the workers.
        n_workers: Number of processes.

    Raises:
        ValueError: The dataset cannot be pickled.
    """

    def __init__(self, make: ExampleMaker, n_workers: int):
        try:
            pickles = [bytes(ForkingPickler.dumps(make))] * n_workers
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(f'the dataset cannot be sent to worker processes ({error})') from error
        self._tasks: _Tasks = queue.SimpleQueue()
        processes: list[BaseProcess] = []
        threads: list[threading.Thread] = []
        # Close the workers at the end of the program at the latest, before multiprocessing waits for them.
        self._close = multiprocessing.util.Finalize(
            self, _close_workers, (processes, threads, self._tasks), exitpriority=100
        )
        with _stop_signals_blocked():
            for _ in range(n_workers):
                process, connection = _start_worker()
                processes.append(process)
                # Not an executor's threads: the interpreter would wait for them when a run is interrupted.
                threads.append(
                    threading.Thread(
                        target=_serve, args=(self._tasks, connection, pickles), name='mask_rcnn examples', daemon=True
                    )
                )
                threads[-1].start()

    def submit(self, task: tuple[int, int]) -> Future[TrainingExample]:
        """Submit ``(index, seed)``; the next idle worker makes the training example."""
        future: Future[TrainingExample] = Future()
        self._tasks.put((task, future))
        return future

    def close(self) -> None:
        """End the workers; idempotent."""
        self._close()


def _start_worker() -> tuple[BaseProcess, Connection]:
    context = multiprocessing.get_context('spawn')
    parent_end, worker_end = context.Pipe()
    arguments = worker_end, registered_extractors()
    process = context.Process(target=_worker_main, args=arguments, name='mask_rcnn examples', daemon=True)
    process.start()
    worker_end.close()
    return process, parent_end


def _serve(tasks: _Tasks, connection: Connection, pickles: list[bytes]) -> None:
    """Pass tasks to one worker, one at a time, until the task is ``None``; runs in a thread of the parent.

    The thread holds no reference to the pool, so that an unused pool can be collected.  It pops one of the pickled
    example makers from ``pickles``, so that the memory is freed when all workers have received one.
    """
    with connection:
        with contextlib.suppress(OSError):  # the first task reports a worker that has ended
            connection.send_bytes(pickles.pop())
        while (entry := tasks.get()) is not None:
            task, future = entry
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(_request(connection, task))
                except Exception as error:
                    future.set_exception(error)
            del entry, future  # an example takes many megabytes: free it before waiting for the next task


def _request(connection: Connection, task: tuple[int, int]) -> TrainingExample:
    """Send a task to a worker and return its example."""
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


def _close_workers(processes: list[BaseProcess], threads: list[threading.Thread], tasks: _Tasks) -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            tasks.get_nowait()
    for _ in threads:
        tasks.put(None)
    for process in processes:  # also one that is still starting: workers write no files
        process.kill()
    for process in processes:
        process.join()
    for thread in threads:
        if thread.ident is not None and thread is not threading.current_thread():
            thread.join()


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals, so that processes started within the context inherit the blocked mask.

    Terminals, schedulers and ``mpiexec`` send these signals to all processes of a run.  The parent handles them; its
    workers must neither end nor print tracebacks in the meantime.  A signal that arrives for the parent within the
    context is delivered at its end.
    """
    if not hasattr(signal, 'pthread_sigmask'):
        yield
        return
    # Otherwise the first process would start the tracker, which unblocks the signals again.
    multiprocessing.resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _worker_main(connection: Connection, extractors: list[str]) -> None:
    """Make examples until the parent closes its end of the pipe or ends.

    Args:
        connection: The worker's end of the pipe.
        extractors: The registered extractors, one of which may be that of the pickled configuration.  A worker does not
            run the cells of a notebook or the guarded part of a script, which register them.
    """
    for number in STOP_SIGNALS:  # for platforms that cannot block signals, such as Windows
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(1)  # the workers share the processors
    for extractor in extractors:
        register_extractor(extractor)
    with contextlib.suppress(EOFError, OSError):
        make = connection.recv()
        while True:
            connection.send(_attempt(make, *connection.recv()))


def _attempt(make: ExampleMaker, index: int, seed: int) -> TrainingExample | ExampleError:
    """Return the example, or the error without its cause, which may not be picklable."""
    try:
        return make(index, seed)
    except ExampleError as error:
        return ExampleError(*error.args)
