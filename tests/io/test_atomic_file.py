"""Files that appear only when they are complete, and errors that name the file."""

import errno
import os
import pickle

import pytest

from mask_rcnn.io.atomic_file import FileError, open_for_reading, open_for_writing
from mask_rcnn.weights.errors import WeightFileError
from mask_rcnn.weights.files import create_weight_file, open_weight_file, sha256


def test_an_error_is_an_os_error_of_one_line():
    error = FileError(errno.ENOSPC, 'cannot be written: No space left on device', 'loss.png')
    assert isinstance(error, OSError) and not isinstance(error, ValueError)
    assert str(error) == 'loss.png: cannot be written: No space left on device'
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.errno) == (FileError, str(error), errno.ENOSPC)


def test_writing_replaces_a_file_at_the_end(tmp_path):
    path = tmp_path / 'log'
    path.write_text('old')
    with open_for_writing(path) as file:
        file.write(b'new')
        assert path.read_text() == 'old'
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['log']


def test_a_file_is_complete_before_it_replaces_another(tmp_path, monkeypatch):
    """Closing a file writes its buffer, which fails if the disk is full: the old file must still exist then."""
    contents, replace = [], os.replace
    monkeypatch.setattr(os, 'replace', lambda new, old: contents.append(new.read_bytes()) or replace(new, old))
    with open_for_writing(tmp_path / 'log') as file:
        file.write(b'new')
    assert contents == [b'new']


@pytest.mark.parametrize('error', [ValueError('no picture'), KeyboardInterrupt()])
def test_a_failed_block_leaves_the_old_file_unchanged(tmp_path, error):
    path = tmp_path / 'log'
    path.write_text('old')

    def write():
        with open_for_writing(path) as file:
            file.write(b'new')
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['log']


def test_an_os_error_in_the_block_names_the_file(tmp_path):
    path = tmp_path / 'log'
    with pytest.raises(FileError) as caught, open_for_writing(path):
        raise OSError(errno.ENOSPC, 'No space left on device')
    assert str(caught.value) == f'{path}: cannot be written: No space left on device'
    assert caught.value.errno == errno.ENOSPC
    path.write_text('content')
    with pytest.raises(FileError) as caught, open_for_reading(path):
        raise OSError('the device was removed')
    assert str(caught.value) == f'{path}: the device was removed'


def test_an_error_about_another_file_keeps_its_name(tmp_path):
    source, copy = open_for_reading(tmp_path / 'source'), open_for_writing(tmp_path / 'copy')
    with pytest.raises(FileError, match='source: No such file'), copy, source:
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('open_file', [open_for_reading, open_for_writing])
def test_folders_and_pipes_are_refused(tmp_path, open_file):
    os.mkfifo(tmp_path / 'pipe')
    for path, reason in ((tmp_path, 'is a folder, not a file'), (tmp_path / 'pipe', 'is not a regular file')):
        with pytest.raises(FileError) as caught, open_file(path):
            pass
        assert str(caught.value) == f'{path}: {reason}'


def test_weight_files_raise_weight_file_errors(tmp_path):
    missing = tmp_path / 'missing'
    for open_file in (open_weight_file, create_weight_file):
        with pytest.raises(WeightFileError, match='is a folder, not a file'), open_file(tmp_path):
            pass
    with pytest.raises(WeightFileError) as caught:
        sha256(missing)
    assert (caught.value.path, caught.value.reason) == (str(missing), 'No such file or directory')
