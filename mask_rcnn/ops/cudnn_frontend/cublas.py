"""Matrix multiplication in true float32 by cuBLAS.

CuPy's functions call the same library, but CuPy 14.2 rejects these calls while a CUDA graph is captured, because cuBLAS
could allocate memory then.  Here each call passes a workspace from CuPy's pool, as for cuDNN.  CuPy's
environment variable ``CUPY_TF32`` has no effect.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import math
from typing import Any

from chainer.backends import cuda

from mask_rcnn.ops.cudnn_frontend.libraries import library_name
from mask_rcnn.ops.runtime.array import Array
from mask_rcnn.ops.runtime.device import DOCTOR
from mask_rcnn.ops.runtime.gpu_errors import is_out_of_memory

logger = logging.getLogger(__name__)

#: The size that cuBLAS recommends for GPUs of compute capability 9.0; older GPUs need 4 MB.
_WORKSPACE_BYTES = 32 << 20
#: ``cublasMath_t``: float32 factors are not rounded.
_DEFAULT_MATH = 0

_POINTER, _INT, _LONG = ctypes.c_void_p, ctypes.c_int, ctypes.c_longlong
_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)
_SIGNATURES = {
    'cublasSetMathMode': (_POINTER, _INT),
    'cublasSetStream_v2': (_POINTER, _POINTER),
    'cublasSetWorkspace_v2': (_POINTER, _POINTER, ctypes.c_size_t),
    'cublasSgemm_v2': (
        *(_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER),
        *(_POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER, _INT),
    ),
    'cublasSgemmStridedBatched': (
        *(_POINTER, _INT, _INT, _INT, _INT, _INT, _POINTER),
        *(_POINTER, _INT, _LONG, _POINTER, _INT, _LONG, _POINTER, _POINTER, _INT, _LONG, _INT),
    ),
}


def is_available() -> bool:
    """Return whether the library is found; warn once if it is not."""
    return _load_library() is not None


@functools.cache
def _load_library() -> Any:
    """Return the library that CuPy has loaded, or ``None``."""
    try:
        _handle()  # CuPy loads the library
        library = ctypes.CDLL(library_name('cublas', cuda.cupy.cuda.driver.get_build_version() // 1000))
        for name, types in _SIGNATURES.items():
            getattr(library, name).argtypes = types
    except Exception as error:
        if is_out_of_memory(error):
            raise  # the next call may find memory
        reason = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
        logger.warning('float32 convolutions run without cuBLAS and take several times as long: %s; %s', reason, DOCTOR)
        return None
    return library


def matmul(a: Array, b: Array, out: Array, *, transpose_a: bool = False, transpose_b: bool = False) -> None:
    """Compute ``out = a @ b`` with each factor optionally transposed.

    Args:
        a: ``(m, k)``, or ``(k, m)`` if transposed; or a batch of them, ``(n, m, k)``.
        b: ``(k, n)``, or ``(n, k)`` if transposed; or a batch of the same length.
        out: ``(m, n)``, or a batch.  All arrays are contiguous CuPy arrays of type float32 and not empty.
        transpose_a: Whether to transpose ``a``.
        transpose_b: Whether to transpose ``b``.
    """
    library, handle = _load_library(), _handle()
    # The workspace returns to CuPy's pool before the work is done.  The pool reuses it only on this stream.
    workspace = cuda.cupy.cuda.alloc(_WORKSPACE_BYTES)
    stream = cuda.cupy.cuda.get_current_stream().ptr
    _check(library.cublasSetMathMode(handle, _DEFAULT_MATH))
    _check(library.cublasSetStream_v2(handle, stream))
    _check(library.cublasSetWorkspace_v2(handle, workspace.ptr, _WORKSPACE_BYTES))
    try:
        _multiply(library, handle, a, b, out, transpose_a, transpose_b)
    finally:
        # Setting a stream restores the default workspace: CuPy's own calls must not use this one.
        _check(library.cublasSetStream_v2(handle, stream))


def _multiply(library: Any, handle: int, a: Array, b: Array, out: Array, transpose_a: bool, transpose_b: bool) -> None:
    rows, columns = out.shape[-2:]
    inner = a.shape[-2 if transpose_a else -1]
    # cuBLAS stores matrices by columns: a contiguous matrix is the transposed matrix there, so out^T = b^T a^T.
    shape = int(transpose_b), int(transpose_a), columns, rows, inner
    matrices = [(_address(array), array.shape[-1]) for array in (b, a, out)]
    one, zero = ctypes.addressof(_ONE), ctypes.addressof(_ZERO)
    if out.ndim == 2:
        _check(library.cublasSgemm_v2(handle, *shape, one, *matrices[0], *matrices[1], zero, *matrices[2]))
        return
    first, second, third = (
        (*matrix, math.prod(array.shape[1:])) for matrix, array in zip(matrices, (b, a, out), strict=True)
    )
    _check(library.cublasSgemmStridedBatched(handle, *shape, one, *first, *second, zero, *third, len(out)))


def _check(status: int) -> None:
    if status != 0:
        raise RuntimeError(f'cuBLAS returns the status {status}, expected 0')


def _handle() -> int:
    """Return CuPy's handle for the current device and thread."""
    return cuda.cupy.cuda.Device().cublas_handle


def _address(array: Array) -> int:
    return array.data.ptr
