"""The probes that import libraries; :func:`main` runs them in a child process of ``mask-rcnn doctor``.

A probe is a function without arguments that returns facts which JSON can represent, or raises an exception of any type.
Its imports are in the function: each of them can fail, or end the process.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import mask_rcnn
from mask_rcnn.cli.doctor.report import shorten

Facts = dict[str, Any]

#: A function of LLVM's language, compiled to check that this system runs compiled code.
_LLVM_SOURCE = 'define i32 @add(i32 %a, i32 %b) {\n%sum = add i32 %a, %b\nret i32 %sum\n}'
#: LLVM's name of a processor feature -> its usual name, for those that determine speed and rounding.
_FEATURES = {
    'avx2': 'AVX2',
    'fma': 'FMA',
    'avx512f': 'AVX-512',
    'avx512bf16': 'AVX-512 BF16',
    'amx-tile': 'AMX',
    'neon': 'NEON',
    'sve': 'SVE',
}
#: The attributes 75 and 76 of the driver's interface: the major and minor number of the compute capability.
_CAPABILITY_ATTRIBUTES = 75, 76
#: A kernel that needs CUDA's headers.
_HEADER_SOURCE = '#include <cuda_fp16.h>\nextern "C" __global__ void twice(float* x) { x[0] = __float2half(2.f); }'


def main(names: Sequence[str]) -> None:
    """Run probes and write a line of JSON for each: its name and its facts, or ``{'error': reason}``."""
    results = os.fdopen(os.dup(1), 'wb', buffering=0)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # libraries and the processes that they start write elsewhere
    for name in names:
        try:
            facts = PROBES[name]()
        except BaseException as error:  # also SystemExit
            facts = {'error': describe(error), 'missing': getattr(error, 'name', None)}
        results.write(json.dumps({name: facts}).encode() + b'\n')
    os._exit(0)  # the ends of libraries, such as MPI's, can also fail


def describe(error: BaseException) -> str:
    """Return an error as a part of a line; for one that CuPy wraps in a long text, its cause."""
    cause = error.__cause__ or error
    text = shorten(cause)
    if isinstance(cause, ImportError) and text:
        return text
    return f'{type(cause).__name__}: {text}' if text else type(cause).__name__


def _imported(name: str, distribution: str) -> Facts:
    module = importlib.import_module(name)
    version = getattr(module, '__version__', None)
    if not isinstance(version, str):
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            version = 'of unknown version'
    return {'version': version}


def _numpy() -> Facts:
    import numpy as np

    a = (np.arange(200 * 200) % 7).reshape(200, 200)
    product = a.astype(np.float32) @ a.astype(np.float32)  # integers below 2**24, which float32 represents exactly
    if not np.array_equal(product, a @ a):
        raise ArithmeticError('the BLAS of NumPy multiplies matrices wrongly')
    return {'version': np.__version__}


def _blas() -> Facts:
    import numpy as np

    library: Any = np.show_config(mode='dicts')
    facts = library['Build Dependencies']['blas']
    return {'name': str(facts.get('name')), 'version': str(facts.get('version', '')), 'core': _openblas_core()}


def _openblas_core() -> str | None:
    """Return the processor whose kernels OpenBLAS has chosen; ``None`` for another BLAS."""
    library = ctypes.CDLL(importlib.import_module('numpy._core._multiarray_umath').__file__)
    for prefix in ('scipy_', ''):
        for suffix in ('64_', '', '_64'):
            function = getattr(library, f'{prefix}openblas_get_corename{suffix}', None)
            if function is not None:
                function.restype = ctypes.c_char_p
                return function().decode()
    return None


def _numba() -> Facts:
    import llvmlite.binding as llvm
    import numba
    from numba.core import config
    from numba.core.codegen import JITCPUCodegen

    JITCPUCodegen('doctor')  # initialises LLVM in the way of the installed version
    module = llvm.parse_assembly(_LLVM_SOURCE)
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    add = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_int32)(engine.get_function_address('add'))
    if add(1, 2) != 3:
        raise ArithmeticError('compiled code computes wrongly')
    features = llvm.get_host_cpu_features()
    return {
        'version': numba.__version__,
        'is_disabled': bool(vars(config).get('DISABLE_JIT')),
        'cpu': llvm.get_host_cpu_name(),
        'features': [name for key, name in _FEATURES.items() if features.get(key)],
    }


def _threads() -> Facts:
    from mask_rcnn.ops.runtime import parallel

    facts = {'cpus': os.cpu_count(), 'available': len(parallel.available_cpus())}
    return {**facts, 'threads': parallel.cpu_count(), 'blas_threads': parallel.blas_threads()}


def _kernels() -> Facts:
    from mask_rcnn.ops.runtime.kernel_cache import KernelCache

    caches = [getattr(kernel, '_cache', None) for kernel in _all_kernels()]
    stored = [cache for cache in caches if isinstance(cache, KernelCache)]
    reasons = {getattr(cache, 'reason', 'unknown reason') for cache in caches if not isinstance(cache, KernelCache)}
    return {
        'n_kernels': len(caches),
        'n_stored': sum(cache.is_stored() for cache in stored),
        'folders': sorted({str(cache.cache_path) for cache in stored}),
        'no_folder': min(reasons, default=None),
    }


def _all_kernels() -> Iterator[Any]:
    """Yield the functions of the package that Numba compiles."""
    from numba.core.dispatcher import Dispatcher

    root = Path(mask_rcnn.__path__[0])
    for path in sorted(root.rglob('*.py')):
        if not re.search(r'^@(?:\w+\.)?jit$', path.read_text(encoding='utf-8'), re.MULTILINE):
            continue
        module = importlib.import_module('.'.join(['mask_rcnn', *path.relative_to(root).with_suffix('').parts]))
        for value in vars(module).values():
            if isinstance(value, Dispatcher) and value.py_func.__module__ == module.__name__:
                yield value


def _weights() -> Facts:
    from mask_rcnn.cli.network_options import DEFAULT_MODEL
    from mask_rcnn.weights.pretrained_files import MODEL_FOLDER, default_model_advice, search_folders

    folders = {str(folder): _weight_files(folder) for folder in search_folders(MODEL_FOLDER)}
    default = MODEL_FOLDER / DEFAULT_MODEL
    facts: Facts = {'default': str(default), 'has_default': default.is_file(), 'advice': default_model_advice()}
    return {'folders': folders, **facts}


def _weight_files(folder: Path) -> list[str] | None:
    """Return the names of the files in a folder that may be weights; ``None`` if it does not exist."""
    suffixes = ('.npz', '.pkl', '.pth', '.pt', '.h5', '.ckpt', '.caffemodel')
    if not folder.is_dir():
        return None
    return sorted(path.name for path in folder.iterdir() if path.suffix in suffixes)


def _opencv() -> Facts:
    import cv2

    found = re.search(r'^\s*GUI:\s*(\S+)', cv2.getBuildInformation(), re.MULTILINE)
    return {'version': cv2.__version__, 'gui': found[1] if found else 'NONE'}


def _mpi4py() -> Facts:
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    library = MPI.Get_library_version().strip('\0 \n').splitlines()[0].split(',')[0]
    return {'version': mpi4py.__version__, 'library': library.replace('Open MPI v', 'Open MPI ')}


def _driver() -> Facts:
    """Query the driver's library, without CuPy."""
    cuda = ctypes.CDLL('nvcuda.dll' if sys.platform == 'win32' else 'libcuda.so.1')
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    facts: Facts = {'version': version.value, 'status': cuda.cuInit(0), 'gpus': []}
    if facts['status'] == 0:
        facts['status'] = cuda.cuDeviceGetCount(ctypes.byref(count))
    if facts['status']:
        name = ctypes.c_char_p()
        cuda.cuGetErrorName(facts['status'], ctypes.byref(name))
        return {**facts, 'status_name': (name.value or b'unknown error').decode()}
    return {**facts, 'gpus': [_gpu(cuda, number) for number in range(count.value)]}


def _gpu(cuda: Any, number: int) -> Facts:
    device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), number)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    capability = []
    for attribute in _CAPABILITY_ATTRIBUTES:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        capability.append(value.value)
    return {'name': name.value.decode('utf-8', 'replace'), 'memory': memory.value, 'capability': capability}


def _cupy() -> Facts:
    os.environ['CUPY_CACHE_IN_MEMORY'] = '1'  # so that kernels are compiled, and no file is written
    import cupy

    runtime = cupy.cuda.runtime
    facts: Facts = {'version': cupy.__version__, 'is_rocm': bool(getattr(runtime, 'is_hip', False)), 'n_gpus': 0}
    with contextlib.suppress(Exception):
        facts['runtime'] = cupy.cuda.driver.get_build_version()
        facts['runtime'] = runtime.runtimeGetVersion()
    try:
        facts['n_gpus'] = runtime.getDeviceCount()
    except Exception as error:
        facts['device_error'] = describe(error)
    return facts


def _gpu_module() -> ModuleType:
    """Return CuPy on a GPU.

    Raises:
        LookupError: CuPy finds no GPU.
    """
    import cupy

    if not cupy.cuda.runtime.getDeviceCount():
        raise LookupError('no GPU')
    return cupy


def _compiler() -> Facts:
    from cupy.cuda import nvrtc

    version = '.'.join(map(str, nvrtc.getVersion()))
    cupy: Any = _gpu_module()
    if int((cupy.arange(2) + 1).sum()) != 3:
        raise ArithmeticError('a kernel computes wrongly')
    x = cupy.zeros(1, cupy.float32)
    cupy.RawKernel(_HEADER_SOURCE, 'twice')((1,), (1,), (x,))
    if float(x[0]) != 2:
        raise ArithmeticError('a kernel computes wrongly')
    return {'version': version}


def _cublas() -> Facts:
    cupy: Any = _gpu_module()
    a = cupy.full((64, 64), 2, cupy.float32)
    if not (cupy.asnumpy(a @ a) == 256).all():
        raise ArithmeticError('a product of matrices is wrong')
    return {'version': cupy.cuda.cublas.getVersion(cupy.cuda.device.get_cublas_handle())}


class _FirstWarning(logging.Handler):
    """Stores the first message of a logger."""

    text: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()


def _cudnn() -> Facts:
    """Run the check that the convolutions make before they use cuDNN."""
    _gpu_module()
    from mask_rcnn.ops.cudnn_frontend import frontend, is_available

    handler = _FirstWarning()
    logging.getLogger('mask_rcnn').addHandler(handler)
    is_usable = is_available()
    cudnn = frontend.load_frontend()
    facts: Facts = {'is_usable': is_usable, 'reason': handler.text}
    if cudnn is not None:
        facts |= {'version': cudnn.backend_version(), 'frontend': str(getattr(cudnn, '__version__', ''))}
    return facts


def _nccl() -> Facts:
    from cupy.cuda import nccl

    if not getattr(nccl, 'available', True):  # CuPy 14: an empty module
        from cupy_backends.cuda.libs import nccl  # raises the reason
    return {'version': nccl.get_version()}


def _module_probe(name: str, distribution: str) -> Callable[[], Facts]:
    return lambda: _imported(name, distribution)


#: The groups of probes; each of them runs in a process.  A probe may need an earlier one of its group.
CORE = ('numpy', 'blas', 'numba', 'chainer', 'threads', 'kernels', 'weights')
#: Modules of packages, in the order in which they are imported, and the names of their distributions.
MODULES = {
    'cv2': 'opencv-python-headless',
    'PIL': 'pillow',
    'chainercv': 'chainercv',
    'h5py': 'h5py',
    'matplotlib': 'matplotlib',
    'pycocotools': 'pycocotools',
    'yaml': 'pyyaml',
    'filelock': 'filelock',
    'packaging': 'packaging',
    'onnx': 'onnx',
    'starlette': 'starlette',
    'uvicorn': 'uvicorn',
    'python_multipart': 'python-multipart',
    'prometheus_client': 'prometheus-client',
    'tensorboardX': 'tensorboardX',
}
PACKAGES = (*MODULES, 'mpi4py')
GPU = ('driver', 'cupy', 'compiler', 'cublas', 'cudnn', 'nccl')

PROBES: dict[str, Callable[[], Facts]] = {
    **{name: _module_probe(name, distribution) for name, distribution in MODULES.items()},
    'numpy': _numpy,
    'blas': _blas,
    'numba': _numba,
    'chainer': _module_probe('chainer', 'chainer'),
    'threads': _threads,
    'kernels': _kernels,
    'weights': _weights,
    'cv2': _opencv,
    'mpi4py': _mpi4py,
    'driver': _driver,
    'cupy': _cupy,
    'compiler': _compiler,
    'cublas': _cublas,
    'cudnn': _cudnn,
    'nccl': _nccl,
}
