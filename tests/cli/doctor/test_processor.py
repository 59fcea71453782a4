"""CPU kernels, their cache, the BLAS and its environment variables."""

import dataclasses

import pytest

from mask_rcnn.cli.doctor import probes
from mask_rcnn.cli.doctor.processor import describe_blas, describe_kernels, describe_processor
from mask_rcnn.ops.runtime import kernel_cache, parallel
from tests.support.machines import complete_machine, missing, with_probes


def with_variables(**variables):
    """Return a machine with environment variables."""
    return dataclasses.replace(complete_machine(), environment=variables)


def with_kernels(machine, **changes):
    """Return a machine with other compiled kernels."""
    return with_probes(machine, kernels={**machine.facts('kernels'), **changes})


def texts(section):
    """Return the texts of the advice, none of which is an error."""
    assert {item.level for item in section.advice} <= {'warning'}
    return [item.text for item in section.advice]


def test_a_processor():
    assert describe_processor(complete_machine()).text == 'znver4 (AVX2, FMA), 8 CPUs, 8 threads'
    limited = {'cpus': 64, 'available': 4, 'threads': 4, 'blas_threads': 4}
    machine = with_probes(complete_machine(), threads=limited)
    assert describe_processor(machine).text == 'znver4 (AVX2, FMA), 64 CPUs, 4 of them for this process, 4 threads'
    machine = with_probes(machine, numba=missing('numba'), threads=missing('numba'))
    assert describe_processor(machine).text == 'not checked'


def test_the_facts_of_this_processor():
    facts = probes.PROBES['threads']()
    assert facts['threads'] == parallel.cpu_count() and facts['available'] == len(parallel.available_cpus())
    assert probes.PROBES['numba']()['cpu']
    assert probes.PROBES['numpy']()['version'] and probes.PROBES['blas']()['name']


def test_compiled_kernels():
    section = describe_kernels(complete_machine())
    assert section.text == '70 of 78 compiled, stored in /p/*/__pycache__' and texts(section) == []
    section = describe_kernels(with_kernels(complete_machine(), n_stored=0, folders=['/p/a']))
    assert section.text == (
        '0 of 78 compiled, stored in /p/a; the first detection compiles them, which can take a minute'
    )


def test_kernels_that_cannot_be_stored():
    machine = with_kernels(complete_machine(), n_stored=0, folders=[], no_folder='the disk is full')
    section = describe_kernels(machine)
    assert section.text == '78 kernels, compiled by every process'
    assert texts(section) == [
        'the compiled CPU kernels cannot be stored (the disk is full): set NUMBA_CACHE_DIR to a folder that you can '
        'write to'
    ]


def test_a_named_cache_folder_that_is_not_used():
    assert texts(describe_kernels(with_variables(NUMBA_CACHE_DIR='/p'))) == []
    assert texts(describe_kernels(with_variables(NUMBA_CACHE_DIR='/full'))) == [
        'NUMBA_CACHE_DIR=/full is not used, because it cannot be written: make it writable, or unset it'
    ]


@pytest.mark.parametrize('value', ['1', '2'])
def test_compilation_is_disabled(value):
    section = describe_kernels(with_variables(NUMBA_DISABLE_JIT=value))
    assert section.text == 'not compiled, because of NUMBA_DISABLE_JIT'
    assert texts(section)[0].endswith(': unset it')
    assert texts(describe_kernels(with_variables(NUMBA_DISABLE_JIT='0'))) == []


def test_kernels_that_fail():
    machine = with_probes(complete_machine(), kernels={'error': 'LLVM ERROR'})
    (advice,) = describe_kernels(machine).advice
    assert (advice.level, advice.text) == ('error', 'the CPU kernels fail (LLVM ERROR): install mask-rcnn again')
    assert describe_kernels(with_probes(machine, numba=missing('numba'))).advice == []  # reported with the packages


@parallel.jit
def _kernel(x):
    return x + 1


def test_stored_kernels_are_counted(monkeypatch, tmp_path):
    monkeypatch.setenv('NUMBA_CACHE_DIR', str(tmp_path))
    monkeypatch.setattr(kernel_cache.caching.config, 'CACHE_DIR', str(tmp_path))
    kernel = parallel.jit(_kernel.py_func)
    without = parallel.jit(_kernel.py_func)
    without._cache = kernel_cache.NoKernelCache('the disk is full')
    monkeypatch.setattr(probes, '_all_kernels', lambda: [kernel])
    facts = {'n_kernels': 1, 'n_stored': 0, 'folders': [str(kernel._cache.cache_path)], 'no_folder': None}
    assert probes.PROBES['kernels']() == facts
    kernel(1)
    assert probes.PROBES['kernels']() == facts | {'n_stored': 1}
    monkeypatch.setattr(probes, '_all_kernels', lambda: [kernel, without])
    assert probes.PROBES['kernels']() == facts | {'n_stored': 1, 'n_kernels': 2, 'no_folder': 'the disk is full'}


def test_the_kernels_of_the_package_are_found():
    names = {kernel.py_func.__name__ for kernel in probes._all_kernels()}
    from mask_rcnn.ops.boxes import nms  # one of the modules with kernels

    defined = {name for name, value in vars(nms).items() if hasattr(value, 'py_func')}
    assert defined and defined <= names


def test_a_blas():
    section = describe_blas(with_variables(OPENBLAS_NUM_THREADS='4', OPENBLAS_CORETYPE='Haswell', PATH='/bin'))
    assert section.text == (
        'OpenBLAS 0.3.31 for SkylakeX, 8 threads, OPENBLAS_NUM_THREADS=4, OPENBLAS_CORETYPE=Haswell'
    )
    assert texts(section) == []


@pytest.mark.parametrize(
    ('name', 'text'),
    [('mkl-sdl', 'MKL 2024.1'), ('accelerate', 'Accelerate 2024.1'), ('none', 'none 2024.1')],
)
def test_another_blas(name, text):
    facts = {'name': name, 'version': '2024.1', 'core': None}
    threads = {**complete_machine().facts('threads'), 'blas_threads': None}
    assert describe_blas(with_probes(with_variables(), blas=facts, threads=threads)).text == text


def test_a_blas_that_cannot_be_checked():
    machine = with_probes(with_variables(), blas=missing('numpy'), threads=missing('numpy'))
    assert describe_blas(machine).text == 'not checked'


@pytest.mark.parametrize(
    'name', ['OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS', 'OMP_NUM_THREADS', 'VECLIB_MAXIMUM_THREADS']
)
@pytest.mark.parametrize('value', ['four', '0', '-1', '1.5'])
def test_a_variable_that_is_not_a_number_of_threads(name, value):
    assert texts(describe_blas(with_variables(**{name: value}))) == [
        f'{name}={value} is not a number of threads: unset it, or set it to 8'
    ]


def test_more_threads_than_cpus():
    assert texts(describe_blas(with_variables(OMP_NUM_THREADS='64'))) == [
        'OMP_NUM_THREADS=64 is more than the 8 CPUs of this process, which slows it down: unset it, or set it to 8'
    ]
    assert texts(describe_blas(with_variables(OMP_NUM_THREADS='8,1'))) == []  # for nested regions
