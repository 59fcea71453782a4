"""An emulator of CUDA: compiles the kernels of the project as C++ with g++ and calls them on NumPy arrays.

It replaces ``mask_rcnn.ops.runtime.cuda_kernels.kernel``, so that a test covers the arithmetic of a kernel and the host
code that prepares its arguments.  Unlike a real launch it checks the type of each argument.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mask_rcnn.ops.runtime import cuda_kernels

_HEADER = Path(__file__).with_name('cuda_emulator.h')
# A fortified longjmp refuses to switch stacks.
_FLAGS = ('-std=c++20', '-O2', '-ffp-contract=off', '-shared', '-fPIC', '-fno-gnu-unique', '-U_FORTIFY_SOURCE')
_KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\((.*?)\)\s*\{(.*?)\n\}', re.DOTALL
)
_FUNCTION = re.compile(r'^__device__ [\w ]+?(\w+)\([^;{]*\)\s*\{\n(.*?)\n\}', re.DOTALL | re.MULTILINE)
_TYPES = {
    'float': np.float32,
    'double': np.float64,
    'int': np.int32,
    'long long': np.int64,
    'word': np.uint64,
    'bool': np.bool_,
    'unsigned short': np.uint16,
    'unsigned char': np.uint8,
}


class CudaEmulator:
    """An emulator that compiles sources on demand.

    Args:
        folder: The folder for compiled libraries, which other processes may use at the same time and later ones again.
        flags: Additional flags for g++, for example ``-fsanitize=address``.
    """

    def __init__(self, folder: Path, flags: tuple[str, ...] = ()):
        self._folder, self._flags, self._libraries = folder, flags, {}

    def kernel(self, source: str, name: str, dtype: npt.DTypeLike = np.float32):
        """Return a launcher, with the contract of ``mask_rcnn.ops.runtime.cuda_kernels.kernel``."""
        kernels = {match[1]: match[2] for match in _KERNEL.finditer(cuda_kernels.read_source(source))}
        types = [_argument_type(p, dtype) for p in _parameters(kernels[name])]
        launch = getattr(self._library(source, np.dtype(dtype)), f'launch_{name}')

        def launcher(grid, block, args):
            assert all(n > 0 for n in (*grid, *block)) and len(block) == 1 and len(args) == len(types)
            sizes = (ctypes.c_uint * 2)(*grid, *[1] * (2 - len(grid))), (ctypes.c_uint * 1)(*block)
            launch(*sizes, *[_argument(arg, *kind) for arg, kind in zip(args, types, strict=True)])

        return launcher

    def _library(self, source: str, dtype: np.dtype) -> ctypes.CDLL:
        if (source, dtype) not in self._libraries:
            kernels = cuda_kernels.read_source(source)
            text = f'#include "{_HEADER}"\n{kernels}\n{_launchers(kernels)}'
            flags = [*_FLAGS, *self._flags, f'-DREAL={cuda_kernels.c_type(dtype)}']
            key = zlib.crc32('\n'.join([*flags, text, _HEADER.read_text(), _compiler()]).encode())
            library = self._folder / f'{Path(source).stem}_{key:08x}.so'
            if not library.exists():
                _compile(text, flags, library)
            self._libraries[source, dtype] = ctypes.CDLL(str(library))
        return self._libraries[source, dtype]


@functools.lru_cache
def _compiler() -> str:
    """Return the version of g++, on which a compiled library depends."""
    return subprocess.run(['g++', '--version'], check=True, capture_output=True, text=True).stdout


def _compile(text: str, flags: list[str], library: Path) -> None:
    """Compile a C++ text to a library, which appears under its name only when it is complete."""
    cpp = library.with_suffix(f'.{os.getpid()}.cpp')
    unfinished = library.with_suffix(f'.{os.getpid()}.so')
    cpp.write_text(text)
    subprocess.run(['g++', *flags, '-o', str(unfinished), str(cpp)], check=True)
    cpp.unlink()
    unfinished.replace(library)


def _launchers(text: str) -> str:
    """Return a C function per kernel of a source that runs the kernel for all threads of a launch."""
    result, synchronising = [], _synchronising(text)
    for name, parameters, body in _KERNEL.findall(text):
        names = ', '.join(re.search(r'(\w+)$', p)[1] for p in _parameters(parameters))
        synchronises = 'true' if synchronising.search(body) else 'false'
        result.append(
            f'extern "C" void launch_{name}(const unsigned* grid_, const unsigned* block_, '
            f'{parameters}) {{\n    emulator::launch(grid_, block_, {synchronises}, '
            f'[&] {{ {name}({names}); }});\n}}\n'
        )
    return '\n'.join(result)


def _synchronising(text: str) -> re.Pattern:
    """Return a pattern that matches in a function body if the function, or one that it calls, synchronises threads."""
    functions, found = _FUNCTION.findall(text), {'__syncthreads'}
    while True:
        pattern = re.compile(rf'\b({"|".join(sorted(found))})\b')
        more = {name for name, body in functions if pattern.search(body)}
        if more <= found:
            return pattern
        found |= more


def _parameters(text: str) -> list[str]:
    return [' '.join(p.split()) for p in text.split(',')]


def _argument_type(parameter: str, dtype) -> tuple[np.dtype, bool]:
    """Return the type of the elements of a C parameter and whether it is an array."""
    match = re.fullmatch(r'(?:const )?([\w ]+?)(\*?) \w+', parameter)
    return np.dtype(dtype if match[1] == 'real' else _TYPES[match[1]]), bool(match[2])


def _argument(value, dtype: np.dtype, is_array: bool):
    assert isinstance(value, np.ndarray if is_array else np.generic), type(value)
    assert value.dtype == dtype, f'the argument is {value.dtype}, the kernel expects {dtype}'
    if is_array:
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    return np.ctypeslib.as_ctypes_type(dtype)(value.item())
