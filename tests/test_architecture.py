"""Rules on the structure of the package that a program can check."""

import ast
import re
import subprocess
from graphlib import CycleError, TopologicalSorter
from xml.etree import ElementTree

import pytest

from scripts.draw_architecture import FLOORS, draw

FLOOR_OF = {package: number for number, floor in enumerate(FLOORS) for package in floor}

#: Packages that an array operation may import.
IMPORTED_BY_OPERATIONS = {
    *('numpy', 'numba', 'llvmlite', 'chainer', 'cuda', 'cupy', 'cv2', 'mask_rcnn', 'pycocotools'),
    *('__future__', 'abc', 'collections', 'concurrent', 'contextlib', 'ctypes', 'dataclasses', 'enum', 'functools'),
    *(
        'hashlib',
        'importlib',
        'inspect',
        'logging',
        'math',
        'operator',
        'os',
        'pathlib',
        'pickle',
        'queue',
        're',
        'signal',
        'sys',
        'threading',
        'typing',
        'weakref',
    ),
}
MAX_BODY_LINES = 60


def module_name(root, path):
    """Return a file's dotted module name."""
    parts = path.relative_to(root).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


@pytest.fixture(scope='module')
def modules(root):
    """Dotted name -> syntax tree, for every module of the package."""
    paths = sorted((root / 'mask_rcnn').rglob('*.py'))
    return {module_name(root, path): ast.parse(path.read_text(encoding='utf-8')) for path in paths}


def imported_modules(tree, modules):
    """Yield the modules of the package that a tree imports anywhere: in functions and for type hints as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module in modules:
            names = (f'{node.module}.{alias.name}' for alias in node.names)
            yield from (name if name in modules else node.module for name in names)


@pytest.fixture(scope='module')
def graph(modules):
    """Dotted name -> the modules that it imports."""
    return {name: set(imported_modules(tree, modules)) - {name} for name, tree in modules.items()}


def test_modules_import_from_lower_floors_only(graph):
    upward = [
        f'{name} imports {other}'
        for name, others in graph.items()
        for other in others
        if name.count('.') and other.count('.')
        if (package := name.split('.')[1]) != (imported := other.split('.')[1])
        if FLOOR_OF[imported] <= FLOOR_OF[package]
    ]
    assert upward == []


def test_imports_are_absolute(modules):
    """The other tests of imports do not resolve relative ones."""
    for name, tree in modules.items():
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree)), name


def test_every_subpackage_has_a_floor(modules):
    assert {name.split('.')[1] for name in modules if name.count('.')} == set(FLOOR_OF)


def test_the_figure_is_up_to_date(root):
    """``python scripts/draw_architecture.py docs/architecture.svg`` draws it."""
    assert (root / 'docs' / 'architecture.svg').read_text(encoding='utf-8') == draw()


def test_the_figure_has_every_package_once():
    text = ElementTree.fromstring(draw())
    names = [element.text for element in text.iter('{http://www.w3.org/2000/svg}text')]
    assert [name for name in names if name in FLOOR_OF] == [name for floor in FLOORS for name in floor]


def named_code(text):
    """Return the pairs of a page: a function or class, and the file in which the page locates it."""
    return re.findall(r'`([\w.]+)(?:\([^`]*\))?` in `(mask_rcnn/[\w/.]+\.py)`', text)


def test_the_page_names_code_that_exists(root):
    text = (root / 'docs' / 'architecture.md').read_text(encoding='utf-8')
    pairs = named_code(text)
    assert len(pairs) > 30
    for name, path in pairs:
        source = (root / path).read_text(encoding='utf-8')
        owner, _, member = name.rpartition('.')
        assert re.search(rf'^\s*(?:def|class) {member}\b', source, re.MULTILINE), (name, path)
        if owner[:1].isupper():
            assert re.search(rf'^class {owner}\b', source, re.MULTILINE), (name, path)


@pytest.mark.parametrize('page', ['architecture', 'agreement', 'performance', 'extending/*'])
def test_the_pages_name_files_that_exist(root, page):
    paths = sorted((root / 'docs').glob(f'{page}.md'))
    assert paths
    for path in paths:
        named = re.findall(r'`((?:mask_rcnn|tests|scripts|docs)/[\w./*]+)`', path.read_text(encoding='utf-8'))
        assert [name for name in named if not any(root.glob(name))] == [], path


def test_no_module_imports_itself_through_others(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(' -> '.join(reversed(error.args[1])))


def test_operations_know_no_network(modules):
    for name, tree in modules.items():
        if not name.startswith('mask_rcnn.ops'):
            continue
        imported = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split('.')[0])
        assert imported <= IMPORTED_BY_OPERATIONS, name


def test_the_library_prints_nothing(modules):
    for name, tree in modules.items():
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        assert not any(getattr(call.func, 'id', '') == 'print' for call in calls), name


def test_no_function_body_is_long(modules):
    long = []
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                if body and body[-1].end_lineno - body[0].lineno + 1 > MAX_BODY_LINES:
                    long.append(f'{name}.{node.name}')
    assert long == []


@pytest.mark.parametrize(
    'pattern',
    [
        r'https?://\S*(?:pypi|pythonhosted|npmjs)\S*',
        r'--(?:extra-)?index-url',
        r'\bTODO\b|\bFIXME\b|NotImplementedError',
    ],
)
def test_no_file_contains(root, pattern):
    listing = subprocess.run(['git', 'ls-files'], cwd=root, capture_output=True, text=True, check=False)
    if listing.returncode:
        pytest.skip('not a git checkout')
    this_file = 'tests/test_architecture.py'
    names = [name for name in listing.stdout.splitlines() if name != this_file and (root / name).exists()]
    texts = {
        name: (root / name).read_bytes().decode('utf-8', 'replace')
        for name in names
        if not name.endswith(('.npz', '.png'))
    }
    assert [name for name, text in texts.items() if re.search(pattern, text)] == []
