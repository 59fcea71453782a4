"""Commands that share their work among the processes of ``mpiexec``, and appear as one command.

Process 0 prints and writes; the others print nothing.  The lines about the work of an image, such as warnings, are
sent to process 0 with the image's result.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn, TextIO, cast

from mask_rcnn.cli.command import UsageError, report_error, run_and_report_errors
from mask_rcnn.cli.options import choose_device, gpu_error
from mask_rcnn.io import cleaner
from mask_rcnn.io.console import ConsoleStream, print_note
from mask_rcnn.io.programs import own_group
from mask_rcnn.io.unfinished import set_reporter
from mask_rcnn.ops.runtime.device import cuda_device_count
from mask_rcnn.ops.runtime.parallel import limit_threads
from mask_rcnn.training.distributed import (
    Communicator,
    DistributedError,
    Notes,
    ProcessError,
    create_communicator,
    fail_together,
    launched_rank,
    n_launched,
)

#: Exit status after an interrupt.
_INTERRUPTED = 130

#: Seconds for process 0 to report an error that the other processes have as well; see :func:`_let_main_report`.
_REPORT_TIME = 30

#: Seconds between two checks of the launcher.
_LAUNCHER_INTERVAL = 1

#: Written if the processes are killed.
_KILLED = 'error: the processes were ended: one of them was killed, or mpiexec was interrupted'


class _Lines(io.StringIO):
    """The standard error of a process other than process 0."""

    encoding = 'utf-8'

    def take(self) -> str:
        """Return and forget the text."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


class _ConsoleNotes(Notes):
    """The lines about the work.  Those about the preparation of another process are also printed by process 0."""

    def take(self) -> str:
        lines = _lines()
        return '' if lines is None else lines.take()

    def print(self, text: str) -> None:
        for line in text.splitlines():
            print_note(line)


@contextlib.contextmanager
def quiet_unless_main() -> Iterator[None]:
    """Let only process 0 of a launcher print within the context; others collect their standard error."""
    if launched_rank() == 0:
        yield
        return
    with open(os.devnull, 'w', encoding='utf-8') as null:
        streams = ConsoleStream(null), ConsoleStream(_Lines())
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
        try:
            yield
        except SystemExit as stop:  # bad arguments
            if stop.code:
                _let_main_report()
            raise
        finally:
            sys.stdout, sys.stderr = before


def _let_main_report() -> None:
    """Wait before this process ends with an error, unless it is process 0; then print the error, if it is still alive.

    The launcher ends all processes when one has failed, usually before process 0 has printed the same error.
    """
    lines = _lines()
    if lines is not None and sys.__stderr__ is not None:
        time.sleep(_REPORT_TIME)
        with contextlib.suppress(OSError):
            sys.__stderr__.write(lines.take())


def _lines() -> _Lines | None:
    """Return the standard error of this process if it is not process 0."""
    stream = getattr(sys.stderr, 'stream', None)
    return stream if isinstance(stream, _Lines) else None


def run_shared(action: Callable[[Communicator], int], errors: tuple[type[Exception], ...]) -> int:
    """Run an action in all processes of the launcher; see :func:`mask_rcnn.cli.command.run_and_report_errors`.

    An error in any process ends all of them, with one line of process 0.

    Args:
        action: Called with the communicator; returns the exit status.
        errors: Types of errors whose message is a complete line.

    Returns:
        The exit status: that of the action in process 0, 0 in the others if they have ended together.
    """
    if n_launched() == 1:
        return run_and_report_errors(partial(action, Communicator()), errors)
    with _cleaner(_KILLED if launched_rank() == 0 else ''):  # before MPI, which restricts the start of programs
        try:
            communicator = create_communicator('naive')  # also for GPUs: only results are sent
        except DistributedError as error:
            status = report_error(str(error))
            _let_main_report()
            return status
        communicator.notes = _ConsoleNotes()
        _end_with_launcher()
        limit_threads(communicator.n_cpus())
        status = run_and_report_errors(partial(_run, communicator, action), errors)
    if status == _INTERRUPTED:
        _end()
    return status if communicator.is_main else 0  # the launcher's is that of the first process that fails


def _run(communicator: Communicator, action: Callable[[Communicator], int]) -> int:
    try:
        return fail_together(communicator, action)
    except ProcessError as error:
        return report_error(error.reason)


@contextlib.contextmanager
def _cleaner(message: str) -> Iterator[None]:
    """Start the program that removes the unfinished files of this process if it is killed within the context.

    Open MPI ends its processes by SIGTERM, and kills them a quarter of a second later.

    Args:
        message: The line for the standard error in this case; empty for none.
    """
    command = [sys.executable, '-I', '-S', cleaner.__file__, *filter(None, [message])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, **own_group()) as process:
        assert process.stdin is not None
        descriptor = process.stdin.fileno()

        def write(text: bytes) -> None:
            with contextlib.suppress(OSError):
                os.write(descriptor, text + b'\0')

        set_reporter(lambda sign, path: write(sign.encode() + os.fsencode(path)))
        try:
            yield
        finally:
            set_reporter(None)
            write(b'.')


def _end_with_launcher() -> None:
    """Kill this process when its parent, the launcher, has been killed: nothing else would end the processes then."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LAUNCHER_INTERVAL)
        os._exit(1)  # the cleaner removes the unfinished files

    if sys.platform != 'win32':  # where a process keeps the number of its parent
        threading.Thread(target=watch, name='launcher', daemon=True).start()


def _end() -> NoReturn:
    """End this process at once: MPI would wait for the others, which may not exist any more."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(_INTERRUPTED)


def choose_shared_device(gpu: int | None, communicator: Communicator) -> int:
    """Return the number of the GPU of this process, or -1 for the CPU; see :func:`mask_rcnn.cli.options.choose_device`.

    The processes of a machine use consecutive GPUs.  Without ``--gpu``, several processes share a GPU if there are more
    processes.

    Args:
        gpu: The value of ``--gpu``, that of the first process of each machine, or ``None``.
        communicator: The processes.

    Raises:
        UsageError: A GPU does not work.
    """
    if communicator.size == 1 or gpu == -1:
        return choose_device(gpu)
    if gpu is None:
        n_gpus = cuda_device_count()
        return choose_device(None) if n_gpus == 0 else choose_device(communicator.intra_rank % n_gpus)
    number = gpu + communicator.intra_rank
    reason = gpu_error(number)
    if reason is not None:
        raise UsageError(f'--gpu {gpu}: process {communicator.rank} needs GPU {number}: {reason}')
    return number
