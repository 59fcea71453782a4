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
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn, TextIO, cast

from mask_rcnn.cli.command import UsageError, report_error, run_and_report_errors
from mask_rcnn.cli.options import choose_device, gpu_error
from mask_rcnn.io import cleaner
from mask_rcnn.io.console import ConsoleStream, print_note
from mask_rcnn.io.unfinished import set_reporter
from mask_rcnn.ops.runtime.device import cuda_device_count
from mask_rcnn.ops.runtime.parallel import limit_threads
from mask_rcnn.training.distributed import (
    Communicator,
    DistributedError,
    ProcessError,
    create_communicator,
    fail_together,
    launched_rank,
    n_launched,
)

#: Exit status after an interrupt.
_INTERRUPTED = 130


#: Written if the processes are killed.
_KILLED = 'error: the processes were ended: one of them was killed, or mpiexec was interrupted'


class _Notes(io.StringIO):
    """The standard error of a process other than process 0."""

    encoding = 'utf-8'

    def take(self) -> str:
        """Return and forget the text."""
        text = self.getvalue()
        self.seek(0)
        self.truncate()
        return text


@contextlib.contextmanager
def quiet_unless_main() -> Iterator[None]:
    """Let only process 0 of a launcher print within the context; others collect their standard error."""
    if launched_rank() == 0:
        yield
        return
    with open(os.devnull, 'w', encoding='utf-8') as null:
        streams = ConsoleStream(null), ConsoleStream(_Notes())
        before = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = (cast(TextIO, stream) for stream in streams)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def run_shared(action: Callable[[Communicator], int], errors: tuple[type[Exception], ...]) -> int:
    """Run an action in all processes of the launcher; see :func:`mask_rcnn.cli.command.run_and_report_errors`.

    An error in any process ends all of them, with one line of process 0.

    Args:
        action: Called with the communicator; returns the exit status.
        errors: Types of errors whose message is a complete line.

    Returns:
        The exit status, which is that of process 0 for the launcher.
    """
    if n_launched() == 1:
        return run_and_report_errors(partial(action, Communicator()), errors)
    try:
        communicator = create_communicator('naive')  # also for GPUs: only results are sent
    except DistributedError as error:
        return report_error(str(error))
    _forward_notes(communicator)
    limit_threads(communicator.n_cpus())
    with _cleaner(_KILLED if communicator.is_main else ''):
        status = run_and_report_errors(partial(_run, communicator, action), errors)
    if status == _INTERRUPTED:
        _end()
    return status


def _run(communicator: Communicator, action: Callable[[Communicator], int]) -> int:
    try:
        return fail_together(communicator, action)
    except ProcessError as error:
        return report_error(error.reason)


def _forward_notes(communicator: Communicator) -> None:
    """Let process 0 print the lines about the work of the others; those about their preparation are its own."""
    stream = getattr(sys.stderr, 'stream', None)
    if isinstance(stream, _Notes):
        communicator.take_notes = stream.take  # type: ignore[method-assign]
    communicator.print_notes = _print_notes  # type: ignore[method-assign]


def _print_notes(text: str) -> None:
    for line in text.splitlines():
        print_note(line)


@contextlib.contextmanager
def _cleaner(message: str) -> Iterator[None]:
    """Start the program that removes the unfinished files of this process if it is killed within the context.

    Open MPI ends its processes by SIGTERM, and kills them a quarter of a second later.

    Args:
        message: The line for the standard error in this case; empty for none.
    """
    command = [sys.executable, '-I', '-S', cleaner.__file__, *filter(None, [message])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as process:
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
