"""Files that the test processes of one run share: whichever needs one first writes it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

#: The environment variable that names the folder for tests that run pytest.
VARIABLE = 'MASK_RCNN_TEST_FILES'


def find_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of this run, which is that of the worker processes of pytest-xdist as well."""
    if VARIABLE in os.environ:
        return Path(os.environ[VARIABLE])
    folder = factory.getbasetemp()
    return folder.parent if 'PYTEST_XDIST_WORKER' in os.environ else folder


def write_once(path: Path, write: Callable[[Path], object]) -> Path:
    """Return a file, written by the first process that needs it.

    Args:
        path: The file.
        write: Writes the path that it is called with, of the same name in a folder of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{path}.lock'):
        if not path.exists():
            with tempfile.TemporaryDirectory(dir=path.parent) as folder:
                write(Path(folder) / path.name)
                os.replace(Path(folder) / path.name, path)
    return path
