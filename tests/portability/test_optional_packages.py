"""The tests can be collected without the packages that only some of them need."""

import ast
import re
import subprocess
import sys

from tests import conftest
from tests.support.environment import subprocess_environment

#: Imported by the dependencies of the package, or installed with pytest.
ALWAYS_INSTALLED = {'_pytest', 'cv2', 'llvmlite', 'mask_rcnn', 'PIL', 'pytest', 'scripts', 'tests', 'yaml'}


def required_packages(root):
    """Return the names of the modules that every environment has."""
    lines = (root / 'build_backend' / 'dependencies.txt').read_text().splitlines()
    names = {re.match(r'[\w-]+', line)[0] for line in lines if line and not line.startswith('#')}
    scripts = {path.stem for path in (root / 'scripts').rglob('*.py')} | {'backend'}
    return names | scripts | ALWAYS_INSTALLED | set(sys.stdlib_module_names)


def imported_packages(path):
    """Return the packages that importing a test module imports, up to the first one that may be missing."""
    names = []
    for node in ast.parse(path.read_text(encoding='utf-8')).body:
        if 'importorskip' in ast.unparse(node):
            break
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module)
    return {name.split('.')[0] for name in names}


def test_no_test_module_needs_an_optional_package(root):
    required = required_packages(root)
    for path in sorted((root / 'tests').rglob('*.py')):
        folder = path.relative_to(root / 'tests').parts[0]
        optional = imported_packages(path) - required - set(conftest.IMPORTED_PACKAGES.get(folder, ()))
        assert folder == 'support' or not optional, path  # test modules import those of tests/support


#: Hides packages that are installed from a process, and runs pytest in it.
WITHOUT_PACKAGES = """
import importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in ('starlette', 'nbformat') else find_spec(name, *rest)
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""


def test_folders_without_their_packages_are_left_out_and_named(root):
    command = [sys.executable, '-c', WITHOUT_PACKAGES, '-q', '--collect-only', '-p', 'no:cacheprovider', 'tests']
    kept = {'serving', 'notebooks', 'portability', 'support', 'conftest.py', '__init__.py', '__pycache__'}
    ignored = [f'--ignore={path}' for path in (root / 'tests').iterdir() if path.name not in kept]
    done = subprocess.run(
        [*command, *ignored],
        cwd=root,
        env=subprocess_environment(root),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout
    assert 'tests/portability/test_optional_packages.py::' in done.stdout
    assert 'tests/serving/' not in done.stdout and 'tests/notebooks/' not in done.stdout
    assert 'tests/serving is left out: starlette not installed' in done.stdout
    assert 'tests/notebooks is left out: nbformat not installed' in done.stdout
