"""Commands as processes whose streams are closed, full, without a reader, or of an old encoding."""

import os
import shlex
import subprocess
import sys

import numpy as np
import pytest

from mask_rcnn.config import Config
from mask_rcnn.weights import ModelMeta, write_weights
from tests.support.environment import subprocess_environment

NAME = os.fsdecode(b'caf\xe9\n') + '魚.npz'
FULL = 'error: standard output: cannot be written: No space left on device\n'
CLOSED = 'error: standard output: cannot be written: it is closed\n'


@pytest.mark.parametrize(
    ('redirection', 'out', 'err', 'status'),
    [
        ('', 'caf\\udce9\\n\\u9b5a.npz: R-50-C4 Mask R-CNN, 1 class (\\u732b)', '', 0),
        ('> /dev/full', '', FULL, 1),
        pytest.param('>&-', '', CLOSED, 1, marks=pytest.mark.slow),
        ('>&- 2>&- <&-', '', '', 1),
        pytest.param('| true', '', '', 0, marks=pytest.mark.slow),
    ],
)
def test_the_description_of_a_file_with_an_odd_name(root, tmp_path, redirection, out, err, status):
    meta = ModelMeta('model', Config(n_fg_class=1), ('猫',), (1,))
    write_weights(tmp_path / NAME, {'a': np.ones(2, np.float32)}, meta)
    command = shlex.join([sys.executable, '-m', 'mask_rcnn.cli', 'info', *[NAME] * 2])
    done = subprocess.run(
        ['bash', '-c', f'{command} {redirection}; exit ${{PIPESTATUS[0]}}'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': str(root), 'PYTHONIOENCODING': 'ascii:strict', 'PYTHONUTF8': '0'},
        capture_output=True,
        timeout=300,
    )
    lines = done.stdout.decode('ascii').splitlines()
    assert (lines[0] if lines else '', done.stderr.decode('ascii'), done.returncode) == (out, err, status)


def test_numba_leaves_the_streams_to_the_commands(root, tmp_path):
    """A colorama that announces its initialisation, which Numba would cause with its first coloured message."""
    (tmp_path / 'colorama').mkdir()
    (tmp_path / 'colorama' / '__init__.py').write_text(
        "__version__ = '0.4.6'\nFore = Style = None\ndef init():\n    print('colorama')\nreinit = deinit = init\n"
    )
    code = 'import mask_rcnn.cli; from numba.core import errors; errors.termcolor().errmsg("x"); print(errors.__name__)'
    environment = subprocess_environment(tmp_path)
    environment.pop('NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING', None)
    command = [sys.executable, '-c', code]
    result = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout == 'numba.core.errors\n'
