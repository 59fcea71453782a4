"""The tests marked ``gpu`` on the stand-in for CuPy, in a process of their own: Chainer is imported with one CuPy."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from chainer.backends import cuda

#: Those of the other folders take longer: their networks run on the emulator.
TESTS = (
    'tests/ops',
    'tests/weights/test_native.py',
    'tests/inspect/test_tracing.py',
    'tests/training/test_failures.py',
)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which('g++') is None, reason='no g++ to compile the kernels for the CPU')
@pytest.mark.skipif(cuda.available, reason='CuPy is installed; run the tests marked gpu on the GPU')
def test_gpu_tests_pass_on_the_stand_in(root, tmp_path):
    command = ['-m', 'pytest', '-p', 'tests.support.cupy_stand_in', '-p', 'no:cacheprovider', '-q', '-m', 'gpu', *TESTS]
    environment = {**os.environ, 'CUPY_STAND_IN_CACHE': str(tmp_path)}
    environment.pop('PYTEST_XDIST_WORKER', None)
    run = subprocess.run(
        [sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    assert int(re.search(r'(\d+) passed', run.stdout)[1]) > 1000
