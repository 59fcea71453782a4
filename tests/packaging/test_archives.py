"""Archives are valid, complete, and equal for equal contents."""

import base64
import csv
import hashlib
import io
import os
import tarfile
import zipfile

import pytest

FILES = {
    'package/__init__.py': b'"""A package."""\n',
    'package-1.0.dist-info/METADATA': b'Metadata-Version: 2.1\nName: package\nVersion: 1.0\n',
    'package-1.0.dist-info/WHEEL': b'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n',
}


def test_the_record_of_a_wheel_lists_every_file_with_its_hash_and_size(archives, tmp_path):
    archives.write_wheel(tmp_path / 'package-1.0-py3-none-any.whl', FILES)
    with zipfile.ZipFile(tmp_path / 'package-1.0-py3-none-any.whl') as wheel:
        contents = {name: wheel.read(name) for name in wheel.namelist()}
    rows = csv.reader(io.StringIO(contents.pop('package-1.0.dist-info/RECORD').decode()))
    expected = {
        name: [
            'sha256=' + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('='),
            str(len(content)),
        ]
        for name, content in FILES.items()
    }
    assert contents == FILES
    assert {name: rest for name, *rest in rows} == {**expected, 'package-1.0.dist-info/RECORD': ['', '']}


def test_a_wheel_does_not_depend_on_the_order_of_its_files(archives, tmp_path):
    for name, files in (('a', FILES), ('b', dict(reversed(FILES.items())))):
        archives.write_wheel(tmp_path / name, files)
    assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


def write_zip(path, time, mode):
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in FILES.items():
            entry = zipfile.ZipInfo(name, time)
            entry.external_attr = mode << 16
            archive.writestr(entry, content)


def test_wheels_of_two_checkouts_become_equal(archives, tmp_path):
    write_zip(tmp_path / 'a.whl', (2024, 1, 2, 3, 4, 6), 0o664)
    write_zip(tmp_path / 'b.whl', (2026, 5, 6, 7, 8, 10), 0o600)
    for name in ('a.whl', 'b.whl'):
        archives.normalise_wheel(tmp_path / name)
    assert (tmp_path / 'a.whl').read_bytes() == (tmp_path / 'b.whl').read_bytes()
    with zipfile.ZipFile(tmp_path / 'a.whl') as wheel:
        assert {name: wheel.read(name) for name in wheel.namelist()} == FILES
        assert {entry.external_attr >> 16 for entry in wheel.infolist()} == {0o644}


@pytest.mark.parametrize('mode', [0o600, 0o664])
def test_source_archives_of_two_checkouts_become_equal(archives, tmp_path, mode):
    names = ['root/b.py', 'root/a.py'] if mode == 0o600 else ['root/a.py', 'root/b.py']
    path = tmp_path / 'root.tar.gz'
    with tarfile.open(path, 'w:gz') as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime, member.uname, member.uid = 4, mode, mode, os.name, mode
            tar.addfile(member, io.BytesIO(name[-4:].encode()))
    archives.normalise_sdist(path, lambda name, content: content.upper() if name == 'root/b.py' else content)
    with tarfile.open(path) as tar:
        members = [(member.name, member.mode, member.mtime, member.uid, member.uname) for member in tar]
        assert tar.extractfile('root/a.py').read() == b'a.py' and tar.extractfile('root/b.py').read() == b'B.PY'
    assert members == [(f'root/{name}.py', 0o644, 315532800, 0, '') for name in 'ab']
    assert path.read_bytes()[3:8] == bytes([0, *(315532800).to_bytes(4, 'little')])  # no file name; the time
