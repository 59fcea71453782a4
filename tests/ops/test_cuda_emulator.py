"""The libraries of the emulator of CUDA, which later runs of the tests use again."""

from tests.support import cuda_emulator
from tests.support.cuda_emulator import CudaEmulator


class Compiled(Exception):
    """Ends a compilation; its argument is the path of the library."""


def library(folder):
    """Return the name of the library that an emulator compiles."""
    try:
        CudaEmulator(folder).kernel('boxes/top_k.cu', 'top_k_sort')
    except Compiled as compiled:
        return compiled.args[0].name
    raise AssertionError('nothing was compiled')


def test_a_library_depends_on_the_header_and_the_compiler(tmp_path, monkeypatch):
    def compile_(text, flags, path):
        raise Compiled(path)

    monkeypatch.setattr(cuda_emulator, '_compile', compile_)
    monkeypatch.setattr(cuda_emulator, '_compiler', lambda: 'g++ 12')
    header = tmp_path / 'cuda_emulator.h'
    monkeypatch.setattr(cuda_emulator, '_HEADER', header)
    header.write_text('// first')
    first = library(tmp_path)
    assert library(tmp_path) == first
    header.write_text('// second')
    second = library(tmp_path)
    monkeypatch.setattr(cuda_emulator, '_compiler', lambda: 'g++ 13')
    assert len({first, second, library(tmp_path)}) == 3
