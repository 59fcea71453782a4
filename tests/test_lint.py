"""``make lint`` checks the types of all programs and notebooks, not only those of the package."""

import ast
import re


def test_mypy_checks_every_program(root):
    """The tests call what they check; all other code is checked without being run."""
    text = (root / 'pyproject.toml').read_text(encoding='utf-8')
    (files,) = re.findall(r'^\[tool\.mypy\]\nfiles = (\[.*\])$', text, re.MULTILINE)
    programs = [path for path in root.glob('[!.]*/*.py') if path.parts[-2] not in ('tests', 'build')]
    programs = [path for path in programs if not path.stem.endswith('_nbqa_ipynb')]  # a lint beside this test
    expected = {path.parent.name if path.parent.name != 'notebooks' else f'notebooks/{path.name}' for path in programs}
    assert set(ast.literal_eval(files)) == expected | {path.name for path in root.glob('*.py')}


def test_lint_checks_programs_and_notebooks(root):
    (recipe,) = re.findall(r'^lint: .*\n((?:\t.*\n)+)', (root / 'Makefile').read_text(), re.MULTILINE)
    commands = [line.split(' -m ')[1] for line in recipe.splitlines()]
    assert {'mypy', 'nbqa mypy notebooks', 'ruff check .'} <= set(commands)
