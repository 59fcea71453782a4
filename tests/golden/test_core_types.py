"""The golden cases with OpenBLAS's kernels for other processors, which add float32 numbers in other orders."""

import os
import subprocess
import sys

import pytest

PRODUCT = 'import numpy as np; np.ones((99, 99), "f") @ np.ones((99, 99), "f")'


def run(arguments, core_type, root):
    environment = os.environ | {'OPENBLAS_CORETYPE': core_type}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=root, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize('core_type', ['Haswell', 'Zen', 'SkylakeX'])
def test_golden_cases_pass_with_other_kernels(golden, root, core_type):
    if run(['-c', PRODUCT], core_type, root).returncode < 0:
        pytest.skip(f'this processor lacks instructions of {core_type}')
    folder = root / 'tests' / 'golden'
    options = ['-q', '-p', 'no:cacheprovider', '--ignore', str(folder / 'test_core_types.py'), '-k', 'not cuda']
    result = run(['-m', 'pytest', *options, str(folder)], core_type, root)
    assert result.returncode == 0, result.stdout[-5000:]
