"""``cupy.ElementwiseKernel`` and ``cupy.ReductionKernel``, compiled as loops in C++."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass

import numpy as np

from tests.support.cupy_stand_in import compiler, streams
from tests.support.cupy_stand_in.arrays import SCALARS, ndarray

_C_TYPES = {
    '?': 'bool',
    'b': 'signed char',
    'B': 'unsigned char',
    'h': 'short',
    'H': 'unsigned short',
    'i': 'int',
    'I': 'unsigned int',
    'l': 'long long',
    'L': 'unsigned long long',
    'q': 'long long',
    'Q': 'unsigned long long',
    'e': 'float16',
    'f': 'float',
    'd': 'double',
}
_HEADER = r"""
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#define __device__ inline
using std::isfinite; using std::isinf; using std::isnan; using std::max; using std::min;
typedef _Float16 float16;
static inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
static inline double rsqrt(double x) { return 1 / std::sqrt(x); }
static inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
template <class A, class B> static inline auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }
template <class A, class B> static inline auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }
template <class T> static inline T atomicAdd(T* p, T v) { T old = *p; *p += v; return old; }
// An array with the index in C order.
template <class T> struct raw {
    T* data; ptrdiff_t n; const ptrdiff_t* sizes;
    T& operator[](ptrdiff_t i) const { return data[i]; }
    ptrdiff_t size() const { return n; }
    const ptrdiff_t* shape() const { return sizes; }
};
struct indexer { ptrdiff_t n; ptrdiff_t size() const { return n; } };
"""


@dataclass(frozen=True)
class _Parameter:
    """A parameter of a kernel, such as ``raw T x``."""

    type_name: str
    name: str
    is_raw: bool

    @property
    def is_generic(self) -> bool:
        return len(self.type_name) == 1

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.type_name)


def _parse(text: str) -> list[_Parameter]:
    parts = [part.split() for part in text.split(',') if part.strip()]
    return [_Parameter(words[-2], words[-1], 'raw' in words[:-2]) for words in parts]


class _Kernel:
    def __init__(self, in_params: str, out_params: str, name: str):
        self.inputs, self.outputs, self.name = _parse(in_params), _parse(out_params), name

    def _split(self, args: tuple, out) -> tuple[list, list]:
        n = len(self.inputs)
        if len(args) not in (n, n + len(self.outputs)):
            raise TypeError(f'Wrong number of arguments for {self.name!r}')
        for value in args:
            if not isinstance(value, (ndarray, *SCALARS)):
                raise TypeError(f'{self.name}: Unsupported type {type(value)}')
        outputs = list(args[n:])
        if out is not None:
            outputs = list(out) if isinstance(out, tuple) else [out]
        return list(args[:n]), outputs

    def _resolve(self, inputs: list, outputs: list) -> dict[str, np.dtype]:
        """Return the types of the generic names, which all arrays of a name must have; scalars adapt."""
        types: dict[str, np.dtype] = {}
        pairs = [*zip(self.inputs, inputs, strict=True), *zip(self.outputs, outputs, strict=False)]
        for strong in (True, False):
            for parameter, value in pairs:
                is_array = isinstance(value, (ndarray, np.generic))
                if not parameter.is_generic or is_array != strong:
                    continue
                dtype = value.dtype if is_array else np.array(value).dtype
                known = types.setdefault(parameter.type_name, dtype)
                if isinstance(value, ndarray) and known != dtype:
                    raise TypeError(f'{self.name}: type {parameter.type_name} is {known} and {dtype}')
        for parameter, value in pairs:
            expected = types[parameter.type_name] if parameter.is_generic else parameter.dtype
            if not isinstance(value, ndarray) or value.dtype == expected:
                continue
            if parameter in self.outputs or not np.can_cast(value.dtype, expected, 'same_kind'):
                raise TypeError(f'{self.name}: {parameter.name} is {value.dtype}, expected {expected}')
        for parameter in self.outputs:
            if parameter.is_generic and parameter.type_name not in types:
                raise TypeError(f'{self.name}: the type of {parameter.name} is ambiguous')
        return types

    def _dtype(self, parameter: _Parameter, types: dict) -> np.dtype:
        return types[parameter.type_name] if parameter.is_generic else parameter.dtype

    def _typedefs(self, types: dict) -> str:
        names = {p.type_name: _C_TYPES[self._dtype(p, types).char] for p in (*self.inputs, *self.outputs)}
        return '\n'.join(
            f'typedef {c} {name};' for name, c in names.items() if name not in ('float', 'double', 'bool', 'float16', c)
        )

    def _compile(self, text: str):
        return compiler.compile_library(re.sub(r'\W', '_', self.name), _HEADER + text).run


def _pointers(arrays: list[np.ndarray]):
    return (ctypes.c_void_p * len(arrays))(*[array.ctypes.data for array in arrays])


class ElementwiseKernel(_Kernel):
    """``cupy.ElementwiseKernel``."""

    def __init__(self, in_params, out_params, operation, name='kernel', reduce_dims=True, preamble='', **options):
        super().__init__(in_params, out_params, name)
        self._operation, self._preamble = operation, preamble

    def __call__(self, *args, size=None, stream=None, block_size=128, out=None):
        inputs, outputs = self._split(args, out)
        types = self._resolve(inputs, outputs)
        shape = self._shape(inputs, outputs, size)
        if not outputs:
            outputs = [ndarray(shape, self._dtype(p, types)) for p in self.outputs]
        parameters, values = [*self.inputs, *self.outputs], [*inputs, *outputs]
        run = self._compile(self._text(types))
        # Scalars do not change, arrays may before a graph repeats the launch.
        hosts = [v._array if isinstance(v, ndarray) else np.asarray(v) for v in values]

        def launch():
            arrays = []
            for parameter, host in zip(parameters, hosts, strict=True):
                dtype = self._dtype(parameter, types)
                source = host if parameter.is_raw else np.broadcast_to(host, shape)
                arrays.append(np.ascontiguousarray(source, dtype))
            shapes = [(ctypes.c_ssize_t * max(a.ndim, 1))(*a.shape) for a in arrays]
            run(
                ctypes.c_ssize_t(int(np.prod(shape, dtype=np.int64))),
                _pointers(arrays),
                (ctypes.c_void_p * len(arrays))(*map(ctypes.addressof, shapes)),
                (ctypes.c_ssize_t * len(arrays))(*[a.size for a in arrays]),
            )
            for parameter, host, array in zip(parameters, hosts, arrays, strict=True):
                # A kernel may also write to a raw input.
                if (parameter in self.outputs or parameter.is_raw) and not np.may_share_memory(host, array):
                    host[...] = array.reshape(host.shape)

        raw = [v for p, v in zip(self.inputs, inputs, strict=True) if p.is_raw and isinstance(v, ndarray)]
        streams.submit(launch, [*outputs, *raw])
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _shape(self, inputs, outputs, size) -> tuple[int, ...]:
        pairs = [*zip(self.inputs, inputs, strict=True), *zip(self.outputs, outputs, strict=False)]
        shapes = [value.shape for p, value in pairs if isinstance(value, ndarray) and not p.is_raw]
        if size is not None:
            if shapes:
                raise ValueError("Specified 'size' can be used only if all of the ndarray are 'raw'.")
            return (size,)
        if not shapes:
            raise ValueError('Loop size is undecided.')
        shape = np.broadcast_shapes(*shapes)
        if any(not p.is_raw and v.shape != shape for p, v in zip(self.outputs, outputs, strict=False)):
            raise ValueError('Out shape is mismatched')
        return shape

    def _text(self, types: dict) -> str:
        fixed, loop = [], []
        for i, p in enumerate([*self.inputs, *self.outputs]):
            if p.is_raw:
                fixed.append(
                    f'raw<{p.type_name}> {p.name} = {{({p.type_name}*)data_[{i}], sizes_[{i}], shapes_[{i}]}};'
                )
            else:
                fixed.append(f'{p.type_name}* {p.name}_data_ = ({p.type_name}*)data_[{i}];')
                const = 'const ' if p in self.inputs else ''
                loop.append(f'{const}{p.type_name}& {p.name} = {p.name}_data_[i];')
        return (
            f'{self._typedefs(types)}\n{self._preamble}\n'
            'extern "C" void run(ptrdiff_t count_, void** data_, ptrdiff_t** shapes_, ptrdiff_t* sizes_) {\n'
            'indexer _ind{count_};\n'
            + '\n'.join(fixed)
            + '\nfor (ptrdiff_t i = 0; i < count_; ++i) {\n'
            + '\n'.join(loop)
            + f'\n{self._operation};\n}}\n}}\n'
        )


class ReductionKernel(_Kernel):
    """``cupy.ReductionKernel`` without raw parameters."""

    def __init__(
        self,
        in_params,
        out_params,
        map_expr,
        reduce_expr,
        post_map_expr,
        identity,
        name='reduce_kernel',
        reduce_type=None,
        reduce_dims=True,
        preamble='',
        options=(),
    ):
        super().__init__(in_params, out_params, name)
        self._map, self._reduce, self._post, self._identity = map_expr, reduce_expr, post_map_expr, identity
        self._reduce_type, self._preamble = reduce_type, preamble

    def __call__(self, *args, out=None, axis=None, keepdims=False, stream=None):
        inputs, outputs = self._split(args, out)
        types = self._resolve(inputs, outputs)
        shape = np.broadcast_shapes(*[value.shape for value in inputs if isinstance(value, ndarray)])
        axes = range(len(shape)) if axis is None else axis if isinstance(axis, tuple) else (axis,)
        axes = sorted({a % len(shape) for a in axes})
        kept = [a for a in range(len(shape)) if a not in axes]
        out_shape = tuple(shape[a] for a in kept)
        full_shape = tuple(1 if a in axes else n for a, n in enumerate(shape)) if keepdims else out_shape
        if not outputs:
            outputs = [ndarray(full_shape, self._dtype(p, types)) for p in self.outputs]
        run = self._compile(self._text(types, [isinstance(value, ndarray) for value in inputs]))
        n_out, n_in = (int(np.prod([shape[a] for a in group], dtype=np.int64)) for group in (kept, axes))
        hosts = [v._array if isinstance(v, ndarray) else np.asarray(v) for v in inputs]

        def launch():
            arrays = [
                np.ascontiguousarray(np.broadcast_to(host, shape).transpose(*kept, *axes), self._dtype(p, types))
                for p, host in zip(self.inputs, hosts, strict=True)
            ]
            results = [output._array.reshape(n_out).copy() for output in outputs]  # which the kernel may read
            run(ctypes.c_ssize_t(n_out), ctypes.c_ssize_t(n_in), _pointers([*arrays, *results]))
            for output, result in zip(outputs, results, strict=True):
                output._array[...] = result.reshape(output.shape)

        streams.submit(launch, outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def _text(self, types: dict, is_array: list[bool]) -> str:
        reduce_type = self._reduce_type or self.outputs[0].type_name
        scalars, loads, stores = [], [], []
        for i, p in enumerate(self.inputs):
            index = 'o * n_in_ + i' if is_array[i] else '0'
            (loads if is_array[i] else scalars).append(
                f'const {p.type_name}& {p.name} = (({p.type_name}*)data_[{i}])[{index}];'
            )
        for i, p in enumerate(self.outputs, len(self.inputs)):
            stores.append(f'{p.type_name}& {p.name} = (({p.type_name}*)data_[{i}])[o];')
        return (
            f'{self._typedefs(types)}\n{self._preamble}\ntypedef {reduce_type} reduce_type_;\n'
            f'static reduce_type_ combine_(reduce_type_ a, reduce_type_ b) {{ return ({self._reduce}); }}\n'
            'extern "C" void run(ptrdiff_t n_out_, ptrdiff_t n_in_, void** data_) {\n'
            'indexer _in_ind{n_out_ * n_in_}, _out_ind{n_out_};\n'
            + '\n'.join(scalars)
            + '\nfor (ptrdiff_t o = 0; o < n_out_; ++o) {\n'
            f'reduce_type_ a = reduce_type_({self._identity});\n'
            'for (ptrdiff_t i = 0; i < n_in_; ++i) {\n'
            + '\n'.join(loads)
            + f'\na = combine_(a, ({self._map}));\n}}\n'
            + '\n'.join(stores)
            + f'\n{self._post};\n}}\n}}\n'
        )
