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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

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


class Parameter(NamedTuple):
    """A parameter of a kernel: an array of elements of a type, or a scalar."""

    name: str
    dtype: np.dtype
    is_array: bool
    is_const: bool


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
        defines = (f'-DREAL={cuda_kernels.c_type(dtype)}',)
        launch, parameters = self.function(cuda_kernels.read_source(source), name, defines)

        def launcher(grid, block, args):
            assert all(n > 0 for n in (*grid, *block)) and len(block) == 1 and len(args) == len(parameters)
            sizes = (ctypes.c_uint * 2)(*grid, *[1] * (2 - len(grid))), (ctypes.c_uint * 1)(*block)
            launch(*sizes, *[_argument(arg, parameter) for arg, parameter in zip(args, parameters, strict=True)])

        return launcher

    def function(self, text: str, name: str, defines: Sequence[str] = ()) -> tuple[Callable, list[Parameter]]:
        """Return a C function that launches a kernel of a source text, and the kernel's parameters.

        The function has two more arguments before them: the sizes of the grid and of a block.
        """
        kernels = {match[1]: match[2] for match in _KERNEL.finditer(text)}
        types = dict(_TYPES)
        types['real'] = {'float': np.float32, 'double': np.float64}.get(
            next((define[7:] for define in defines if define.startswith('-DREAL=')), '')
        )
        parameters = [_parse_parameter(parameter, types) for parameter in _parameters(kernels[name])]
        return getattr(self._library(text, next(iter(kernels)), tuple(defines)), f'launch_{name}'), parameters

    def _library(self, kernels: str, stem: str, defines: tuple[str, ...]) -> ctypes.CDLL:
        if (kernels, defines) not in self._libraries:
            text = f'#include "{_HEADER}"\n{kernels}\n{_launchers(kernels)}'
            library = load_library(self._folder, stem, text, [*_FLAGS, *self._flags, *defines])
            self._libraries[kernels, defines] = library
        return self._libraries[kernels, defines]


def load_library(folder: Path, stem: str, text: str, flags: Sequence[str]) -> ctypes.CDLL:
    """Return the library of a C++ text, compiled by g++ unless the folder has it."""
    key = zlib.crc32('\n'.join([*flags, text, _HEADER.read_text(), _compiler()]).encode())
    library = folder / f'{stem}_{key:08x}.so'
    if not library.exists():
        _compile(text, list(flags), library)
    return ctypes.CDLL(str(library))


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


def _parse_parameter(text: str, types: dict) -> Parameter:
    match = re.fullmatch(r'(const )?([\w ]+?)(\*?) (\w+)', text)
    return Parameter(match[4], np.dtype(types[match[2]]), bool(match[3]), bool(match[1]))


def _argument(value, parameter: Parameter):
    assert isinstance(value, np.ndarray if parameter.is_array else np.generic), type(value)
    assert value.dtype == parameter.dtype, f'the argument is {value.dtype}, the kernel expects {parameter.dtype}'
    if parameter.is_array:
        assert value.flags.c_contiguous
        return ctypes.c_void_p(value.ctypes.data)
    return np.ctypeslib.as_ctypes_type(parameter.dtype)(value.item())
