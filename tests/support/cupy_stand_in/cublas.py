"""A library with the name of cuBLAS and the functions that the project calls; NumPy multiplies the matrices."""

from __future__ import annotations

import ctypes
import functools

import numpy as np

from tests.support.cupy_stand_in import compiler, streams

_HANDLE = 0xB1A5
_TEXT = r"""
typedef int (*gemm_t)(int, int, int, int, int, float, void*, int, long long, void*, int, long long,
                      float, void*, int, long long, int);
static gemm_t gemm;
static const char* handle_;
static void* stream_;
#define CHECK(handle) if ((const char*)handle != (const char*)HANDLE) return 1  // CUBLAS_STATUS_NOT_INITIALIZED
extern "C" {
void set_gemm(gemm_t function) { gemm = function; }
int cublasSetMathMode(void* handle, int mode) { CHECK(handle); return mode == 0 ? 0 : 7; }
int cublasSetStream_v2(void* handle, void* stream) { CHECK(handle); stream_ = stream; return 0; }
int cublasSetWorkspace_v2(void* handle, void* memory, unsigned long long size) {
    CHECK(handle);
    return (unsigned long long)memory % 256 ? 7 : 0;  // CUBLAS_STATUS_INVALID_VALUE
}
int cublasSgemmStridedBatched(void* handle, int ta, int tb, int m, int n, int k, float* alpha, void* a, int lda,
                              long long sa, void* b, int ldb, long long sb, float* beta, void* c, int ldc,
                              long long sc, int batch) {
    CHECK(handle);
    if (m < 0 || n < 0 || k < 0 || lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    return gemm(ta, tb, m, n, k, *alpha, a, lda, sa, b, ldb, sb, *beta, c, ldc, sc, batch);
}
int cublasSgemm_v2(void* handle, int ta, int tb, int m, int n, int k, float* alpha, void* a, int lda, void* b, int ldb,
                   float* beta, void* c, int ldc) {
    return cublasSgemmStridedBatched(handle, ta, tb, m, n, k, alpha, a, lda, 0, b, ldb, 0, beta, c, ldc, 0, 1);
}
}
"""
_INT, _LONG, _POINTER, _FLOAT = ctypes.c_int, ctypes.c_longlong, ctypes.c_void_p, ctypes.c_float
_MATRIX = (_POINTER, _INT, _LONG)
_GEMM = ctypes.CFUNCTYPE(_INT, *[_INT] * 5, _FLOAT, *_MATRIX, *_MATRIX, _FLOAT, *_MATRIX, _INT)

#: ``cupy._core._routines_linalg``
COMPUTE_TYPES = {
    'COMPUTE_TYPE_DEFAULT': 0,
    'COMPUTE_TYPE_TF32': 3,
    'COMPUTE_TYPE_FP32': 4,
    'get_compute_type': lambda dtype: 0,
    'set_compute_type': lambda dtype, compute_type: None,
}


def handle() -> int:
    """Return the handle, and load the library as CuPy does."""
    _load()
    return _HANDLE


@functools.cache
def _load():
    """Load the library under its SONAME, by which ``ctypes.CDLL`` finds it."""
    flags = (f'-DHANDLE={_HANDLE}', '-Wl,-soname,libcublas.so.13')
    library = compiler.compile_library('cublas', _TEXT, flags)
    callback = _GEMM(_multiply)
    library.set_gemm(callback)
    return library, callback


def matrices(address: int, n_rows: int, n_columns: int, lda: int, stride: int, batch: int) -> np.ndarray:
    """Return matrices in memory, whose columns start ``lda`` elements apart, as ``(batch, column, row)``."""
    size = (batch - 1) * stride + (n_columns - 1) * lda + n_rows
    flat = np.frombuffer((ctypes.c_float * size).from_address(address), np.float32)
    strides = 4 * stride, 4 * lda, 4
    return np.lib.stride_tricks.as_strided(flat, (batch, n_columns, n_rows), strides)


def _multiply(ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, batch) -> int:
    if beta != 0 or 0 in (m, n, k, batch):
        return 15  # CUBLAS_STATUS_NOT_SUPPORTED, by the stand-in
    first = matrices(a, k if ta else m, m if ta else k, lda, sa, batch)
    second = matrices(b, n if tb else k, k if tb else n, ldb, sb, batch)
    out = matrices(c, m, n, ldc, sc, batch)

    def run():
        out[...] = (second.swapaxes(1, 2) if tb else second) @ (first.swapaxes(1, 2) if ta else first)
        if alpha != 1:
            out[...] *= alpha

    streams.submit(run, [streams.target(out)])
    return 0
