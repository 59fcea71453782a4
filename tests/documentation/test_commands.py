"""Every command of the README and of the site runs as written, in the order of its page.

A page is read as one shell session in a copy of the checkout with the files of a user: photos, a video, and weight
files under the names of other programs' files.  Python blocks between the commands are scripts of the session.
``<!-- not run: reason -->`` before a block leaves it out.
"""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mask_rcnn.cli import convert
from mask_rcnn.config import DETECTRON2, TORCHVISION
from mask_rcnn.datasets import RichShapesDataset
from mask_rcnn.inference.save import save
from mask_rcnn.models import build
from tests.conftest import ROOT
from tests.support.pages import read_blocks

PAGES = ['README.md', *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / 'docs').rglob('*.md'))]
#: Reasons are short and start with one of these, so that "it does not work" is none.
REASONS = ('needs ', 'takes ', 'installs ', 'other program', 'run by ', 'starts ', 'an example of ')
#: The default of ``mask-rcnn serve``, to which the commands on the pages connect.
PORT = 8000
#: Waits for the server.  Installers would change the environment of the tests.
PRELUDE = """
_wait() { for _ in $(seq 120); do curl -s -o /dev/null localhost:8000/ && return; sleep 0.5; done; false; }
_refuse() { echo 'mark this block: <!-- not run: installs packages -->' >&2; false; }
pip() { _refuse; }
pipx() { _refuse; }
uv() { _refuse; }
"""
#: Longest duration of a page in seconds.
LIMIT = 900


def shell_blocks(page):
    return [block for block in read_blocks(ROOT, page) if block.language in ('sh', 'bash', 'console', 'shell')]


@pytest.mark.parametrize('page', PAGES)
def test_blocks_are_fenced_and_have_a_language(page):
    """An indented block, or one without a language, would not be found by the tests that run them."""
    assert [str(block) for block in read_blocks(ROOT, page) if not block.language] == []
    assert [str(block) for block in read_blocks(ROOT, page) if block.language in ('bash', 'console', 'shell')] == []


@pytest.mark.parametrize('page', PAGES)
def test_what_is_not_run_has_a_reason(page):
    reasons = {str(block): block.reason for block in read_blocks(ROOT, page) if block.reason}
    assert {place: reason for place, reason in reasons.items() if not reason.startswith(REASONS)} == {}


def write_photo(path, seed):
    scene = RichShapesDataset(1, size=256, seed=seed)[0].image.transpose(1, 2, 0).astype('uint8')
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(scene).save(path)


def write_video(path):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 5, (128, 128))
    scene = RichShapesDataset(1, size=128, seed=7)[0].image.transpose(1, 2, 0).astype('uint8')
    for shift in range(60):
        writer.write(np.ascontiguousarray(np.roll(scene, shift, axis=1)[..., ::-1]))
    writer.release()


def write_model(path, preset, target, **changes):
    """Write a network with random weights as the file of another program."""
    native = path.with_name(f'{path.stem}_native.npz')
    np.random.seed(0)
    save(native, build(preset, **changes))
    assert convert.main([str(native), '--to', target, '-o', str(path)]) == 0
    native.unlink()


#: File of a user -> the function that writes it.
FILES = {
    'photo.jpg': lambda path: write_photo(path, 7),
    'output_scenes/scene_1.png': lambda path: write_photo(path, 7),
    'photos/a.jpg': lambda path: write_photo(path, 8),
    'photos/b.jpg': lambda path: write_photo(path, 9),
    'clip.mp4': write_video,
    'model_final.pkl': lambda path: write_model(path, 'resnet50', 'detectron'),
    'maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth': lambda path: write_model(
        path, 'resnet50_fpn', 'torchvision', dialect=TORCHVISION, norm='bn'
    ),
    'detectron2_model_final.pkl': lambda path: write_model(
        path, 'resnet50_fpn', 'detectron2', dialect=DETECTRON2, norm='bn'
    ),
}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """The files of a user, each written when the first page names it."""
    folder = tmp_path_factory.mktemp('files')

    def get(name):
        path = folder / name
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            FILES[name](path)
        return path

    return get


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files of the checkout that commands use, with the CPU kernels that ``make setup`` has compiled.

    The blocks of Python import the copy, and would compile the kernels again.  Files whose names end with a number are
    those that another process is writing.
    """
    folder = tmp_path / 'checkout'
    ignored = shutil.ignore_patterns(
        '.git', '.venv', '.*_cache', 'output*.png', 'site', 'tests', '*.pyc.*', '*.nbc.tmp.*'
    )
    shutil.copytree(ROOT, folder, ignore=ignored)
    os.symlink(ROOT / 'tests', folder / 'tests')
    return folder


def is_port_taken():
    with socket.socket() as client:
        return client.connect_ex(('127.0.0.1', PORT)) == 0


def script_of(blocks):
    """Return one shell script: each block first prints its place, and servers run in the background."""
    parts = ['set -euo pipefail']
    for block in blocks:
        parts.append(f'echo {shlex.quote(f"@ {block}")} >&2')
        if block.language == 'python':
            parts.append(f"python - <<'END_OF_BLOCK'\n{block.code}END_OF_BLOCK")
        else:
            parts.append(f'{block.code.rstrip()} &\n_wait' if block.stays else block.code)
    if any(block.stays for block in blocks):
        parts.append('kill $(jobs -p)')  # the output ends when all of its writers do
    return '\n'.join(parts)


@pytest.mark.slow
@pytest.mark.parametrize('page', [page for page in PAGES if shell_blocks(page)])
def test_commands_run_as_written(page, checkout, files):
    run = [*shell_blocks(page), *(block for block in read_blocks(ROOT, page) if block.language == 'python')]
    blocks = sorted((block for block in run if block.reason is None), key=lambda block: block.line)
    if all(block.language == 'python' for block in blocks):
        pytest.skip('each block states why it is not run')
    if any(block.stays for block in blocks) and is_port_taken():
        pytest.skip(f'another program has the port {PORT}, that of the server on the pages')
    code = ''.join(block.code for block in blocks)
    for name in FILES:
        if name.split('/')[0] in code:
            target = checkout / name
            target.parent.mkdir(exist_ok=True)
            shutil.copy(files(name), target)
    environment = {
        **os.environ,
        'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
        'PYTHONPATH': str(ROOT),
        'OPENBLAS_NUM_THREADS': '1',
    }
    process = subprocess.Popen(
        ['bash', '-c', PRELUDE + script_of(blocks)],
        cwd=checkout,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=LIMIT)
    finally:
        stop(process.pid)
    place = [line[2:] for line in output.splitlines() if line.startswith('@ ')][-1]
    assert process.returncode == 0, f'{place}\n{output[-3000:]}'


def stop(group):
    """Stop the servers of a page, and whatever else it left running."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(group, number)
        except ProcessLookupError:
            return
        time.sleep(1)
