"""Fixtures that tests of several folders share."""

import contextlib
import gc
import importlib.util
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

import mask_rcnn  # noqa: F401  (makes Chainer importable before any test module imports it)
from mask_rcnn.ops.runtime import parallel
from mask_rcnn.ops.runtime.device import cuda_device_count
from tests.support import common_files
from tests.support.cuda_emulator import CudaEmulator

ROOT = Path(__file__).resolve().parents[1]

#: The environment variable that names the folder of the original programs' outputs.
GOLDEN_VARIABLE = 'MASK_RCNN_GOLDEN'

#: Folders of tests that import packages of the extra ``test`` which GPU machines and older environments may lack.
IMPORTED_PACKAGES = {
    'notebooks': ('nbclient', 'nbformat'),
    'serving': ('httpx', 'jsonschema', 'prometheus_client', 'starlette', 'uvicorn'),
}
#: Those that this environment lacks.  An import that fails would end the collection, and no other test would run.
MISSING_PACKAGES = {
    folder: missing
    for folder, names in IMPORTED_PACKAGES.items()
    if (missing := [name for name in names if importlib.util.find_spec(name) is None])
}
collect_ignore = list(MISSING_PACKAGES)


def pytest_configure():
    """Let Ctrl-C interrupt the tests and the commands that they start: the background jobs of a shell ignore it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """State which tests were left out."""
    for folder, missing in MISSING_PACKAGES.items():
        terminalreporter.write_line(f'tests/{folder} is left out: {", ".join(missing)} not installed')


def pytest_itemcollected(item):
    """Let ``-k emulated`` select all tests that use the emulator of CUDA."""
    if 'emulator' in getattr(item, 'fixturenames', ()):
        item.extra_keyword_matches.add('emulated')


def pytest_runtest_setup(item):
    """Skip GPU tests without a GPU, and draw the same random weights whichever tests ran before.

    An importable CuPy does not imply a GPU.
    """
    np.random.seed(0)
    if item.get_closest_marker('gpu') and not cuda_device_count():
        pytest.skip('no CUDA device')


@pytest.fixture(scope='module', autouse=True)
def frozen_heap():
    """Exclude the collected tests and all that the modules before have loaded from later garbage collections.

    A process has millions of such objects after some hundred modules; a collection that visits them takes 0.2 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_compilation_notice(monkeypatch):
    """Keep the notice of compiled kernels, which depends on Numba's cache, out of the output that tests compare."""
    monkeypatch.setattr('mask_rcnn.ops.runtime.compilation.on_first_compilation', lambda callback: None)


@pytest.fixture
def one_blas_thread():
    """Limit OpenBLAS to one thread; the rounding of a product depends on their number."""
    openblas = parallel._find_openblas()
    with parallel._single_threaded(*openblas) if openblas else contextlib.nullcontext():
        yield


@pytest.fixture(scope='session')
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope='session')
def data() -> Path:
    """The folder of the small golden arrays that are part of the repository."""
    return ROOT / 'tests' / 'data'


@pytest.fixture(scope='session')
def golden() -> Path:
    """The folder of the original programs' outputs; see :func:`find_golden`."""
    return find_golden(os.environ.get(GOLDEN_VARIABLE), ROOT)


def find_golden(named: str | None, root: Path) -> Path:
    """Return the folder of the original programs' outputs, or skip the test.

    Args:
        named: The folder that the environment variable names, if any.
        root: The root of the repository, whose folder ``.golden`` ``scripts/fetch_golden.py`` writes.
    """
    folders = [Path(named)] if named else [root / '.golden', root.parent / 'shared' / 'golden']
    for folder in folders:
        if (folder / 'detectron').is_dir():
            return folder
    if named:
        pytest.fail(f'{GOLDEN_VARIABLE}: {named} has no folder named detectron')
    pytest.skip(
        f'no reference outputs in {folders[-1]}; scripts/fetch_golden.py downloads them, and {GOLDEN_VARIABLE} may '
        'name another folder'
    )


@pytest.fixture(scope='session')
def matterport_golden(golden) -> Path:
    """The folder ``golden``; the test is skipped if it lacks the outputs of Matterport's program."""
    if not (golden / 'matterport').is_dir():
        pytest.skip(f'no outputs of Matterport in {golden}')
    return golden


@pytest.fixture(scope='session')
def dena_golden(golden) -> Path:
    """The folder ``golden``; the test is skipped if it lacks the outputs of DeNA's program."""
    if not (golden / 'dena').is_dir():
        pytest.skip(f'no outputs of Chainer_Mask_R-CNN in {golden}')
    return golden


@pytest.fixture(scope='session')
def shared() -> Path:
    """The folder of photos, annotations and weights that are not part of the repository."""
    folder = ROOT.parent / 'shared'
    if not folder.is_dir():
        pytest.skip(f'{folder} does not exist')
    return folder


@pytest.fixture(scope='session')
def emulator(request, tmp_path_factory) -> CudaEmulator:
    """The emulator of CUDA; the test processes and later runs share the compiled kernels."""
    if shutil.which('g++') is None:
        pytest.skip('no g++ to compile the kernels for the CPU')
    try:
        kernels = request.config.cache.mkdir('emulated_kernels')
    except (AttributeError, OSError):  # with "-p no:cacheprovider", or in a checkout that is not writable
        kernels = common_files.find_folder(tmp_path_factory) / 'kernels'
        kernels.mkdir(exist_ok=True)
    return CudaEmulator(kernels)


@pytest.fixture
def rng() -> np.random.RandomState:
    """A random number generator with a fixed seed."""
    return np.random.RandomState(0)
