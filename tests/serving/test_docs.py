"""The examples of ``docs/server.md`` run as they are written."""

import re
import shutil
import subprocess

import pytest

from mask_rcnn.cli.serve import _DEFAULTS
from mask_rcnn.serving.guard import _TIMED_OUT
from mask_rcnn.serving.uploads import MAX_JPEG_SCANS


@pytest.fixture(scope='module')
def text(root):
    """The page."""
    return (root / 'docs' / 'server.md').read_text(encoding='utf-8')


def test_the_commands_of_curl(server, scene, text, tmp_path):
    if shutil.which('curl') is None:
        pytest.skip('no curl')
    (tmp_path / 'photo.jpg').write_bytes(scene)
    commands = re.findall(r'^(curl .*)$', text, re.MULTILINE)
    assert len(commands) == 5
    for command in commands:
        command = command.replace('http://127.0.0.1:8000/', server.url).replace('curl ', 'curl --silent --fail ', 1)
        subprocess.run(['bash', '-c', command], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    assert (tmp_path / 'found.png').read_bytes().startswith(b'\x89PNG')


def test_limits_and_statuses(client, text):
    operation = client.get('openapi.json').json()['paths']['/v1/detect']['post']
    rows = re.findall(r'^\| ([\d, ]+) \|', text.split('| status |')[1], re.MULTILINE)
    described = {status for row in rows for status in row.split(', ')}
    assert described | {'200'} == {*operation['responses'], '404', '405'} and str(_TIMED_OUT) in described
    assert f'| {_DEFAULTS.max_pixels:,} |' in text and f'| {_DEFAULTS.queue} |' in text
    assert f'more than {MAX_JPEG_SCANS} scans' in text and f'at most {_DEFAULTS.idle_timeout:g} s' in text
    assert f'needs {_DEFAULTS.min_upload_rate} bytes per second' in text
