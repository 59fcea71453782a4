"""The patches that :mod:`mask_rcnn.compat` lists with their reasons."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.machinery
import os
import sys
import types
import warnings
from collections.abc import Iterator

import numpy as np

from mask_rcnn.compat import _pkg_resources
from mask_rcnn.compat._nms_gpu_post import _nms_gpu_post

#: The part of NumPy 1's ``numpy.sctypes`` that Chainer reads.
_SCTYPES = {
    'int': [np.int8, np.int16, np.int32, np.int64],
    'uint': [np.uint8, np.uint16, np.uint32, np.uint64],
    'float': [np.float16, np.float32, np.float64],
    'complex': [np.complex64, np.complex128],
}

_FCIS = 'chainercv.experimental.links.model.fcis'

#: Functions that look up removed NumPy names when they run: (module, function, NumPy's name in the module, names).
_NAMES_USED_AT_RUN_TIME = (
    ('chainer.functions.array.as_strided', 'AsStridedGrad.forward', 'np', {'sctypes': _SCTYPES}),
    ('chainer.functions.array.resize_images', 'compute_indices_and_weights', 'numpy', {'float': float}),
    (f'{_FCIS}.fcis_train_chain', 'FCISTrainChain.forward', 'np', {'int': int}),
    (f'{_FCIS}.utils.proposal_target_creator', 'ProposalTargetCreator.__call__', 'np', {'int': int}),
)

#: ChainerMN functions that compile kernels with the type ``half``, whose header CuPy's headers no longer include.
_HALF_KERNELS = ('_cupy_batched_pack_params', '_cupy_batched_unpack_params')


#: The start of Chainer's advice to reinstall CuPy for cuDNN.  It is misleading: CuPy 14 has no cuDNN bindings.
_CUDNN_ADVICE = 'cuDNN is not enabled'
#: The start of CuPy's warning of ten lines where NCCL, which only the training on several GPUs needs, is missing.
_NCCL_ADVICE = r'\s*nccl library could not be loaded'


@contextlib.contextmanager
def patches(package: str) -> Iterator[None]:
    """Apply the patches that a package needs during its import; afterwards, apply its lasting patches.

    Args:
        package: ``'chainer'`` or ``'chainercv'``.
    """
    with contextlib.ExitStack() as stack:
        for patch in (
            _numpy_sctypes,
            _numpy_distutils,
            _distutils,
            _supply_pkg_resources,
            _cupy_cublas,
            _silence_import_warnings,
        ):
            stack.enter_context(patch())
        if package == 'chainercv':
            _supply_nms_gpu_post()
        yield
    _patch_numpy_names(package)
    if package == 'chainer':
        _silence_cudnn_warning()


def patch_chainermn() -> None:
    """Patch ChainerMN so that ``pure_nccl`` can compile its kernels; idempotent.

    This is not part of the import hook, because importing ChainerMN starts MPI.

    Raises:
        ImportError: ChainerMN or mpi4py does not work.
    """
    owner = importlib.import_module('chainermn.communicators._memory_utility')
    for name in _HALF_KERNELS:
        function = getattr(owner, name)
        if not hasattr(function, '__wrapped__'):
            view = {
                **function.__globals__,
                'chainer': types.SimpleNamespace(cuda=types.SimpleNamespace(raw=_compile_with_half)),
            }
            setattr(owner, name, _with_globals(function, view))


def _compile_with_half(code: str, name: str):
    """Compile a kernel as ``chainer.cuda.raw`` does, with the type ``half`` defined."""
    return sys.modules['chainer.backends.cuda'].raw(f'#include <cuda_fp16.h>\n{code}', name)


@contextlib.contextmanager
def _numpy_sctypes():
    """Supply ``numpy.sctypes``, which ``as_strided`` reads on import; NumPy 2 does not have it."""
    with _attribute(np, 'sctypes', _SCTYPES):
        yield


@contextlib.contextmanager
def _numpy_distutils():
    """Supply ``numpy.distutils``, which Chainer's environment check imports and only uses on macOS.

    Python 3.12 does not have it, and before that it is deprecated and slow to import.  An empty result means that no
    Accelerate framework was found.
    """
    system_info = types.ModuleType('numpy.distutils.system_info')
    vars(system_info)['get_info'] = lambda name: {}
    distutils = types.ModuleType('numpy.distutils')
    vars(distutils)['system_info'] = system_info
    with (
        _module('numpy.distutils.system_info', system_info),
        _module('numpy.distutils', distutils),
        _attribute(np, 'distutils', distutils),
    ):
        yield


@contextlib.contextmanager
def _distutils():
    """Supply ``strtobool``, which ChainerCV imports from ``distutils``; the standard library no longer has it."""
    util = types.ModuleType('distutils.util')
    vars(util)['strtobool'] = _strtobool
    distutils = types.ModuleType('distutils')
    vars(distutils)['util'] = util
    with _module('distutils.util', util), _module('distutils', distutils):
        yield


def _strtobool(text: str) -> int:
    """Return 1 for y, yes, t, true, on and 1, 0 for n, no, f, false, off and 0."""
    for value, words in ((1, ('y', 'yes', 't', 'true', 'on', '1')), (0, ('n', 'no', 'f', 'false', 'off', '0'))):
        if text.lower() in words:
            return value
    raise ValueError(f'invalid truth value {text!r}')


@contextlib.contextmanager
def _supply_pkg_resources():
    """Supply ``pkg_resources``, which setuptools 82 removed; before that, importing it is slow and warns."""
    with _module('pkg_resources', _pkg_resources):
        yield


@contextlib.contextmanager
def _cupy_cublas():
    """Supply ``cupy.cuda.cublas``, which CuPy 14 moved; without the name, Chainer considers CUDA unavailable.

    ``chainer.functions.inv`` reads ``chainer.backends.cuda.cublas``, which is bound on import and stays, so only the
    entry in CuPy's namespace is removed.
    """
    try:
        cupy_cuda = importlib.import_module('cupy.cuda')
        cublas = importlib.import_module('cupy_backends.cuda.libs.cublas')
    except Exception:  # no CuPy, or CuPy without its libraries: Chainer runs on the CPU
        yield
        return
    with _attribute(cupy_cuda, 'cublas', cublas):
        yield


@contextlib.contextmanager
def _silence_import_warnings():
    """Silence the warnings about CuPy versions after 7, its cuDNN and NCCL, and Python's about ChainerCV's syntax."""
    key = 'CHAINER_WARN_VERSION_MISMATCH'
    before = os.environ.get(key)
    os.environ[key] = '0'
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', DeprecationWarning)
            warnings.simplefilter('ignore', SyntaxWarning)
            warnings.filterwarnings('ignore', _CUDNN_ADVICE)
            warnings.filterwarnings('ignore', _NCCL_ADVICE)
            yield
    finally:
        if before is None:
            del os.environ[key]
        else:
            os.environ[key] = before


def _supply_nms_gpu_post() -> None:
    """Supply ChainerCV's only C extension; its C code comes from a Cython that does not support Python 3.11."""
    stem = os.path.join(sys.modules['chainercv'].__path__[0], 'utils', 'bbox', '_nms_gpu_post')
    if any(os.path.exists(stem + suffix) for suffix in importlib.machinery.EXTENSION_SUFFIXES):
        return
    name = 'chainercv.utils.bbox._nms_gpu_post'
    module = types.ModuleType(name, doc='Stand-in for a C extension, see mask_rcnn.compat.')
    vars(module)['_nms_gpu_post'] = _nms_gpu_post
    sys.modules.setdefault(name, module)


def _patch_numpy_names(package: str) -> None:
    """Patch the functions of a package that use removed NumPy names, so that they see a NumPy with these names."""
    for module_name, path, numpy_name, names in _NAMES_USED_AT_RUN_TIME:
        missing = {name: value for name, value in names.items() if not _has(np, name)}
        if missing and module_name.split('.')[0] == package:
            owner = importlib.import_module(module_name)
            *parents, function_name = path.split('.')
            for parent in parents:
                owner = getattr(owner, parent)
            function = getattr(owner, function_name)
            view = {**function.__globals__, numpy_name: _NumpyView(missing)}
            setattr(owner, function_name, _with_globals(function, view))


def _with_globals(function, namespace: dict):
    """Return a copy of a function that looks up its global names in ``namespace``."""
    copy = types.FunctionType(
        function.__code__, namespace, function.__name__, function.__defaults__, function.__closure__
    )
    return functools.update_wrapper(copy, function)


def _silence_cudnn_warning() -> None:
    """Silence the advice to reinstall CuPy for cuDNN after the import."""
    chainer_cuda = sys.modules['chainer.backends.cuda']
    chainer_cuda.check_cuda_available._already_warned = True


class _NumpyView(types.ModuleType):
    """NumPy with a few additional names, for one function; NumPy itself is unchanged."""

    def __init__(self, names: dict):
        super().__init__('numpy')
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(np, name)

    def __eq__(self, other):  # FCIS compares the module of an array with NumPy
        return other is np or other is self

    __hash__ = types.ModuleType.__hash__


def _has(owner, name: str) -> bool:
    with warnings.catch_warnings():  # NumPy warns about names that it will remove
        warnings.simplefilter('ignore')
        return hasattr(owner, name)


@contextlib.contextmanager
def _attribute(owner, name: str, value):
    """Set an attribute within a ``with`` block, unless it exists."""
    if _has(owner, name):
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


@contextlib.contextmanager
def _module(name: str, module: types.ModuleType):
    """Make ``import name`` return ``module`` within a ``with`` block, unless it has already been imported."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = module
    try:
        yield
    finally:
        if sys.modules.get(name) is module:
            del sys.modules[name]
