"""Compiled CPU kernels as machine code of processors and systems that this computer does not have."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

import llvmlite.binding as llvm
import numba
from numba.core import codegen

#: By name: LLVM's target and a processor.
TARGETS = {
    'macOS, Apple M1': ('arm64-apple-darwin', 'apple-m1'),
    'Linux, arm64': ('aarch64-linux-gnu', 'generic'),
    'Windows, AVX2': ('x86_64-pc-windows-msvc', 'x86-64-v3'),
    'Windows, SSE2': ('x86_64-pc-windows-msvc', 'x86-64'),
}
#: An operation of x86 in Numba's count of references, which Numba replaces when it generates machine code.
_X86_ATOMIC = re.compile(r'= (?:tail )?call i8 @llvm\.x86\.atomic\.\w+\.cc\.i64\(.*\)')


@contextlib.contextmanager
def recorded_modules() -> Iterator[list[str]]:
    """Yield the list to which the optimised code of every kernel is appended that is compiled in the context."""
    modules: list[str] = []
    optimize = codegen.CPUCodeLibrary._optimize_final_module

    def optimize_and_record(library):
        optimize(library)
        modules.append(str(library._final_module))

    codegen.CPUCodeLibrary._optimize_final_module = optimize_and_record
    try:
        yield modules
    finally:
        codegen.CPUCodeLibrary._optimize_final_module = optimize


def optimized_code(kernel: Callable, *arguments: object) -> str:
    """Return the optimised code of a kernel in LLVM's language, compiled for the types of arguments.

    It does not count references to arrays, for which Numba has code of this processor.
    """
    compiled = numba.njit(nogil=True, error_model='numpy', _nrt=False)(kernel.py_func)
    with recorded_modules() as modules:
        compiled.compile(tuple(map(numba.typeof, arguments)))
    return modules[-1]


def assembly_of(code: str, target: str) -> str:
    """Return the assembly of optimised code for one of :data:`TARGETS`.

    Raises:
        RuntimeError: The code contains what the target does not have.
    """
    triple, processor = TARGETS[target]
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3, codemodel='default')
    code = re.sub(r'^target triple = .*$', f'target triple = "{triple}"', code, flags=re.MULTILINE)
    code = re.sub(r'^target datalayout = .*$', f'target datalayout = "{machine.target_data}"', code, flags=re.MULTILINE)
    module = llvm.parse_assembly(_X86_ATOMIC.sub('= add i8 0, 0', code))
    module.verify()
    return machine.emit_assembly(module)


def called_functions(assembly: str) -> set[str]:
    """Return the names of the functions that assembly calls, without those of Python and Numba."""
    names = re.findall(r'^\s+(?:bl|callq?)\s+([A-Za-z_]\w*)', assembly, re.MULTILINE)
    names = {re.sub(r'^_(?=_Z|Py|_Py|numba|NRT|mem|bzero)', '', name) for name in names}
    return {name for name in names if not re.match(r'_?Py|numba_|NRT_|_?_ZN', name)}
