"""Programs and probes in processes of their own, with a time limit.

A library that does not fit the machine can end its process or never return; a program of a broken driver can hang.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, NamedTuple

from mask_rcnn.cli.doctor.report import shorten

#: Seconds for the end of a process that has been killed; one that waits for a broken driver does not end.
_KILL_TIME = 1

#: A signal that ended a process -> its usual meaning.
_MEANINGS = {'SIGILL': 'an instruction that this processor does not have', 'SIGSEGV': 'a memory fault'}

_running: set[subprocess.Popen] = set()


class Program(NamedTuple):
    """A program that has ended.

    Args:
        status: The exit status; ``None`` if it was not found or did not end in time.
        text: Its standard output and error, or the reason why there is none.
    """

    status: int | None
    text: str


def run_program(command: Sequence[str], timeout: float) -> Program:
    """Run a program with English messages.

    Args:
        command: The program and its arguments.
        timeout: The time limit in seconds.
    """
    environment = {**os.environ, 'LC_ALL': 'C'}
    try:
        process = subprocess.Popen(command, stderr=subprocess.STDOUT, env=environment, **_process_options())
    except OSError as error:
        return Program(None, error.strerror or str(error))
    output, has_ended = _read(process, timeout)
    text = output.decode('utf-8', 'replace').strip()
    return Program(process.returncode, text) if has_ended else Program(None, f'no answer in {timeout:.0f} s')


def run_probes(names: Sequence[str], timeout: float) -> dict[str, dict[str, Any]]:
    """Run probes in a child process, one after the other; after a crash, the others in another one.

    Args:
        names: Keys of :data:`mask_rcnn.cli.doctor.probes.PROBES`.
        timeout: The time limit of a process in seconds.

    Returns:
        Name -> the facts of the probe, or ``{'error': reason}``.
    """
    results: dict[str, dict[str, Any]] = {}
    remaining = list(names)
    while remaining:
        found, end = _run_child(remaining, timeout)
        results |= found
        remaining = [name for name in remaining if name not in found]
        if remaining:
            results[remaining.pop(0)] = {'error': end or f'no answer in {timeout:.0f} s'}
        if end is None:
            break
    return results | {name: {'error': 'not checked, because an earlier check did not end'} for name in remaining}


def _run_child(names: Sequence[str], timeout: float) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Return the results of a child process, and the reason of its end; ``None`` if the time limit has ended it."""
    # The path of this process: with -c, Python inserts the current folder, whose files the command does not import.
    code = (
        f'import sys; sys.path[:] = {list(map(str, sys.path))!a}; '
        f'from mask_rcnn.cli.doctor.probes import main; main({list(names)!r})'
    )
    with _temporary_file() as errors:
        process = subprocess.Popen(
            [sys.executable, '-c', code], stderr=subprocess.DEVNULL if errors is None else errors, **_process_options()
        )
        output, has_ended = _read(process, timeout)
        results: dict[str, dict[str, Any]] = {}
        for line in output.splitlines():
            with contextlib.suppress(ValueError):  # a line that was not completed
                results |= json.loads(line)
        return results, _describe_end(process.returncode, errors) if has_ended else None


def _temporary_file() -> contextlib.AbstractContextManager[IO[bytes] | None]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full disk
        return contextlib.nullcontext()


def _process_options() -> dict[str, Any]:
    # A session of its own: the processes that a probe starts, such as those of MPI, are killed with it.
    return {'stdin': subprocess.DEVNULL, 'stdout': subprocess.PIPE, 'start_new_session': os.name == 'posix'}


def _read(process: subprocess.Popen, timeout: float) -> tuple[bytes, bool]:
    """Return the standard output of a process and whether it has ended in time; otherwise it is killed."""
    _running.add(process)
    try:
        return process.communicate(timeout=timeout)[0], True
    except subprocess.TimeoutExpired as error:
        _kill(process)
        try:
            return process.communicate(timeout=_KILL_TIME)[0], False
        except subprocess.TimeoutExpired:
            return error.output or b'', False
    finally:
        _running.discard(process)


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):
        if os.name == 'posix':
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _describe_end(status: int, errors: IO[bytes] | None) -> str:
    """Return the way in which a process has ended, and its last message."""
    if status < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            return f'the process crashed: {name}' + (f', {_MEANINGS[name]}' if name in _MEANINGS else '')
    message = ''
    if errors is not None:
        errors.seek(0)
        lines = errors.read().decode('utf-8', 'replace').strip().splitlines()
        message = f': {shorten(lines[-1])}' if lines else ''
    return f'the process ended with status {status}{message}'


def run_together(tasks: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """Call functions without arguments, each in a thread.

    Args:
        tasks: Name -> function.

    Returns:
        Name -> the result, or the exception that it raised.
    """
    results: dict[str, Any] = {}

    def call(name: str) -> None:
        try:
            results[name] = tasks[name]()
        except Exception as error:
            results[name] = error

    threads = [threading.Thread(target=call, args=(name,), daemon=True) for name in tasks]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():  # with a time limit, so that Ctrl-C interrupts it on Windows
                thread.join(0.2)
    finally:
        for process in list(_running):  # after an interrupt, which does not reach other sessions
            _kill(process)
    return results
