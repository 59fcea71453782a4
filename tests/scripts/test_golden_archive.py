"""The archive of the original programs' outputs: packed, downloaded from a server on this machine, unpacked."""

import hashlib
import http.server
import importlib
import json
import os
import stat
import subprocess
import threading
import zipfile
from pathlib import Path

import pytest

from mask_rcnn.io.atomic_file import FileError
from mask_rcnn.io.errors import BadFileError
from mask_rcnn.weights.download import DownloadError
from tests.conftest import GOLDEN_VARIABLE, find_golden

FILES = {'README.md': b'text\n', 'detectron/case_1.npz': bytes(range(256)) * 300, 'detectron/empty': b''}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def golden_archive():
    return importlib.import_module('golden_archive')


@pytest.fixture
def fetch_golden():
    return importlib.import_module('fetch_golden')


@pytest.fixture
def folder(tmp_path):
    """A folder of outputs, with files that do not belong into an archive."""
    folder = tmp_path / 'outputs'
    others = {'.git/config': b'x', 'detectron/__pycache__/x.pyc': b'x', '.hidden': b'x', 'SHA256SUMS': b'older'}
    for name, content in {**FILES, **others}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def packed(golden_archive, folder, tmp_path):
    """An archive and the SHA-256 of its list."""
    path = tmp_path / 'golden-1.zip'
    return path, golden_archive.pack(folder, path)


def contents(folder):
    paths = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def write_zip(path, entries):
    """Write a zip file of ``(name or ZipInfo, content)``; return the SHA-256 of its list."""
    with zipfile.ZipFile(path, 'w') as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return sha256({str(name): content for name, content in entries}.get('SHA256SUMS', b''))


def listed(files):
    """The list as the program sha256sum writes it."""
    return ''.join(f'{sha256(content)}  {name}\n' for name, content in files.items()).encode()


def test_a_packed_folder_is_unpacked_with_its_list(golden_archive, packed, tmp_path):
    path, digest = packed
    expected = {**FILES, 'SHA256SUMS': listed(FILES)}
    assert digest == sha256(expected['SHA256SUMS'])
    assert golden_archive.unpack(path, tmp_path / 'new', digest) == 3
    assert contents(tmp_path / 'new') == expected
    assert sorted(os.listdir(tmp_path)) == ['golden-1.zip', 'new', 'outputs']


def test_the_bytes_of_an_archive_depend_on_the_files_only(golden_archive, folder, packed, tmp_path):
    for number, name in enumerate(reversed(FILES)):
        os.utime(folder / name, (1e9 + number, 1e9))
        (folder / name).chmod(0o600)
    assert golden_archive.pack(folder, tmp_path / 'again.zip') == packed[1]
    assert (tmp_path / 'again.zip').read_bytes() == packed[0].read_bytes()
    (folder / 'README.md').write_bytes(b'another')
    assert golden_archive.pack(folder, tmp_path / 'again.zip') != packed[1]


def test_folders_that_are_not_packed(golden_archive, folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(BadFileError, match='empty: contains no files'):
        golden_archive.pack(tmp_path / 'empty', tmp_path / 'x.zip')
    (folder / 'link').symlink_to(folder / 'README.md')
    with pytest.raises(BadFileError, match='link: is a link'):
        golden_archive.pack(folder, tmp_path / 'x.zip')
    (folder / 'link').unlink()
    (folder / 'x y').touch()
    with pytest.raises(BadFileError, match="contains 'x y', which is not a relative path"):
        golden_archive.pack(folder, tmp_path / 'x.zip')
    assert not (tmp_path / 'x.zip').exists()


WRONG_NAMES = ['/etc/x', '../x', 'a/../x', './x', 'a//x', 'C:/x', 'a\\x', '.x', 'a/.x', 'x.', 'a b', 'x\n', 'é', 'a/']


@pytest.mark.parametrize('name', WRONG_NAMES)
def test_names_outside_of_the_folder_are_refused(golden_archive, tmp_path, name):
    digest = write_zip(tmp_path / 'x.zip', [('SHA256SUMS', listed({name: b'x'})), (name, b'x')])
    with pytest.raises(BadFileError, match='is not a relative path of letters'):
        golden_archive.unpack(tmp_path / 'x.zip', tmp_path / 'new', digest)
    assert os.listdir(tmp_path) == ['x.zip']


def test_names_in_the_list_are_checked_too(golden_archive, tmp_path):
    digest = write_zip(tmp_path / 'x.zip', [('SHA256SUMS', listed({'../x': b'x'})), ('x', b'x')])
    with pytest.raises(BadFileError, match='is not a relative path of letters'):
        golden_archive.unpack(tmp_path / 'x.zip', tmp_path / 'new', digest)


def link(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize(
    ('entries', 'reason'),
    [
        ([('a', b'x'), (link('b'), b'/etc/passwd')], 'b is not a plain file'),
        ([('a', b'x'), ('A', b'x')], "contains 'A' twice"),
        ([('a', b'x'), ('a/b', b'x')], "contains 'a' as a file and as a folder"),
        ([('a', b'y')], 'a has the SHA-256 a1fce4363854ff888cff4b8e7875d600c2682390412a8cf79b37d0b11148b0fa'),
        ([('b', b'x')], 'a is not in the archive'),
        ([('a', b'x'), ('b', b'x')], 'b is not in SHA256SUMS'),
        ([(f'{number}', b'') for number in range(2001)], 'contains 2002 files, at most 2000'),
    ],
)
def test_archives_of_anything_but_the_listed_files_are_refused(golden_archive, tmp_path, entries, reason):
    digest = write_zip(tmp_path / 'x.zip', [('SHA256SUMS', listed({'a': b'x'})), *entries])
    with pytest.raises(BadFileError, match=reason):
        golden_archive.unpack(tmp_path / 'x.zip', tmp_path / 'new', digest)
    assert os.listdir(tmp_path) == ['x.zip']


def test_archives_without_the_right_list_are_refused(golden_archive, packed, tmp_path, monkeypatch):
    path, digest = packed
    with pytest.raises(BadFileError, match=f'SHA256SUMS has the SHA-256 {digest}, expected {"0" * 64}'):
        golden_archive.unpack(path, tmp_path / 'new', '0' * 64)
    digest = write_zip(tmp_path / 'x.zip', [('a', b'x')])
    with pytest.raises(BadFileError, match='contains no SHA256SUMS'):
        golden_archive.unpack(tmp_path / 'x.zip', tmp_path / 'new', digest)
    digest = write_zip(tmp_path / 'x.zip', [('a', b'x'), ('SHA256SUMS', b'no list\n')])
    with pytest.raises(BadFileError, match='SHA256SUMS, line 1: is not a SHA-256'):
        golden_archive.unpack(tmp_path / 'x.zip', tmp_path / 'new', digest)
    monkeypatch.setattr(golden_archive, 'MAX_BYTES', 1000)
    with pytest.raises(BadFileError, match='unpacks to 77050 bytes, at most 1000'):
        golden_archive.unpack(path, tmp_path / 'new', packed[1])


def test_damaged_archives_leave_nothing(golden_archive, packed, tmp_path):
    path, digest = packed
    good = path.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 255
    for content in (b'', b'page', good[:-30], good[: len(good) // 2], bytes(damaged)):
        path.write_bytes(content)
        with pytest.raises(BadFileError, match=r'golden-1\.zip: (is not an intact zip archive|detectron/case_1)'):
            golden_archive.unpack(path, tmp_path / 'new', digest)
        assert sorted(os.listdir(tmp_path)) == ['golden-1.zip', 'outputs']


def test_a_folder_is_replaced_only_if_it_was_unpacked(golden_archive, packed, tmp_path):
    path, digest = packed
    (tmp_path / 'new').mkdir()
    (tmp_path / 'new' / 'thesis.txt').write_bytes(b'x')
    with pytest.raises(BadFileError, match='new: exists and has no SHA256SUMS'):
        golden_archive.unpack(path, tmp_path / 'new', digest)
    earlier = sha256(b'x').encode()
    (tmp_path / 'new' / 'SHA256SUMS').write_bytes(earlier + b'  old/case.npz\n')
    with pytest.raises(BadFileError, match=r'new: contains thesis\.txt, which is not in its SHA256SUMS'):
        golden_archive.unpack(path, tmp_path / 'new', digest)
    assert (tmp_path / 'new' / 'thesis.txt').read_bytes() == b'x'
    (tmp_path / 'new' / 'thesis.txt').unlink()
    for name in ('old/case.npz', 'old/__pycache__/script.pyc'):  # the tests run scripts of the archive
        (tmp_path / 'new' / name).parent.mkdir()
        (tmp_path / 'new' / name).write_bytes(b'x')
    golden_archive.unpack(path, tmp_path / 'new', digest)
    assert sorted(contents(tmp_path / 'new')) == sorted([*FILES, 'SHA256SUMS'])
    (tmp_path / 'file').write_bytes(b'')
    with pytest.raises(FileError):
        golden_archive.unpack(path, tmp_path / 'file' / 'new', digest)


def test_a_complete_folder_has_every_listed_file_unchanged(golden_archive, packed, tmp_path):
    path, digest = packed
    folder = tmp_path / 'new'
    assert not golden_archive.is_complete(folder, digest)
    golden_archive.unpack(path, folder, digest)
    assert golden_archive.is_complete(folder, digest) and not golden_archive.is_complete(folder, '0' * 64)
    (folder / 'README.md').write_bytes(b'TEXT\n')
    assert not golden_archive.is_complete(folder, digest)
    (folder / 'README.md').unlink()
    assert not golden_archive.is_complete(folder, digest)


@pytest.mark.parametrize(
    ('content', 'reason'),
    [
        ('x', 'is not a JSON object'),
        ('{"name": "golden-1"}', 'is not a JSON object of name and sha256'),
        ('{"name": "../x", "sha256": ""}', 'name is'),
        ('{"name": "golden-1", "sha256": "0"}', 'sha256 is not 64'),
    ],
)
def test_wrong_pins(golden_archive, tmp_path, content, reason):
    (tmp_path / 'archive.json').write_text(content)
    with pytest.raises(BadFileError, match=reason):
        golden_archive.read_pin(tmp_path / 'archive.json')


def test_the_pin_of_the_project_is_one_line_of_pack_golden(golden_archive, folder, tmp_path, capsys):
    assert golden_archive.read_pin().name == 'golden-1'
    pack_golden = importlib.import_module('pack_golden')
    assert pack_golden.main([str(folder), '--name', 'golden-7', '--out', str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'does not contain this line' in lines[0]
    assert json.loads(lines[1]) == {'name': 'golden-7', 'sha256': sha256(listed(FILES))}
    assert (tmp_path / 'golden-7.zip').is_file()
    assert pack_golden.main([str(tmp_path / 'missing')]) == 1
    assert capsys.readouterr().err == f'error: {tmp_path / "missing"}: contains no files\n'


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the archive; the first response ends in the middle."""

    def do_GET(self):
        content, start = self.server.content, int(self.headers.get('Range', 'bytes=0-')[6:-1])
        self.server.starts.append(start)
        self.send_response(206 if start else 200)
        if start:
            self.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        self.send_header('Content-Length', str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:] if start else content[: len(content) // 2])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(packed):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server:
        server.content, server.starts = packed[0].read_bytes(), []
        server.url = f'http://127.0.0.1:{server.server_port}/golden-1.zip'
        thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_an_interrupted_download_is_resumed_and_unpacked(
    golden_archive, fetch_golden, server, packed, tmp_path, capsys
):
    pin, folder = golden_archive.Pin('golden-1', packed[1]), tmp_path / 'new' / '.golden'
    with pytest.raises(DownloadError, match='run again to continue'):
        fetch_golden.fetch_golden(server.url, folder, pin, attempts=1)
    assert fetch_golden.fetch_golden(server.url, folder, pin, attempts=1) == 0
    assert server.starts == [0, len(server.content) // 2]
    assert contents(folder).keys() == {*FILES, 'SHA256SUMS'} and os.listdir(folder.parent) == ['.golden']
    assert fetch_golden.fetch_golden(server.url, folder, pin) == 0
    assert len(server.starts) == 2
    assert capsys.readouterr().out == f'{folder}: 3 files of golden-1\n{folder}: golden-1 is complete\n'


def test_a_wrong_download_is_removed(golden_archive, fetch_golden, server, packed, tmp_path):
    server.content = server.content[:-30] + bytes(30)
    pin = golden_archive.Pin('golden-1', packed[1])
    with pytest.raises(BadFileError):
        fetch_golden.fetch_golden(server.url, tmp_path / 'new' / '.golden', pin, pause=0)
    assert os.listdir(tmp_path / 'new') == []


def test_nothing_is_downloaded_for_a_folder_of_something_else(
    golden_archive, fetch_golden, server, packed, tmp_path, monkeypatch
):
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'thesis.txt').write_bytes(b'x')
    monkeypatch.chdir(tmp_path / 'work')
    with pytest.raises(BadFileError, match='work: exists and has no SHA256SUMS'):
        fetch_golden.fetch_golden(server.url, Path(), golden_archive.Pin('golden-1', packed[1]))
    assert server.starts == [] and os.listdir() == ['thesis.txt']


def test_a_downloaded_file_is_unpacked_and_kept(fetch_golden, packed, tmp_path, capsys):
    path, digest = packed
    arguments = [str(path), '--folder', str(tmp_path / 'new')]
    assert fetch_golden.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f'error: {path}: SHA256SUMS has the SHA-256 {digest}, expected ') and error.count('\n') == 1
    assert fetch_golden.main([*arguments, '--sha256', digest]) == 0
    assert path.exists() and (tmp_path / 'new' / 'detectron' / 'empty').is_file()


@pytest.mark.parametrize(
    'remote',
    [
        'https://github.com/some-one/mask.rcnn.git',
        'https://github.com/some-one/mask.rcnn',
        'https://token@github.com/some-one/mask.rcnn/',
        'git@github.com:some-one/mask.rcnn.git',
        'ssh://git@github.com/some-one/mask.rcnn.git',
    ],
)
def test_the_release_is_that_of_the_remote(fetch_golden, tmp_path, remote):
    for command in (['init', '-q'], ['remote', 'add', 'origin', remote]):
        subprocess.run(['git', '-C', str(tmp_path), *command], check=True)
    address = 'https://github.com/some-one/mask.rcnn/releases/download/golden-1/golden-1.zip'
    assert fetch_golden.release_address('golden-1', tmp_path) == address


def test_other_remotes_need_an_address(fetch_golden, tmp_path):
    subprocess.run(['git', '-C', str(tmp_path), 'init', '-q'], check=True)
    with pytest.raises(Exception, match='no remote "origin"; name the address or the file of golden-1.zip'):
        fetch_golden.release_address('golden-1', tmp_path)
    subprocess.run(['git', '-C', str(tmp_path), 'remote', 'add', 'origin', 'https://example.org/x/y'], check=True)
    with pytest.raises(Exception, match='is https://example.org/x/y, not a repository on GitHub'):
        fetch_golden.release_address('golden-1', tmp_path)


def test_tests_find_the_folder_without_a_variable(tmp_path):
    """The order: the variable, ``.golden`` of the checkout, a folder beside the checkout."""
    checkout, beside = tmp_path / 'checkout', tmp_path / 'shared' / 'golden'
    with pytest.raises(pytest.skip.Exception, match=f'fetch_golden.py downloads them, and {GOLDEN_VARIABLE}'):
        find_golden(None, checkout)
    for folder in (beside, checkout / '.golden', tmp_path / 'named'):
        (folder / 'detectron').mkdir(parents=True)
        assert find_golden(str(folder) if folder.name == 'named' else None, checkout) == folder
    with pytest.raises(pytest.fail.Exception, match='has no folder named detectron'):
        find_golden(str(checkout), checkout)
