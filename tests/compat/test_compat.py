"""The guarantees of mask_rcnn.compat; most checks run in a fresh interpreter, because patches apply to a process."""

import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest

from mask_rcnn.compat import _install as install
from mask_rcnn.compat import _pkg_resources
from mask_rcnn.compat._nms_gpu_post import _nms_gpu_post


def python(code: str, *options: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    result = subprocess.run([sys.executable, *options, '-c', code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_numpy_is_unchanged():
    out = python("""
import sys
import numpy as np
names, modules = set(dir(np)), set(sys.modules)
import mask_rcnn.compat
mask_rcnn.compat.install()
assert set(dir(np)) - names <= {'ma', 'random', 'fft', 'linalg', 'testing', 'polynomial', 'ctypeslib', 'char',
                                'rec', 'strings', 'dtypes', 'exceptions', 'lib', 'core', 'typing', 'f2py'}
assert not {'pkg_resources', 'numpy.distutils', 'numpy.distutils.system_info', 'distutils.util'} & set(sys.modules)
for name in ('sctypes', 'float', 'int', 'distutils'):
    try:
        value = vars(np).get(name)
    except AttributeError:
        value = None
    assert value is None, name
print('clean')
""")
    assert out == 'clean'


def test_importing_emits_no_warnings():
    assert (
        python(
            'import mask_rcnn.compat; mask_rcnn.compat.install(); import chainer, chainercv; print(1)', '-W', 'error'
        )
        == '1'
    )


def test_the_advice_to_reinstall_cupy_is_silenced(recwarn):
    """With a GPU, Chainer gives it during its import; CuPy 14 has no cuDNN bindings to reinstall."""
    with install._silence_import_warnings():
        warnings.warn('cuDNN is not enabled.\nPlease reinstall CuPy after you install cudnn', stacklevel=1)
    assert not recwarn.list


def test_warning_filters_and_environment_are_unchanged():
    assert (
        python("""
import os, warnings
import numpy, matplotlib, cv2
before = list(warnings.filters), dict(os.environ)
import mask_rcnn.compat
mask_rcnn.compat.install()
print([f for f in warnings.filters if f not in before[0]], dict(os.environ) == before[1])
""")
        == '[] True'
    )


def test_chainer_may_be_imported_first():
    assert (
        python("""
import sys, types
import numpy as np
np.sctypes = {'int': [np.int8, np.int16, np.int32, np.int64], 'float': [np.float16, np.float32, np.float64]}
for name in ('numpy.distutils', 'numpy.distutils.system_info', 'pkg_resources'):
    sys.modules[name] = types.ModuleType(name)
class DistributionNotFound(Exception):
    pass
def require(name):
    raise DistributionNotFound
sys.modules['pkg_resources'].require = require
sys.modules['pkg_resources'].DistributionNotFound = DistributionNotFound
import chainer
del sys.modules['pkg_resources']
import mask_rcnn.compat
mask_rcnn.compat.install()
mask_rcnn.compat.install()
import chainercv.links
print('sctypes' in vars(np))
""")
        == 'True'
    )


def test_functions_that_look_up_removed_names_when_they_run():
    import chainer
    import chainer.functions as F

    x = np.arange(32, dtype=np.float32).reshape(1, 2, 4, 4)
    resized = F.resize_images(chainer.Variable(x), (7, 7))
    # with aligned corners, every second pixel of the result is a pixel of the input
    np.testing.assert_allclose(resized.array[:, :, ::2, ::2], x, rtol=1e-6)
    variable = chainer.Variable(x.ravel())
    windows = F.as_strided(variable, (3, 2), (1, 1), 0)
    windows.grad = np.ones((3, 2), np.float32)
    windows.backward()
    np.testing.assert_array_equal(variable.grad[:5], [1, 2, 2, 1, 0])
    assert 'float' not in vars(np) and 'sctypes' not in vars(np)


def test_chainercv_works():
    import chainercv

    assert chainercv.__version__ == '0.13.1'
    assert len(chainercv.datasets.coco_instance_segmentation_label_names) == 80
    boxes = np.array([[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]], np.float32)
    kept = chainercv.utils.non_maximum_suppression(boxes, 0.5, np.array([0.1, 0.9, 0.5], np.float32))
    np.testing.assert_array_equal(kept, [1, 2])


def test_the_replacement_of_pkg_resources():
    assert _pkg_resources.get_distribution('chainer').version == '7.8.1'
    _pkg_resources.require('numpy>=2.0')
    _pkg_resources.WorkingSet().require('numpy>=2.0', 'chainer==7.8.1')
    with pytest.raises(_pkg_resources.VersionConflict, match='chainer 7.8.1 is installed'):
        _pkg_resources.require('chainer<7')
    with pytest.raises(_pkg_resources.DistributionNotFound):
        _pkg_resources.require('no-such-distribution-as-this')


def test_nms_gpu_post_follows_the_bit_mask(rng):
    n, bits = 150, 64
    words = -(-n // bits)
    suppresses = np.triu(rng.rand(n, n) < 0.02, 1)
    mask = np.zeros((n, words), np.uint64)
    for i, j in zip(*np.nonzero(suppresses), strict=True):
        mask[i, j // bits] |= np.uint64(1 << int(j % bits))
    expected, removed = [], np.zeros(n, bool)
    for i in range(n):
        if not removed[i]:
            expected.append(i)
            removed |= suppresses[i]
    selection, count = _nms_gpu_post(mask.ravel(), n, bits, words)
    assert selection.dtype == np.int32 and selection.shape == (n,)
    np.testing.assert_array_equal(selection[:count], expected)


def test_strtobool_equals_that_of_distutils():
    words = ('Y', 'yes', 'On', '1', 'no', 'FALSE', '0')
    assert [install._strtobool(word) for word in words] == [1, 1, 1, 1, 0, 0, 0]
    with pytest.raises(ValueError, match="invalid truth value 'maybe'"):
        install._strtobool('maybe')


def test_missing_chainercv_is_reported():
    out = python("""
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == 'chainercv' else find_spec(name, *rest)
import mask_rcnn.compat
try:
    mask_rcnn.compat.install()
except ImportError as error:
    print(error)
""")
    assert 'chainercv is not installed; "mask-rcnn doctor" states what to install' in out


@pytest.fixture(scope='module')
def mended_kernels():
    """Return the sources of ChainerMN's kernels that the patched functions pass to CuPy, by name."""
    pytest.importorskip('mpi4py', exc_type=ImportError)
    return json.loads(
        python("""
import json
import mask_rcnn.compat
from chainermn.communicators import _memory_utility as owner
import chainer.backends.cuda as cuda
before = dict(vars(owner))
for _ in range(2):
    mask_rcnn.compat.patch_chainermn()
assert {name for name in before if vars(owner)[name] is not before[name]} == {
    '_cupy_batched_pack_params', '_cupy_batched_unpack_params'}
raw, sources = cuda.raw, {}
cuda.raw = lambda code, name: sources.update({name: code})
owner._cupy_batched_pack_params(), owner._cupy_batched_unpack_params()
assert owner.chainer.cuda is cuda and set(owner.chainer.__dict__) >= {'Chain', 'cuda'}
print(json.dumps(sources))
""")
    )


def test_kernels_of_chainermn_include_half(mended_kernels):
    assert set(mended_kernels) == {'cupy_batched_pack_params', 'cupy_batched_unpack_params'}
    for name, code in mended_kernels.items():
        assert code.startswith('#include <cuda_fp16.h>\n') and code.count('cuda_fp16') == 1 and f'{name}(' in code


@pytest.mark.skipif(shutil.which('nvcc') is None, reason='no nvcc')
def test_kernels_of_chainermn_compile_without_cupys_header(mended_kernels, tmp_path):
    """The kernels use nothing from CuPy 14's header, and do not compile without ``cuda_fp16.h``."""

    def compile_source(code):
        path = tmp_path / 'kernel.cu'
        path.write_text(code.replace('#include <cupy/carray.cuh>', ''))
        command = ['nvcc', '-ptx', '-arch=compute_80', '-o', str(tmp_path / 'kernel.ptx'), str(path)]
        return subprocess.run(command, capture_output=True, text=True)

    for code in mended_kernels.values():
        assert compile_source(code).returncode == 0
        assert '"half" is undefined' in compile_source(code.replace('#include <cuda_fp16.h>', '')).stderr


def test_only_the_advice_about_nccl_is_silenced(recwarn):
    """CuPy warns where Chainer imports ``cupy.cuda.nccl`` and the library is missing."""
    with install._silence_import_warnings():
        for text in ('\nnccl library could not be loaded.\n\nReason: ImportError (libnccl.so.2)\n', 'something else'):
            warnings.warn(text, UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in recwarn] == ['something else']
