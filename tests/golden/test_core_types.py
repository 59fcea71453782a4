"""The golden cases with OpenBLAS's kernels for other processors, which add float32 numbers in other orders."""

import os
import re
import subprocess
import sys

import pytest

CORE_TYPES = ('Haswell', 'Zen', 'SkylakeX')

PRODUCT = 'import numpy as np; np.ones((99, 99), "f") @ np.ones((99, 99), "f")'


def run(arguments, root, **variables):
    command = [sys.executable, *arguments]
    return subprocess.run(command, env={**os.environ, **variables}, cwd=root, capture_output=True, text=True)


@pytest.fixture(scope='module')
def kernels(root):
    """The name of the kernels that OpenBLAS selects for each core type, and for '' those of all other tests.

    ``None`` if this processor lacks their instructions; '' if the BLAS library is another one.
    """
    found = {}
    for core_type in ('', *CORE_TYPES):
        done = run(
            ['-c', PRODUCT], root, OPENBLAS_VERBOSE='2', **({'OPENBLAS_CORETYPE': core_type} if core_type else {})
        )
        found[core_type] = None if done.returncode < 0 else ''.join(re.findall('^Core: (.+)', done.stderr, re.M))
    return found


@pytest.mark.slow
@pytest.mark.parametrize('core_type', CORE_TYPES)
def test_golden_cases_pass_with_other_kernels(golden, root, kernels, core_type):
    """Each set of kernels once: builds of OpenBLAS contain one set for several core types."""
    if kernels[core_type] is None:
        pytest.skip(f'this processor lacks instructions of {core_type}')
    same = next(name for name in kernels if kernels[name] == kernels[core_type])
    if same != core_type:
        pytest.skip(f'{core_type} has the kernels of {same or "the other tests"}: {kernels[core_type] or "unknown"}')
    folder = root / 'tests' / 'golden'
    # Files that are written contain no sums of floats, and ONNX Runtime does not use OpenBLAS.
    ignored = (f'--ignore={folder / name}' for name in ('test_core_types.py', 'test_export.py', 'test_onnx.py'))
    options = ['-q', '-p', 'no:cacheprovider', *ignored]
    result = run(
        ['-m', 'pytest', *options, '-m', 'not gpu and not command', str(folder)], root, OPENBLAS_CORETYPE=core_type
    )
    assert result.returncode == 0, result.stdout[-5000:]
