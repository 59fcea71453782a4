"""Run the parts of a check as processes with time limits; used by ``gpu_check.py``.

Imports only the standard library, so that a broken installation is reported as failed parts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: A part starts only if at least this much of the total time is left, in seconds.
MIN_SECONDS = 5

OK, FAILED, TIMED_OUT, SKIPPED = 'ok', 'failed', 'timed out', 'skipped'


def last_line(log: str) -> str:
    """Return the last line of a log that is not empty."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else ''


@dataclass(frozen=True)
class Part:
    """One command of a check.

    Args:
        name: Unique name; parts ``group/a`` and ``group/b`` are selected together as ``group``.
        command: The words of the command.
        seconds: Time limit.
        needs: Programs on the PATH, or paths of files; the part is skipped if one does not exist.
        is_timed: Whether the part measures time and must run alone.
        figure: Returns a short figure from the output.
        is_skipped: Returns from the exit status and the output whether the command had nothing to do.
        env: Additional environment variables.
    """

    name: str
    command: Sequence[str]
    seconds: float
    needs: Sequence[str] = ()
    is_timed: bool = False
    figure: Callable[[str], str] = last_line
    is_skipped: Callable[[int, str], bool] = lambda status, log: False
    env: dict[str, str] = field(default_factory=dict)

    def belongs_to(self, names: Sequence[str]) -> bool:
        """Return whether one of some names is the name of this part or of a group that contains it."""
        return any(self.name == name or self.name.startswith(f'{name}/') for name in names)

    @property
    def missing(self) -> str | None:
        """The first need that does not exist, or ``None``."""
        return next((need for need in self.needs if shutil.which(need) is None and not Path(need).exists()), None)


@dataclass(frozen=True)
class Result:
    """The end of a part.

    Args:
        name: Name of the part.
        status: ``ok``, ``failed``, ``timed out`` or ``skipped``.
        seconds: Time that the part took.
        figure: A short figure, or the reason why the part was skipped.
        command: The command.
        log: File with the output, ``None`` if the command was not started.
    """

    name: str
    status: str
    seconds: float
    figure: str
    command: list[str]
    log: str | None = None

    def as_dict(self) -> dict:
        """Return plain data."""
        return asdict(self)


class PartRunner:
    """Runs parts, some side by side, and reports each result as it ends.

    Args:
        out: Folder of the logs; created if it does not exist.
        cwd: Working folder of the commands.
        report: Called with each result, one at a time.
        jobs: Number of parts that run side by side; timed parts run alone, after the others.
        limit: Total time limit in seconds; the limits of the last parts are cut to what is left.
    """

    def __init__(
        self, out: Path, cwd: Path, report: Callable[[Result], None], *, jobs: int = 1, limit: float | None = None
    ):
        self.out, self.cwd, self.jobs = out, cwd, jobs
        self._report = report
        self._deadline = time.monotonic() + (float('inf') if limit is None else limit)
        self._lock = threading.Lock()
        self._processes: set[subprocess.Popen] = set()
        self._is_stopped = False
        out.mkdir(parents=True, exist_ok=True)

    def run(self, parts: Sequence[Part]) -> list[Result]:
        """Run parts; returns their results in the order of ``parts``.

        An exception, such as KeyboardInterrupt, kills the processes that are running.
        """
        untimed, timed = ([part for part in parts if part.is_timed == is_timed] for is_timed in (False, True))
        with ThreadPoolExecutor(self.jobs) as pool, self._stopping():
            results = list(pool.map(self._run_and_report, untimed))
        with self._stopping():
            results += map(self._run_and_report, timed)
        order = [part.name for part in parts]
        return sorted(results, key=lambda result: order.index(result.name))

    @contextlib.contextmanager
    def _stopping(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            with self._lock:
                self._is_stopped = True
                for process in self._processes:
                    kill_group(process)
            raise

    def _run_and_report(self, part: Part) -> Result:
        result = self._run(part)
        with self._lock:
            self._report(result)
        return result

    def _run(self, part: Part) -> Result:
        command = list(map(str, part.command))
        if part.missing is not None:
            return Result(part.name, SKIPPED, 0.0, f'{part.missing} does not exist', command)
        started = time.monotonic()
        left = self._deadline - started
        if left < min(MIN_SECONDS, part.seconds) or self._is_stopped:
            return Result(part.name, SKIPPED, 0.0, 'no time is left', command)
        log = self.out / f'{part.name.replace("/", "-")}.log'
        status = self._wait(part, command, log, min(part.seconds, left))
        seconds = time.monotonic() - started
        text = log.read_text(encoding='utf-8', errors='replace')
        return Result(part.name, _verdict(part, status, text), seconds, _figure(part, text), command, str(log))

    def _wait(self, part: Part, command: list[str], log: Path, seconds: float) -> int | None:
        """Run a command and return its exit status, or ``None`` if it was killed at its time limit."""
        with log.open('wb') as file:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=self.cwd,
                    env={**os.environ, **part.env},
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # so that its children can be killed with it
                )
            except OSError as error:
                file.write(f'{command[0]}: {error.strerror}\n'.encode())
                return 127
        with self._lock:
            self._processes.add(process)
            if self._is_stopped:  # after the check in `_run`
                kill_group(process)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with self._lock:
                self._processes.discard(process)
            kill_group(process)  # also children that a finished command has left
            process.wait()


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process that was started in its own session, and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _verdict(part: Part, status: int | None, log: str) -> str:
    if status is None:
        return TIMED_OUT
    if part.is_skipped(status, log):
        return SKIPPED
    return OK if status == 0 else FAILED


def _figure(part: Part, log: str) -> str:
    """Return the figure of a part; the last line of its log if there is none."""
    try:
        figure = part.figure(log)
    except (LookupError, ValueError):  # the output is incomplete
        figure = ''
    return figure or last_line(log)


def line(result: Result, width: int = 36, max_figure: int = 120) -> str:
    """Format a result as one line."""
    return f'{result.name:<{width}}{result.status:<11}{result.seconds:>7.1f} s  {result.figure[:max_figure]}'.rstrip()


def table(results: Sequence[Result]) -> str:
    """Format results as a table with a last line that counts them."""
    width = max([len(result.name) for result in results], default=0) + 2
    lines = [f'{"part":<{width}}{"result":<11}{"time":>9}  figure']
    lines += [line(result, width) for result in results]
    counts = [f'{n} {status}' for status in (OK, FAILED, TIMED_OUT, SKIPPED) if (n := count(results, status))]
    return '\n'.join([*lines, '', ', '.join(counts)])


def count(results: Sequence[Result], status: str) -> int:
    """Return the number of results with a status."""
    return sum(result.status == status for result in results)
