"""The cache of compiled CPU kernels on disk: a fault of the cache never ends a program or changes a result.

Numba's cache raises whatever reading a damaged file or writing to a full disk raises, and it runs machine code from its
files without a check.  Its index of a function's kernels is written before the kernel: after a full disk or a crash in
between, the index of a new source file refers to the kernel of the old one.  It does not know of kernels in other
source files that a kernel calls, and two processes that compile for different signatures overwrite each other's kernel.

Here each kernel has a file of its own without an index, with a stamp of all that determines it and a checksum.  A
kernel that cannot be read, or whose checksum is wrong, is compiled and stored again, and a kernel that cannot be stored
is compiled by each process; one line names the folder.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba.core import caching
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic
from numba.misc.appdirs import AppDirs

_logger = logging.getLogger(__name__)

_HASH_SIZE = 32
#: Types of the values in a module that a kernel contains, in addition to arrays.
_CONSTANTS = bool, int, float, complex, tuple, np.generic
_ADVICE = 'every process compiles them again (NUMBA_CACHE_DIR may name another folder)'


# The name of the class has an underscore up to Numba 0.61.
_UserWideCacheLocator: Any = next(
    locator for locator in caching.CacheImpl._locator_classes if locator.__name__.endswith('UserWideCacheLocator')
)


class _UserFolder(_UserWideCacheLocator):
    """The cache folder of the user, in which this package has one of its own."""

    def __init__(self, function: Callable, source: str):
        super().__init__(function, source)
        folder = AppDirs(appname='mask-rcnn-chainer', appauthor=False).user_cache_dir
        self._cache_path = os.path.join(folder, 'kernels', self.get_suitable_cache_subpath(source))

    def ensure_cache_path(self) -> None:
        if not os.path.isabs(self.get_cache_path()):  # Numba would make a folder "~" in the current one
            raise FileNotFoundError('the user has no home folder')
        super().ensure_cache_path()


def _locators(package: Path) -> list[type[Any]]:
    """Return the classes that choose the folder of the kernels, in their order.

    A checkout keeps them in ``__pycache__``.  An installed package does not: ``pip uninstall`` would leave them there.
    """
    in_tree = (package.parent / 'pyproject.toml').exists()
    classes = [
        _UserFolder if locator is _UserWideCacheLocator else locator for locator in caching.CacheImpl._locator_classes
    ]
    return [locator for locator in classes if in_tree or 'InTree' not in locator.__name__]


class _KernelFiles(caching.CompileResultCacheImpl):
    _locator_classes = _locators(Path(__file__).parents[2])

    def get_filename_base(self, fullname: str, abiflags: str) -> str:
        """Return a name that files of Numba's cache do not have."""
        return f'{super().get_filename_base(fullname, abiflags)}.checked'


class _CheckedFiles(caching.IndexDataCacheFile):
    """The files of one function, one for each signature and processor.

    A file contains a checksum of the rest, the stamp, and the kernel.

    Args:
        folder: The folder of the files.
        base: The first part of their names.
        source_stamps: Returns the stamps of all source files that the kernel was compiled from.
    """

    def __init__(self, folder: str, base: str, source_stamps: Callable[[], list]):
        super().__init__(folder, base, None)
        self._base = base
        self._source_stamps = source_stamps

    def save(self, key: Any, data: Any) -> None:
        content = self._stamp(key) + self._dump(data)
        with self._open_for_write(self._path(key)) as file:
            file.write(_sha256(content) + content)

    def load(self, key: Any) -> Any:
        try:
            content = Path(self._path(key)).read_bytes()
        except FileNotFoundError:
            return None
        checksum, stamp, kernel = content[:_HASH_SIZE], content[_HASH_SIZE : 2 * _HASH_SIZE], content[2 * _HASH_SIZE :]
        if checksum != _sha256(stamp + kernel):
            raise ValueError('wrong checksum')
        return pickle.loads(kernel) if stamp == self._stamp(key) else None

    def flush(self) -> None:
        for path in self.paths():
            path.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Return the paths of the function's kernels."""
        folder = Path(self._cache_path)
        return [path for path in folder.iterdir() if path.name.startswith(f'{self._base}.') and path.suffix == '.nbc']

    def _path(self, key: Any) -> str:
        """Return the path of a kernel; another version of the source file has the same one."""
        signature, processor, *_ = key
        return self._data_path(f'{self._base}.{_sha256(repr((signature, processor)).encode()).hex()[:16]}.nbc')

    def _stamp(self, key: Any) -> bytes:
        return _sha256(repr((self._version, self._source_stamps(), key)).encode())


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
        self.source_stamp = self._impl.locator.get_source_stamp()
        self._files = _CheckedFiles(self._cache_path, self._impl.filename_base, self._source_stamps)
        self._cache_file = self._files

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Return the kernel of a signature, or ``None`` if the cache does not contain it or is damaged."""
        try:
            return super().load_overload(sig, target_context)
        except OSError as error:
            self._warn_of(error)
        except Exception as error:  # unpickling may raise errors of any type
            _warn_once(f'the CPU kernels in {self.cache_path} are damaged ({_reason(error)}) and are compiled again')
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        """Store the kernel of a signature if possible."""
        try:
            super().save_overload(sig, data)
        except Exception as error:
            self._warn_of(error)

    def is_stored(self) -> bool:
        """Return whether the cache contains a kernel of the function, of any signature, processor and version."""
        return bool(self._files.paths())

    def _source_stamps(self) -> list:
        """Return the stamps of all that the kernel is compiled from, apart from its arguments.

        These are the source files of the function, of all kernels that it calls and of the intrinsics in them, and the
        constants of modules.  A kernel contains them all.
        """
        stamps, seen, pending = [self.source_stamp], set(), [self._py_func]
        while pending:
            function = pending.pop()
            seen.add(function)
            for name in function.__code__.co_names:
                value = function.__globals__.get(name)
                if isinstance(value, Dispatcher):
                    if value.py_func not in seen:
                        pending.append(value.py_func)
                        stamps.append(getattr(getattr(value, '_cache', None), 'source_stamp', None))
                elif isinstance(value, _Intrinsic):
                    stamps.append(_hash_file(inspect.unwrap(value).__code__.co_filename))
                elif isinstance(value, np.ndarray):
                    stamps.append((name, value.dtype.str, value.tolist()))
                elif isinstance(value, _CONSTANTS):
                    stamps.append((name, value))
        return stamps

    def _warn_of(self, error: Exception) -> None:
        _warn_once(f'CPU kernels cannot be cached in {self.cache_path} ({_reason(error)}); {_ADVICE}')


class NoKernelCache(caching.NullCache):
    """A cache that stores nothing and warns when the first kernel is compiled.

    Args:
        reason: The reason why there is no cache.

    Attributes:
        reason (str): The reason.
    """

    def __init__(self, reason: str):
        self.reason = reason

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Warn that the kernel is not stored."""
        _warn_once(f'no folder for the compiled CPU kernels ({self.reason}); {_ADVICE}')


def make_cache(function: Callable) -> KernelCache | NoKernelCache:
    """Return the cache of a function, or one that stores nothing if no folder can hold it."""
    try:
        return KernelCache(function)
    except RuntimeError:  # its message names the function, but all functions need one warning
        return NoKernelCache('neither __pycache__ nor the cache folder of the user is writable')
    except Exception as error:
        return NoKernelCache(_reason(error))


def _hash_file(path: str) -> bytes | None:
    """Return the hash of a source file; ``None`` in a program without such files."""
    try:
        return _sha256(Path(path).read_bytes())
    except OSError:
        return None


def _sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _reason(error: Exception) -> str:
    text = getattr(error, 'strerror', None) or ' '.join(str(error).split())[:200]
    return text or type(error).__name__


@functools.cache
def _warn_once(line: str) -> None:
    """Write a line once per process: every kernel of a folder has the same fault."""
    _logger.warning('%s', line)
