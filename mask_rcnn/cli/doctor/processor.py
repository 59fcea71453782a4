"""The sections on the CPU: the processor, the kernels that Numba compiles, and the BLAS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mask_rcnn.cli.doctor.findings import Findings
from mask_rcnn.cli.doctor.packages import has_broken_package
from mask_rcnn.cli.doctor.report import Advice, Section
from mask_rcnn.io.paths import deepest_folder
from mask_rcnn.io.wording import counted

#: Environment variables with a number of threads.
_THREAD_VARIABLES = (
    'OPENBLAS_NUM_THREADS',
    'GOTO_NUM_THREADS',
    'MKL_NUM_THREADS',
    'VECLIB_MAXIMUM_THREADS',
    'BLIS_NUM_THREADS',
    'OMP_NUM_THREADS',
)
#: Other variables that change the speed or the rounding.
_OTHER_VARIABLES = ('OPENBLAS_CORETYPE', 'MKL_CBWR', 'NUMBA_CPU_NAME', 'NUMBA_CPU_FEATURES')

_BLAS_NAMES = {'openblas': 'OpenBLAS', 'mkl': 'MKL', 'accelerate': 'Accelerate', 'blis': 'BLIS'}

#: The variable that names the folder of the cache.
_CACHE_VARIABLE = 'NUMBA_CACHE_DIR'


def describe_processor(findings: Findings) -> Section:
    """Return the section on the processor and the threads."""
    numba, threads = findings.facts('numba'), findings.facts('threads')
    parts = []
    if 'cpu' in numba:
        parts.append(f'{numba["cpu"]} ({", ".join(numba["features"]) or "no vector instructions known"})')
    if 'threads' in threads:
        n_all, n_available = threads['cpus'] or threads['available'], threads['available']
        usable = '' if n_all == n_available else f', {n_available} of them for this process'
        parts += [counted(n_all, 'CPU') + usable, counted(threads['threads'], 'thread')]
    facts = {'cpu': numba.get('cpu'), 'features': numba.get('features'), **_without_error(threads)}
    return Section('CPU', ', '.join(parts) or 'not checked', [], facts)


def describe_kernels(findings: Findings) -> Section:
    """Return the section on the compiled kernels and their cache."""
    facts, advice = findings.facts('kernels'), []
    if findings.facts('numba').get('is_disabled') or _disables_jit(findings.environment):
        text = 'not compiled, because of NUMBA_DISABLE_JIT'
        advice.append(Advice('warning', f'kernels are {text}, and run several hundred times slower: unset it'))
        return Section('kernels', text, advice, {'is_disabled': True})
    reason = findings.error('kernels')
    if reason is not None:
        if not has_broken_package(findings):
            advice.append(Advice('error', f'the CPU kernels fail ({reason}): install mask-rcnn again'))
        return Section('kernels', 'not checked', advice)
    n_kernels, n_stored, folders = facts['n_kernels'], facts['n_stored'], facts['folders']
    named = findings.environment.get(_CACHE_VARIABLE)
    place = _common_folder(folders)
    if facts['no_folder'] is not None:
        text = f'{counted(n_kernels, "kernel")}, compiled by every process'
        fault = f'the compiled CPU kernels cannot be stored ({facts["no_folder"]})'
        advice.append(Advice('warning', f'{fault}: set {_CACHE_VARIABLE} to a folder that you can write to'))
        return Section('kernels', text, advice, facts)
    text = f'{n_stored} of {n_kernels} compiled, stored in {place}'
    if n_stored == 0:
        text += '; the first detection compiles them, which can take a minute'
    if named and not Path(place).resolve().is_relative_to(Path(named).resolve()):
        fault = f'{_CACHE_VARIABLE}={named} is not used, because it cannot be written'
        advice.append(Advice('warning', f'{fault}: make it writable, or unset it'))
    return Section('kernels', text, advice, facts)


def _disables_jit(environment: Mapping[str, str]) -> bool:
    return environment.get('NUMBA_DISABLE_JIT', '0') not in ('', '0')


def _common_folder(folders: list[str]) -> str:
    """Return the folder of the caches; ``/x/*/__pycache__`` for folders of this name below ``/x``."""
    if not folders:
        return 'no folder'
    if len(folders) == 1:
        return folders[0]
    names = {os.path.basename(folder) for folder in folders}
    common = deepest_folder(folders)
    if common is None:
        return counted(len(folders), 'folder')
    return f'{common}{os.sep}*{os.sep}{names.pop()}' if len(names) == 1 else common


def describe_blas(findings: Findings) -> Section:
    """Return the section on NumPy's BLAS, its threads and the environment variables that change it."""
    environment, facts, threads = findings.environment, findings.facts('blas'), findings.facts('threads')
    set_variables = {
        name: environment[name] for name in (*_THREAD_VARIABLES, *_OTHER_VARIABLES) if environment.get(name)
    }
    parts = []
    if 'name' in facts:
        name = next((title for key, title in _BLAS_NAMES.items() if key in facts['name'].lower()), facts['name'])
        version = '.'.join(facts['version'].split('.')[:3])
        core = f' for {facts["core"]}' if facts.get('core') else ''
        parts.append(f'{name} {version}'.strip() + core)
    n_threads = threads.get('blas_threads')
    if n_threads:
        parts.append(counted(n_threads, 'thread'))
    parts += [f'{name}={value}' for name, value in set_variables.items()]
    advice = _thread_advice(set_variables, threads.get('available') or os.cpu_count() or 1)
    facts = {**_without_error(facts), 'threads': n_threads, 'environment': set_variables}
    return Section('BLAS', ', '.join(parts) or 'not checked', advice, facts)


def _thread_advice(variables: Mapping[str, str], n_cpus: int) -> list[Advice]:
    """Return the advice on environment variables with a wrong number of threads."""
    advice = []
    for name in _THREAD_VARIABLES:
        value = variables.get(name)
        if value is None:
            continue
        # OpenMP accepts a list, a number for each level of nested regions.
        numbers = value.split(',') if name == 'OMP_NUM_THREADS' else [value]
        if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
            fault = f'{name}={value} is not a number of threads'
            advice.append(Advice('warning', f'{fault}: unset it, or set it to {n_cpus}'))
        elif int(numbers[0]) > n_cpus:
            fault = f'{name}={value} is more than the {counted(n_cpus, "CPU")} of this process'
            advice.append(Advice('warning', f'{fault}, which slows it down: unset it, or set it to {n_cpus}'))
    return advice


def _without_error(facts: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in facts.items() if name not in ('error', 'missing')}
