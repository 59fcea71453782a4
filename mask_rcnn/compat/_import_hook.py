"""An import hook that patches Chainer and ChainerCV when they are first imported.

This module imports only the standard library, so a process that never imports Chainer never loads the patches.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

#: The patched modules, in the order in which they must be imported.  ``chainer.testing`` is separate because it imports
#: pytest, and ``import chainer`` does not import it (ChainerCV and ``chainer.gradient_check`` do).
MODULES = ('chainer', 'chainer.testing', 'chainercv')

_patched: set[str] = set()


def register() -> None:
    """Patch Chainer and ChainerCV on their first import; idempotent.

    A module that is already imported (by a user who patched it) gets the lasting patches immediately.
    """
    for name in MODULES:
        if name in sys.modules and name not in _patched:
            with _patches(name):
                pass
            _patched.add(name)
    if not _patched.issuperset(MODULES) and not any(isinstance(finder, PatchingFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PatchingFinder())


def install() -> None:
    """Import Chainer and ChainerCV with their patches; idempotent.

    Raises:
        ImportError: Chainer or ChainerCV is not installed.
    """
    register()
    for name in MODULES:
        if importlib.util.find_spec(name) is None:
            raise ImportError(f'{name} is not installed; "mask-rcnn doctor" states what to install', name=name)
        importlib.import_module(name)


def _patches(name: str) -> AbstractContextManager[None]:
    """Return the context that patches a module; the patches are imported now because they need NumPy."""
    return importlib.import_module('mask_rcnn.compat._install').patches(name)


class PatchingFinder(importlib.abc.MetaPathFinder):
    """A finder that wraps the loaders of :data:`MODULES`; the later finders in :data:`sys.meta_path` find them.

    The finder is removed from :data:`sys.meta_path` when all modules are patched.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the specification of a module to patch; ``None`` for other and missing modules."""
        if fullname not in MODULES or fullname in _patched:
            return None
        finders = sys.meta_path[sys.meta_path.index(self) + 1 :] if self in sys.meta_path else sys.meta_path
        for finder in finders:
            find_spec = getattr(finder, 'find_spec', None)
            spec = None if find_spec is None else find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _PatchingLoader(spec.loader)
                return spec
        return None


class _PatchingLoader(importlib.abc.Loader):
    """A loader that executes a module with its patches and delegates everything else to the original loader."""

    def __init__(self, loader: Any):
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the original loader, such as ``get_source``."""
        if name == '_loader':  # a copy that is not initialised yet
            raise AttributeError(name)
        return getattr(self._loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        """Create the module as the original loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        """Execute the module; after a failure, the hook remains installed for the next attempt."""
        name = module.__name__
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        for required in MODULES[: MODULES.index(name)]:
            # Imported before the patches: if two threads import one module each, the contexts do not overlap.
            importlib.import_module(required)
        with _patches(name):
            self._loader.exec_module(module)
        _patched.add(name)
        if _patched.issuperset(MODULES):
            # A new list, because another thread may iterate over the present one.
            sys.meta_path = [finder for finder in sys.meta_path if not isinstance(finder, PatchingFinder)]
