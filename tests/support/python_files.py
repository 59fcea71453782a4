"""Python files that are not part of a package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def import_file(path: Path) -> ModuleType:
    """Import a Python file; the folders that it adds to the module search path leave the path again.

    The folders of the reference outputs have the names of packages (``torchvision``, ``detectron2``), which would be
    importable as namespace packages.
    """
    search_path = list(sys.path)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = search_path
    return module
