"""The package on each available Python from 3.10 to 3.13, with the oldest and the newest supported NumPy.

Each combination has a separate environment, which takes minutes and needs a network connection (or pip's cache).
"""

import glob
import os
import shutil
import subprocess

import pytest

VERSIONS = ('3.10', '3.11', '3.12', '3.13')
OLDEST_NUMPY = {'3.13': '2.1.0'}  # NumPy 2.0 has no build for Python 3.13
#: The tests that run in each environment: compat, Chainer's gradients, and the whole network.
TESTS = (
    'tests/compat/test_compat.py',
    'tests/models/test_chainer_links.py',
    'tests/models/test_mask_rcnn.py',
    'tests/ops/test_proposals.py',
    'tests/ops/test_roi_align.py',
    'tests/inference/test_detections.py',
)

pytestmark = pytest.mark.slow


def find_python(version: str) -> str | None:
    """Return an interpreter of a version from PATH or from pyenv's folder, or ``None``."""
    pyenv = os.environ.get('PYENV_ROOT', os.path.expanduser('~/.pyenv'))
    candidates = [
        shutil.which(f'python{version}'),
        *sorted(glob.glob(os.path.join(pyenv, 'versions', f'{version}.*', 'bin', 'python'))),
    ]
    for path in filter(None, candidates):
        code = 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])'
        result = subprocess.run([path, '-c', code], capture_output=True, text=True)
        if result.stdout.strip() == version:
            return path
    return None


#: Messages of pip without a connection to an index.
NO_NETWORK = (
    'NewConnectionError',
    'ConnectionError',
    'Temporary failure in name resolution',
    'timed out',
    'Max retries exceeded',
)


def run(command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode and 'pip' in command and any(words in result.stderr for words in NO_NETWORK):
        pytest.skip('pip cannot reach a package index')
    assert result.returncode == 0, f'{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    return result.stdout


@pytest.fixture(params=VERSIONS)
def interpreter(request):
    path = find_python(request.param)
    if path is None:
        pytest.skip(f'no Python {request.param} on this machine')
    return request.param, path


@pytest.mark.parametrize('numpy', ['oldest', 'newest'])
def test_package_on(interpreter, numpy, root, tmp_path):
    version, python = interpreter
    requirement = 'numpy<2.6' if numpy == 'newest' else f'numpy=={OLDEST_NUMPY.get(version, "2.0.0")}'
    constraints = tmp_path / 'constraints.txt'
    constraints.write_text(
        ''.join(
            line
            for line in (root / 'constraints.txt').read_text().splitlines(keepends=True)
            if not line.startswith('numpy')
        )
        + requirement
        + '\n'
    )
    run([python, '-m', 'venv', str(tmp_path / 'env')])
    python = str(tmp_path / 'env' / 'bin' / 'python')
    pip = [python, '-m', 'pip', '--disable-pip-version-check', 'install', '-q', '-c', str(constraints)]
    run(pip + ['setuptools', 'wheel', 'numpy'])
    run(
        pip + ['--no-build-isolation', '--no-deps', 'chainer==7.8.1', 'chainercv==0.13.1'],
        env={**os.environ, 'CC': 'true', 'LDSHARED': 'true'},
    )
    # A copy, because building writes into the source folder; not editable, because users install it that way.
    source = tmp_path / 'source'
    shutil.copytree(root, source, ignore=shutil.ignore_patterns('.git', '.venv', 'build', '*.egg-info'))
    run(pip + ['--no-build-isolation', f'{source}[test]'])
    shutil.rmtree(source / 'mask_rcnn')  # the tests must use the installed package
    run([python, '-m', 'pip', 'uninstall', '-q', '-y', 'setuptools'])  # pkg_resources must not be needed
    found = run([python, '-c', 'import numpy; print(numpy.__version__)']).strip()
    assert found == requirement[7:] or numpy == 'newest'
    command = str(tmp_path / 'env' / 'bin' / 'mask-rcnn')
    assert run([command, '--version']).startswith('mask-rcnn ')
    assert '--bn2affine' in run([command, 'demo', '--help']) and '--input' in run([command, 'convert', '--help'])
    # Emulated kernels do not depend on the version of Python.
    out = run(
        [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'not slow', '-k', 'not emulated', *TESTS],
        cwd=source,
        env={**os.environ, 'NUMBA_CACHE_DIR': str(tmp_path / 'numba')},
    )
    assert ' passed' in out
