"""The CUDA kernels in ``mask_rcnn/ops/*/*.cu`` as functions of CuPy arrays.

NVRTC compiles a kernel for the current device at its first use.  It does not contract multiplications and additions to
fused multiply-adds, so that a comparison, for example of an IoU with a threshold, has the same outcome on the CPU and
on a GPU.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

import numpy as np
from chainer.backends import cuda

from mask_rcnn.ops.runtime.array import Array

#: Compiler options for all sources; ``-DREAL`` is added.
OPTIONS = ('--std=c++14', '--fmad=false')

_BLOCK_THREADS = 256
_MAX_BLOCKS = 1 << 20

_FLOAT32 = np.dtype(np.float32)
_C_TYPES = {_FLOAT32: 'float', np.dtype(np.float64): 'double'}


@functools.cache
def kernel(source: str, name: str, dtype: Any = _FLOAT32) -> Callable:
    """Return a kernel of a source file.

    Args:
        source: Path of the file in ``mask_rcnn/ops``.
        name: The name of the kernel.
        dtype: The type ``REAL`` of the source: float32 or float64.

    Returns:
        A launcher ``launcher(grid, block, arguments)``: grid and block are tuples of integers, arguments are CuPy
        arrays and NumPy scalars of the types that the kernel declares.
    """
    cuda.check_cuda_available()
    return cuda.cupy.RawKernel(read_source(source), name, (*OPTIONS, f'-DREAL={c_type(dtype)}'))


def read_source(source: str) -> str:
    """Return the text of a CUDA source in ``mask_rcnn/ops`` with its headers inserted.

    Inserted headers need no include path, and a change in a header invalidates CuPy's kernel cache.
    """
    text = (resources.files('mask_rcnn.ops') / source).read_text(encoding='utf-8')
    return re.sub(r'^#include "([\w/]+\.cuh)"$', lambda match: read_source(match[1]), text, flags=re.MULTILINE)


def c_type(dtype: Any) -> str:
    """Return the C name of float32 or float64."""
    return _C_TYPES[np.dtype(dtype)]


def as_argument(array: Array) -> Array:
    """Return an array as kernels declare it: float16 as the bits of its elements, uint16, and other types unchanged."""
    return array.view(np.uint16) if array.dtype == np.float16 else array


def launch(launcher: Callable, n: int, arguments: Sequence) -> None:
    """Launch a kernel with a grid-stride loop over ``n`` elements; do nothing if ``n`` is 0."""
    if n > 0:
        blocks = min(-(-n // _BLOCK_THREADS), _MAX_BLOCKS)
        launcher((blocks,), (_BLOCK_THREADS,), tuple(arguments))
