"""The cache of compiled CPU kernels on disk: a fault of the cache never ends a program.

Numba's cache raises whatever reading a damaged file or writing to a full disk raises, and it runs machine code from its
files without a check.  Here a kernel that cannot be read, or whose checksum is wrong, is compiled and stored again,
and a kernel that cannot be stored is compiled by each process; one line names the folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
from collections.abc import Callable
from typing import Any

from numba.core import caching

_logger = logging.getLogger(__name__)

_ADVICE = 'every process compiles them again (NUMBA_CACHE_DIR may name another folder)'


class _KernelFiles(caching.CompileResultCacheImpl):
    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        """Return a name that files of Numba's cache without checksums do not have."""
        return f'{super().get_filename_base(fullname, abiflags)}.checked'


class _CheckedFiles(caching.IndexDataCacheFile):
    """The files of one function, with a checksum of each kernel and its signature."""

    def save(self, key: Any, data: Any) -> None:
        kernel = self._dump(data)
        super().save(key, (_checksum(key, kernel), kernel))

    def load(self, key: Any) -> Any:
        entry = super().load(key)
        if entry is None:
            return None
        checksum, kernel = entry
        if checksum != _checksum(key, kernel):
            raise ValueError('wrong checksum')
        return pickle.loads(kernel)


class KernelCache(caching.FunctionCache):
    """Numba's cache of one function, without its errors.

    Args:
        function: The Python function.

    Raises:
        RuntimeError: No folder can hold the cache.
    """

    _impl_class = _KernelFiles

    def __init__(self, function: Callable):
        super().__init__(function)
        self._cache_file = _CheckedFiles(self._cache_path, self._impl.filename_base, self._cache_file._source_stamp)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel of a signature, or ``None`` if the cache does not contain it or is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            self._warn_of(error)
        except Exception as error:  # unpickling a damaged file raises errors of any type
            with contextlib.suppress(OSError):
                self.flush()
            _warn_once(f'the CPU kernels in {self.cache_path} are damaged ({_reason(error)}) and are compiled again')
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the kernel of a signature if possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            self._warn_of(error)

    def _warn_of(self, error: Exception) -> None:
        _warn_once(f'CPU kernels cannot be cached in {self.cache_path} ({_reason(error)}); {_ADVICE}')


class NoKernelCache(caching.NullCache):
    """A cache that stores nothing and warns when the first kernel is compiled.

    Args:
        reason: The reason why there is no cache.
    """

    def __init__(self, reason: str):
        self._reason = reason

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Warn that the kernel is not stored."""
        _warn_once(f'no folder for the compiled CPU kernels ({self._reason}); {_ADVICE}')


def make_cache(function: Callable) -> KernelCache | NoKernelCache:
    """Return the cache of a function, or one that stores nothing if no folder can hold it."""
    try:
        return KernelCache(function)
    except Exception as error:
        return NoKernelCache(_reason(error))


def _checksum(key: Any, kernel: bytes) -> bytes:
    return hashlib.sha256(repr(key).encode() + kernel).digest()


def _reason(error: Exception) -> str:
    text = getattr(error, 'strerror', None) or ' '.join(str(error).split())[:200]
    return text or type(error).__name__


@functools.cache
def _warn_once(line: str) -> None:
    """Write a line once per process: every kernel of a folder has the same fault."""
    _logger.warning('%s', line)
