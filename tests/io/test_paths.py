"""Relations between paths; Windows is acted by ``ntpath``."""

import ntpath
import os
from pathlib import Path, PureWindowsPath

import pytest

from mask_rcnn.io import paths


@pytest.fixture
def windows(monkeypatch):
    r"""Let the functions take paths of Windows; the current folder is ``C:\data``."""
    monkeypatch.setattr(ntpath, 'abspath', lambda path: ntpath.normpath(ntpath.join('C:\\data', path)))
    for name in ('relpath', 'commonpath', 'abspath'):
        monkeypatch.setattr(paths.os.path, name, getattr(ntpath, name))
    monkeypatch.setattr(paths, 'Path', PureWindowsPath)


@pytest.mark.parametrize(
    ('path', 'folder', 'name'),
    [
        ('C:\\data\\a\\b.jpg', 'C:\\data', 'a/b.jpg'),
        ('a\\b.jpg', 'out', '../a/b.jpg'),
        ('c:\\DATA\\b.jpg', 'C:\\data', 'b.jpg'),
        ('D:\\photos\\b.jpg', 'C:\\data', 'D:/photos/b.jpg'),
        ('b.jpg', 'D:\\out', 'C:/data/b.jpg'),
    ],
)
def test_names_on_windows(windows, path, folder, name):
    assert paths.relative_name(path, folder) == name


def test_no_folder_contains_two_drives(windows):
    assert paths.deepest_folder(['C:\\data\\a', 'C:\\data\\b\\c']) == 'C:\\data'
    assert paths.deepest_folder(['C:\\data', 'D:\\data']) is None


def test_names_and_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.relative_name(tmp_path / 'a' / 'b.jpg', 'c') == '../a/b.jpg'
    assert paths.deepest_folder(['a', tmp_path / 'b']) == os.fspath(tmp_path)


def test_spellings_of_one_file():
    """Case, and the accent as a character of its own."""
    assert paths.spelling_key(Path('CAF\N{LATIN CAPITAL LETTER E WITH ACUTE}.png')) == paths.spelling_key(
        'cafe\N{COMBINING ACUTE ACCENT}.png'
    )
    assert paths.spelling_key('a.png') != paths.spelling_key('b.png')
