"""Memory of the stand-in's GPU: memory of the host at addresses that are multiples of 512, as in CuPy's pool."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading

import numpy as np

#: Bytes of the GPU.
TOTAL = int(os.environ.get('CUPY_STAND_IN_MEMORY', 16 << 30))
_ALIGNMENT = 512
#: The bytes of new memory: NaN in floating-point types, -1 in signed integers.
_POISON = 0xFF

_serials = itertools.count()
_lock = threading.RLock()
_n_used = 0


class OutOfMemoryError(MemoryError):
    """``cupy.cuda.memory.OutOfMemoryError``."""


class _Block:
    """Bytes of the GPU."""

    def __init__(self, size: int):
        if used_bytes() + size > TOTAL:
            raise OutOfMemoryError(f'Out of memory allocating {size} bytes (allocated so far: {used_bytes()} bytes)')
        raw = np.empty(size + _ALIGNMENT, np.uint8)
        start = -raw.ctypes.data % _ALIGNMENT
        self.size, self.bytes = size, raw[start : start + size]
        _count(size)

    def __del__(self):
        if _count is not None:  # the interpreter ends
            _count(-getattr(self, 'size', 0))


def _count(size: int) -> None:
    global _n_used
    with _lock:
        _n_used += size


def used_bytes() -> int:
    """Return the bytes of all blocks, those that pools keep included."""
    return _n_used


class Memory:
    """A block that is in use; its pool, if any, gets the block back when nothing refers to it.

    Attributes:
        serial: Increases with each allocation.
    """

    device_id = 0

    def __init__(self, size: int, block: _Block | None = None, pool: MemoryPool | None = None):
        self.size, self._pool = size, pool
        self._block = block or _Block(size)
        self.bytes, self.ptr = self._block.bytes, self._block.bytes.ctypes.data if size else 0
        self.serial = next(_serials)
        self.poison()

    def poison(self) -> None:
        """Overwrite the memory, so that a test fails which reads what nothing has written."""
        self.bytes[...] = _POISON

    def __del__(self):
        if self._pool is not None:
            self._pool.take_back(self._block)


class MemoryPointer:
    """``cupy.cuda.MemoryPointer``."""

    def __init__(self, mem: Memory, offset: int):
        self.mem, self.ptr = mem, mem.ptr + offset
        self.device_id = 0

    def __int__(self):
        return self.ptr

    def __add__(self, offset: int) -> MemoryPointer:
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)


class MemoryPool:
    """``cupy.cuda.MemoryPool``: reuses the block that was freed last among those of the same size."""

    def __init__(self, allocator=None):
        self._free: dict[int, list[_Block]] = {}
        self._in_use = self._limit = 0

    def malloc(self, size: int) -> MemoryPointer:
        rounded = -(-size // _ALIGNMENT) * _ALIGNMENT
        if not size:
            return MemoryPointer(Memory(0), 0)
        with _lock:
            blocks = self._free.get(rounded)
            if not blocks and self._limit and self.total_bytes() + rounded > self._limit:
                raise OutOfMemoryError(f'Out of memory allocating {rounded} bytes (limit set to: {self._limit} bytes)')
            block = blocks.pop() if blocks else self._new_block(rounded)
            self._in_use += rounded
        return MemoryPointer(Memory(size, block, self), 0)

    def _new_block(self, size: int) -> _Block:
        try:
            return _Block(size)
        except OutOfMemoryError:
            self.free_all_blocks()
            return _Block(size)

    def take_back(self, block: _Block) -> None:
        with _lock:
            self._free.setdefault(block.size, []).append(block)
            self._in_use -= block.size

    def free_all_blocks(self, stream=None) -> None:
        with _lock:
            self._free.clear()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit = int(TOTAL * fraction) if fraction is not None else size or 0

    def get_limit(self) -> int:
        return self._limit

    def n_free_blocks(self) -> int:
        return sum(map(len, self._free.values()))

    def used_bytes(self) -> int:
        return self._in_use

    def free_bytes(self) -> int:
        return sum(size * len(blocks) for size, blocks in self._free.items())

    def total_bytes(self) -> int:
        return self.used_bytes() + self.free_bytes()


class PinnedMemory(bytearray):
    """Pinned memory of the host, which ``numpy.frombuffer`` accepts."""

    def size(self) -> int:
        return len(self)


class PinnedMemoryPool:
    """``cupy.cuda.PinnedMemoryPool``."""

    def malloc(self, size: int) -> PinnedMemory:
        return PinnedMemory(size)

    def free_all_blocks(self) -> None:
        """Free nothing, because nothing is kept."""

    def n_free_blocks(self) -> int:
        return 0


_pool, _pinned_pool = MemoryPool(), PinnedMemoryPool()
_allocator, _pinned_allocator = _pool.malloc, _pinned_pool.malloc
_thread = threading.local()


def get_default_memory_pool() -> MemoryPool:
    return _pool


def get_default_pinned_memory_pool() -> PinnedMemoryPool:
    return _pinned_pool


def get_allocator():
    return getattr(_thread, 'allocator', None) or _allocator


def set_allocator(allocator=None) -> None:
    global _allocator
    if getattr(_thread, 'allocator', None) is not None:
        raise ValueError("Can't change the global allocator inside `using_allocator` context manager")
    _allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))


@contextlib.contextmanager
def using_allocator(allocator=None):
    outer = getattr(_thread, 'allocator', None)
    _thread.allocator = allocator or (lambda size: MemoryPointer(Memory(size), 0))
    try:
        yield
    finally:
        _thread.allocator = outer


def set_pinned_memory_allocator(allocator=None) -> None:
    global _pinned_allocator
    _pinned_allocator = allocator or PinnedMemory


def alloc(size: int) -> MemoryPointer:
    if not isinstance(size, (int, np.integer)):
        raise TypeError(f'an integer is required, not {type(size).__name__}')
    return get_allocator()(int(size))


def alloc_pinned_memory(size: int) -> PinnedMemory:
    if size <= 0:
        raise ValueError('cudaErrorInvalidValue: invalid argument')  # of cudaHostAlloc
    return _pinned_allocator(size)


def mem_get_info() -> tuple[int, int]:
    return TOTAL - used_bytes(), TOTAL
