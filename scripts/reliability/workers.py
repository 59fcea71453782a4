"""Processes that read mutated files under limits, and survive what the files do to them.

A worker is forked from a process that has imported everything, reads one file after another, and reports each outcome.
A worker that crashes or hangs is replaced, and its file is a finding.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

#: Outcomes of a file: accepted, refused with one documented line, or a finding.
ACCEPTED, REFUSED, FINDING = 'accepted', 'refused', 'finding'

#: Audit events of code that a file must not start; ``open`` for writing is also refused.
_FORBIDDEN = (
    *(
        'os.system',
        'os.exec',
        'os.posix_spawn',
        'os.spawn',
        'os.fork',
        'os.remove',
        'os.rename',
        'os.mkdir',
        'os.rmdir',
    ),
    *('os.truncate', 'os.symlink', 'os.link', 'os.chmod', 'os.putenv', 'subprocess.Popen', 'socket.', 'shutil.'),
    *('pty.', 'webbrowser.', 'ctypes.dlopen', 'code.__new__', 'ftplib.', 'urllib.'),
)

#: Address space that a file may add, in bytes: allocations above it raise MemoryError.
_MAX_ADDRESS_SPACE = 4 << 30


@dataclass(frozen=True)
class Outcome:
    """The outcome of one file.

    Args:
        kind: :data:`ACCEPTED`, :data:`REFUSED` or :data:`FINDING`.
        text: The error line, or what is wrong.
        cause: Findings with the same text here have the same cause.
    """

    kind: str
    text: str = ''
    cause: str = ''


#: A task: the number of a case -> the file, the function that reads it, and the errors that it documents.
Task = Callable[[int], tuple[Path, Callable[[Path], None], tuple[type[Exception], ...]]]


class Worker:
    """One worker process and the case that it reads.

    Args:
        task: Makes the cases, in the worker.
        warm_up: Called once in the worker, before the first case.
        max_memory: Memory that a file may occupy, in bytes.
    """

    def __init__(self, task: Task, warm_up: Callable[[], None], max_memory: int):
        context = multiprocessing.get_context('fork')
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, task, warm_up, max_memory), daemon=True)
        self.process.start()
        child.close()
        self.case: int | None = None
        self.started = 0.0

    def begin(self, case: int) -> None:
        """Give the worker a case."""
        self.case, self.started = case, time.monotonic()
        self.connection.send(case)

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def run_cases(
    task: Task, cases: range, *, warm_up: Callable[[], None], jobs: int, seconds: float, max_memory: int
) -> Iterator[tuple[int, Outcome]]:
    """Yield the outcome of each case, in the order in which they end.

    Args:
        task: Makes the cases, in the workers.
        cases: Numbers of the cases.
        warm_up: Called once in each worker: lazy imports and caches are not the files' doing.
        jobs: Number of workers.
        seconds: Time limit of a case.
        max_memory: Memory that a file may occupy, in bytes.
    """
    numbers = iter(cases)
    workers: list[Worker] = []
    try:
        for number in numbers:
            workers.append(Worker(task, warm_up, max_memory))
            workers[-1].begin(number)
            if len(workers) == jobs:
                break
        while workers:
            wait([worker.connection for worker in workers], timeout=1)
            for i, worker in reversed(list(enumerate(workers))):
                outcome = _outcome(worker, seconds)
                if outcome is None:
                    continue
                assert worker.case is not None
                yield worker.case, outcome
                next_number = next(numbers, None)
                if next_number is None:
                    workers.pop(i).stop()
                    continue
                if not worker.process.is_alive():
                    worker.stop()
                    worker = workers[i] = Worker(task, warm_up, max_memory)
                worker.begin(next_number)
    finally:
        for worker in workers:
            worker.stop()


def _outcome(worker: Worker, seconds: float) -> Outcome | None:
    """Return the outcome of a worker's case, or ``None`` if it still runs."""
    try:
        if worker.connection.poll():
            return worker.connection.recv()
    except (EOFError, ConnectionError):
        worker.process.join()
        status = worker.process.exitcode or 0
        name = signal.Signals(-status).name if status < 0 else f'exit status {status}'
        return Outcome(FINDING, f'the process ended with {name}', f'crash: {name}')
    if time.monotonic() - worker.started < seconds:
        return None
    worker.process.kill()
    worker.process.join()
    return Outcome(FINDING, f'not finished after {seconds:g} s', 'hang')


# In the worker


class _Watch:
    """The audit hook of a worker: records forbidden events while a file is read."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.active = False

    def __call__(self, event: str, arguments: tuple) -> None:
        if not self.active:
            return
        if event.startswith(_FORBIDDEN):
            self.events.append(event)
        elif event == 'open' and isinstance(arguments[1], str) and set(arguments[1]) & set('wax+'):
            self.events.append(f'open {arguments[0]} for writing')


def _serve(connection: Connection, task: Task, warm_up: Callable[[], None], max_memory: int) -> None:
    """Read cases until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    output = os.open('.', os.O_TMPFILE | os.O_RDWR) if hasattr(os, 'O_TMPFILE') else os.open(os.devnull, os.O_RDWR)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.getLogger().addHandler(logging.NullHandler())
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        warm_up()
    gc.collect()
    gc.freeze()  # the memory of inherited objects must not be released while a file is read
    watch = _Watch()
    sys.addaudithook(watch)
    with open('/proc/self/statm') as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MAX_ADDRESS_SPACE,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        try:
            case = connection.recv()
        except EOFError:
            return
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            path, read, expected = task(case)
        connection.send(_read(path, read, expected, watch, output, max_memory))


def _read(
    path: Path,
    read: Callable[[Path], None],
    expected: tuple[type[Exception], ...],
    watch: _Watch,
    output: int,
    max_memory: int,
) -> Outcome:
    """Read one file and return the outcome."""
    os.ftruncate(output, 0)
    os.lseek(output, 0, os.SEEK_SET)
    before = _reset_peak()
    watch.events.clear()
    watch.active = True
    try:
        read(path)
        outcome = Outcome(ACCEPTED)
    except expected as error:
        outcome = _check_line(str(error))
    except BaseException as error:
        outcome = Outcome(FINDING, _one_line(error), _place(error))
    finally:
        watch.active = False
    used = _peak() - before
    sys.stdout.flush()
    sys.stderr.flush()
    written = os.pread(output, 400, 0).decode('utf-8', 'replace')
    if watch.events:
        return Outcome(FINDING, f'runs {watch.events[0]}', f'runs {watch.events[0]}')
    if outcome.kind == FINDING:
        return outcome
    if written:
        line = written.splitlines()[0]
        return Outcome(FINDING, f'writes to the console: {line}', f'console: {_library(line)}')
    if used > max_memory:
        return Outcome(FINDING, f'occupies {used >> 20} MB', f'memory: {outcome.kind}')
    return outcome


def _check_line(text: str) -> Outcome:
    """Return the outcome of a documented error, whose message must be one printable line."""
    if '\n' in text or '\r' in text:
        return Outcome(FINDING, f'an error of several lines: {text!r}', f'lines: {_without_numbers(text)[:80]}')
    if not text.isprintable():
        return Outcome(
            FINDING, f'an error with control characters: {text!r}', f'control: {_without_numbers(text)[:80]}'
        )
    return Outcome(REFUSED, text)


def _one_line(error: BaseException) -> str:
    return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def _place(error: BaseException) -> str:
    """Return the type of an error and the last function of the package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if '/mask_rcnn/' in frame.filename] or frames
    name = inside[-1].filename.rpartition('/mask_rcnn/')[2]
    return f'{type(error).__name__} in {name}:{inside[-1].lineno} {inside[-1].name}, raised by {frames[-1].name}'


def _library(line: str) -> str:
    """Return the C library that wrote a line, or the line without its numbers."""
    for name, words in (
        ('libpng', 'libpng'),
        ('libtiff', 'TIFF|Fax3|MissingRequired|LZW|ZIPDecode'),
        ('libjpeg', 'JPEG'),
    ):
        if re.search(words, line):
            return name
    return _without_numbers(line)


def _without_numbers(text: str) -> str:
    return re.sub(r"\S*/\S+|\d+|'[^']*'", '#', text)[:120]


def _reset_peak() -> int:
    """Release unused memory, reset the peak of the resident memory, and return the memory in use.

    A file would occupy no new memory if its data fitted in free blocks of the C library's heap.
    """
    gc.collect()
    with contextlib.suppress(AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        Path('/proc/self/clear_refs').write_text('5')
    return _peak()


def _peak() -> int:
    """Return the peak of the resident memory in bytes."""
    with open('/proc/self/status') as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith('VmHWM')), 0)
