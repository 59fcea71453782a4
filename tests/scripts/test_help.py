"""Every script prints its help, also in a process of its own, where no test has imported Chainer yet."""

import ast
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import subprocess_environment

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / 'scripts', ROOT / 'scripts' / 'benchmarks', ROOT / 'scripts' / 'docs')
FILES = [path for folder in FOLDERS for path in sorted(folder.glob('*.py'))]
SCRIPTS = [path for path in FILES if '__main__' in path.read_text()]
#: The script that imports most of the others; a process for each of them takes more than a second.
FAST = 'training'


def imported_packages(path):
    """Yield the line and the top-level package of each import of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split('.')[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module.split('.')[0]


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_mask_rcnn_is_imported_before_chainer(path):
    """Chainer is importable only after it."""
    names = [name for _, name in sorted(imported_packages(path)) if name in ('mask_rcnn', 'chainer', 'chainercv')]
    assert names[:1] in ([], ['mask_rcnn'])


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.stem)
def test_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [str(script), '--help'])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(script), run_name='__main__')
    printed = capsys.readouterr()
    assert not stop.value.code and 'usage: ' in printed.out and not printed.err


@pytest.mark.parametrize(
    'script',
    [pytest.param(script, marks=[] if script.stem == FAST else pytest.mark.slow, id=script.stem) for script in SCRIPTS],
)
def test_help_in_a_new_process(script, tmp_path):
    result = subprocess.run(
        [sys.executable, script, '--help'],
        cwd=tmp_path,
        env=subprocess_environment(ROOT),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
