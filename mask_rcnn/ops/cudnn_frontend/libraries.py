"""The names of CUDA's shared libraries, and their places in Python packages."""

from __future__ import annotations

import sys
from pathlib import Path

#: The folders of the libraries in NVIDIA's Python packages: of Linux, and of Windows before and since CUDA 13.
_PACKAGE_FOLDERS = ('nvidia/*/lib', 'nvidia/*/bin', 'nvidia/*/bin/*')


def library_name(name: str, major: int) -> str:
    """Return the file name of a CUDA library: ``libcublas.so.12``, or ``cublas64_12.dll`` on Windows.

    Args:
        name: The name of the library, such as ``cublas``.
        major: The major version of CUDA.
    """
    return f'{name}64_{major}.dll' if sys.platform == 'win32' else f'lib{name}.so.{major}'


def find_in_packages(file_name: str) -> str | None:
    """Return the path of a library that a Python package of NVIDIA's contains, or ``None``."""
    for folder in sys.path:
        for packages in _PACKAGE_FOLDERS:
            for path in sorted(Path(folder).glob(f'{packages}/{file_name}')):
                return str(path)
    return None
