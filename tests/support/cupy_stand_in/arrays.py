"""``cupy.ndarray``: an array that is not a NumPy array and refuses to become one implicitly."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tests.support.cupy_stand_in import memory, streams
from tests.support.cupy_stand_in.names import NAMES, check_call

#: The types of elements that CuPy supports.
_TYPE_CHARS = '?bBhHiIlLqQefdFD'
#: Types that are passed to kernels by value.
SCALARS = (bool, int, float, complex, np.generic)


class Flags:
    """``cupy.ndarray.flags``, which lacks ``writeable`` and ``aligned``."""

    def __init__(self, array: np.ndarray, has_base: bool):
        self.c_contiguous, self.f_contiguous = array.flags.c_contiguous, array.flags.f_contiguous
        self.owndata = not has_base
        self.forc = self.c_contiguous or self.f_contiguous
        self.fnc = self.f_contiguous and not self.c_contiguous

    def __getitem__(self, name: str) -> bool:
        return getattr(self, name.lower())


def check_dtype(dtype: Any) -> np.dtype:
    dtype = np.dtype(dtype)
    if dtype.char not in _TYPE_CHARS or not dtype.isnative:
        raise ValueError(f'Unsupported dtype {dtype}')
    return dtype


class ndarray:
    """``cupy.ndarray``.

    Attributes:
        data: A :class:`memory.MemoryPointer` to the first element.
    """

    __slots__ = ('_array', '_base', 'data')
    __array_priority__ = 100
    __hash__ = None

    def __init__(self, shape, dtype=float, memptr=None, strides=None, order='C'):
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(map(int, shape))
        dtype = check_dtype(dtype)
        strides = np.lib.stride_tricks.as_strided(np.empty(0, dtype), shape, strides).strides if strides else None
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.data = memory.alloc(size) if memptr is None else memptr
        start = self.data.ptr - self.data.mem.ptr if size else 0
        self._array = np.ndarray(shape, dtype, self.data.mem.bytes, start, strides, order or 'C')
        self._base = None

    # Conversions

    def __array__(self, dtype=None, copy=None):
        raise TypeError(
            'Implicit conversion to a NumPy array is not allowed. Please use `.get()` to construct a NumPy array '
            'explicitly.'
        )

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        from tests.support.cupy_stand_in import routines

        if not isinstance(routines.MODULE_NAMES.get(ufunc.__name__), routines.ufunc):
            return NotImplemented
        function = routines.MODULE_NAMES[ufunc.__name__]
        return (function if method == '__call__' else getattr(function, method))(*inputs, **kwargs)

    def __array_function__(self, function, types, args, kwargs):
        from tests.support.cupy_stand_in import routines

        known = routines.MODULE_NAMES.get(function.__name__)
        if known is None or not all(issubclass(t, (ndarray, np.ndarray)) for t in types):
            return NotImplemented
        return known(*args, **kwargs)

    @property
    def __cuda_array_interface__(self) -> dict:
        return {
            'shape': self.shape,
            'typestr': self.dtype.str,
            'descr': self.dtype.descr,
            'data': (self.data.ptr, False),
            'stream': 1,
            'strides': None if self.flags.c_contiguous else self.strides,
            'version': 3,
        }

    def get(self, stream=None, order='C', out=None, blocking=True) -> np.ndarray:
        if out is not None:
            if not isinstance(out, np.ndarray):
                raise TypeError('Only numpy.ndarray can be obtained from cupy.ndarray')
            if out.dtype != self.dtype or out.shape != self.shape:
                raise ValueError(f'out is {out.dtype} {out.shape}, expected {self.dtype} {self.shape}')
            if not (out.flags.c_contiguous and self.flags.c_contiguous) and not (
                out.flags.f_contiguous and self.flags.f_contiguous
            ):
                raise RuntimeError('`out` cannot be specified when copying to non-contiguous ndarray')
        if blocking:
            streams.wait(stream)
        if out is None:
            return self._array.copy(order='F' if order == 'A' and self.flags.fnc else 'C' if order == 'A' else order)
        streams.submit(lambda: np.copyto(out, self._array), label='MEMCPY DtoH')
        return out

    def set(self, arr, stream=None) -> None:
        if not isinstance(arr, np.ndarray):
            raise TypeError('Only numpy.ndarray can be set to cupy.ndarray')
        if self.dtype != arr.dtype:
            raise TypeError(f'{arr.dtype} array cannot be set to {self.dtype} array')
        if self.shape != arr.shape:
            raise ValueError(f'Shape mismatch. Old shape: {self.shape}, new shape: {arr.shape}')
        if not self.flags.forc:
            raise RuntimeError('Cannot set to non-contiguous array')
        streams.submit(lambda: np.copyto(self._array, arr), [self], 'MEMCPY HtoD')

    def _scalar(self, kind: type):
        streams.wait()
        return kind(self._array)

    def __bool__(self):
        return self._scalar(bool)

    def __int__(self):
        return self._scalar(int)

    def __float__(self):
        return self._scalar(float)

    def __complex__(self):
        return self._scalar(complex)

    def item(self):
        if self.size != 1:
            raise ValueError('can only convert an array of size 1 to a Python scalar')
        streams.wait()
        return self._array.item()

    def tolist(self):
        return self.get().tolist()

    def tobytes(self, order='C'):
        return self.get().tobytes(order)

    def __repr__(self):
        return repr(self.get())

    def __str__(self):
        return str(self.get())

    def __format__(self, spec):
        return format(self.item() if self.ndim == 0 else self.get(), spec)

    def __reduce__(self):
        return _from_host, (self.get(),)

    def __copy__(self):
        return self.copy()

    def __deepcopy__(self, memo):
        return self.copy()

    # Properties

    shape = property(lambda self: self._array.shape, lambda self, shape: setattr(self._array, 'shape', shape))
    dtype = property(lambda self: self._array.dtype)
    strides = property(lambda self: self._array.strides)
    size = property(lambda self: self._array.size)
    ndim = property(lambda self: self._array.ndim)
    itemsize = property(lambda self: self._array.itemsize)
    nbytes = property(lambda self: self._array.nbytes)
    flags = property(lambda self: Flags(self._array, self._base is not None))
    base = property(lambda self: self._base)
    T = property(lambda self: self.transpose())
    real = property(lambda self: compute(np.real, self))
    imag = property(lambda self: compute(np.imag, self))

    @property
    def device(self):
        from tests.support.cupy_stand_in.device import Device

        return Device(self.data.device_id)

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        if self.ndim == 0:
            raise TypeError('iteration over a 0-d array')
        return (self[i] for i in range(len(self)))

    # Elements

    def __getitem__(self, index):
        index = _as_index(index)
        index = index if isinstance(index, tuple) else (index,)
        if not any(part is Ellipsis for part in index):
            index = (*index, Ellipsis)  # an element is a 0-dimensional view
        return compute(lambda array: array[_host(index)], self)

    def __setitem__(self, index, value) -> None:
        index = _as_index(index)
        if isinstance(value, np.ndarray):
            if value.shape != ():
                raise ValueError('non-scalar numpy.ndarray cannot be used for fill')
            value = value.item()
        elif not isinstance(value, (ndarray, *SCALARS)):
            raise TypeError(f'Unsupported type {type(value)}')

        def assign():
            self._array[_host(index)] = _host(value)

        with np.errstate(all='ignore'):
            streams.submit(assign, [self])

    def fill(self, value) -> None:
        self[...] = value

    # Results with another layout, type or shape

    def astype(self, dtype, order='K', casting=None, subok=None, copy=True):
        if subok is not None:
            raise TypeError('subok is not supported yet')
        dtype = check_dtype(dtype)
        if not copy and self.dtype == dtype and (order in 'KA' or self.flags[f'{order}_contiguous']):
            return self
        return compute(lambda a: np.array(a, dtype, order=order), self)

    def copy(self, order='C'):
        return compute(lambda a: np.array(a, order=order), self)

    def reshape(self, *shape, order='C', copy=None):
        shape = shape[0] if len(shape) == 1 and not isinstance(shape[0], (int, np.integer)) else shape
        return compute(lambda a: a.reshape(shape, order=order), self)

    def transpose(self, *axes):
        return compute(lambda a: a.transpose(*axes), self)

    def view(self, dtype=None, array_class=None):
        return compute(lambda a: a.view(a.dtype if dtype is None else check_dtype(dtype)), self)

    def reduced_view(self, dtype=None):
        return self.reshape(-1).view(dtype) if self.flags.c_contiguous else self.view(dtype)

    def flatten(self, order='C'):
        return compute(lambda a: a.flatten(order), self)

    def scatter_add(self, slices, value) -> None:
        slices = _as_index(slices)
        streams.submit(lambda: np.add.at(self._array, _host(slices), _host(value)), [self])


def _host(value):
    """Return a value with its CuPy arrays replaced by the NumPy arrays inside of them."""
    if isinstance(value, ndarray):
        return value._array
    if type(value) in (tuple, list):
        return type(value)(map(_host, value))
    if type(value) is dict:
        return {name: _host(item) for name, item in value.items()}
    return value


def _as_index(index):
    """Return an index whose NumPy arrays and lists are uploaded, as CuPy does."""

    def upload(part):
        if isinstance(part, (list, np.ndarray)):
            array = np.asarray(part)
            return _from_host(array if array.size or isinstance(part, np.ndarray) else array.astype(np.int64))
        if isinstance(part, (float, np.floating)):
            raise IndexError('only integers, slices, ellipsis, newaxis and integer or boolean arrays are valid indices')
        return part

    return tuple(map(upload, index)) if isinstance(index, tuple) else upload(index)


def _from_host(array: np.ndarray) -> ndarray:
    """Return a copy of a NumPy array, by way of pinned memory."""
    order = 'F' if array.flags.f_contiguous and not array.flags.c_contiguous else 'C'
    result = ndarray(array.shape, array.dtype, order=order)
    if array.size:
        memory.alloc_pinned_memory(array.nbytes)
    streams.submit(lambda: np.copyto(result._array, array), [result], 'MEMCPY HtoD')
    return result


def _view(array: np.ndarray, base: ndarray) -> ndarray:
    """Return a view of the memory of a CuPy array."""
    view = object.__new__(ndarray)
    view._array, view._base = array, base if base._base is None else base._base
    view.data = memory.MemoryPointer(base.data.mem, array.ctypes.data - base.data.mem.ptr if array.size else 0)
    return view


def arrays_in(value) -> list[ndarray]:
    """Return the CuPy arrays of nested arguments."""
    if isinstance(value, ndarray):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [array for item in value for array in arrays_in(item)] if isinstance(value, (tuple, list)) else []


def compute(function, *args, keep_layout=True, **kwargs):
    """Return the results of a NumPy function of CuPy arrays as CuPy arrays; results that are views remain views.

    Args:
        function: The function.
        args: Its arguments.
        keep_layout: Whether a result has the order of axes in memory that NumPy's has; otherwise it is C-contiguous.
        kwargs: Its keyword arguments.
    """
    sources = arrays_in(args) + arrays_in(kwargs)
    host_args, host_kwargs = _host(args), _host(kwargs)

    def run():
        with np.errstate(all='ignore'):
            return function(*host_args, **host_kwargs)

    out = kwargs.get('out')
    if out is not None:
        streams.submit(run, arrays_in(out))
        return out
    created: list[ndarray] = []
    result = _wrap(run(), sources, created, keep_layout)
    capture = streams.get_current_stream().capture
    if created and capture is not None:
        capture.add(lambda: _assign(result, run()), created)
    return result


def _wrap(value, sources: list[ndarray], created: list, keep_layout: bool):
    if isinstance(value, (list, tuple)):
        items = [_wrap(item, sources, created, keep_layout) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    array = np.asarray(value)
    for source in sources:
        if array is source._array:
            return source
        if array.base is not None and np.may_share_memory(array, source._array):
            return _view(array, source)
    result = _like(array) if keep_layout else ndarray(array.shape, array.dtype)
    result._array[...] = array
    created.append(result)
    return result


def _like(array: np.ndarray) -> ndarray:
    """Return an empty array whose axes have the order of those of a NumPy array in memory."""
    if array.flags.c_contiguous:
        return ndarray(array.shape, array.dtype)
    axes = sorted(range(array.ndim), key=lambda axis: -array.strides[axis])
    flat = ndarray(tuple(array.shape[axis] for axis in axes), array.dtype)
    return flat.transpose(*np.argsort(axes).tolist())


def _assign(target, value) -> None:
    if isinstance(target, (list, tuple)):
        for part, item in zip(target, value, strict=True):
            _assign(part, item)
    elif isinstance(target, ndarray) and not np.may_share_memory(target._array, np.asarray(value)):
        target._array[...] = value


def _reflects(other) -> bool:
    """Return whether the operator of the other operand applies, such as that of ``chainer.Variable``."""
    return not isinstance(other, (ndarray, np.ndarray)) and getattr(other, '__array_priority__', 0) > 100


def _operator(name: str, reflected=False, in_place=False):
    def operate(self, other):
        from tests.support.cupy_stand_in import routines

        if _reflects(other):
            return NotImplemented
        function = routines.MODULE_NAMES[name]
        if in_place:
            return function(self, other, out=self)
        return function(other, self) if reflected else function(self, other)

    return operate


for _name, _function in {
    'add': 'add',
    'sub': 'subtract',
    'mul': 'multiply',
    'truediv': 'true_divide',
    'floordiv': 'floor_divide',
    'mod': 'remainder',
    'pow': 'power',
    'and': 'bitwise_and',
    'or': 'bitwise_or',
    'xor': 'bitwise_xor',
    'lshift': 'left_shift',
    'rshift': 'right_shift',
    'matmul': 'matmul',
}.items():
    setattr(ndarray, f'__{_name}__', _operator(_function))
    setattr(ndarray, f'__r{_name}__', _operator(_function, reflected=True))
    if _name != 'matmul':
        setattr(ndarray, f'__i{_name}__', _operator(_function, in_place=True))
for _name, _function in {
    'eq': 'equal',
    'ne': 'not_equal',
    'lt': 'less',
    'le': 'less_equal',
    'gt': 'greater',
    'ge': 'greater_equal',
}.items():
    setattr(ndarray, f'__{_name}__', _operator(_function))
for _name, _function in {'neg': 'negative', 'invert': 'invert', 'abs': 'absolute', 'pos': 'positive'}.items():
    setattr(
        ndarray,
        f'__{_name}__',
        lambda self, function=_function: compute(getattr(np, function), self),
    )


#: Methods whose results are views, or have the layout of NumPy's.
_VIEWS = ('diagonal', 'ravel', 'squeeze', 'swapaxes')


def _method(name: str):
    """Return a method that NumPy's method of the same name computes."""

    @functools.wraps(getattr(np.ndarray, name))
    def method(self, *args, **kwargs):
        check_call(f'cupy.ndarray.{name}', args, kwargs)
        for value in (*args, *kwargs.values()):
            if isinstance(value, np.ndarray):
                raise TypeError(f'Unsupported type {type(value)}')
        keep_layout = name in _VIEWS
        return compute(lambda a, *p, **k: getattr(a, name)(*p, **k), self, *args, keep_layout=keep_layout, **kwargs)

    return method


for _full_name in NAMES:
    _owner, _, _name = _full_name.rpartition('.')
    if _owner == 'cupy.ndarray' and not hasattr(ndarray, _name) and callable(getattr(np.ndarray, _name, None)):
        setattr(ndarray, _name, _method(_name))
