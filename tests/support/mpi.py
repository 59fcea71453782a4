"""The launcher of several processes."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.environment import subprocess_environment

#: Seconds after which the processes count as hanging (they need three on an idle machine).
_TIMEOUT = 300


def mpiexec_command():
    """Return Open MPI's ``mpiexec`` with its options; skip the test if it is not installed."""
    beside_python = Path(sys.executable).with_name('mpiexec')
    program = str(beside_python) if beside_python.exists() else shutil.which('mpiexec')
    if program is None or importlib.util.find_spec('mpi4py') is None:
        pytest.skip('needs mpi4py and mpiexec')
    version = subprocess.run([program, '--version'], capture_output=True, text=True, check=False).stdout
    if not any(name in version for name in ('Open MPI', 'PRRTE', 'OpenRTE')):
        pytest.skip('needs the mpiexec of Open MPI')
    return [program, '--allow-run-as-root', '--oversubscribe', '--bind-to', 'none']


def run_processes(
    arguments: Sequence[str],
    root: Path,
    n_processes: int,
    *,
    meanwhile: Callable[[subprocess.Popen], object] = lambda launcher: None,
    **changes: object,
) -> subprocess.CompletedProcess:
    """Run Python in several processes; return the completed launcher, with what they have printed.

    Args:
        arguments: The arguments of Python.
        root: The folder of the package.
        n_processes: The number of processes.
        meanwhile: Called with the launcher after its start.
        changes: More arguments of ``Popen``.
    """
    # Open MPI's sockets need short paths.
    environment = subprocess_environment(root, OMP_NUM_THREADS='1', TMPDIR='/tmp')
    command = [*mpiexec_command(), '-n', str(n_processes), sys.executable, *arguments]
    pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes, **changes) as launcher:
        try:
            meanwhile(launcher)
            output, errors = launcher.communicate(timeout=_TIMEOUT)
        except BaseException as error:
            os.killpg(launcher.pid, signal.SIGKILL)
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            launcher.communicate()
            pytest.fail(f'{arguments}: the processes hang')
    return subprocess.CompletedProcess(command, launcher.returncode, output, errors)


def lines_of_program(errors: str) -> list[str]:
    """Return the lines of the standard error without those of the launcher, which follow a line of hyphens."""
    return [line for line in errors.split('-' * 60)[0].splitlines() if line]


def process_of(launcher: subprocess.Popen, rank: int) -> int:
    """Return the id of a process that a launcher has started."""
    for folder in os.scandir('/proc'):
        if folder.name.isdigit():
            try:
                with open(f'{folder.path}/environ', 'rb') as environment, open(f'{folder.path}/stat') as status:
                    parent = int(status.read().rpartition(')')[2].split()[1])
                    if parent == launcher.pid and f'OMPI_COMM_WORLD_RANK={rank}'.encode() in environment.read():
                        return int(folder.name)
            except OSError:
                continue
    raise AssertionError(f'no process {rank}')


def wait_until(is_true: Callable[[], bool]) -> None:
    """Wait until a function returns true, at most two minutes."""
    end = time.monotonic() + 120
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.02)
