"""Locks of output folders."""

import errno
import os
import signal
import subprocess
import sys

import filelock
import pytest

from mask_rcnn.io.folder_lock import FolderInUseError, lock_folder

HOLD = """\
import sys
from mask_rcnn.io.folder_lock import lock_folder

with lock_folder(sys.argv[1], user='training', warn=print):
    print('locked', flush=True)
    sys.stdin.read()
"""


def lock(folder, user='training'):
    return lock_folder(folder, user=user, warn=pytest.fail)


def test_a_lock_excludes_its_user_and_leaves_no_file(tmp_path):
    with lock(tmp_path):
        with pytest.raises(FolderInUseError) as error, lock(tmp_path):
            pytest.fail('locked twice')
        assert str(error.value).startswith(f'{tmp_path} is in use by another training (pid {os.getpid()} on ')
        with lock(tmp_path, 'evaluation'):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock(tmp_path):
        pass


def test_a_link_leads_to_the_same_lock(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'link').symlink_to('folder')
    with lock(tmp_path / 'folder'), pytest.raises(FolderInUseError), lock(tmp_path / 'link'):
        pytest.fail('locked twice')


def test_the_lock_of_a_killed_process_does_not_block(tmp_path):
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'text': True}
    with subprocess.Popen([sys.executable, '-c', HOLD, str(tmp_path)], **pipes) as process:
        assert process.stdout.readline() == 'locked\n'
        with pytest.raises(FolderInUseError, match=f'pid {process.pid} on '), lock(tmp_path):
            pytest.fail('locked twice')
        process.send_signal(signal.SIGKILL)
    assert list(tmp_path.iterdir()) != []
    with lock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EACCES, errno.EIO])
def test_a_file_system_without_locks_is_used_with_a_warning(tmp_path, monkeypatch, number):
    def refuse(self):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, '_acquire', refuse)
    lines = []
    with lock_folder(tmp_path, user='training', warn=lines.append):
        pass
    (line,) = lines
    assert line.startswith(f'{tmp_path} cannot be locked ({os.strerror(number)})')


def test_an_error_in_the_context_releases_the_lock(tmp_path):
    with pytest.raises(KeyboardInterrupt), lock(tmp_path):
        raise KeyboardInterrupt
    with lock(tmp_path):
        pass


def test_a_deleted_folder_does_not_end_in_an_error(tmp_path):
    folder = tmp_path / 'out'
    folder.mkdir()
    with lock(folder):
        (folder / '.training.lock').unlink()
        folder.rmdir()
    assert not folder.exists()
