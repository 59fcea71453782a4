"""The names of image files in annotation files, in the spellings of other systems."""

import json
import os
import subprocess
import sys
import unicodedata

import pytest
from PIL import Image

from mask_rcnn.datasets.coco import COCODataset

POINTS = [2, 3, 12, 3, 12, 15]
OBJECT = {'id': 1, 'image_id': 1, 'category_id': 1, 'bbox': [2, 3, 10, 12], 'area': 60, 'segmentation': [POINTS]}


def write(folder, stored, declared):
    """Write an image file, whose name is bytes, and annotations that declare another name."""
    with open(os.fsencode(folder) + b'/' + stored, 'wb') as file:
        Image.new('RGB', (30, 20)).save(file, 'PNG')
    images = [{'id': 1, 'file_name': declared, 'height': 20, 'width': 30}]
    content = {'images': images, 'annotations': [OBJECT], 'categories': [{'id': 1, 'name': 'cat'}]}
    (folder / 'annotations.json').write_text(json.dumps(content))
    return folder / 'annotations.json'


NAMES = ['caf\xe9 \u9b5a.png', 'cafe\u0301.png', '\uac01.png']


@pytest.mark.parametrize('stored_form', ['NFC', 'NFD'])
@pytest.mark.parametrize('declared_form', ['NFC', 'NFD'])
@pytest.mark.parametrize('name', NAMES)
def test_composed_and_decomposed_letters(tmp_path, name, declared_form, stored_form):
    stored, declared = (unicodedata.normalize(form, name) for form in (stored_form, declared_form))
    path = write(tmp_path, stored.encode(), declared)
    assert COCODataset(path, tmp_path)[0].image.shape == (3, 20, 30)


def test_the_exact_spelling_comes_first(tmp_path):
    """The file of the declared name exists beside one whose letters are decomposed."""
    path = write(tmp_path, 'caf\xe9.png'.encode(), 'caf\xe9.png')
    Image.new('RGB', (7, 5)).save(tmp_path / 'cafe\u0301.png')
    assert COCODataset(path, tmp_path)[0].image.shape == (3, 20, 30)


def test_backslashes_and_decomposed_letters(tmp_path):
    (tmp_path / 'train').mkdir()
    path = write(tmp_path, 'train/cafe\u0301.png'.encode(), 'train\\caf\xe9.png')
    assert COCODataset(path, tmp_path)[0].image.shape == (3, 20, 30)


def test_names_in_utf_8_on_a_system_with_another_encoding(tmp_path):
    """In the locale C without Python's coercion, the encoding of file names is ASCII."""
    path = write(tmp_path, NAMES[0].encode(), NAMES[0])
    script = (
        'import sys; from mask_rcnn.datasets.coco import COCODataset; '
        'print(sys.getfilesystemencoding(), COCODataset(*sys.argv[1:])[0].image.shape)'
    )
    environment = os.environ | {'LC_ALL': 'C', 'PYTHONUTF8': '0', 'PYTHONCOERCECLOCALE': '0'}
    command = [sys.executable, '-c', script, str(path), str(tmp_path)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (process.stderr, process.stdout) == ('', 'ascii (3, 20, 30)\n')
