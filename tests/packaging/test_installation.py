"""The one line of the README in empty environments, with pip, uv and pipx; takes minutes and needs a package index."""

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from mask_rcnn.datasets import RichShapesDataset

pytestmark = pytest.mark.slow

#: Messages of pip and uv without a connection to an index.
NO_NETWORK = ('NewConnectionError', 'name resolution', 'Max retries exceeded', 'error sending request', 'dns error')


def run(command, **options):
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, **options)
    if result.returncode and any(words in result.stderr for words in NO_NETWORK):
        pytest.skip('no package index can be reached')
    assert result.returncode == 0, f'{command}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}'
    return result.stdout


@pytest.fixture(scope='module')
def checkout(root, tmp_path_factory):
    """The tracked files as a new clone has them, without traces of earlier builds."""
    folder = tmp_path_factory.mktemp('clone') / 'checkout'
    ignored = shutil.ignore_patterns('.git', '.venv', '.*_cache', '__pycache__', 'output*.png', 'build', '*.egg-info')
    shutil.copytree(root, folder, ignore=ignored)
    return folder


@pytest.fixture(scope='module')
def environment(tmp_path_factory):
    """Variables of a user without caches, so that nothing that was built before is used."""
    home = tmp_path_factory.mktemp('home')
    names = ('PYTHONPATH', 'VIRTUAL_ENV', 'PIP_CONSTRAINT', 'PIPX_HOME', 'NUMBA_CACHE_DIR')
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    return {
        **inherited,
        'XDG_CACHE_HOME': str(home / 'cache'),
        'UV_CACHE_DIR': str(home / 'uv'),
        'PIPX_HOME': str(home / 'pipx'),
        'PIPX_BIN_DIR': str(home / 'bin'),
        'UV_TOOL_DIR': str(home / 'tools'),
        'UV_TOOL_BIN_DIR': str(home / 'bin'),
        'MPLCONFIGDIR': str(home / 'matplotlib'),
        **dict.fromkeys(('CC', 'CXX'), 'false'),  # no compiler is needed
    }


@pytest.fixture(scope='module')
def tools(tmp_path_factory, environment):
    """The folder of the programs of an environment with uv, pipx and the extra ``dist``."""
    folder = tmp_path_factory.mktemp('tools') / 'env'
    run([sys.executable, '-m', 'venv', folder])
    names = (
        'uv',
        'pipx',
        'build',
        'twine',
        'check-wheel-contents',
        'pip>=25.3',
        'platformdirs',
        'setuptools>=77.0.3,<81',
    )
    run([folder / 'bin' / 'pip', 'install', '-q', '--no-compile', *names], env=environment)
    return folder / 'bin'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of an environment."""
    return tmp_path_factory.mktemp('environment') / 'env'


@pytest.fixture
def empty(folder):
    """An empty environment; all have one path, so that the first one compiles the CPU kernels of the others."""
    run([sys.executable, '-m', 'venv', folder])
    yield folder
    shutil.rmtree(folder)


def detect(command, checkout, folder, environment):
    """Run ``mask-rcnn demo`` on a picture in an empty folder."""
    folder.mkdir()
    scene = RichShapesDataset(1, size=256, seed=7)[0].image.transpose(1, 2, 0).astype('uint8')
    Image.fromarray(scene).save(folder / 'scene.png')
    model = checkout / 'modelfiles' / 'shapes_mobilenet_v1_fpn.npz'
    run([command, 'demo', '--image', 'scene.png', '--modelfile', model], cwd=folder, env=environment)
    with Image.open(folder / 'output.png') as picture:
        assert picture.size == (256, 256)


def all_files(folder):
    return {path.relative_to(folder) for path in folder.rglob('*') if path.is_file() and path.suffix != '.pyc'}


def test_pip_installs_and_uninstalls(checkout, environment, empty, tmp_path):
    before = all_files(empty)
    run([empty / 'bin' / 'pip', 'install', '-q', '--no-cache-dir', '.'], cwd=checkout, env=environment)
    detect(empty / 'bin' / 'mask-rcnn', checkout, tmp_path / 'work', environment)
    package = next(empty.rglob('site-packages')) / 'mask_rcnn'
    assert package.is_dir()
    run([empty / 'bin' / 'pip', 'check'], env=environment)
    run([empty / 'bin' / 'pip', 'uninstall', '-q', '-y', 'mask-rcnn-chainer'], env=environment)
    assert not package.exists()  # also no compiled kernels
    frozen = run([empty / 'bin' / 'pip', 'list', '--format', 'freeze'], env=environment).split()
    others = [line.split('==')[0] for line in frozen if not line.startswith(('pip==', 'setuptools=='))]
    run([empty / 'bin' / 'pip', 'uninstall', '-q', '-y', *others], env=environment)
    assert all_files(empty) - before == set()
    assert sorted(path.name for path in checkout.iterdir() if path.name == 'build' or path.suffix == '.egg-info') == []


def test_a_current_pip_builds(checkout, environment, tools, tmp_path):
    """The other environments contain the pip of their Python; it and the pip that the backend calls can be equal."""
    environment = {**environment, 'XDG_CACHE_HOME': str(tmp_path / 'cache')}
    command = [tools / 'python', '-m', 'pip', 'wheel', '-q', '--no-cache-dir', '--no-deps', '-w', tmp_path, checkout]
    run(command, env=environment)
    assert len(list(tmp_path.glob('mask_rcnn_chainer-*.whl'))) == 1
    assert len(list((tmp_path / 'cache' / 'mask-rcnn-chainer' / 'wheels').glob('*.whl'))) == 2


def test_uv_installs(checkout, environment, tools, empty, tmp_path):
    run(
        [tools / 'uv', 'pip', 'install', '-q', '--python', empty / 'bin' / 'python', '.'], cwd=checkout, env=environment
    )
    detect(empty / 'bin' / 'mask-rcnn', checkout, tmp_path / 'work', environment)


def test_pipx_installs(checkout, environment, tools, tmp_path):
    run([tools / 'pipx', 'install', '--python', sys.executable, '.'], cwd=checkout, env=environment)
    command = os.path.join(environment['PIPX_BIN_DIR'], 'mask-rcnn')
    detect(command, checkout, tmp_path / 'work', environment)
    run([tools / 'pipx', 'uninstall', 'mask-rcnn-chainer'], env=environment)
    assert not os.path.exists(command)


def test_the_archives_are_reproducible_and_install_without_the_checkout(checkout, environment, tools, empty, tmp_path):
    """A second copy has other times and permissions."""
    other = tmp_path / 'other'
    shutil.copytree(checkout, other, copy_function=shutil.copyfile)
    for path in other.rglob('*.py'):
        path.chmod(0o664)
    for folder, output in ((checkout, 'first'), (other, 'second')):
        script = folder / 'scripts' / 'make_dist.py'
        run([tools / 'python', script, '--out', tmp_path / output], env=environment)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ('first', 'second'))
    assert [path.name for path in first] == [path.name for path in second] and len(first) == 4
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    shutil.rmtree(other)
    wheels = sorted((tmp_path / 'first').glob('*.whl'))
    assert len(wheels) == 3
    run([empty / 'bin' / 'pip', 'install', '-q', '--no-compile', *wheels], env=environment)
    detect(empty / 'bin' / 'mask-rcnn', checkout, tmp_path / 'work', environment)
