"""The modules of the stand-in in ``sys.modules``."""

from __future__ import annotations

import functools
import sys
import types

import numpy as np

from tests.support.cupy_stand_in import cublas, cudnn, device, elementwise, kernels, memory, routines, streams
from tests.support.cupy_stand_in.arrays import ndarray


def _module(name: str, **values) -> types.ModuleType:
    """Return a module of values, registered and bound in its parent."""
    result = types.ModuleType(name)
    result.__path__ = []  # submodules can be imported
    vars(result).update(values)
    sys.modules[name] = result
    parent, _, last = name.rpartition('.')
    if parent:
        setattr(sys.modules[parent], last, result)
    return result


def memoize(for_each_device=False):
    def decorate(function):
        cached = functools.cache(function)
        _memoized.append(cached)
        return functools.wraps(function)(lambda *args, **kwargs: cached(*args, **kwargs))

    return decorate


_memoized: list = []


def clear_memo() -> None:
    for cached in _memoized:
        cached.cache_clear()


def fuse(*args, **kwargs):
    """Return the function itself, which computes the same."""
    if len(args) == 1 and not kwargs and callable(args[0]):
        return args[0]
    return lambda function: function


def install() -> None:
    """Install the modules, unless they are installed."""
    if isinstance(sys.modules.get('cupy'), types.ModuleType):
        if getattr(sys.modules['cupy'], '_is_stand_in', False):
            return
        raise RuntimeError('CuPy has already been imported')
    if 'chainer' in sys.modules:
        raise RuntimeError('Chainer has already been imported, and without CuPy')
    own = {
        '__version__': '14.2.0',
        '_is_stand_in': True,
        'ndarray': ndarray,
        'ufunc': routines.ufunc,
        'RawKernel': kernels.RawKernel,
        'RawModule': kernels.RawModule,
        'ElementwiseKernel': elementwise.ElementwiseKernel,
        'ReductionKernel': elementwise.ReductionKernel,
        'fuse': fuse,
        'memoize': memoize,
        'clear_memo': clear_memo,
        'get_default_memory_pool': memory.get_default_memory_pool,
        'get_default_pinned_memory_pool': memory.get_default_pinned_memory_pool,
    }
    _module('cupy', **{**routines.MODULE_NAMES, **own})
    _module('cupy._core', ndarray=ndarray)
    _module('cupy._core._routines_linalg', **cublas.COMPUTE_TYPES)
    _module('cupy._util', PerformanceWarning=type('PerformanceWarning', (RuntimeWarning,), {}))
    _module('cupy.linalg', **routines.functions_of('cupy.linalg', np.linalg))
    _module('cupy.lib')
    _module('cupy.lib.stride_tricks', **routines.functions_of('cupy.lib.stride_tricks', np.lib.stride_tricks))
    _module('cupy.random', **routines.random_functions())
    _install_cuda()
    _module('cupyx', rsqrt=routines.rsqrt, scatter_add=lambda a, slices, value: a.scatter_add(slices, value))
    for name in ('cupyx.scipy', 'cupyx.scipy.linalg', 'cupyx.scipy.special', 'cupy_backends', 'cupy_backends.cuda'):
        _module(name)
    _module('cupy_backends.cuda.libs')
    _module('cupy_backends.cuda.libs.cublas', getVersion=lambda handle: 130000)
    sys.modules['cudnn'] = cudnn.MODULE


def _install_cuda() -> None:
    _module(
        'cupy.cuda',
        Device=device.Device,
        Event=streams.Event,
        Graph=streams.Graph,
        Memory=memory.Memory,
        MemoryPointer=memory.MemoryPointer,
        MemoryPool=memory.MemoryPool,
        PinnedMemory=memory.PinnedMemory,
        PinnedMemoryPool=memory.PinnedMemoryPool,
        Stream=streams.Stream,
        alloc=memory.alloc,
        alloc_pinned_memory=memory.alloc_pinned_memory,
        get_allocator=memory.get_allocator,
        get_current_stream=streams.get_current_stream,
        get_device_id=lambda: 0,
        get_elapsed_time=streams.get_elapsed_time,
        is_available=lambda: True,
        set_allocator=memory.set_allocator,
        set_pinned_memory_allocator=memory.set_pinned_memory_allocator,
        using_allocator=memory.using_allocator,
    )
    _module('cupy.cuda.runtime', **device.RUNTIME)
    _module('cupy.cuda.driver', **device.DRIVER)
    _module('cupy.cuda.device', get_cublas_handle=cublas.handle, Device=device.Device)
    _module('cupy.cuda.memory', OutOfMemoryError=memory.OutOfMemoryError, MemoryPointer=memory.MemoryPointer)
    _module('cupy.cuda.memory_hook', MemoryHook=object)
    _module('cupy.cuda.nvtx', RangePush=lambda *_: None, RangePop=lambda: None)
