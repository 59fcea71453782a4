"""Every script starts in a process of its own, where no test has imported Chainer yet."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environment import subprocess_environment

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / 'scripts', ROOT / 'scripts' / 'benchmarks')
SCRIPTS = [path for folder in FOLDERS for path in sorted(folder.glob('*.py')) if '__main__' in path.read_text()]


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda script: script.stem)
def test_help(script, tmp_path):
    result = subprocess.run(
        [sys.executable, script, '--help'],
        cwd=tmp_path,
        env=subprocess_environment(ROOT),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    assert not result.stderr
