"""Arrays of whole networks, and the modules that rebuild the reference weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np


def zeros(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return arrays of zeros that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def import_file(path: Path) -> ModuleType:
    """Import a Python file that is not on the module search path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
