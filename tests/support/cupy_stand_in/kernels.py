"""``cupy.RawKernel`` and ``cupy.RawModule``: the emulator compiles and runs them, after a check of the launch."""

from __future__ import annotations

import ctypes
import re
import threading

import numpy as np

from tests.support.cupy_stand_in import compiler, streams
from tests.support.cupy_stand_in.arrays import ndarray

_MAX_THREADS, _MAX_BLOCKS = 1024, ((1 << 31) - 1, 65535, 65535)
_MAX_SHARED_BYTES = 48 << 10
#: The types as which CuPy passes Python's numbers.
_PYTHON_TYPES = {bool: np.bool_, int: np.int64, float: np.float64}

#: The launches, each a kernel's name, grid and block.
launches: list[tuple] = []
#: A kernel has static variables.
_lock = threading.RLock()


class CUDADriverError(RuntimeError):
    """``cupy.cuda.driver.CUDADriverError``."""


class RawKernel:
    """``cupy.RawKernel``."""

    def __init__(
        self,
        code,
        name,
        options=(),
        backend='nvrtc',
        translate_cucomplex=False,
        *,
        enable_cooperative_groups=False,
        jitify=False,
    ):
        if not isinstance(options, tuple):
            raise TypeError('options must be a tuple')
        self.code, self.name, self.options, self.backend = code, name, options, backend
        self.max_dynamic_shared_size_bytes = 0
        self._compiled = None

    def compile(self, log_stream=None) -> None:
        if self._compiled is None:
            defines = tuple(option for option in self.options if option.startswith('-D'))
            self._compiled = compiler.emulator().function(self.code, self.name, defines)

    @property
    def attributes(self) -> dict[str, int]:
        self.compile()
        return {
            'max_threads_per_block': self._max_threads(),
            'shared_size_bytes': 0,
            'const_size_bytes': 0,
            'local_size_bytes': 0,
            'num_regs': 32,
            'ptx_version': 90,
            'binary_version': 90,
            'cache_mode_ca': 0,
            'max_dynamic_shared_size_bytes': _MAX_SHARED_BYTES,
            'preferred_shared_memory_carveout': -1,
        }

    max_threads_per_block = property(lambda self: self.attributes['max_threads_per_block'])
    num_regs = property(lambda self: self.attributes['num_regs'])

    def _max_threads(self) -> int:
        bounds = re.search(rf'__launch_bounds__\((\w+).*?\)\s+{self.name}\(', self.code)
        return int(bounds[1]) if bounds and bounds[1].isdigit() else _MAX_THREADS

    def __call__(self, grid, block, args, *, shared_mem=0, stream=None) -> None:
        self.compile()
        grid, block = (self._sizes(sizes) for sizes in (grid, block))
        if np.prod(block) > self._max_threads() or shared_mem > max(
            _MAX_SHARED_BYTES, self.max_dynamic_shared_size_bytes
        ):
            raise CUDADriverError(f'CUDA_ERROR_INVALID_VALUE: {self.name}: block {block}, {shared_mem} bytes shared')
        if any(n > limit for n, limit in zip(grid, _MAX_BLOCKS, strict=False)):
            raise CUDADriverError(f'CUDA_ERROR_INVALID_VALUE: {self.name}: grid {grid}')
        if len(grid) > 2 or len(block) > 1:
            raise ValueError('the emulator has two axes of blocks and one of threads')
        launch, parameters = self._compiled
        if not isinstance(args, (tuple, list)) or len(args) != len(parameters):
            raise TypeError(f'{self.name}: {len(args)} arguments, expected {len(parameters)}')
        values = [self._argument(*pair) for pair in zip(args, parameters, strict=True)]
        sizes = (ctypes.c_uint * 2)(*grid, *[1] * (2 - len(grid))), (ctypes.c_uint * 1)(*block)
        targets = [a for a, p in zip(args, parameters, strict=True) if isinstance(a, ndarray) and not p.is_const]
        kept = [a._array for a in args if isinstance(a, ndarray)]

        def run(kept=kept):
            with _lock:
                launch(*sizes, *values)

        launches.append((self.name, grid, block))
        streams.submit(run, targets)

    def _sizes(self, sizes) -> tuple[int, ...]:
        if not isinstance(sizes, tuple):
            raise TypeError(f'{self.name}: grid and block must be tuples, not {type(sizes).__name__}')
        sizes = tuple(n.__index__() for n in sizes)
        if not 1 <= len(sizes) <= 3 or min(sizes) <= 0:
            raise CUDADriverError(f'CUDA_ERROR_INVALID_VALUE: {self.name}: {sizes}')
        return sizes

    def _argument(self, value, parameter):
        """Return the argument of the C function, whose type must be that of the parameter."""
        if parameter.is_array:
            if not isinstance(value, ndarray):
                raise TypeError(f'{self.name}: {parameter.name} is {type(value).__name__}, expected a CuPy array')
            if value.dtype != parameter.dtype:
                raise TypeError(f'{self.name}: {parameter.name} is {value.dtype}, expected {parameter.dtype}')
            if not value.flags.c_contiguous:
                raise ValueError(f'{self.name}: {parameter.name} is not contiguous')
            return ctypes.c_void_p(value.data.ptr)
        if isinstance(value, ndarray) or (type(value) not in _PYTHON_TYPES and not isinstance(value, np.generic)):
            raise TypeError(f'{self.name}: {parameter.name} is {type(value).__name__}, expected {parameter.dtype}')
        scalar = _PYTHON_TYPES.get(type(value), type(value))(value)
        if scalar.dtype != parameter.dtype:
            raise TypeError(f'{self.name}: {parameter.name} is {scalar.dtype}, expected {parameter.dtype}')
        return np.ctypeslib.as_ctypes_type(parameter.dtype)(scalar.item())


class RawModule:
    """``cupy.RawModule``."""

    def __init__(self, *, code=None, path=None, options=(), backend='nvrtc', **settings):
        self.code, self.options = code, options

    def get_function(self, name: str) -> RawKernel:
        return RawKernel(self.code, name, self.options)
