"""An extension of griffe, which reads the package for the API reference, for the conventions of its docstrings.

- Sphinx roles become links to the objects that they name, or code if the site has no page about them.  A name that does
  not exist is a warning, which ends a strict build.
- Comments ``#: text`` before a constant become its docstring.
- Literal blocks become fenced code blocks.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import griffe

sys.path.append(str(Path(__file__).parent))  # mkdocstrings loads this file by its path

from docstring_roles import comment_before, literal_blocks, replace_roles

_LOGGER = griffe.get_logger('mask_rcnn')

#: Packages to whose objects docstrings refer without a link.
_EXTERNAL = {*sys.stdlib_module_names, 'chainer', 'chainercv', 'chainermn', 'cupy', 'cv2', 'numba', 'numpy', 'PIL'}
_EXTERNAL |= {'matplotlib', 'onnx', 'pycocotools', 'starlette', 'uvicorn', 'prometheus_client', *dir(builtins)}


class PackageDocstrings(griffe.Extension):
    """Converts the docstrings of a package after it has been loaded."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Convert all docstrings of a package."""
        for obj in _objects(pkg):
            if obj.docstring is None and obj.is_attribute:
                text = _comment(obj)
                if text:
                    obj.docstring = griffe.Docstring(text, lineno=obj.lineno, parent=obj)
            if obj.docstring is not None:
                text = replace_roles(obj.docstring.value, partial(_link, obj))
                obj.docstring.value = literal_blocks(text)


def _objects(parent: Any) -> Iterator[Any]:
    """Yield an object and all that it contains, without imported names."""
    yield parent
    for member in parent.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _comment(obj: Any) -> str:
    path = obj.filepath
    if obj.lineno is None or not isinstance(path, Path):
        return ''
    return comment_before(path.read_text(encoding='utf-8').splitlines(), obj.lineno)


def _link(obj: Any, kind: str, target: str, title: str) -> str:
    """Return the Markdown of a role in the docstring of an object."""
    brackets = '()' if kind in ('func', 'meth') else ''
    shown = f'<code>{title}{brackets}</code>'
    path = find_object(obj, target)
    if path is None:
        if target.partition('.')[0] not in _EXTERNAL:
            _LOGGER.warning(f'{obj.path}: the docstring refers to {target}, which does not exist')
        return shown
    # Not every object has a page: without the attribute, a missing one would be an error.
    return f'<autoref identifier="{path}" optional>{shown}</autoref>'


def find_object(obj: Any, target: str) -> str | None:
    """Return the path of an object that a docstring names, or ``None`` if it is not an object of the package.

    Args:
        obj: The object with the docstring.
        target: A full path, or a name in the scope of ``obj``; ``.name`` is a module beside it.
    """
    root = obj.package.path
    if target.startswith('.'):
        module = obj.module if obj.module.is_init_module else obj.module.parent
        target = f'{module.path}{target}'
    if target.split('.')[0] == root:
        return _existing(obj, target)
    name, _, rest = target.partition('.')
    scope = obj
    while scope is not None:
        members = scope.all_members if scope.is_class else scope.members
        if name in members:
            member = members[name]
            path = member.target_path if member.is_alias else member.path
            return _existing(obj, f'{path}.{rest}' if rest else path)
        scope = scope.parent if not scope.is_module else None
    return None


def _existing(obj: Any, path: str) -> str | None:
    """Return the canonical path of an object of the package, or ``None`` if it does not exist."""
    try:
        found = obj.modules_collection[path]
        while found.is_module and found.name in found.members and not found.is_init_module:
            found = found.members[found.name]  # a function hides the module of its name
        return found.canonical_path
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None
