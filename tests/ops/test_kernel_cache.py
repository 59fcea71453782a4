"""The cache of compiled kernels: damaged files, folders that cannot be used."""

import errno
import importlib.util
import logging
import os
import sys

import numba
import pytest
from numba.core import caching

from mask_rcnn.ops.roi import roi_align  # noqa: F401  (contains kernels)
from mask_rcnn.ops.runtime import kernel_cache
from tests.support.damage import truncations

SOURCE = """\
from mask_rcnn.ops.runtime.parallel import jit


@jit
def triple(x):
    return 3 * x
"""


@pytest.fixture(autouse=True)
def new_messages():
    kernel_cache._warn_once.cache_clear()


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Return a function that loads the kernel as a new process would."""
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path / 'cache'))
    (tmp_path / 'kernels.py').write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location('kernels', tmp_path / 'kernels.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.triple

    return load


def hits(kernel):
    """Call a kernel and return how often it was found in the cache."""
    assert kernel(2) == 6
    return sum(kernel.stats.cache_hits.values())


def files(tmp_path, suffix):
    return sorted((tmp_path / 'cache').rglob(f'*{suffix}'))


def test_a_kernel_is_compiled_once(load, caplog):
    assert (hits(load()), hits(load())) == (0, 1)
    assert not caplog.records


@pytest.mark.parametrize('suffix', ['.nbi', '.nbc'])
def test_a_damaged_file_is_replaced(load, tmp_path, caplog, suffix):
    hits(load())
    (path,) = files(tmp_path, suffix)
    good = path.read_bytes()
    middle = bytearray(good)
    middle[len(good) // 2] ^= 255  # machine code, in the file of a kernel
    damaged = [b'', bytes(100), b'garbage\n', good + b'more' if suffix == '.nbi' else good[:-1], *truncations(good, 4)]
    for content in damaged + [bytes(middle)] * (suffix == '.nbc'):
        kernel_cache._warn_once.cache_clear()
        caplog.clear()
        path.write_bytes(content)
        is_harmless = suffix == '.nbi' and content.startswith(good)  # the rest of a pickle is not read
        assert hits(load()) == is_harmless, content[:10]
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1 - is_harmless and all(
            line.startswith(f'the CPU kernels in {path.parent} are damaged') and '\n' not in line for line in lines
        )
        assert hits(load()) == 1, 'the damaged file was not replaced'


def test_a_kernel_of_another_signature_is_not_run(load, tmp_path):
    """Otherwise the code for integers would read a float."""
    kernel = load()
    kernel(2), kernel(2.5)
    first, second = files(tmp_path, '.nbc')
    second.write_bytes(first.read_bytes())
    assert load()(2.5) == 7.5


def test_files_of_another_version_are_compiled_again_without_a_word(load, monkeypatch, caplog):
    hits(load())
    monkeypatch.setattr(numba, '__version__', '0.0.1')
    assert (hits(load()), hits(load())) == (0, 1)
    assert not caplog.records


def test_a_full_disk_costs_only_the_cache(load, tmp_path, monkeypatch, caplog):
    def full(self, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    monkeypatch.setattr(caching.IndexDataCacheFile, '_open_for_write', full)
    assert (hits(load()), hits(load())) == (0, 0)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(tmp_path / 'cache') in record.getMessage() and 'No space left on device' in record.getMessage()


def test_a_cache_that_cannot_be_read_costs_only_time(load, tmp_path, caplog):
    hits(load())
    (index,) = files(tmp_path, '.nbi')
    index.unlink()
    index.mkdir()
    assert hits(load()) == 0
    (record,) = caplog.records
    assert f'CPU kernels cannot be cached in {index.parent} (Is a directory)' in record.getMessage()


def test_without_a_folder_every_process_compiles(load, tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path / 'file'))
    monkeypatch.setattr(caching.CacheImpl, '_locator_classes', [caching.UserProvidedCacheLocator])
    kernel = load()
    assert not caplog.records  # only when a kernel is compiled
    assert hits(kernel) == 0
    (record,) = caplog.records
    assert 'no folder for the compiled CPU kernels' in record.getMessage()


def test_all_kernels_of_the_package_use_the_cache():
    dispatchers = [
        value
        for name, module in list(sys.modules.items())
        if name.startswith('mask_rcnn.')
        for value in vars(module).values()
        if isinstance(value, numba.core.dispatcher.Dispatcher)
    ]
    assert dispatchers
    assert all(isinstance(d._cache, (kernel_cache.KernelCache, kernel_cache.NoKernelCache)) for d in dispatchers)
