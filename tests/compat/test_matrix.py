"""The package on each available Python from 3.10 to 3.15, with the oldest and the newest supported NumPy and Numba.

Each Python has a separate environment, which takes minutes and needs a network connection (or pip's cache).
"""

import glob
import os
import shutil
import subprocess
import sys

import numba
import numpy
import pytest

VERSIONS = ('3.10', '3.11', '3.12', '3.13', '3.14', '3.15')
#: The oldest NumPy and Numba that have a build for a version of Python; for the others, what pyproject.toml allows.
OLDEST_NUMPY = {'3.13': '2.1.0', '3.14': '2.3.2', '3.15': '2.5.2'}
OLDEST_NUMBA = {'3.14': '0.63.0', '3.15': '0.68.0'}
#: The tests that run in each environment: compat, Chainer's gradients, and the whole network.
TESTS = (
    'tests/compat/test_compat.py',
    'tests/models/test_chainer_links.py',
    'tests/models/test_mask_rcnn.py',
    'tests/ops/test_kernel_cache.py',
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
    # The first import writes the bytecode that pip leaves out; an image of a container may forbid it.
    options = {'env': os.environ, **options}
    options['env'] = {**options['env'], 'PYTHONDONTWRITEBYTECODE': ''}
    result = subprocess.run(command, capture_output=True, text=True, **options)
    if result.returncode and 'pip' in command and any(words in result.stderr for words in NO_NETWORK):
        pytest.skip('pip cannot reach a package index')
    assert result.returncode == 0, f'{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    return result.stdout


class Environment:
    """A virtual environment with the package, MPI and pytest.

    Args:
        folder: An empty folder, which receives the environment and the tests.
        version: The version of Python.
        root: The root of the repository.
    """

    def __init__(self, folder, version, root):
        self.folder, self.version, self.tests = folder, version, folder / 'source'
        self.bin = folder / 'env' / 'bin'
        self.python = str(self.bin / 'python')
        lines = (root / 'constraints.txt').read_text().splitlines()
        self._constraints = [line for line in lines if not line.startswith(('numpy', 'numba', 'llvmlite'))]
        self._pinned_numba = next(line for line in lines if line.startswith('numba=='))

    def requirements(self, age):
        """Return the requirements of the oldest or the newest NumPy and Numba."""
        if age == 'newest':
            return ['numpy<2.6', self._pinned_numba]
        numpy, numba = OLDEST_NUMPY.get(self.version, '2.0.0'), OLDEST_NUMBA.get(self.version, '0.61.0')
        return [f'numpy=={numpy}', f'numba=={numba}']

    def install(self, age, *words):
        """Install packages together with the oldest or the newest NumPy and Numba."""
        constraints = self.folder / 'constraints.txt'
        constraints.write_text('\n'.join([*self._constraints, *self.requirements(age)]))
        options = ['--disable-pip-version-check', '-q', '-c', str(constraints), '--no-compile']  # most files are unused
        run([self.python, '-m', 'pip', 'install', *options, *words])

    def create(self, interpreter, root):
        """Create the environment as a user does, with the oldest NumPy.

        ``test_constraints.py`` resolves the other packages of the tests, which those of this environment do not use.
        """
        run([interpreter, '-m', 'venv', str(self.folder / 'env')])
        # A copy, because building writes into the source folder; not editable, because users install it that way.
        shutil.copytree(root, self.tests, ignore=shutil.ignore_patterns('.git', '.venv', 'build', '*.egg-info'))
        self.install('oldest', f'{self.tests}[mpi]', 'pytest')
        shutil.rmtree(self.tests / 'mask_rcnn')  # the tests must use the installed package
        run([self.python, '-m', 'pip', 'uninstall', '-q', '-y', 'setuptools'])  # pkg_resources must not be needed


@pytest.fixture(scope='module', params=VERSIONS)
def environment(request, root, tmp_path_factory):
    """The environment of a version of Python; the tests change its NumPy and Numba only."""
    interpreter = find_python(request.param)
    if interpreter is None:
        pytest.skip(f'no Python {request.param} on this machine')
    folder = tmp_path_factory.mktemp('environment')
    created = Environment(folder, request.param, root)
    created.create(interpreter, root)
    yield created
    shutil.rmtree(folder)


@pytest.mark.parametrize('age', ['oldest', 'newest'])
def test_package_on(environment, age, tmp_path):
    python, requirements = environment.python, environment.requirements(age)
    environment.install(age, '--upgrade', *requirements)
    found = run([python, '-c', 'import numba, numpy; print(numpy.__version__, numba.__version__)']).split()
    if age == 'oldest':
        assert found == [requirement.partition('==')[2] for requirement in requirements]
    else:
        newest_numpy, newest_numba = (tuple(map(int, version.split('.')[:2])) for version in found)
        assert newest_numpy > (2, 1) and newest_numba > (0, 61)
    command = str(environment.bin / 'mask-rcnn')
    assert run([command, '--version']).startswith('mask-rcnn ')
    assert '--bn2affine' in run([command, 'demo', '--help']) and '--input' in run([command, 'convert', '--help'])
    this_python = '.'.join(map(str, sys.version_info[:2]))
    if (environment.version, *found) == (this_python, numpy.__version__, numba.__version__):
        return  # these versions run all tests, this one included
    # Emulated kernels do not depend on the version of Python.
    out = run(
        [python, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-m', 'not slow', '-k', 'not emulated', *TESTS],
        cwd=environment.tests,
        env={**os.environ, 'NUMBA_CACHE_DIR': str(tmp_path / 'numba')},
    )
    assert ' passed' in out
