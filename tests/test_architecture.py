"""The rules of the house that a program can check."""

import ast
import re
import subprocess

import pytest

#: Subpackages from the top down; a module imports only from those below its own.
PACKAGES = ('commands', 'training', 'models', 'targets', 'evaluation', 'detections', 'visualization', 'datasets',
            'weights', 'ops', 'config', 'compat')


def modules(root):
    return sorted((root / 'mask_rcnn').rglob('*.py'))


def imports(path):
    """Yield the subpackages of mask_rcnn that a module imports from, with the line; not those for type hints."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for_hints = {inner for node in ast.walk(tree)
                 if isinstance(node, ast.If) and getattr(node.test, 'id', '') == 'TYPE_CHECKING'
                 for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in for_hints:
            continue
        names = []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [f'{node.module}.{alias.name}' for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            match = re.match(r'mask_rcnn\.(\w+)', name)
            if match and match[1] in PACKAGES:
                yield match[1], node.lineno


def test_data_flows_one_way(root):
    wrong = []
    for path in modules(root):
        package = path.relative_to(root / 'mask_rcnn').parts[0].removesuffix('.py')
        if package not in PACKAGES:
            continue  # mask_rcnn/__init__.py gathers from all subpackages
        wrong += [f'{path.relative_to(root)}:{line} imports {other}' for other, line in imports(path)
                  if PACKAGES.index(other) < PACKAGES.index(package)]
    assert wrong == []


def test_every_module_has_a_room(root):
    found = {path.relative_to(root / 'mask_rcnn').parts[0].removesuffix('.py') for path in modules(root)}
    assert found == {*PACKAGES, '__init__'}


def test_operations_know_no_network(root):
    allowed = {'numpy', 'numba', 'chainer', 'cupy', 'mask_rcnn', '__future__', 'math', 'functools', 'importlib',
               'collections', 'contextlib', 'ctypes', 'dataclasses', 'decimal', 'fractions', 'operator', 'os',
               'threading', 'concurrent'}
    for path in (root / 'mask_rcnn' / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else (
                [node.module] if isinstance(node, ast.ImportFrom) else [])
            assert {name.split('.')[0] for name in names} <= allowed, path


def test_the_library_prints_nothing(root):
    for path in modules(root):
        calls = [node for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
                 if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print']
        assert calls == [], path


@pytest.mark.parametrize('pattern', [r'https?://\S*(?:pypi|pythonhosted|npmjs)\S*', r'--(?:extra-)?index-url',
                                     r'\bTODO\b|\bFIXME\b|NotImplementedError'])
def test_words_that_do_not_belong_here(root, pattern):
    listing = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip('not a git checkout')
    own = 'tests/test_architecture.py'
    names = [name for name in listing.stdout.splitlines() if name != own and (root / name).exists()]
    texts = {name: (root / name).read_bytes().decode('utf-8', 'replace') for name in names
             if not name.endswith(('.npz', '.png'))}
    assert [name for name, text in texts.items() if re.search(pattern, text)] == []
