"""Compilation of C++ by g++, with a folder of compiled libraries that all processes share."""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path

_FLAGS = ('-std=c++20', '-O2', '-ffp-contract=off', '-shared', '-fPIC', '-fno-gnu-unique', '-w')


@functools.cache
def folder() -> Path:
    """Return the folder of compiled libraries, whose names contain a hash of their sources."""
    default = Path(__file__).parents[3] / '.pytest_cache' / 'cupy_stand_in'  # not in /tmp, where others could write it
    path = Path(os.environ.get('CUPY_STAND_IN_CACHE', default))
    path.mkdir(parents=True, exist_ok=True)
    return path


@functools.cache
def emulator():
    from tests.support.cuda_emulator import CudaEmulator  # imports Chainer, which imports the stand-in

    return CudaEmulator(folder())


def compile_library(stem: str, text: str, flags: tuple[str, ...] = ()) -> ctypes.CDLL:
    """Return the library of a C++ text."""
    from tests.support.cuda_emulator import load_library

    return load_library(folder(), stem, text, [*_FLAGS, *flags])
