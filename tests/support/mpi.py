"""The launcher of several processes."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


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
