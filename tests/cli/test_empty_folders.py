"""Commands that fail remove the folders that they have created."""

import json
import os

import cv2
import numpy as np
import pytest

from mask_rcnn import cli
from mask_rcnn.io.atomic_file import FileError, created_folders
from mask_rcnn.weights import download

#: Command -> arguments whose input cannot be used, with {new} for a folder that does not exist (convert: modelfiles).
COMMANDS = {
    'demo': 'demo --image photo.png --modelfile broken.npz --output {new}/',
    'demo of several photos': 'demo --image photo.png other.png --modelfile broken.npz --output {new}/',
    'demo with annotations': 'demo --image photo.png --modelfile broken.npz --output a.png --annotations {new}/',
    'demo without a photo': 'demo --image broken.npz --modelfile broken.npz --output {new}/ --annotations {new}/b/',
    'convert': 'convert broken.npz',
    'convert of a missing file': 'convert missing.pkl',
    'inspect image': 'inspect image photo.png --modelfile broken.npz --out {new}/',
    'inspect weights': 'inspect weights broken.npz --out {new}/report.html',
    'inspect why': 'inspect why photo.png --modelfile broken.npz --detection 0 --out {new}/a.png',
    'inspect data': 'inspect data one.json . --out {new}/report.html',
    'data split': 'data split one.json . --out {new}',
    'data import': 'data import broken.npz --output {new}/a.json --copy-images {new}/images',
    'data stats': 'data stats broken.npz . --output {new}/a.png',
    'data show': 'data show broken.npz . --output {new}/a.png',
    'evaluate': 'evaluate --modelfile broken.npz --gpu -1 --out {new} --report {new}/report.html',
    'train': 'train --dataset shapes --gpu -1 --resume broken.npz --out {new}',
    'info': 'info broken.npz',
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two photos, a broken weight file and a dataset of one image, which cannot be divided."""
    for name in ('photo.png', 'other.png'):
        cv2.imwrite(str(tmp_path / name), np.full((60, 80, 3), 90, np.uint8))
    image = {'id': 1, 'file_name': 'photo.png', 'height': 60, 'width': 80}
    content = {'images': [image], 'annotations': [], 'categories': [{'id': 1, 'name': 'thing'}]}
    (tmp_path / 'one.json').write_text(json.dumps(content))
    (tmp_path / 'broken.npz').write_bytes(b'broken')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('new', ['new', 'new/deep', 'old/new'])
@pytest.mark.parametrize('command', COMMANDS)
def test_a_command_that_fails_leaves_no_empty_folder(command, new, folder, capsys):
    (folder / 'old').mkdir()
    before = sorted(folder.rglob('*'))
    assert cli.main(COMMANDS[command].format(new=new).split()) in (1, 2)
    assert 'error: ' in capsys.readouterr().err
    assert sorted(folder.rglob('*')) == before


def test_folders_with_files_and_folders_that_existed_stay(tmp_path):
    (tmp_path / 'old').mkdir()
    names = ('old', 'new/a', 'new', 'new/a/b', 'full/c', 'full/d')
    with created_folders(tmp_path / name for name in names):
        assert all((tmp_path / name).is_dir() for name in names)
        (tmp_path / 'full/c/file').write_text('')
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob('*')) == [
        *('full', 'full/c', 'full/c/file', 'old'),
    ]


def test_folders_before_one_that_cannot_be_created_are_removed(tmp_path):
    (tmp_path / 'z').write_text('')
    for folders in (['a/b', 'z'], [f'a/{"n" * 300}']):
        with pytest.raises(FileError, match='cannot be written'), created_folders(tmp_path / name for name in folders):
            pass
    assert os.listdir(tmp_path) == ['z']


def test_a_download_that_fails_leaves_no_folder(tmp_path):
    with pytest.raises(download.DownloadError):
        download.fetch('http://127.0.0.1:1/model.pkl', tmp_path / 'new' / 'model.pkl', attempts=1)
    assert os.listdir(tmp_path) == []
