"""The cache of compiled kernels: damaged files, folders that cannot be used."""

import errno
import importlib.util
import logging
import os
import sys

import numba
import pytest
from numba.core import caching

from mask_rcnn.ops.roi import roi_align_cpu  # noqa: F401  (contains kernels)
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
    numba.config.reload_config()  # the next compilation would otherwise do so if a test has changed the environment
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path / 'cache'))
    (tmp_path / 'cached_kernels.py').write_text(SOURCE)

    def load():
        spec = importlib.util.spec_from_file_location('cached_kernels', tmp_path / 'cached_kernels.py')
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


def test_a_damaged_file_is_replaced(load, tmp_path, caplog):
    hits(load())
    (path,) = files(tmp_path, '.nbc')
    good = path.read_bytes()
    middle = bytearray(good)
    middle[len(good) // 2] ^= 255  # machine code
    for content in (b'', bytes(100), b'garbage\n', good[:-1], good + b'x', bytes(middle), *truncations(good, 4)):
        kernel_cache._warn_once.cache_clear()
        caplog.clear()
        path.write_bytes(content)
        assert hits(load()) == 0, content[:10]
        (line,) = [record.getMessage() for record in caplog.records]
        assert line.startswith(f'the CPU kernels in {path.parent} are damaged') and '\n' not in line
        assert hits(load()) == 1, 'the damaged file was not replaced'


def test_a_kernel_of_another_signature_is_not_run(load, tmp_path):
    """Otherwise the code for integers would read a float."""
    kernel = load()
    kernel(2), kernel(2.5)
    first, second = files(tmp_path, '.nbc')
    contents = first.read_bytes(), second.read_bytes()
    for path, content in zip((second, first), contents, strict=True):
        path.write_bytes(content)
    assert (load()(2), load()(2.5)) == (6, 7.5)


def change_source(tmp_path, name, old, new):
    """Change a source file, whose size and time Numba, and Python with whole seconds, take for its content."""
    path = tmp_path / f'{name}.py'
    path.write_text(path.read_text().replace(old, new))
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 2_000_000_000))


def test_a_kernel_of_an_old_source_file_is_not_run_after_a_full_disk(load, tmp_path, monkeypatch):
    """Numba had stored the new index, so the next process ran the old kernel."""
    assert hits(load()) == 0
    change_source(tmp_path, 'cached_kernels', '3 * x', '4 * x')
    open_for_write = caching.IndexDataCacheFile._open_for_write

    def full(self, path):
        if path.endswith('.nbc'):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return open_for_write(self, path)

    with monkeypatch.context() as patch:
        patch.setattr(caching.IndexDataCacheFile, '_open_for_write', full)
        assert load()(2) == 8
    assert load()(2) == 8
    kernel = load()
    assert kernel(2) == 8 and sum(kernel.stats.cache_hits.values()) == 1


def test_a_kernel_that_calls_a_changed_kernel_of_another_file_is_compiled_again(load, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'called_kernels.py').write_text(SOURCE)
    (tmp_path / 'cached_kernels.py').write_text(
        SOURCE.replace('jit\n', 'jit\nfrom called_kernels import triple as called\n', 1).replace('3 * x', 'called(x)')
    )
    assert (hits(load()), hits(load())) == (0, 1)
    change_source(tmp_path, 'called_kernels', '3 * x', '4 * x')
    monkeypatch.delitem(sys.modules, 'called_kernels')
    importlib.invalidate_caches()
    kernel = load()
    assert kernel(2) == 8 and not kernel.stats.cache_hits


INTRINSIC = """\
from llvmlite import ir
from numba.extending import intrinsic


@intrinsic
def tripled(typingctx, x):
    return x(x), lambda context, builder, signature, args: builder.mul(args[0], ir.Constant(args[0].type, 3))
"""


@pytest.mark.parametrize(
    ('source', 'old', 'new', 'body'),
    [
        ('FACTOR = 3\n', '3', '4', 'FACTOR * x'),
        ('import numpy\nFACTOR = numpy.array([3])\n', '[3]', '[4]', 'FACTOR[0] * x'),
        (INTRINSIC, ', 3', ', 4', 'tripled(x)'),
    ],
    ids=['constant', 'array', 'intrinsic'],
)
def test_a_kernel_with_a_changed_value_of_another_file_is_compiled_again(
    load, tmp_path, monkeypatch, source, old, new, body
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'kernel_values.py').write_text(source)
    name = 'tripled' if 'tripled' in body else 'FACTOR'
    changed = SOURCE.replace('jit\n', f'jit\nfrom kernel_values import {name}\n', 1).replace('3 * x', body)
    (tmp_path / 'cached_kernels.py').write_text(changed)
    monkeypatch.delitem(sys.modules, 'kernel_values', raising=False)
    assert (hits(load()), hits(load())) == (0, 1)
    change_source(tmp_path, 'kernel_values', old, new)
    monkeypatch.delitem(sys.modules, 'kernel_values')
    importlib.invalidate_caches()
    kernel = load()
    assert kernel(2) == 8 and not kernel.stats.cache_hits


def test_processes_that_compile_at_the_same_time_keep_both_kernels(load, monkeypatch, caplog):
    """Numba numbers the files of a function: the kernels of two signatures got the same name."""
    open_for_write, others = caching.IndexDataCacheFile._open_for_write, [2.5]

    def compile_another_first(self, path):
        if others:
            load()(others.pop())
        return open_for_write(self, path)

    monkeypatch.setattr(caching.IndexDataCacheFile, '_open_for_write', compile_another_first)
    load()(2)
    kernel = load()
    assert (kernel(2), kernel(2.5)) == (6, 7.5)
    assert sum(kernel.stats.cache_hits.values()) == 2 and not caplog.records


def test_kernels_of_an_explicit_recompilation_are_stored_again(load, tmp_path):
    kernel = load()
    hits(kernel)
    (path,) = files(tmp_path, '.nbc')
    (path.parent / 'other.nbc').touch()
    before = path.stat().st_mtime_ns
    kernel.recompile()
    assert path.stat().st_mtime_ns > before and (path.parent / 'other.nbc').exists() and hits(load()) == 1


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
    (path,) = files(tmp_path, '.nbc')
    path.unlink()
    path.mkdir()
    assert hits(load()) == 0
    (record,) = caplog.records
    assert f'CPU kernels cannot be cached in {path.parent} (Is a directory)' in record.getMessage()


def test_without_a_folder_every_process_compiles(load, tmp_path, monkeypatch, caplog):
    (tmp_path / 'file').write_text('')
    numba.config.reload_config()  # the next compilation would otherwise do so if a test has changed the environment
    monkeypatch.setattr(numba.config, 'CACHE_DIR', str(tmp_path / 'file'))
    monkeypatch.setattr(kernel_cache._KernelFiles, '_locator_classes', kernel_cache._KernelFiles._locator_classes[:1])
    (tmp_path / 'cached_kernels.py').write_text(SOURCE + SOURCE[SOURCE.index('@') :].replace('triple', 'again'))
    kernel = load()
    assert not caplog.records  # only when a kernel is compiled
    assert hits(kernel) == 0 and kernel.py_func.__globals__['again'](2) == 6
    (record,) = caplog.records  # one line for both kernels
    assert 'no folder for the compiled CPU kernels' in record.getMessage()


def test_a_user_without_home_gets_no_folder_named_tilde(load, tmp_path, monkeypatch, caplog):
    numba.config.reload_config()  # the next compilation would otherwise do so if a test has changed the environment
    monkeypatch.setattr(numba.config, 'CACHE_DIR', '')
    monkeypatch.setattr(kernel_cache._KernelFiles, '_locator_classes', [kernel_cache._UserFolder])
    monkeypatch.setattr('os.path.expanduser', lambda path: path)  # as for an unknown user without $HOME
    monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
    monkeypatch.chdir(tmp_path)
    assert hits(load()) == 0
    (record,) = caplog.records
    assert 'no folder for the compiled CPU kernels' in record.getMessage()
    assert [path.name for path in tmp_path.iterdir() if path.name != '__pycache__'] == ['cached_kernels.py']
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    assert (hits(load()), hits(load())) == (0, 1)


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


def locator_names(package):
    return [locator.__name__.lstrip('_') for locator in kernel_cache._locators(package)]


def test_a_checkout_keeps_its_kernels_and_an_installed_package_does_not(tmp_path):
    """``pip uninstall`` deletes only what it installed, and would leave kernels in ``__pycache__``."""
    (tmp_path / 'checkout').mkdir()
    (tmp_path / 'checkout' / 'pyproject.toml').touch()
    checkout, installed = (locator_names(tmp_path / name / 'mask_rcnn') for name in ('checkout', 'site-packages'))
    assert checkout.index('InTreeCacheLocator') < checkout.index('UserFolder')
    assert [name for name in checkout if 'InTree' not in name] == installed and 'UserFolder' in installed


def test_the_folder_of_the_user_is_that_of_this_package(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    locator = kernel_cache._UserFolder(locator_names, __file__)
    folder = locator.get_cache_path()
    assert folder.startswith(str(tmp_path / 'mask-rcnn-chainer' / 'kernels') + os.sep)
