"""Files that appear only when they are complete, and errors that name the file."""

import errno
import os
import pickle
import socket
import stat
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest

from mask_rcnn.io.atomic_file import (
    FileError,
    check_writable,
    check_writable_folder,
    is_replaced,
    is_standard_output,
    open_for_reading,
    open_for_writing,
)
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


def test_folders_and_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    for path, reason in ((tmp_path, 'is a folder, not a file'), (tmp_path / 'pipe', 'is not a regular file')):
        with pytest.raises(FileError) as caught, open_for_reading(path):
            pass
        assert str(caught.value) == f'{path}: {reason}'


def write(path, contents=b'new'):
    with open_for_writing(path) as file:
        file.write(contents)


def test_a_link_remains_and_its_target_is_written(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'folder' / 'target').write_text('old')
    (tmp_path / 'link').symlink_to('folder/target')
    (tmp_path / 'second').symlink_to('link')
    (tmp_path / 'dangling').symlink_to('folder/created')
    (tmp_path / 'loop').symlink_to('loop')
    for name, target in (('link', 'target'), ('second', 'target'), ('dangling', 'created')):
        check_writable(tmp_path / name)
        write(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink() and (tmp_path / 'folder' / target).read_text() == name
    for use in (write, check_writable):
        with pytest.raises(FileError, match='loop: is a symbolic link that leads to itself'):
            use(tmp_path / 'loop')
    assert sorted(os.listdir(tmp_path / 'folder')) == ['created', 'target']


def test_folders_and_sockets_are_not_written(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / 'socket'))
        for use in (write, check_writable):
            with pytest.raises(FileError, match='is a folder, not a file'):
                use(tmp_path)
            with pytest.raises(FileError, match='socket: is not a regular file'):
                use(tmp_path / 'socket')


def test_pipes_and_devices_are_written_and_not_replaced(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as executor:
        received = executor.submit(pipe.read_bytes)
        check_writable(pipe)
        write(pipe)
        assert received.result(10) == b'new' and pipe.is_fifo()
    write(os.devnull)
    assert not os.path.isfile(os.devnull)
    with pytest.raises(FileError, match='/dev/full: cannot be written: No space left on device'):
        write('/dev/full', b'x' * 100_000)


def test_the_standard_output_of_a_system_without_such_a_file(monkeypatch, capfd):
    """``/dev/stdout`` is a relative path on Windows, which becomes that of a file on the current drive."""
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, 'realpath', lambda path: f'/drive{realpath(path)}')
    path = '/dev/stdout'
    assert is_standard_output(path) and not is_replaced(path) and not is_standard_output('/dev/stderr')
    check_writable(path)
    with open_for_writing(path) as file:
        file.write(b'1\n')
    assert capfd.readouterr().out == '1\n'


def test_an_open_file_is_written_at_its_position(tmp_path):
    """As ``--json /dev/stdout > file`` does, of which root replaced the link in /dev by a file."""
    with open(tmp_path / 'file', 'w+b', buffering=0) as file:
        file.write(b'first ')
        link = tmp_path / 'link'
        link.symlink_to(f'/proc/self/fd/{file.fileno()}')
        for path in (link, f'/dev/fd/{file.fileno()}'):
            check_writable(path)
            write(path)
        file.write(b' last')
        assert (tmp_path / 'file').read_bytes() == b'first newnew last' and link.is_symlink()
    assert is_standard_output('/dev/stdout') and not is_standard_output(tmp_path / 'file')


def test_a_zip_archive_is_appended_to_an_open_file(tmp_path):
    """``>> file`` writes at the end, wherever the archive would correct its headers."""
    with open(tmp_path / 'file', 'ab') as file:
        file.write(b'first')
        file.flush()
        path = f'/dev/fd/{file.fileno()}'
        with open_for_writing(path) as stream, zipfile.ZipFile(stream, 'w') as archive:
            archive.writestr('member', b'new')
        assert not is_replaced(path) and is_replaced(tmp_path / 'file')
    with zipfile.ZipFile(tmp_path / 'file') as archive:
        assert archive.testzip() is None and archive.read('member') == b'new'


def test_a_file_keeps_its_mode_and_a_new_one_gets_that_of_the_process(tmp_path):
    (tmp_path / 'old').write_text('old')
    (tmp_path / 'old').chmod(0o640)
    write(tmp_path / 'old')
    before = os.umask(0o027)
    try:
        write(tmp_path / 'new')
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(os.stat(tmp_path / name).st_mode) for name in ('old', 'new')]
    assert modes == [0o640, 0o640]
    (tmp_path / 'old').chmod(0o606)
    write(tmp_path / 'old')
    assert stat.S_IMODE(os.stat(tmp_path / 'old').st_mode) == 0o606


def test_contents_reach_the_disk_before_the_file_is_renamed(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda file: calls.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(os, 'replace', lambda new, old: calls.append('replace') or replace(new, old))
    write(tmp_path / 'file')
    assert calls == [3, 'replace']


def test_the_longest_name_can_be_written(tmp_path):
    name = '魚' * 85  # 255 bytes
    write(tmp_path / name)
    assert os.listdir(tmp_path) == [name]


def test_the_temporary_file_of_a_killed_process_is_used_again(tmp_path):
    path = tmp_path / 'file'
    process = os.path.join(os.path.dirname(__file__), os.pardir, os.pardir)
    code = (
        'import os, signal, sys\nfrom mask_rcnn.io.atomic_file import open_for_writing\n'
        'with open_for_writing(sys.argv[1]) as file:\n'
        '    file.write(b"half" * 100); file.flush(); os.kill(os.getpid(), signal.SIGKILL)'
    )
    subprocess.run([sys.executable, '-c', code, path], cwd=process, check=False, timeout=300)
    assert len(os.listdir(tmp_path)) == 1 and not path.exists()
    write(path)
    assert path.read_bytes() == b'new' and os.listdir(tmp_path) == ['file']


def test_temporary_files_of_earlier_versions_are_removed_if_their_process_has_ended(tmp_path):
    with subprocess.Popen(['true']) as ended:
        pass
    old = [f'.file.{ended.pid}.part', f'.file.{ended.pid}-140.part', f'.file.{2**70}.part']
    kept = [f'.file.{os.getpid()}.part', f'.other.{ended.pid}.part', f'.file.{ended.pid}.part.txt', '.file.x.part']
    for name in old + kept:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    fresh = f'.file.{ended.pid}-1.part'  # possibly of another machine, which writes it now
    (tmp_path / fresh).touch()
    write(tmp_path / 'file')
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, fresh, 'file'])


def test_writers_of_one_file_do_not_mix_their_contents(tmp_path):
    path = tmp_path / 'file'
    with open_for_writing(path) as first:
        first.write(b'first')
        write(path, b'second')
        check_writable(path)
        assert path.read_bytes() == b'second'
    assert path.read_bytes() == b'first' and os.listdir(tmp_path) == ['file']


def test_a_place_that_cannot_be_written_is_known_before_the_work(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    path.write_text('old')
    check_writable(path)
    check_writable_folder(tmp_path / 'new' / 'folder')
    assert path.read_text() == 'old' and os.listdir(tmp_path / 'new') == ['folder']
    with pytest.raises(FileError, match='no/file: cannot be written: No such file or directory'):
        check_writable(tmp_path / 'no' / 'file')
    with pytest.raises(FileError, match='file: cannot be written: is a file, not a folder'):
        check_writable_folder(path)
    for use, place in ((check_writable, '/proc/file'), (check_writable_folder, '/proc')):
        with pytest.raises(FileError, match=f'{place}: cannot be written: '):
            use(place)

    def refuse(path, flags, mode=0o777, **options):
        raise OSError(errno.EROFS, 'Read-only file system')

    monkeypatch.setattr(os, 'open', refuse)
    for use, place in ((check_writable, path), (check_writable_folder, tmp_path)):
        with pytest.raises(FileError) as caught:
            use(place)
        assert str(caught.value) == f'{place}: cannot be written: Read-only file system'


@pytest.mark.skipif(not os.path.exists('/dev/fd'), reason='no files for descriptors')
def test_a_descriptor_that_cannot_be_written_is_known_before_the_work(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    with open(path) as reading, open(path, 'a') as writing:
        check_writable(f'/dev/fd/{writing.fileno()}')
        closed = os.dup(writing.fileno())
        os.close(closed)
        for number in (reading.fileno(), closed):
            with pytest.raises(FileError, match=f'/dev/fd/{number}: cannot be written: Bad file descriptor'):
                check_writable(f'/dev/fd/{number}')
    assert path.read_text() == 'old'


def test_weight_files_raise_weight_file_errors(tmp_path):
    missing = tmp_path / 'missing'
    for open_file in (open_weight_file, create_weight_file):
        with pytest.raises(WeightFileError, match='is a folder, not a file'), open_file(tmp_path):
            pass
    with pytest.raises(WeightFileError) as caught:
        sha256(missing)
    assert (caught.value.path, caught.value.reason) == (str(missing), 'No such file or directory')
