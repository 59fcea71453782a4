"""The functions of the module ``cupy``: those of NumPy, with the parameters and the results of CuPy's."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.support.cupy_stand_in import streams
from tests.support.cupy_stand_in.arrays import (
    SCALARS,
    _from_host,
    arrays_in,
    check_dtype,
    compute,
    ndarray,
)
from tests.support.cupy_stand_in.names import NAMES, check_call


def _check_types(name: str, values) -> None:
    """Raise a TypeError for arguments that CuPy does not accept, such as NumPy arrays."""
    for value in values:
        if isinstance(value, (tuple, list)):
            _check_types(name, value)
        elif isinstance(value, np.ndarray):
            raise TypeError(f'{name}: Unsupported type {type(value)}')


class ufunc:
    """``cupy.ufunc``: its operands are CuPy arrays and scalars, its results are C-contiguous."""

    def __init__(self, name: str):
        self.__name__, self._function = name, getattr(np, name)
        self.nin, self.nout = self._function.nin, self._function.nout

    def __call__(self, *args, out=None, dtype=None, casting='same_kind'):
        for value in args:
            if not isinstance(value, (ndarray, *SCALARS)):
                raise TypeError(f'Unsupported type {type(value)}')
        if len(args) not in (self.nin, self.nin + self.nout):
            raise TypeError(f'Wrong number of arguments for {self.__name__}')
        options: dict[str, Any] = {'dtype': dtype} if dtype is not None else {}
        if len(args) > self.nin:
            out = args[self.nin :]
        if out is not None:
            out = out if isinstance(out, tuple) else (out,)
            if not all(isinstance(array, ndarray) for array in out):
                raise TypeError('Output arguments type must be cupy.ndarray')
            compute(self._function, *args[: self.nin], out=out, casting=casting, **options)
            return out[0] if self.nout == 1 else out
        return compute(self._function, *args, order='C', casting=casting, keep_layout=False, **options)

    def _require(self, names: tuple[str, ...], method: str) -> None:
        if self.__name__ not in names:
            raise AttributeError(f'cupy.{self.__name__} has no {method}')

    def reduce(self, array, axis=0, dtype=None, out=None, keepdims=False):
        self._require(('add', 'multiply', 'maximum', 'minimum', 'logical_and', 'logical_or'), 'reduce')
        _check_types('reduce', [array])
        return compute(self._function.reduce, array, axis=axis, dtype=dtype, out=out, keepdims=keepdims)

    def at(self, a, indices, b=None) -> None:
        self._require(('add', 'subtract', 'maximum', 'minimum', 'bitwise_and', 'bitwise_or', 'bitwise_xor'), 'at')
        streams.submit(lambda: self._function.at(a._array, *_host_values(indices, b)), [a])


def _host_values(*values):
    return tuple(value._array if isinstance(value, ndarray) else value for value in values)


def _delegate(name: str, function):
    """Return a function that checks its arguments as CuPy does and lets NumPy compute."""
    keep_layout = name.split('.')[-1] in _LAYOUT_KEPT

    def delegate(*args, **kwargs):
        check_call(name, args, kwargs)
        _check_types(name, (*args, *kwargs.values()))
        result = compute(function, *args, keep_layout=keep_layout, **kwargs)
        return _as_device_scalar(result) if name.split('.')[-1] in _BOOLEAN else result

    delegate.__name__ = delegate.__qualname__ = name.split('.')[-1]
    return delegate


#: Functions whose results are views or have the layout of NumPy's results.
_LAYOUT_KEPT = {
    *('zeros_like', 'ones_like', 'full_like', 'copy', 'moveaxis', 'rollaxis', 'swapaxes', 'transpose', 'expand_dims'),
    *('squeeze', 'reshape', 'ravel', 'split', 'array_split', 'broadcast_to', 'broadcast_arrays', 'as_strided', 'flip'),
    *('zeros', 'ones', 'full', 'atleast_1d', 'atleast_2d', 'atleast_3d', 'diagonal'),
}
#: Functions that return a Python bool in NumPy and a CuPy array in CuPy.
_BOOLEAN = {'allclose', 'array_equal', 'array_equiv'}


def _as_device_scalar(value):
    return _from_scalar(np.bool_(value))


def _from_scalar(value) -> ndarray:
    """Return a 0-dimensional array of a scalar, which a kernel writes: nothing is copied from the host."""
    array = ndarray((), np.asarray(value).dtype)
    array.fill(value)
    return array


def array(obj, dtype=None, copy=True, order='K', subok=False, ndmin=0, *, blocking=False):
    if subok:
        raise TypeError('subok is not supported')
    if isinstance(obj, ndarray):
        if not copy and (dtype is None or obj.dtype == check_dtype(dtype)):
            has_order = order in ('K', 'A', None) or obj.flags[f'{order}_contiguous']
            result = obj if has_order else obj.copy(order)
        else:
            result = obj.astype(obj.dtype if dtype is None else dtype, order=order or 'K', copy=True)
        return result if result.ndim >= ndmin else result.reshape((1,) * (ndmin - result.ndim) + result.shape)
    if isinstance(obj, (list, tuple)) and (parts := arrays_in(obj)):
        if len(parts) == 1 and not isinstance(obj[0], ndarray):
            raise TypeError('a list of CuPy arrays and other values')
        return array(compute(np.stack, list(obj), keep_layout=False), dtype, False, order, ndmin=ndmin)
    host = np.array(obj, dtype, order=order or 'K', ndmin=ndmin)
    check_dtype(host.dtype)
    return _from_host(host if host.flags.forc else np.ascontiguousarray(host))


def asarray(a, dtype=None, order=None, *, copy=None, blocking=False):
    return array(a, dtype, bool(copy), order or 'K')


def ascontiguousarray(a, dtype=None):
    result = asarray(a, dtype, 'C')
    return result if result.ndim else result.reshape(1)


def asfortranarray(a, dtype=None):
    return asarray(a, dtype, 'F')


def asnumpy(a, stream=None, order='C', out=None, *, blocking=True):
    if isinstance(a, ndarray):
        return a.get(stream, order, out, blocking)
    return np.asarray(a, order=order)


def copyto(dst, src, casting='same_kind', where=None) -> None:
    if not isinstance(dst, ndarray) or not isinstance(src, (ndarray, *SCALARS)):
        raise TypeError(f'Unsupported type {type(src if isinstance(dst, ndarray) else dst)}')
    host, mask = (value._array if isinstance(value, ndarray) else value for value in (src, where))
    if isinstance(src, ndarray) and not np.can_cast(src.dtype, dst.dtype, casting):
        raise TypeError(f'Cannot cast {src.dtype} to {dst.dtype} in {casting} casting mode')
    streams.submit(lambda: np.copyto(dst._array, host, casting='unsafe', where=True if mask is None else mask), [dst])


def empty(shape, dtype=float, order='C'):
    return ndarray(shape, dtype, order=order)


def empty_like(prototype, dtype=None, order='K', subok=None, shape=None):
    if not isinstance(prototype, ndarray):
        raise TypeError(f'Unsupported type {type(prototype)}')
    # Only the layout is NumPy's: nothing writes the values.
    layout = np.empty_like(prototype._array, dtype, order, shape=shape)
    axes = sorted(range(layout.ndim), key=lambda axis: -layout.strides[axis])
    flat = ndarray(tuple(layout.shape[axis] for axis in axes), layout.dtype)
    return flat.transpose(*np.argsort(axes).tolist()) if layout.ndim else flat


def full(shape, fill_value, dtype=None, order='C'):
    if isinstance(fill_value, np.ndarray) and fill_value.shape:
        raise ValueError('non-scalar numpy.ndarray cannot be used for fill')
    if dtype is None:
        dtype = fill_value.dtype if isinstance(fill_value, ndarray) else np.array(fill_value).dtype
    result = ndarray(shape, dtype, order=order)
    result.fill(fill_value)
    return result


def where(condition, x=None, y=None):
    if x is None and y is None:
        return condition.nonzero()
    _check_types('cupy.where', (condition, x, y))
    return compute(np.where, condition, x, y, keep_layout=False)


def may_share_memory(a, b, max_work=None) -> bool:
    if not (isinstance(a, ndarray) and isinstance(b, ndarray)):
        return False
    return bool(np.may_share_memory(a._array, b._array))


def get_array_module(*args):
    import cupy

    return cupy if any(isinstance(value, ndarray) for value in args) else np


def isscalar(element) -> bool:
    return not isinstance(element, ndarray) and np.isscalar(element)


class RandomState:
    """``cupy.random.RandomState``; its methods have an argument ``dtype``."""

    def __init__(self, seed=None, method=None):
        self._state = np.random.RandomState(seed)

    def __getattr__(self, name):
        if f'cupy.random.{name}' not in NAMES:
            raise AttributeError(f'cupy.random has no {name}')
        return functools.partial(self._draw, name)

    def _draw(self, name, *args, dtype=None, **kwargs):
        values = np.asarray(getattr(self._state, name)(*args, **kwargs))
        host = values if dtype is None else values.astype(dtype)
        result = ndarray(host.shape, host.dtype)
        streams.submit(lambda: np.copyto(result._array, host), [result])
        return result


def random_functions() -> dict[str, Any]:
    """Return the functions of ``cupy.random``, whose state is not that of ``numpy.random``."""
    state = RandomState()
    names = [name.removeprefix('cupy.random.') for name in NAMES if name.startswith('cupy.random.')]
    functions = {name: getattr(state, name) for name in names if hasattr(np.random.RandomState, name)}
    return {**functions, 'RandomState': RandomState, 'seed': state._state.seed}


#: The implementations that are not NumPy's.
_OWN = {
    function.__name__: function
    for function in (
        *(array, asarray, ascontiguousarray, asfortranarray, asnumpy, copyto, empty, empty_like, full, where),
        *(may_share_memory, get_array_module, isscalar),
    )
}
_OWN['asanyarray'] = asarray
_OWN['shares_memory'] = may_share_memory


def functions_of(prefix: str, owner) -> dict[str, Any]:
    """Return the functions of a module of CuPy.

    Args:
        prefix: ``'cupy'`` or a submodule such as ``'cupy.linalg'``.
        owner: NumPy's module.
    """
    result = {}
    for full_name, kind in NAMES.items():
        name = full_name.removeprefix(f'{prefix}.')
        if full_name != f'{prefix}.{name}' or '.' in name:
            continue
        if prefix == 'cupy' and name in _OWN:
            result[name] = _OWN[name]
        elif kind == 'ufunc' and isinstance(getattr(owner, name, None), np.ufunc):
            result[name] = ufunc(name)
        elif kind in ('value', 'class') and hasattr(owner, name):
            result[name] = getattr(owner, name)
        elif kind not in ('value', 'class') and callable(getattr(owner, name, None)):
            result[name] = _delegate(full_name, getattr(owner, name))
    return result


#: The names of the module ``cupy``.
MODULE_NAMES = functions_of('cupy', np)


def rsqrt(x, out=None, *, dtype=None):
    """``cupyx.rsqrt``."""
    return MODULE_NAMES['reciprocal'](MODULE_NAMES['sqrt'](x, dtype=dtype), out=out)
