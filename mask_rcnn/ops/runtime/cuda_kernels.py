"""The CUDA kernels in ``cuda/*.cu`` as functions of CuPy arrays.

Kernels are compiled by NVRTC for the device at hand when they are first used.  Their arithmetic is not
contracted to fused multiply-adds, so that a comparison (of an IoU with a threshold, say) has the same
outcome on the CPU and on the GPU.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from importlib import resources

import numpy as np
from chainer.backends import cuda

#: What the sources are compiled with, besides ``-DREAL``.
OPTIONS = ('--std=c++14', '--fmad=false')

_THREADS = 256
_MAX_BLOCKS = 1 << 20

_C_TYPES = {np.dtype(np.float32): 'float', np.dtype(np.float64): 'double'}


@functools.cache
def kernel(source: str, name: str, dtype=np.dtype(np.float32)) -> Callable:
    """Return one kernel of a source file.

    Args:
        source: Path of the file inside ``mask_rcnn/ops``.
        name: The kernel's name.
        dtype: What the source calls ``REAL``: float32 or float64.

    Returns:
        A launcher that takes the grid, the block (tuples of ints) and the arguments (CuPy arrays and NumPy
        scalars, in the kernel's types).
    """
    cuda.check_cuda_available()
    return cuda.cupy.RawKernel(read_source(source), name, OPTIONS + (f'-DREAL={c_type(dtype)}',))


def read_source(source: str) -> str:
    """Return the text of a CUDA source in ``mask_rcnn/ops`` with its headers pasted in.

    Pasting keeps the compiler free of include folders, and lets CuPy's kernel cache notice a changed header.
    """
    text = (resources.files('mask_rcnn.ops') / source).read_text(encoding='utf-8')
    return re.sub(r'^#include "([\w/]+\.cuh)"$', lambda match: read_source(match[1]), text, flags=re.MULTILINE)


def c_type(dtype) -> str:
    """Return the C name of float32 or float64."""
    return _C_TYPES[np.dtype(dtype)]


def launch(launcher: Callable, n: int, args: Sequence) -> None:
    """Launch a kernel whose threads share ``n`` elements in a grid-stride loop; do nothing for none."""
    if n > 0:
        blocks = min(-(-n // _THREADS), _MAX_BLOCKS)
        launcher((blocks,), (_THREADS,), tuple(args))
