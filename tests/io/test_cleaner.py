"""The program that removes the unfinished files of a killed process."""

import fcntl
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mask_rcnn.io import cleaner

#: A program that is killed, with its group, while it writes a file.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from mask_rcnn.cli.processes import _cleaner
from mask_rcnn.io.atomic_file import created_folders, open_for_writing
from mask_rcnn.io.folder_lock import lock_folder

folder = Path(sys.argv[1])
with (
    _cleaner('error: killed'),
    created_folders([folder / 'new' / 'deep', folder / 'used']),
    lock_folder(folder / 'new', user='test', warn=print),
):
    with open_for_writing(folder / 'used' / 'a\\n') as file:
        file.write(b'complete')
    with open_for_writing(folder / 'used' / 'b') as file:
        file.write(b'half')
        file.flush()
        print(sorted(str(path.relative_to(folder)) for path in folder.rglob('*')), flush=True)
        os.killpg(0, signal.SIGKILL)
"""


def clean(text, *message):
    command = [sys.executable, '-I', '-S', cleaner.__file__, *message]
    return subprocess.run(command, input=text, capture_output=True, check=True).stderr


def test_files_and_empty_folders_of_a_killed_program_are_removed(tmp_path):
    """The cleaner outlives the processes of the group, which mpiexec kills."""
    command = [sys.executable, '-c', PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, start_new_session=True, check=False)
    assert done.returncode == -signal.SIGKILL and done.stderr == '\nerror: killed\n'
    assert done.stdout == str(['new', 'new/.test.lock', 'new/deep', 'used', 'used/.b.part', 'used/a\n']) + '\n'
    assert os.listdir(tmp_path) == ['used'] and os.listdir(tmp_path / 'used') == ['a\n']
    assert (tmp_path / 'used' / 'a\n').read_bytes() == b'complete'


@pytest.mark.parametrize('text', [b'+', b'+/gone/x\0-/gone/x\0+/gone/y\0', b'-/gone/x\0'])
def test_paths_that_do_not_exist_are_ignored(text):
    assert clean(text) == b''


def test_nothing_is_removed_after_a_regular_end(tmp_path):
    path = tmp_path / 'a'
    path.touch()
    assert clean(b'+%s\0.\0' % os.fsencode(path), 'error: killed') == b''
    assert path.exists()


def test_a_file_that_another_program_writes_is_not_removed(tmp_path):
    paths = [tmp_path / 'a', tmp_path / 'b']
    with open(paths[0], 'wb') as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        paths[1].touch()
        clean(b''.join(b'+%s\0' % os.fsencode(path) for path in paths))
    assert os.listdir(tmp_path) == ['a']


def test_a_file_is_removed_without_locks_while_it_is_closed(tmp_path, monkeypatch):
    """As on Windows, which does not remove open files."""
    path = tmp_path / 'a'
    path.touch()
    monkeypatch.setattr(cleaner, '_HAS_LOCKS', False)
    monkeypatch.setattr(cleaner, 'open', None, raising=False)
    cleaner._remove(os.fsencode(path))
    assert not path.exists()


def test_the_line_precedes_the_removal(tmp_path, monkeypatch, capfd):
    """``mpiexec`` forwards nothing after its end."""
    path, printed = tmp_path / 'a', []
    path.touch()
    text = io.BytesIO(b'+%s\0' % os.fsencode(path))
    monkeypatch.setattr(cleaner.os, 'read', lambda descriptor, size: text.read(size))
    monkeypatch.setattr(cleaner.sys, 'argv', ['cleaner.py', 'error: killed'])
    monkeypatch.setattr(cleaner, '_remove', lambda path: printed.append((path, capfd.readouterr().err)))
    cleaner.main()
    assert printed == [(os.fsencode(path), '\nerror: killed\n')]


def test_the_cleaner_imports_nothing_of_the_package():
    assert 'mask_rcnn.' not in Path(cleaner.__file__).read_text(encoding='utf-8').partition('import ')[2]
