"""The lazy names of ``mask_rcnn`` and the import hook for Chainer; each check runs in a new interpreter."""

import subprocess
import sys

import pytest

import mask_rcnn

#: Packages that ``import mask_rcnn`` and the help must not import.
HEAVY = ('chainer', 'chainercv', 'cupy', 'cv2', 'h5py', 'matplotlib', 'numba', 'numpy', 'pycocotools')

PRINT_HEAVY = f'import sys; print([name for name in {HEAVY} if name in sys.modules])'

#: Functions for the checks: the number of hooks, and whether a lasting patch of Chainer is applied exactly once.
CHECKS = """
import sys
from mask_rcnn.compat._import_hook import PatchingFinder
def hooks():
    return sum(isinstance(finder, PatchingFinder) for finder in sys.meta_path)
def is_patched():
    function = sys.modules['chainer.functions.array.resize_images'].compute_indices_and_weights
    return hasattr(function, '__wrapped__') and not hasattr(function.__wrapped__, '__wrapped__')
"""


#: Imports that begin like those of the fast test; an interpreter for each of them takes about a second.
FURTHER_IMPORTS = (
    'import mask_rcnn.models',
    'import chainercv.links',
    'import chainer.backends.cuda',
    'from chainer import functions',
    'import importlib; importlib.import_module("chainer.links")',
    'import mask_rcnn.ops.boxes.boxes; import chainer',
    'import chainercv',
)


def python(code: str) -> str:
    """Run code in a new interpreter and return its output."""
    result = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_import_mask_rcnn_imports_no_other_library():
    assert python(f'import mask_rcnn; {PRINT_HEAVY}') == '[]'


@pytest.mark.parametrize('flag', ['--help', '--version'])
def test_help_imports_no_other_library(flag):
    code = f'import mask_rcnn.cli\ntry: mask_rcnn.cli.main(["{flag}"])\nexcept SystemExit: {PRINT_HEAVY}'
    assert python(code).splitlines()[-1] == '[]'


def test_public_names_are_imported_on_first_use():
    assert python('from mask_rcnn import Config, DETECTRON; print(Config().dialect is DETECTRON)') == 'True'
    code = 'print(build.__module__); import mask_rcnn; print(mask_rcnn.MaskRCNN is mask_rcnn.models.MaskRCNN)'
    assert python(f'from mask_rcnn import *; {code}') == 'mask_rcnn.models.builder\nTrue'


def test_dir_lists_public_names_and_subpackages():
    names = python('import mask_rcnn; print(*dir(mask_rcnn))').split()
    assert {*mask_rcnn.__all__, 'config', 'models', 'weights', '__version__'} <= set(names)


def test_every_subpackage_and_module_is_an_attribute(root):
    folders = {path.parent.name for path in (root / 'mask_rcnn').glob('*/__init__.py')}
    modules = {path.stem for path in (root / 'mask_rcnn').glob('*.py')} - {'__init__'}
    assert set(mask_rcnn._SUBPACKAGES) == folders | modules
    assert python('import mask_rcnn; print(mask_rcnn.config.PRESETS is mask_rcnn.PRESETS)') == 'True'


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="module 'mask_rcnn' has no attribute 'no_such_name'"):
        _ = mask_rcnn.no_such_name


@pytest.mark.parametrize(
    'imports',
    [
        'import chainer',
        *(pytest.param(imports, marks=pytest.mark.slow) for imports in FURTHER_IMPORTS),
    ],
)
def test_the_first_import_of_chainer_is_patched(imports):
    output = python(f'import mask_rcnn; {imports}\n{CHECKS}print(is_patched(), hooks() + ("chainercv" in sys.modules))')
    assert output == 'True 1'


def test_the_hook_leaves_after_both_packages():
    code = """
before = list(sys.meta_path)
import mask_rcnn
assert hooks() == 1
import chainer
assert chainer.__spec__.loader is chainer.__loader__
assert type(chainer.__loader__).__name__ == 'SourceFileLoader'
import chainercv
assert hooks() == 0 and is_patched()
import importlib
importlib.reload(mask_rcnn)
mask_rcnn.compat.install()
assert hooks() == 0 and is_patched()
print('done')
"""
    assert python(CHECKS + code) == 'done'


def test_an_imported_chainer_gets_the_lasting_patches_immediately():
    code = """
import sys
import mask_rcnn, chainer
import mask_rcnn.compat._import_hook as hook
sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, hook.PatchingFinder)]
hook._patched.clear()
chainer.backends.cuda.check_cuda_available._already_warned = False
hook.register()
print(chainer.backends.cuda.check_cuda_available._already_warned, hook._patched)
"""
    assert python(code) == "True {'chainer'}"


def test_find_spec_imports_nothing():
    code = """
import importlib.util, mask_rcnn
spec = importlib.util.find_spec('chainer')
assert spec.origin.endswith('__init__.py') and spec.submodule_search_locations
assert 'global_config' in spec.loader.get_source('chainer')
"""
    assert python(code + PRINT_HEAVY) == '[]'


def test_a_failed_import_can_be_repeated():
    code = """
import sys, mask_rcnn
sys.modules['filelock'] = None
try:
    import chainer
except ImportError:
    pass
assert 'chainer' not in sys.modules and hooks() == 1
del sys.modules['filelock']
import chainer
print(is_patched())
"""
    assert python(CHECKS + code) == 'True'


def test_a_missing_package_is_a_usual_import_error():
    code = """
import sys, mask_rcnn
sys.meta_path[1:] = [type('Nothing', (), {'find_spec': staticmethod(lambda *arguments: None)})]
try:
    import chainercv
except ModuleNotFoundError as error:
    print(error)
"""
    assert python(code) == "No module named 'chainercv'"


def test_threads_import_both_packages_at_once():
    code = """
import importlib, threading, mask_rcnn
names = ('chainercv', 'chainer', 'chainer', 'chainercv')
errors, barrier = [], threading.Barrier(len(names))
def work(name):
    barrier.wait()
    try:
        importlib.import_module(name)
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(120)
print(errors, hooks(), is_patched(), any(thread.is_alive() for thread in threads))
"""
    assert python(CHECKS + code) == '[] 0 True False'


def test_threads_use_the_public_names_at_once():
    code = """
import threading, mask_rcnn
names = ('load', 'build', 'Config', 'Detections', 'training', 'datasets')
errors, barrier = [], threading.Barrier(len(names))
def work(name):
    barrier.wait()
    try:
        getattr(mask_rcnn, name)
    except BaseException as error:
        errors.append(repr(error))
threads = [threading.Thread(target=work, args=(name,), daemon=True) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join(120)
print(errors, any(thread.is_alive() for thread in threads))
"""
    assert python(code) == '[] False'


def test_a_spawned_process_can_import_chainer(tmp_path):
    """Unpickling an object of the package imports the package, and so adds the hook."""
    script = tmp_path / 'spawn.py'
    script.write_text("""
import multiprocessing

def import_chainer(config):
    import chainer
    return chainer.__version__, config.extractor

if __name__ == '__main__':
    import mask_rcnn
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        print(*pool.apply(import_chainer, (mask_rcnn.Config(),)))
""")
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=300)
    assert result.stdout == '7.8.1 resnet50\n', result.stderr


def test_chainer_testing_is_patched_when_it_is_imported():
    """It needs pkg_resources, which setuptools 82 does not have; ``import chainer`` alone must not import pytest."""
    code = """
import sys, mask_rcnn, chainer
assert not {'chainer.testing', 'pytest'} & set(sys.modules)
import chainer.gradient_check
print(chainer.testing.helper.pkg_resources.__name__, 'pkg_resources' in sys.modules)
"""
    assert python(code) == 'mask_rcnn.compat._pkg_resources False'
